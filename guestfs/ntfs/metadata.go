package ntfs

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"slices"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// InodesIn yields the files whose records in the MFT stand in a range of the
// volume: if these bytes differ between two states of a volume, then so may these
// files, and of files whose records are the same, nothing differs but content
// that was written in place. A record that continues another stands for that
// one's file, which so may come more than once; those that are free are left out.
func (f *FS) InodesIn(ctx context.Context, within disk.Extent) iter.Seq2[guestfs.Inode, error] {
	return func(yield func(guestfs.Inode, error) bool) {
		var last guestfs.Inode
		for e, err := range f.PhysicalExtents(ctx, f.mftRef) {
			if err != nil {
				yield(0, err)
				return
			}
			from, to := max(e.At, within.Offset), min(e.At+e.Length, within.End())
			size := int64(f.geo.recordSize)
			for off := (e.Offset + from - e.At) / size * size; from < to && off < e.Offset+to-e.At; off += size {
				inode, err := f.owner(ctx, uint64(off/size))
				if err != nil {
					yield(0, err)
					return
				}
				if inode == 0 || inode == last {
					continue
				}
				if last = inode; !yield(inode, nil) {
					return
				}
			}
		}
	}
}

// owner is the file that a record belongs to; 0 where it is free or damaged.
func (f *FS) owner(ctx context.Context, number uint64) (guestfs.Inode, error) {
	r, err := f.record(ctx, number)
	switch {
	case errors.Is(err, guestfs.ErrCorrupt) || errors.Is(err, fs.ErrNotExist):
		return 0, nil
	case err != nil:
		return 0, err
	case r.flags()&recordInUse == 0:
		return 0, nil
	case r.base() != 0:
		return guestfs.Inode(r.base()), nil
	}
	return r.ref(), nil
}

// MetadataExtents is where on the volume the records of the MFT stand, in order
// of their place on the volume.
func (f *FS) MetadataExtents(ctx context.Context) ([]disk.Extent, error) {
	var out []disk.Extent
	for e, err := range f.PhysicalExtents(ctx, f.mftRef) {
		if err != nil {
			return nil, err
		}
		out = append(out, disk.Extent{Offset: e.At, Length: e.Length})
	}
	slices.SortFunc(out, func(a, b disk.Extent) int { return int(min(1, max(-1, a.Offset-b.Offset))) })
	return out, nil
}
