package appliance

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"sync/atomic"

	"lifeboat/disk"
)

// thinned is a disk of which only what is allocated has to be read: the rest is
// zeros, by the word of the datastore. That word is taken only where the point
// before has zeros, too, so that no data is ever replaced by zeros on a promise.
type thinned struct {
	disk.Image
	allocated areas
	before    disk.Image // the disk in the point before, or nil
}

// Extents implements disk.Mapper.
func (t *thinned) Extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	promised := masked{Image: t.Image, holes: t.allocated.outside(t.Size())}
	return func(yield func(disk.Extent, error) bool) {
		for e, err := range promised.Extents(ctx, within) {
			if err != nil || !e.Hole || t.before == nil {
				if !yield(e, err) || err != nil {
					return
				}
				continue
			}
			if !t.confirm(ctx, e, yield) {
				return
			}
		}
	}
}

// confirm yields a promised hole as what the point before has there.
func (t *thinned) confirm(ctx context.Context, hole disk.Extent, yield func(disk.Extent, error) bool) bool {
	at := hole.Offset
	for e, err := range disk.Extents(ctx, t.before, hole) {
		if err != nil {
			yield(e, err)
			return false
		}
		if !yield(e, nil) {
			return false
		}
		at = e.End()
	}
	// Behind the end of the disk as it was then.
	return at >= hole.End() || yield(disk.Extent{Offset: at, Length: hole.End() - at, Hole: true}, nil)
}

// auditor compares what is read with the point before, outside of what change
// tracking claims to have changed. A difference there is a change that it missed.
type auditor struct {
	disk.Image
	before  disk.Image
	claimed areas

	missed atomic.Int64 // bytes, in pieces of auditPiece
	mu     sync.Mutex
	first  int64 // offset of a missed change, where missed is not 0
	unsure error // why the point before could not be compared with everywhere
}

// auditPiece is the unit in which missed changes are counted, in bytes.
const auditPiece = 4096

// ReadAt implements io.ReaderAt.
func (a *auditor) ReadAt(p []byte, off int64) (int, error) {
	n, err := a.Image.ReadAt(p, off)
	if n > 0 {
		a.compare(p[:n], off)
	}
	return n, err
}

func (a *auditor) compare(p []byte, off int64) {
	for _, e := range (areas{{Offset: off, Length: int64(len(p))}}).without(a.claimed.within(off, int64(len(p)))) {
		was := make([]byte, e.Length)
		n, err := a.before.ReadAt(was, e.Offset)
		if err != nil && !errors.Is(err, io.EOF) {
			a.mu.Lock()
			a.unsure = err
			a.mu.Unlock()
			continue
		}
		_ = n // behind the end of the disk then: zeros
		is := p[e.Offset-off:][:e.Length]
		if bytes.Equal(is, was) {
			continue
		}
		for i := 0; i < len(is); i += auditPiece {
			if end := min(i+auditPiece, len(is)); !bytes.Equal(is[i:end], was[i:end]) {
				a.miss(e.Offset+int64(i), int64(end-i))
			}
		}
	}
}

func (a *auditor) miss(off, n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.missed.Add(n) == n || off < a.first {
		a.first = off
	}
}

// Extents implements disk.Mapper.
func (a *auditor) Extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return disk.Extents(ctx, a.Image, within)
}
