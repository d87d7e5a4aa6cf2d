package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync/atomic"

	"lifeboat/disk"
	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/segment"
)

// Image is one disk of a restore point, open for reading. It is safe for
// concurrent use.
type Image struct {
	r      *Repository
	fetch  *fetcher
	blocks *blockmap.Map
	size   int64
	used   int64
	shift  uint // log2 of the block size
	what   string

	ctx    context.Context
	cancel context.CancelCauseFunc
	closed atomic.Bool
	ahead  readahead
}

var (
	_ disk.Image        = (*Image)(nil)
	_ disk.Mapper       = (*Image)(nil)
	_ disk.CachedReader = (*Image)(nil)
	_ disk.Usage        = (*Image)(nil)
)

// OpenDisk opens disk n (an index into p.Disks) for reading. It costs the same
// for any size of disk. Cancelling ctx fails reads in flight and to come.
func (r *Repository) OpenDisk(ctx context.Context, p *Point, n int) (*Image, error) {
	rec, err := r.recordOf(ctx, p)
	if err != nil {
		return nil, err
	}
	if n < 0 || n >= len(rec.Disks) {
		return nil, fmt.Errorf("disk %d of point %s: %w; it has %d", n, rec.ID, ErrNotFound, len(rec.Disks))
	}
	d := rec.Disks[n]
	what := fmt.Sprintf("disk %d of point %s (%s)", n, rec.ID, rec.VM)
	blocks, err := r.maps.Open(d.tree(r.blockSize))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", what, damaged(err))
	}
	m := &Image{r: r, fetch: r.fetch, blocks: blocks, size: d.Size, used: d.Used, shift: r.shift, what: what}
	m.ctx, m.cancel = context.WithCancelCause(ctx)
	m.ahead.init(r.aheadMax, r.farMax)
	return m, nil
}

// ReadAt reads from the disk. Damage is an error that matches ErrDamaged and
// names the object; wrong bytes are never returned.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %s at %d: %w", m.what, off, disk.ErrOutOfRange)
	}
	if off >= m.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > m.size-off {
		p, eof = p[:m.size-off], io.EOF
	}
	m.readAhead(off, len(p))
	for n := 0; n < len(p); {
		got, err := m.readSome(p[n:], off+int64(n))
		n += got
		if err != nil {
			return n, m.wrap(err, off+int64(n))
		}
	}
	return len(p), eof
}

// readSome reads a part of p, from its start: what is left of a block or, of
// large reads, many blocks at once.
func (m *Image) readSome(p []byte, off int64) (int, error) {
	end := m.toBlockEnd(off)
	if whole := len(p) &^ (1<<m.shift - 1); end == 1<<m.shift && whole >= directMin {
		if err := m.ctx.Err(); err != nil {
			return 0, context.Cause(m.ctx)
		}
		return m.readDirect(p[:min(whole, directMax)], off)
	}
	p = p[:min(len(p), end)]
	if err := m.readPart(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// toBlockEnd is how many bytes there are from off to the end of its block.
func (m *Image) toBlockEnd(off int64) int {
	return 1<<m.shift - int(off&(1<<m.shift-1))
}

// readPart reads a part of one block.
func (m *Image) readPart(p []byte, off int64) error {
	if err := m.ctx.Err(); err != nil {
		return context.Cause(m.ctx)
	}
	addr, err := m.address(off >> m.shift)
	if err != nil {
		return err
	}
	switch addr {
	case segment.Hole:
		clear(p)
		return nil
	case segment.Unreadable:
		return errUnreadable
	}
	return m.fetch.read(m.ctx, addr, p, int(off&(1<<m.shift-1)))
}

// address looks a block up.
func (m *Image) address(block int64) (segment.Addr, error) {
	if addr, ok := m.blocks.LookupCached(block); ok {
		return addr, nil
	}
	return m.blocks.Lookup(m.ctx, block)
}

// ReadCached fills p if all of it is in memory; see disk.CachedReader.
func (m *Image) ReadCached(p []byte, off int64) bool {
	if off < 0 || int64(len(p)) > m.size-off || m.closed.Load() {
		return false
	}
	start, length := off, len(p)
	for len(p) > 0 {
		part := p[:min(len(p), m.toBlockEnd(off))]
		addr, ok := m.blocks.LookupCached(off >> m.shift)
		switch {
		case !ok || addr == segment.Unreadable:
			return false
		case addr == segment.Hole:
			clear(part)
		case !m.fetch.cached(addr, part, int(off&(1<<m.shift-1))):
			return false
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	if m.ahead.triggered(start, length) {
		m.readAhead(start, length)
	}
	return true
}

// wrap says which read failed.
func (m *Image) wrap(err error, off int64) error {
	if m.closed.Load() {
		err = ErrClosed
	}
	return fmt.Errorf("read %s at %d: %w", m.what, off, damaged(err))
}

// Size is the virtual size in bytes.
func (m *Image) Size() int64 { return m.size }

// Used is the number of bytes in blocks that are not holes.
func (m *Image) Used() int64 { return m.used }

// Extents tells data from holes, in whole blocks.
func (m *Image) Extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		from, end := max(within.Offset, 0), min(within.End(), m.size)
		if within.Length <= 0 || from >= end {
			return
		}
		lastBlock := (end + 1<<m.shift - 1) >> m.shift
		for run, err := range m.r.maps.Walk(ctx, m.blocks.Tree(), from>>m.shift, lastBlock) {
			if err != nil {
				yield(disk.Extent{}, m.wrap(err, from))
				return
			}
			start := max(from, run.Block<<m.shift)
			stop := min(end, (run.Block+run.Count)<<m.shift)
			if start > from && !yield(disk.Extent{Offset: from, Length: start - from, Hole: true}, nil) {
				return
			}
			if start < stop && !yield(disk.Extent{Offset: start, Length: stop - start}, nil) {
				return
			}
			from = max(from, stop)
		}
		if from < end {
			yield(disk.Extent{Offset: from, Length: end - from, Hole: true}, nil)
		}
	}
}

// Close lets go of the image and waits for its reads ahead. Reads after it fail
// with ErrClosed.
func (m *Image) Close() error {
	if m.closed.Swap(true) {
		return nil
	}
	m.cancel(ErrClosed)
	m.ahead.stop()
	return nil
}

// errUnreadable is for blocks that a repair gave up on.
var errUnreadable = fmt.Errorf("%w: the content was lost, and the block marked so by a repair", ErrDamaged)

// damaged makes the damage that inner packages report match ErrDamaged.
func damaged(err error) error {
	if err == nil || errors.Is(err, ErrDamaged) || !errors.Is(err, segment.ErrDamaged) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}
