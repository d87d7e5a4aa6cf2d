package ext4

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"sort"
	"sync"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/patch"
)

var _ guestfs.ChangeReader = (*FS)(nil)

// firstFile is the first inode that a directory can name, but for the root; those
// before it are the file system's own.
const firstFile = 11

// tables are the inode tables of all groups, by their place on the volume.
type tables struct {
	mu    sync.Mutex
	known bool
	list  []table
}

// table is the inode table of a group, in bytes on the volume.
type table struct {
	at, used, length int64
	first            uint64 // number of its first inode
}

// inodeTables finds them, once.
func (f *FS) inodeTables(ctx context.Context) ([]table, error) {
	t := &f.tables
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known {
		return t.list, nil
	}
	size := int64(f.sb.inodeSize)
	var list []table
	for group := range f.sb.groups {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		first := group*f.sb.perGroup + 1
		if first > f.sb.inodes {
			break
		}
		block, err := f.inodeTable(ctx, group)
		if err != nil {
			return nil, err
		}
		count := min(f.sb.perGroup, f.sb.inodes-first+1)
		unused, err := f.neverUsed(ctx, group)
		if err != nil {
			return nil, err
		}
		if block >= f.sb.blocks {
			return nil, corrupt("the inode table of group %d is at block %d of %d", group, block, f.sb.blocks)
		}
		list = append(list, table{at: int64(block) * int64(f.sb.blockSize), length: int64(count) * size, used: int64(count-min(count, unused)) * size, first: first})
	}
	slices.SortFunc(list, func(a, b table) int { return cmp.Compare(a.at, b.at) })
	for i := 1; i < len(list); i++ {
		if list[i-1].at+list[i-1].length > list[i].at {
			return nil, corrupt("two inode tables share block %d", list[i].at/int64(f.sb.blockSize))
		}
	}
	t.known, t.list = true, list
	return list, nil
}

// neverUsed is how many inodes at the end of a group's table were never used. Only
// with checksums in the descriptors are their counts kept (ext4_has_group_desc_csum).
func (f *FS) neverUsed(ctx context.Context, group uint64) (uint64, error) {
	const roGdtCsum, flagsAt, unusedAt, unusedHighAt, inodeUninit = 0x10, 0x12, 0x1c, 0x32, 0x1
	if !f.sb.checksums && f.sb.roCompat&roGdtCsum == 0 {
		return 0, nil
	}
	n, off := f.sb.descBlock(group)
	b, err := f.block(ctx, n)
	if err != nil {
		return 0, fmt.Errorf("descriptor of group %d: %w", group, err)
	}
	d, le := b[off:off+f.sb.descSize], binary.LittleEndian
	if le.Uint16(d[flagsAt:])&inodeUninit != 0 {
		return f.sb.perGroup, nil
	}
	unused := uint64(le.Uint16(d[unusedAt:]))
	if f.sb.descSize >= 64 {
		unused |= uint64(le.Uint16(d[unusedHighAt:])) << 16
	}
	return unused, nil
}

// MetadataExtents implements [guestfs.ChangeReader]: the inode tables, without the
// ends that were never used.
func (f *FS) MetadataExtents(ctx context.Context) ([]disk.Extent, error) {
	list, err := f.inodeTables(ctx)
	if err != nil {
		return nil, err
	}
	var out []disk.Extent
	for _, t := range list {
		if t.used == 0 {
			continue
		}
		if n := len(out); n > 0 && out[n-1].End() == t.at {
			out[n-1].Length += t.used
			continue
		}
		out = append(out, disk.Extent{Offset: t.at, Length: t.used})
	}
	return out, nil
}

// InodesIn implements [guestfs.ChangeReader].
func (f *FS) InodesIn(ctx context.Context, within disk.Extent) iter.Seq2[guestfs.Inode, error] {
	return func(yield func(guestfs.Inode, error) bool) {
		list, err := f.inodeTables(ctx)
		if err != nil {
			yield(0, err)
			return
		}
		size := int64(f.sb.inodeSize)
		for i := sort.Search(len(list), func(i int) bool { return list[i].at+list[i].length > within.Offset }); i < len(list); i++ {
			t := list[i]
			if t.at >= within.End() {
				return
			}
			from, to := max(0, within.Offset-t.at)/size*size, min(t.length, within.End()-t.at)
			for off := from; off < to; off += size {
				number := guestfs.Inode(t.first) + guestfs.Inode(off/size)
				used, err := f.inUse(ctx, number, t.at+off)
				if err != nil {
					yield(0, err)
					return
				}
				if used && !yield(number, nil) {
					return
				}
			}
		}
	}
}

// inUse reports whether there is a file in an inode, which stands at a byte of the
// volume.
func (f *FS) inUse(ctx context.Context, number guestfs.Inode, at int64) (bool, error) {
	if number < firstFile && number != rootInode {
		return false, nil
	}
	size := int64(f.sb.blockSize)
	b, err := f.block(ctx, uint64(at/size))
	if err != nil {
		return false, err
	}
	in := inode{number: number, raw: b[at%size : at%size+int64(f.sb.inodeSize)]}
	return in.u16(inMode) != 0 && in.u16(inLinks) != 0, nil
}

// Overlaid implements [guestfs.ChangeReader].
func (f *FS) Overlaid(context.Context) ([]disk.Extent, error) { return patch.Replaced(f.disk), nil }

// PhysicalExtents implements [guestfs.Mapped].
func (f *FS) PhysicalExtents(ctx context.Context, number guestfs.Inode) iter.Seq2[guestfs.PhysicalExtent, error] {
	return func(yield func(guestfs.PhysicalExtent, error) bool) {
		in, err := f.inode(ctx, number)
		if err != nil {
			yield(guestfs.PhysicalExtent{}, err)
			return
		}
		find := f.indirectPiece
		switch {
		case in.flags()&flagInline != 0, in.kind() != guestfs.TypeFile && in.kind() != guestfs.TypeDir:
			return
		case in.flags()&flagExtents != 0:
			find = f.extentPiece
		}
		for off, size := int64(0), f.size(in); off < size; {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			var p disk.Piece
			if err == nil {
				p, err = find(ctx, in, off)
			}
			if err != nil {
				yield(guestfs.PhysicalExtent{}, err)
				return
			}
			end := min(p.Offset+p.Length, size)
			if p.From != nil && !yield(guestfs.PhysicalExtent{Offset: off, At: p.At + off - p.Offset, Length: end - off}, nil) {
				return
			}
			off = end
		}
	}
}
