package ntfs

import (
	"context"
	"fmt"
	"io"
	"iter"
	"os"

	"lifeboat/disk"
)

const (
	// windowSize is how much is decompressed at a time at least, in bytes.
	windowSize = 64 << 10
	// keptWindows is how many windows an open file keeps, for small reads.
	keptWindows = 4
)

// codec decompresses the content of a file, window by window.
type codec interface {
	// decode fills p with what the file has at off, which is where a window
	// begins. It is safe for concurrent use.
	decode(ctx context.Context, p []byte, off int64) error
	// hole is how many bytes from off, where a window begins, are not stored and
	// read as zeros; 0 where the window is data.
	hole(ctx context.Context, off int64) (int64, error)
}

// encoded is a compressed file, decompressed.
type encoded struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	size   int64
	window int64
	codec  codec
	recent *lru[int64, []byte]
}

func newEncoded(ctx context.Context, size, window int64, c codec) *encoded {
	ctx, cancel := context.WithCancelCause(ctx)
	return &encoded{ctx: ctx, cancel: cancel, size: size, window: window, codec: c, recent: newLRU[int64, []byte](keptWindows)}
}

// Size implements [disk.Image].
func (e *encoded) Size() int64 { return e.size }

// Close implements [disk.Image].
func (e *encoded) Close() error {
	e.cancel(os.ErrClosed)
	return nil
}

// ReadAt implements [disk.Image]. Whole windows are decompressed to where they
// are wanted.
func (e *encoded) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, disk.ErrOutOfRange)
	}
	var short error
	if off >= e.size || int64(len(p)) > e.size-off {
		short = io.EOF
		p = p[:max(0, min(int64(len(p)), e.size-off))]
	}
	done := 0
	for done < len(p) {
		if e.ctx.Err() != nil {
			return done, context.Cause(e.ctx)
		}
		at := off + int64(done)
		start := at / e.window * e.window
		n := min(e.window, e.size-start)
		if at == start && int64(len(p)-done) >= n {
			if err := e.codec.decode(e.ctx, p[done:done+int(n)], start); err != nil {
				return done, err
			}
			done += int(n)
			continue
		}
		b, err := e.cached(start, n)
		if err != nil {
			return done, err
		}
		done += copy(p[done:], b[at-start:])
	}
	return done, short
}

// cached is a window, kept for the next small read.
func (e *encoded) cached(start, n int64) ([]byte, error) {
	if b, ok := e.recent.get(start); ok {
		return b, nil
	}
	b := make([]byte, n)
	if err := e.codec.decode(e.ctx, b, start); err != nil {
		return nil, err
	}
	e.recent.put(start, b)
	return b, nil
}

// Extents implements [disk.Mapper].
func (e *encoded) Extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		end := min(within.End(), e.size)
		for off := max(0, within.Offset); off < end; {
			if ctx.Err() != nil {
				yield(disk.Extent{}, context.Cause(ctx))
				return
			}
			start := off / e.window * e.window
			n, err := e.codec.hole(e.ctx, start)
			if err != nil {
				yield(disk.Extent{}, err)
				return
			}
			next := start + e.window
			if n > 0 {
				next = start + n
			}
			next = min(next, end)
			if !yield(disk.Extent{Offset: off, Length: next - off, Hole: n > 0}, nil) {
				return
			}
			off = next
		}
	}
}
