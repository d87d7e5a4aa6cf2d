package disk

import (
	"context"
	"fmt"
	"io"
	"iter"
	"math"
	"sync/atomic"
)

// layer is one image of a chain as this package sees it. Reads are whole and
// inside the size: [image] takes care of the edges.
type layer interface {
	size() int64
	// read fills p with the content from off. off+len(p) ≤ size.
	read(p []byte, off int64) error
	// run tells what the disk is from off on: r.Offset == off, and
	// 0 < r.Length ≤ limit. off+limit ≤ size, limit > 0.
	run(off, limit int64) (Extent, error)
}

// image is a layer with everything under it, for users of the package.
type image struct {
	layer
	format Format
	opener *opener
	used   atomic.Int64 // bytes of data + 1; 0 = not counted yet
}

// Size implements Image.
func (m *image) Size() int64 { return m.size() }

// Format implements Described.
func (m *image) Format() Format { return m.format }

// Close implements Image. Reads in flight fail with os.ErrClosed or finish.
func (m *image) Close() error { return m.opener.close() }

// ReadAt implements io.ReaderAt.
func (m *image) ReadAt(p []byte, off int64) (int, error) {
	if err := context.Cause(m.opener.ctx); err != nil {
		return 0, fmt.Errorf("read %s: %w", m.opener.name, err)
	}
	if off < 0 {
		return 0, fmt.Errorf("read %s at %d: %w", m.opener.name, off, ErrOutOfRange)
	}
	if off >= m.size() {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), m.size()-off))
	if err := m.read(p[:n], off); err != nil {
		return 0, fmt.Errorf("read %s: %d bytes at %d: %w", m.opener.name, n, off, m.cause(err))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// cause is why a read failed: the cancelled context or Close, where that is the
// reason behind err.
func (m *image) cause(err error) error {
	if cause := context.Cause(m.opener.ctx); cause != nil {
		return cause
	}
	return err
}

// Extents implements Mapper. Neighbouring runs of one kind come as one.
func (m *image) Extents(ctx context.Context, within Extent) iter.Seq2[Extent, error] {
	within = clip(within, m.size())
	return func(yield func(Extent, error) bool) {
		for at := within.Offset; at < within.End(); {
			ext, err := m.merged(ctx, at, within.End())
			if err != nil {
				yield(Extent{}, fmt.Errorf("map %s at %d: %w", m.opener.name, at, m.cause(err)))
				return
			}
			if !yield(ext, nil) {
				return
			}
			at = ext.End()
		}
	}
}

// maxMerged bounds how many runs are put together, so that the first extents of
// a large disk come soon.
const maxMerged = 4096

// merged is the run from at that is all of one kind, up to end. The run after
// it is asked for twice, which its cached table makes cheap.
func (m *image) merged(ctx context.Context, at, end int64) (Extent, error) {
	sum := Extent{Offset: at}
	for range maxMerged {
		if at >= end {
			break
		}
		if err := ctx.Err(); err != nil {
			return Extent{}, err
		}
		if err := context.Cause(m.opener.ctx); err != nil {
			return Extent{}, err
		}
		ext, err := m.run(at, end-at)
		if err != nil {
			return Extent{}, err
		}
		if ext.Hole != sum.Hole && sum.Length > 0 {
			break
		}
		sum.Hole = ext.Hole
		sum.Length += ext.Length
		at = ext.End()
	}
	return sum, nil
}

// Used implements Usage: the sum of the runs of data. The first call walks the
// mapping tables, later ones remember. Where the tables are damaged it is Size.
func (m *image) Used() int64 {
	if u := m.used.Load(); u > 0 {
		return u - 1
	}
	var sum int64
	for ext, err := range m.Extents(m.opener.ctx, Extent{Length: math.MaxInt64}) {
		if err != nil {
			return m.size()
		}
		if !ext.Hole {
			sum += ext.Length
		}
	}
	m.used.Store(sum + 1)
	return sum
}

// over is a layer whose unallocated parts show the layer below it.
type over struct {
	length int64
	tables mapping
	below  layer // nil: unallocated reads as zeros
}

// mapping tells where the content of a layer's own disk is.
type mapping interface {
	// at describes the piece from off on, at most limit bytes of it.
	at(off, limit int64) (piece, error)
	// readPiece fills p, which is as long as the piece, from one of data.
	readPiece(pc piece, p []byte) error
}

// pieceKind is what a layer has to say about a piece of its disk.
type pieceKind uint8

const (
	absent     pieceKind = iota // the layer below decides
	zeros                       // reads as zeros
	data                        // bytes in the file, as they are
	compressed                  // one compressed cluster; the piece may be a part of it
)

// piece is a run of a layer's disk that lies in one piece in its file.
type piece struct {
	kind   pieceKind
	off    int64  // on the disk
	length int64  // > 0
	host   int64  // data: its place in the file
	entry  uint64 // compressed: the table's entry
}

func (l *over) size() int64 { return l.length }

func (l *over) read(p []byte, off int64) error {
	for len(p) > 0 {
		pc, err := l.tables.at(off, int64(len(p)))
		if err != nil {
			return err
		}
		if err := l.readOne(pc, p[:pc.length]); err != nil {
			return err
		}
		p, off = p[pc.length:], off+pc.length
	}
	return nil
}

func (l *over) readOne(pc piece, p []byte) error {
	switch pc.kind {
	case data, compressed:
		return l.tables.readPiece(pc, p)
	case absent:
		if l.below != nil {
			return readClipped(l.below, p, pc.off)
		}
	}
	clear(p)
	return nil
}

// readClipped reads from a layer that may be shorter than the one above it:
// what is beyond its end is zeros.
func readClipped(l layer, p []byte, off int64) error {
	n := max(0, min(int64(len(p)), l.size()-off))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return l.read(p[:n], off)
}

func (l *over) run(off, limit int64) (Extent, error) {
	pc, err := l.tables.at(off, limit)
	if err != nil {
		return Extent{}, err
	}
	ext := Extent{Offset: off, Length: pc.length}
	switch {
	case pc.kind == data || pc.kind == compressed:
		return ext, nil
	case pc.kind == absent && l.below != nil && off < l.below.size():
		return l.below.run(off, min(pc.length, l.below.size()-off))
	}
	ext.Hole = true
	return ext, nil
}
