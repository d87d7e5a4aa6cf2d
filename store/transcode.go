package store

import (
	"fmt"
	"io"
	"sync"

	"lifeboat/store/internal/segment"
)

// packedSource is a source of AddDisk that has its blocks compressed already:
// a disk of another repository.
type packedSource interface {
	// packed gives up a block that was read as it was compressed; nil where it
	// has none. It is asked once for each block that is read.
	packed(block int64) *segment.Packed
}

// compressed is a block that was just read, as its source had it compressed;
// nil where it has to be compressed here.
func (d *diskPipe) compressed(block int64) *segment.Packed {
	if src, ok := d.src.(packedSource); ok {
		return src.packed(block)
	}
	return nil
}

// transcoder reads a disk of one repository for another of the same block size.
// It keeps each block as it was compressed until the writer has seen it, so that
// what is new there is decompressed (for its identity) and sealed again, and not
// compressed again: which is most of the work. Plaintext and compressed form
// come from the same bytes, read once.
//
// It passes the frame cache by: everything is read once.
type transcoder struct {
	*Image

	mu   sync.Mutex
	kept map[int64]*segment.Packed
}

func newTranscoder(m *Image) *transcoder {
	return &transcoder{Image: m, kept: make(map[int64]*segment.Packed)}
}

// ReadAt implements disk.Image. Reads that are not of whole blocks, which the
// writer does not do, come from the image.
func (t *transcoder) ReadAt(p []byte, off int64) (int, error) {
	if !t.whole(off, len(p)) {
		return t.Image.ReadAt(p, off)
	}
	for n := 0; n < len(p); {
		done, err := t.readRun(p[n:], (off+int64(n))>>t.shift)
		if err != nil {
			return n, t.wrap(err, off+int64(n))
		}
		n += done
	}
	return len(p), nil
}

// whole reports whether a read is of whole blocks inside the disk; the last
// block of the disk may be shorter.
func (t *transcoder) whole(off int64, n int) bool {
	end := off + int64(n)
	mask := int64(1)<<t.shift - 1
	return off >= 0 && off&mask == 0 && end <= t.size && (end&mask == 0 || end == t.size)
}

// readRun reads blocks from block on that stand at consecutive addresses, or
// one hole, and returns the bytes done.
func (t *transcoder) readRun(p []byte, block int64) (int, error) {
	size := 1 << t.shift
	addr, err := t.blocks.Lookup(t.ctx, block)
	switch {
	case err != nil:
		return 0, err
	case addr == segment.Unreadable:
		return 0, errUnreadable
	case addr == segment.Hole || len(p) < size:
		// The rest of the last block is zeros that p has no room for.
		return t.readPlain(p[:min(size, len(p))], block)
	}
	count := 1
	for ; count < len(p)/size; count++ {
		next, err := t.blocks.Lookup(t.ctx, block+int64(count))
		if err != nil {
			return 0, err
		}
		if next != addr+segment.Addr(count) {
			break
		}
	}
	var odd error
	err = t.r.segments.ReadRun(t.ctx, addr, count, size, p, func(i int, packed *segment.Packed) {
		if packed.Kind != segment.Data {
			odd = fmt.Errorf("%w: %v is not a block of a disk", ErrDamaged, addr+segment.Addr(i))
			return
		}
		t.keep(block+int64(i), packed)
	})
	if err == nil {
		err = odd
	}
	return count * size, err
}

func (t *transcoder) readPlain(p []byte, block int64) (int, error) {
	n, err := t.Image.ReadAt(p, block<<t.shift)
	if err == io.EOF && n == len(p) {
		err = nil
	}
	return n, err
}

func (t *transcoder) keep(block int64, p *segment.Packed) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept[block] = p
}

func (t *transcoder) packed(block int64) *segment.Packed {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.kept[block]
	delete(t.kept, block)
	return p
}
