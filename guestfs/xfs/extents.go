package xfs

import (
	"context"
	"encoding/binary"
	"iter"
	"math"
	"sort"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// Extents (struct xfs_bmbt_rec): 128 bits, of which 1 says that nothing has been
// written yet, 54 are the block in the file, 52 that on the volume, 21 the count.
// They stand in the inode, or in the leaves of a B+tree whose root does.
const (
	extentBytes = 16
	maxCount    = 1<<21 - 1
	endOfFile   = 1 << 54 // block behind the last one there can be
	maxHole     = 1 << 62 // bytes

	bmapMagic4  = 0x424d4150 // "BMAP"
	bmapMagic5  = 0x424d4133 // "BMA3"
	bmapHeader4 = 24
	bmapHeader5 = 72
	maxLevels   = 9 // XFS_BTREE_MAXLEVELS
)

// extent is a run of blocks; of count 0, none.
type extent struct {
	off, start, count uint64
	unwritten         bool
}

func parseExtent(b []byte) extent {
	hi, lo := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	return extent{off: hi << 1 >> 10, start: hi&(1<<9-1)<<43 | lo>>21, count: lo & maxCount, unwritten: hi>>63 != 0}
}

// piece finds the piece of a fork that contains byte off.
func (f *FS) piece(ctx context.Context, in *inode, k fork, off int64) (disk.Piece, error) {
	block := uint64(off) >> f.sb.blockLog
	e, next, err := f.lookup(ctx, in, k, block)
	if err != nil {
		return disk.Piece{}, err
	}
	if e.count == 0 {
		return disk.Piece{Offset: off, Length: f.span(off, next-block) - off&int64(f.sb.blockSize-1)}, nil
	}
	p := disk.Piece{Offset: int64(e.off) << f.sb.blockLog}
	p.Length = f.span(p.Offset, e.count)
	if e.unwritten {
		return p, nil
	}
	p.From = f.disk
	p.At, err = f.place(in, e)
	return p, err
}

// span is n blocks from byte off on, in bytes, as far as a file can reach.
func (f *FS) span(off int64, n uint64) int64 {
	return min(int64(min(n, maxHole>>f.sb.blockLog))<<f.sb.blockLog, math.MaxInt64-off)
}

// place is where on the volume an extent begins, in bytes.
func (f *FS) place(in *inode, e extent) (int64, error) {
	at, ok := f.sb.linear(e.start, e.count)
	if !ok {
		return 0, corrupt("inode %d: %d blocks at %d, which is not on the volume", in.number, e.count, e.start)
	}
	return int64(at) << f.sb.blockLog, nil
}

// PhysicalExtents implements [guestfs.Mapped].
func (f *FS) PhysicalExtents(ctx context.Context, number guestfs.Inode) iter.Seq2[guestfs.PhysicalExtent, error] {
	return func(yield func(guestfs.PhysicalExtent, error) bool) {
		in, k, err := f.file(ctx, number)
		for off := int64(0); err == nil && off < in.size(); {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
				break
			}
			var p disk.Piece
			if p, err = f.piece(ctx, in, k, off); err != nil {
				break
			}
			end := min(p.Offset+p.Length, in.size())
			if p.From != nil && !yield(guestfs.PhysicalExtent{Offset: off, At: p.At + off - p.Offset, Length: end - off}, nil) {
				return
			}
			off = end
		}
		if err != nil {
			yield(guestfs.PhysicalExtent{}, err)
		}
	}
}

// lookup finds the extent that contains a block of a fork; of count 0 in a hole.
// next is where what follows begins.
func (f *FS) lookup(ctx context.Context, in *inode, k fork, block uint64) (e extent, next uint64, err error) {
	var records []byte
	next = endOfFile
	switch k.format {
	case formatExtents:
		if k.extents > uint64(len(k.data)/extentBytes) {
			return e, 0, corrupt("inode %d: %d extents of its %s in %d bytes", in.number, k.extents, k.name, len(k.data))
		}
		records = k.data[:k.extents*extentBytes]
	case formatBtree:
		records, next, err = f.leaf(ctx, in, k, block)
	default:
		err = corrupt("inode %d: its %s is of format %d", in.number, k.name, k.format)
	}
	if err != nil {
		return e, 0, err
	}
	n := len(records) / extentBytes
	at := func(i int) extent { return parseExtent(records[i*extentBytes:]) }
	i := sort.Search(n, func(i int) bool { return at(i).off > block })
	if i < n {
		next = min(next, at(i).off)
	}
	if i > 0 {
		if e = at(i - 1); e.count == 0 || e.off+e.count > next {
			return e, 0, corrupt("inode %d: an extent of %d blocks at %d, before one at %d", in.number, e.count, e.off, next)
		}
		if block >= e.off+e.count {
			e = extent{}
		}
	}
	if next <= block {
		return e, 0, corrupt("inode %d: its %s is out of order at block %d", in.number, k.name, block)
	}
	if ops := f.remaps[in.number]; ops != nil && k.name == "content" {
		e, next = applyRemaps(ops, e, next, block)
	}
	return e, next, nil
}

// leaf finds the leaf of a fork's B+tree that may contain a block: its records,
// and where the next one begins.
func (f *FS) leaf(ctx context.Context, in *inode, k fork, block uint64) (records []byte, next uint64, err error) {
	be := binary.BigEndian
	level, n, room := int(be.Uint16(k.data)), int(be.Uint16(k.data[2:])), (len(k.data)-4)/16
	if level < 1 || level >= maxLevels || n < 1 || n > room {
		return nil, 0, corrupt("inode %d: the root of its %s (level %d, %d of %d entries)", in.number, k.name, level, n, room)
	}
	keys, pointers := k.data[4:], k.data[4+8*room:]
	next = endOfFile
	for {
		i := sort.Search(n, func(i int) bool { return be.Uint64(keys[8*i:]) > block })
		if i < n {
			next = min(next, be.Uint64(keys[8*i:]))
		}
		child := be.Uint64(pointers[8*max(0, i-1):])
		level--
		b, header, err := f.bmapBlock(ctx, in, k, child, level)
		if err != nil {
			return nil, 0, err
		}
		n = int(be.Uint16(b[6:]))
		b = b[header:]
		if level == 0 {
			return b[:n*extentBytes], next, nil
		}
		keys, pointers = b, b[8*(len(b)/16):]
	}
}

// bmapBlock reads a block of a fork's B+tree, checked.
func (f *FS) bmapBlock(ctx context.Context, in *inode, k fork, number uint64, level int) (b []byte, header int, err error) {
	at, ok := f.sb.linear(number, 1)
	if !ok {
		return nil, 0, corrupt("inode %d: a block of its %s at %d, which is not on the volume", in.number, k.name, number)
	}
	if b, err = f.meta.Block(ctx, at); err != nil {
		return nil, 0, err
	}
	magic, header := uint32(bmapMagic4), bmapHeader4
	if f.sb.v5 {
		magic, header = bmapMagic5, bmapHeader5
	}
	be := binary.BigEndian
	if be.Uint32(b) != magic || int(be.Uint16(b[4:])) != level || int(be.Uint16(b[6:])) > (len(b)-header)/16 || be.Uint16(b[6:]) == 0 {
		return nil, 0, corrupt("inode %d: block %d is not of level %d of its %s", in.number, number, level, k.name)
	}
	return b, header, f.verify(b, bmapLayout, int64(at)<<f.sb.blockLog, in.number)
}

// read reads all of a small extent, and says where on the volume it is. What it
// returns is not to be changed.
func (f *FS) read(ctx context.Context, in *inode, e extent) (b []byte, at int64, err error) {
	if at, err = f.place(in, e); err != nil {
		return nil, 0, err
	}
	first := uint64(at) >> f.sb.blockLog
	if e.count == 1 {
		b, err = f.meta.Block(ctx, first)
		return b, at, err
	}
	for i := range e.count {
		p, err := f.meta.Block(ctx, first+i)
		if err != nil {
			return nil, 0, err
		}
		b = append(b, p...)
	}
	return b, at, nil
}

// blocks reads n blocks of a fork from block on, and says where on the volume the
// first is. Where that one is a hole, so are all: nil.
func (f *FS) blocks(ctx context.Context, in *inode, k fork, block, n uint64) (b []byte, at int64, err error) {
	for done := uint64(0); done < n; {
		e, _, err := f.lookup(ctx, in, k, block+done)
		if err != nil {
			return nil, 0, err
		}
		if e.count == 0 || e.unwritten {
			if done == 0 {
				return nil, 0, nil
			}
			return nil, 0, corrupt("inode %d: half of a block of its %s at %d is missing", in.number, k.name, block)
		}
		skip := block + done - e.off
		e = extent{off: e.off + skip, start: e.start + skip, count: min(e.count-skip, n-done)}
		p, where, err := f.read(ctx, in, e)
		if err != nil {
			return nil, 0, err
		}
		if done == 0 {
			b, at = p, where
		} else {
			b = append(b[:len(b):len(b)], p...)
		}
		done += e.count
	}
	return b, at, nil
}
