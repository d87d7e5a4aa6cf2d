package btrfs

import (
	"container/list"
	"context"
	"math"
	"sync"
)

// data is the content of all files by address, verified: disk.Image that a piece
// of a file comes from.
type data struct {
	ctx context.Context
	f   *FS
	in  *inode
}

// Size implements disk.Image.
func (d *data) Size() int64 { return math.MaxInt64 }

// Close implements disk.Image.
func (d *data) Close() error { return nil }

// ReadAt implements disk.Image. Checksums are of sectors: whole ones are read to
// where they are wanted, parts through a buffer.
func (d *data) ReadAt(p []byte, off int64) (int, error) {
	size := int64(d.f.sb.sectorSize)
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if whole := int64(len(p)-done) &^ (size - 1); at%size == 0 && whole > 0 {
			if err := d.f.readData(d.ctx, d.in, p[done:done+int(whole)], uint64(at)); err != nil {
				return done, err
			}
			done += int(whole)
			continue
		}
		b := make([]byte, size)
		if err := d.f.readData(d.ctx, d.in, b, uint64(at&^(size-1))); err != nil {
			return done, err
		}
		done += copy(p[done:], b[at%size:])
	}
	return done, nil
}

// readData reads whole sectors and verifies them, whichever copy is good.
func (f *FS) readData(ctx context.Context, in *inode, p []byte, at uint64) error {
	err := f.v.read(ctx, p, at, 0)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	unsummed := in.u64(inFlags)&flagNoSums != 0
	if err == nil && unsummed {
		return nil
	}
	size := uint64(f.sb.sectorSize)
	var sums sumsOf
	for off := uint64(0); off < uint64(len(p)); off += size {
		want := []byte(nil)
		if !unsummed {
			sum, sumErr := sums.at(ctx, f, at+off)
			if sumErr != nil {
				return sumErr
			}
			if want = sum; want == nil {
				return in.corrupt("the content at address %d has no checksum", at+off)
			}
		}
		if err == nil && f.sb.sum.ok(p[off:off+size], want) {
			continue
		}
		if e := f.otherCopy(ctx, in, p[off:off+size], at+off, want, err); e != nil {
			return e
		}
	}
	return nil
}

// otherCopy reads a sector from wherever it is good; want is its checksum, if it
// has one, and first is why the first copy is not.
func (f *FS) otherCopy(ctx context.Context, in *inode, p []byte, at uint64, want []byte, first error) error {
	for mirror := range f.v.copies(at) {
		err := f.v.read(ctx, p, at, mirror)
		if err == nil && (want == nil || f.sb.sum.ok(p, want)) {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	if first != nil {
		return first
	}
	return in.corrupt("the content at address %d has a wrong checksum", at)
}

// sumsOf finds the checksums of sectors that follow each other.
type sumsOf struct {
	item item
	ok   bool
}

// at is that of the sector at an address, nil where there is none.
func (s *sumsOf) at(ctx context.Context, f *FS, at uint64) ([]byte, error) {
	size := uint64(f.sb.sum.size)
	index := func() (uint64, bool) {
		i := (at - s.item.offset) / uint64(f.sb.sectorSize)
		return i * size, s.ok && at >= s.item.offset && (i+1)*size <= uint64(len(s.item.data))
	}
	if i, ok := index(); ok {
		return s.item.data[i : i+size], nil
	}
	for _, v := range append(f.logSums[:len(f.logSums):len(f.logSums)], f.sums) { // what was synced is newer
		if v.empty() {
			continue
		}
		it, ok, err := v.floor(ctx, key{idExtentSum, kindSum, at})
		if err != nil {
			return nil, err
		}
		s.item, s.ok = it, ok && it.id == idExtentSum && it.kind == kindSum
		if i, ok := index(); ok {
			return s.item.data[i : i+size], nil
		}
	}
	return nil, nil
}

// encoded is what a compressed extent decodes to, a disk.Image. It is decoded when
// it is read.
type encoded struct {
	ctx context.Context
	f   *FS
	in  *inode
	e   extent
}

// Size implements disk.Image.
func (c *encoded) Size() int64 { return int64(c.e.decoded) }

// Close implements disk.Image.
func (c *encoded) Close() error { return nil }

// ReadAt implements disk.Image.
func (c *encoded) ReadAt(p []byte, off int64) (int, error) {
	b, err := c.f.decode(c.ctx, c.in, c.e)
	if err != nil {
		return 0, err
	}
	return copy(p, b[off:]), nil
}

// decode decodes a compressed extent, or remembers what it decoded to.
func (f *FS) decode(ctx context.Context, in *inode, e extent) ([]byte, error) {
	if e.kind == typeInline {
		return f.decompress(in, e, e.inline)
	}
	if b := f.decoded.get(e); b != nil {
		return b, nil
	}
	size := uint64(f.sb.sectorSize)
	b := make([]byte, (e.stored+size-1)&^(size-1))
	if err := f.readData(ctx, in, b, e.at); err != nil {
		return nil, err
	}
	out, err := f.decompress(in, e, b[:e.stored])
	if err == nil {
		f.decoded.put(e, out)
	}
	return out, err
}

// decodedCache keeps what extents decoded to. Safe for concurrent use.
type decodedCache struct {
	limit int

	mu    sync.Mutex
	used  int
	kept  map[decodedKey]*list.Element
	order list.List // of *decodedExtent, latest in front
}

type decodedKey struct {
	at, decoded uint64
	compression byte
}

type decodedExtent struct {
	key  decodedKey
	data []byte
}

func newDecodedCache(limit int) *decodedCache {
	return &decodedCache{limit: limit, kept: map[decodedKey]*list.Element{}}
}

func (c *decodedCache) get(e extent) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	el := c.kept[decodedKey{e.at, e.decoded, e.compression}]
	if el == nil {
		return nil
	}
	c.order.MoveToFront(el)
	return el.Value.(*decodedExtent).data
}

func (c *decodedCache) put(e extent, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := decodedKey{e.at, e.decoded, e.compression}
	if c.kept[k] != nil {
		return
	}
	c.kept[k] = c.order.PushFront(&decodedExtent{k, b})
	for c.used += len(b); c.used > c.limit && c.order.Len() > 1; {
		last := c.order.Remove(c.order.Back()).(*decodedExtent)
		delete(c.kept, last.key)
		c.used -= len(last.data)
	}
}
