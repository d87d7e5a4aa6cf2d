package xfs

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// A small directory stands in its inode. Any other is blocks of entries, each of
// 8 bytes and more (struct xfs_dir2_data_entry: inode 8, length of the name 1,
// name, type 1, own offset 2, to a multiple of 8), and from byte 2^35 on an index
// by hash (lookup.go). If all of it fits in one block, the index stands at its
// end.
const (
	dirMagic4      = 0x58443244 // "XD2D": entries
	dirMagic5      = 0x58444433 // "XDD3"
	dirOneMagic4   = 0x58443242 // "XD2B": entries and index
	dirOneMagic5   = 0x58444233 // "XDB3"
	dirHeader4     = 16
	dirHeader5     = 64
	dirFree        = 0xffff // instead of the inode's first 16 bits
	dirTail        = 8      // number of entries of the index, and of those unused
	dirIndexEntry  = 8
	dirIndexOffset = 1 << 35
)

// dirTypes are the types of directory entries (XFS_DIR3_FT_*).
var dirTypes = [...]uint32{0, guestfs.TypeFile, guestfs.TypeDir, guestfs.TypeChar, guestfs.TypeBlock, guestfs.TypeFIFO, guestfs.TypeSocket, guestfs.TypeSymlink}

// ReadDir implements [guestfs.FS]. A cookie is an eighth of the offset of the
// entry or, in a directory that stands in its inode, its place.
func (f *FS) ReadDir(ctx context.Context, dir guestfs.Inode, after uint64) iter.Seq2[guestfs.Dirent, error] {
	return func(yield func(guestfs.Dirent, error) bool) {
		if err := f.readDir(ctx, dir, after, func(e guestfs.Dirent) bool { return yield(e, nil) }); err != nil {
			yield(guestfs.Dirent{}, err)
		}
	}
}

// directory reads the inode of one.
func (f *FS) directory(ctx context.Context, number guestfs.Inode) (*inode, error) {
	in, err := f.inode(ctx, number)
	if err == nil && in.kind() != guestfs.TypeDir {
		err = fmt.Errorf("xfs: inode %d: %w", number, guestfs.ErrNotDir)
	}
	return in, err
}

func (f *FS) readDir(ctx context.Context, dir guestfs.Inode, after uint64, yield func(guestfs.Dirent) bool) error {
	in, err := f.directory(ctx, dir)
	if err != nil {
		return err
	}
	k := in.content()
	if k.format == formatLocal {
		return f.shortDir(in, after, yield)
	}
	size := in.size()
	if size > dirIndexOffset || size%int64(f.sb.dirSize) != 0 {
		return corrupt("directory %d is of %d bytes", dir, size)
	}
	img := disk.Assemble(ctx, size, func(off int64) (disk.Piece, error) { return f.piece(ctx, in, k, off) })
	from := min(size, int64(min(after, dirIndexOffset/8)*8)&^int64(f.sb.dirSize-1))
	for ext, err := range disk.Extents(ctx, img, disk.Extent{Offset: from, Length: size - from}) {
		if err != nil {
			return err
		}
		if ext.Hole {
			continue // blocks whose last entry went
		}
		// An extent may begin in the middle of a block: that one was read with the
		// extent before.
		for off := (ext.Offset + int64(f.sb.dirSize) - 1) &^ int64(f.sb.dirSize-1); off < ext.End(); off += int64(f.sb.dirSize) {
			b, err := f.dirBlock(ctx, in, k, off)
			if err != nil {
				return err
			}
			more, err := f.entries(in, b, off, func(e guestfs.Dirent) bool { return e.Cookie <= after || yield(e) })
			if err != nil || !more {
				return err
			}
		}
	}
	return nil
}

// dirBlock reads a block of entries, checked.
func (f *FS) dirBlock(ctx context.Context, in *inode, k fork, off int64) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	b, at, err := f.blocks(ctx, in, k, uint64(off)>>f.sb.blockLog, uint64(f.sb.dirSize)>>f.sb.blockLog)
	if err != nil {
		return nil, err
	}
	if b == nil {
		return nil, corrupt("directory %d: no block at %d", in.number, off)
	}
	one, many := uint32(dirOneMagic4), uint32(dirMagic4)
	if f.sb.v5 {
		one, many = dirOneMagic5, dirMagic5
	}
	if magic := binary.BigEndian.Uint32(b); magic != one && magic != many {
		return nil, corrupt("directory %d: the block at %d has the magic %#x", in.number, off, magic)
	}
	return b, f.verify(b, dirLayout, at, in.number)
}

// index is the part of a block of entries that is one, of a directory that fits
// in one block: pairs of hash and offset.
func (f *FS) index(in *inode, b []byte) ([]byte, error) {
	magic := binary.BigEndian.Uint32(b)
	if magic != dirOneMagic4 && magic != dirOneMagic5 {
		return nil, nil
	}
	end := len(b) - dirTail
	n := int64(binary.BigEndian.Uint32(b[end:])) * dirIndexEntry
	if n > int64(end-dirHeader5) {
		return nil, corrupt("directory %d: %d entries in the index of a block of %d bytes", in.number, n/dirIndexEntry, len(b))
	}
	return b[end-int(n) : end], nil
}

func (f *FS) dirHeader() int {
	if f.sb.v5 {
		return dirHeader5
	}
	return dirHeader4
}

// entries yields those of one block, and reports whether to go on.
func (f *FS) entries(in *inode, b []byte, base int64, yield func(guestfs.Dirent) bool) (bool, error) {
	index, err := f.index(in, b)
	if err != nil {
		return false, err
	}
	end := len(b)
	if binary.BigEndian.Uint32(b) == dirOneMagic4 || binary.BigEndian.Uint32(b) == dirOneMagic5 {
		end -= dirTail + len(index)
	}
	be := binary.BigEndian
	for off := f.dirHeader(); off < end; {
		if end-off < 8 {
			return false, corrupt("directory %d: %d bytes too many at %d", in.number, end-off, base)
		}
		if be.Uint16(b[off:]) == dirFree {
			n := int(be.Uint16(b[off+2:]))
			if n < 8 || n%8 != 0 || n > end-off {
				return false, corrupt("directory %d: %d free bytes at %d", in.number, n, base+int64(off))
			}
			off += n
			continue
		}
		e, n, err := f.entry(in, b[:end], off, base)
		if err != nil {
			return false, err
		}
		off += n
		if e.Name != "." && e.Name != ".." && !yield(e) {
			return false, nil
		}
	}
	return true, nil
}

// entry reads the one at an offset, and says how many bytes it takes.
func (f *FS) entry(in *inode, b []byte, off int, base int64) (e guestfs.Dirent, n int, err error) {
	be := binary.BigEndian
	where := base + int64(off)
	if off%8 != 0 || off < f.dirHeader() || len(b)-off < 16 {
		return e, 0, corrupt("directory %d: an entry at %d", in.number, where)
	}
	p := b[off:]
	length := int(p[8])
	n = 8 + 1 + length + 2
	if f.sb.ftype {
		n++
	}
	n = (n + 7) &^ 7
	if n > len(p) || length == 0 || int(be.Uint16(p[n-2:])) != off&0xffff {
		return e, 0, corrupt("directory %d: an entry of %d bytes at %d", in.number, n, where)
	}
	e = guestfs.Dirent{Name: string(p[9 : 9+length]), Inode: guestfs.Inode(be.Uint64(p)), Cookie: uint64(where) / 8}
	if f.sb.ftype {
		e.Type = dirType(p[9+length])
	}
	return e, n, f.checkEntry(in, e)
}

func dirType(t byte) uint32 {
	if int(t) < len(dirTypes) {
		return dirTypes[t]
	}
	return 0 // unknown, or a whiteout of overlayfs: the inode tells
}

func (f *FS) checkEntry(in *inode, e guestfs.Dirent) error {
	if _, _, ok := f.sb.inodePlace(e.Inode); !ok || e.Inode == 0 {
		return corrupt("directory %d: entry %q is inode %d, which is not on the volume", in.number, e.Name, e.Inode)
	}
	for _, c := range []byte(e.Name) {
		if c == 0 || c == '/' {
			return corrupt("directory %d: an entry has the name %q", in.number, e.Name)
		}
	}
	return nil
}

// shortDir reads a directory that stands in its inode: how many entries, how many
// of them need 8 bytes for an inode (all or none have them), the parent; then
// entries of length, offset of 2 bytes, name, type and inode.
func (f *FS) shortDir(in *inode, after uint64, yield func(guestfs.Dirent) bool) error {
	b := in.content().data
	if size := in.size(); size > int64(len(b)) || size < 6 {
		return corrupt("directory %d: %d bytes in its inode, of %d", in.number, size, len(b))
	}
	b = b[:in.size()]
	count, width := int(b[0]), 4
	if b[1] != 0 {
		count, width = max(count, int(b[1])), 8
	}
	types := 0
	if f.sb.ftype {
		types = 1
	}
	off := 2 + width
	for i := range count {
		if len(b)-off < 3 || len(b)-off < 3+int(b[off])+types+width || b[off] == 0 {
			return corrupt("directory %d: entry %d of %d is cut off", in.number, i, count)
		}
		name := b[off+3 : off+3+int(b[off])]
		off += 3 + len(name)
		e := guestfs.Dirent{Name: string(name), Cookie: uint64(i) + 1}
		if types > 0 {
			e.Type = dirType(b[off])
		}
		off += types
		if width == 8 {
			e.Inode = guestfs.Inode(binary.BigEndian.Uint64(b[off:]))
		} else {
			e.Inode = guestfs.Inode(binary.BigEndian.Uint32(b[off:]))
		}
		off += width
		if err := f.checkEntry(in, e); err != nil {
			return err
		}
		if e.Cookie > after && !yield(e) {
			return nil
		}
	}
	return nil
}
