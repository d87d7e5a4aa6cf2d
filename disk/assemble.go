package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
)

// Piece is a run of bytes of an assembled disk and where it comes from.
type Piece struct {
	Offset int64 // in the assembled disk
	Length int64 // bytes, > 0
	From   Image // nil: it reads as zeros and nothing is stored for it
	At     int64 // offset in From
}

// Assemble makes a disk of size bytes of pieces of others. piece returns the
// piece that contains off, 0 ≤ off < size; it must be safe for concurrent use,
// and what it returns for an offset must not change. A piece that does not
// contain off, or that lies outside the disk that it comes from, is an error of
// the read. ctx governs all reads. Close ends them and leaves the parts open:
// they are their owner's.
func Assemble(ctx context.Context, size int64, piece func(off int64) (Piece, error)) Image {
	ctx, cancel := context.WithCancelCause(ctx)
	return &assembled{ctx: ctx, cancel: cancel, total: size, piece: piece}
}

// Section is the n bytes of img from off, as a disk. What lies behind the end of
// img is missing from it.
func Section(ctx context.Context, img Image, off, n int64) Image {
	off = max(0, min(off, img.Size()))
	n = max(0, min(n, img.Size()-off))
	whole := Piece{Offset: 0, Length: n, From: img, At: off}
	return Assemble(ctx, n, func(int64) (Piece, error) { return whole, nil })
}

type assembled struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	total  int64
	piece  func(off int64) (Piece, error)
}

func (a *assembled) Size() int64 { return a.total }

func (a *assembled) Close() error {
	a.cancel(os.ErrClosed)
	return nil
}

func (a *assembled) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, ErrOutOfRange)
	}
	var short error
	if off >= a.total || int64(len(p)) > a.total-off {
		short = io.EOF
		p = p[:max(0, min(int64(len(p)), a.total-off))]
	}
	done := 0
	for done < len(p) {
		if a.ctx.Err() != nil {
			return done, context.Cause(a.ctx)
		}
		pc, err := a.at(off + int64(done))
		if err != nil {
			return done, err
		}
		n, err := pc.read(p[done:min(int64(len(p)), int64(done)+pc.Length)])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, short
}

// at is the rest of the piece at off, checked.
func (a *assembled) at(off int64) (Piece, error) {
	pc, err := a.piece(off)
	if err != nil {
		return pc, err
	}
	skip := off - pc.Offset
	if skip < 0 || pc.Length <= skip {
		return pc, fmt.Errorf("offset %d is not in the piece of %d bytes at %d that was found for it", off, pc.Length, pc.Offset)
	}
	pc.Offset, pc.Length, pc.At = off, min(pc.Length-skip, a.total-off), pc.At+skip
	if pc.From != nil && (pc.At < 0 || pc.At > pc.From.Size()-pc.Length) {
		return pc, fmt.Errorf("%d bytes at %d lie outside a disk of %d bytes: %w", pc.Length, pc.At, pc.From.Size(), ErrOutOfRange)
	}
	return pc, nil
}

func (pc Piece) read(p []byte) (int, error) {
	if pc.From == nil {
		clear(p)
		return len(p), nil
	}
	n, err := pc.From.ReadAt(p, pc.At)
	if n == len(p) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Extents implements [Mapper], as fine as the parts can tell.
func (a *assembled) Extents(ctx context.Context, within Extent) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		end := min(within.End(), a.total)
		for off := max(0, within.Offset); off < end; {
			if ctx.Err() != nil {
				yield(Extent{}, context.Cause(ctx))
				return
			}
			pc, err := a.at(off)
			if err != nil {
				yield(Extent{}, err)
				return
			}
			pc.Length = min(pc.Length, end-off)
			if !pc.extents(ctx, yield) {
				return
			}
			off += pc.Length
		}
	}
}

// extents yields what the piece is made of and reports whether to go on.
func (pc Piece) extents(ctx context.Context, yield func(Extent, error) bool) bool {
	m, ok := pc.From.(Mapper)
	if !ok {
		return yield(Extent{Offset: pc.Offset, Length: pc.Length, Hole: pc.From == nil}, nil)
	}
	for e, err := range m.Extents(ctx, Extent{Offset: pc.At, Length: pc.Length}) {
		if err != nil {
			yield(Extent{}, err)
			return false
		}
		if !yield(Extent{Offset: pc.Offset + e.Offset - pc.At, Length: e.Length, Hole: e.Hole}, nil) {
			return false
		}
	}
	return true
}

// Bytes is a disk in memory. It does not copy b, which must not change.
func Bytes(ctx context.Context, b []byte) Image {
	return Section(ctx, memory(b), 0, int64(len(b)))
}

// memory is bytes as an Image that needs no closing.
type memory []byte

func (m memory) Size() int64  { return int64(len(m)) }
func (m memory) Close() error { return nil }

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > m.Size() {
		return 0, io.EOF
	}
	n := copy(p, m[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
