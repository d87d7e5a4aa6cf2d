package guestfs

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"slices"
	"sort"

	"lifeboat/disk"
)

// ChangeReader is an FS that knows which files a piece of its volume is about, so
// that two states of a volume can be compared at the cost of what differs.
//
// If, of two states of the same volume, a file's inode differs, then a byte in
// MetadataExtents of one of them differs, or stands in Overlaid of one of them,
// and InodesIn of that range yields the file in the state that has it.
type ChangeReader interface {
	Mapped
	// MetadataExtents is where the inodes that are in use stand (inode tables, MFT,
	// inode chunks), ascending and without overlap.
	MetadataExtents(ctx context.Context) ([]disk.Extent, error)
	// InodesIn yields the inodes in use that stand in a range, at least in part. An
	// inode may come more than once.
	InodesIn(ctx context.Context, within disk.Extent) iter.Seq2[Inode, error]
	// Overlaid is what is not read as it stands on the volume, because a journal was
	// replayed: the same bytes on the volume do not say that these ranges are the
	// same.
	Overlaid(ctx context.Context) ([]disk.Extent, error)
}

// Linked is an FS whose inodes tell their own names and directories.
type Linked interface {
	// Links are all names of an inode.
	Links(ctx context.Context, inode Inode) ([]Link, error)
}

// Link is a name in a directory.
type Link struct {
	Dir  Inode
	Name string
}

// Described is what StatAll tells of an inode.
type Described struct {
	Attr  *Attr // nil where Err says why
	Links []Link
	Err   error
}

// Owner is a part of a file that stands in a range that was asked about.
type Owner struct {
	Inode Inode
	PhysicalExtent
}

// BulkReader is an FS that answers many questions in one go, because each would
// cost a journey. See the functions of the same names.
type BulkReader interface {
	StatAll(ctx context.Context, inodes []Inode) ([]Described, error)
	ReadDirs(ctx context.Context, dirs []Inode) iter.Seq2[DirEntry, error]
	InodesInAll(ctx context.Context, within []disk.Extent) ([]Inode, error)
	OwnersIn(ctx context.Context, records disk.Extent, within []disk.Extent) ([]Owner, error)
}

// DirEntry is an entry of one of several directories.
type DirEntry struct {
	Dir Inode
	Dirent
	// Err ends the listing of Dir, and of no other; then there is no entry.
	Err error
}

// StatAll describes inodes, in their order, with their names where the FS is
// Linked.
func StatAll(ctx context.Context, fsys FS, inodes []Inode) ([]Described, error) {
	if b, ok := fsys.(BulkReader); ok {
		return b.StatAll(ctx, inodes)
	}
	linked, _ := fsys.(Linked)
	out := make([]Described, len(inodes))
	for i, inode := range inodes {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		d := &out[i]
		if d.Attr, d.Err = fsys.Stat(ctx, inode); d.Err != nil {
			d.Attr = nil
			continue
		}
		if linked != nil {
			d.Links, d.Err = linked.Links(ctx, inode)
		}
	}
	return out, nil
}

// ReadDirs lists directories, one after the other. What is wrong with one of them
// is said in an entry; the others follow.
func ReadDirs(ctx context.Context, fsys FS, dirs []Inode) iter.Seq2[DirEntry, error] {
	if b, ok := fsys.(BulkReader); ok {
		return b.ReadDirs(ctx, dirs)
	}
	return func(yield func(DirEntry, error) bool) {
		for _, dir := range dirs {
			for e, err := range fsys.ReadDir(ctx, dir, 0) {
				if ctx.Err() != nil {
					yield(DirEntry{}, context.Cause(ctx))
					return
				}
				if !yield(DirEntry{Dir: dir, Dirent: e, Err: err}, nil) {
					return
				}
			}
		}
	}
}

// InodesInAll are the inodes that stand in any of the ranges, ascending, each
// once.
func InodesInAll(ctx context.Context, fsys FS, within []disk.Extent) ([]Inode, error) {
	if b, ok := fsys.(BulkReader); ok {
		return b.InodesInAll(ctx, within)
	}
	r, ok := fsys.(ChangeReader)
	if !ok {
		return nil, NoChanges()
	}
	var out []Inode
	for _, e := range within {
		for inode, err := range r.InodesIn(ctx, e) {
			if err != nil {
				return nil, err
			}
			out = append(out, inode)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// OwnersIn are the parts of regular files, and of directories where their place is
// told, that stand in the ranges of within, which are ascending and do not overlap;
// of those whose inodes stand in records. What has no place because it is damaged
// is left out.
func OwnersIn(ctx context.Context, fsys FS, records disk.Extent, within []disk.Extent) ([]Owner, error) {
	if b, ok := fsys.(BulkReader); ok {
		return b.OwnersIn(ctx, records, within)
	}
	r, ok := fsys.(ChangeReader)
	if !ok {
		return nil, NoChanges()
	}
	var out []Owner
	for inode, err := range r.InodesIn(ctx, records) {
		if err == nil {
			out, err = owned(ctx, fsys, r, inode, within, out)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func owned(ctx context.Context, fsys FS, m Mapped, inode Inode, within []disk.Extent, out []Owner) ([]Owner, error) {
	a, err := fsys.Stat(ctx, inode)
	if err != nil || a.Type() != TypeFile && a.Type() != TypeDir {
		return out, lasting(err)
	}
	for x, err := range m.PhysicalExtents(ctx, inode) {
		if err != nil && a.Type() == TypeDir && ctx.Err() == nil {
			return out, nil // not every reader tells where directories stand
		}
		if err != nil {
			return out, lasting(err)
		}
		for _, e := range Overlapping(within, disk.Extent{Offset: x.At, Length: x.Length}) {
			from, to := max(e.Offset, x.At), min(e.End(), x.At+x.Length)
			part := x
			part.At, part.Length = from, to-from
			if !x.Encoded {
				part.Offset += from - x.At
			}
			out = append(out, Owner{inode, part})
		}
	}
	return out, nil
}

// lasting keeps the errors that are not a single file's own.
func lasting(err error) error {
	if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnsupported) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Overlapping are those of a list of ranges, ascending and without overlap, that
// have something in common with e.
func Overlapping(list []disk.Extent, e disk.Extent) []disk.Extent {
	i := sort.Search(len(list), func(i int) bool { return list[i].End() > e.Offset })
	n := sort.Search(len(list), func(n int) bool { return list[n].Offset >= e.End() })
	return list[i:max(i, n)]
}

// NoChanges is the error of an FS that is no ChangeReader.
func NoChanges() error {
	return &UnsupportedError{FS: "file system", What: "telling which files a piece of the volume is about"}
}
