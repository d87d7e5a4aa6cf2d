package guestfs

import (
	"context"
	"iter"
)

// Entry is an entry of a directory with all that a listing, an archive or a
// search wants to know of it.
type Entry struct {
	Dirent
	Attr   *Attr   // nil where Err says why
	Xattrs []Xattr // only where they were asked for
	// Err is what keeps this one entry from being described. The listing goes on.
	Err error
}

// PlusReader is an FS that describes a whole directory in one go, because
// asking for each entry would cost a journey.
type PlusReader interface {
	// ReadDirPlus is ReadDir with descriptions.
	ReadDirPlus(ctx context.Context, dir Inode, after uint64, xattrs bool) iter.Seq2[Entry, error]
}

// ReadDirPlus lists a directory with descriptions, whichever way the FS offers.
func ReadDirPlus(ctx context.Context, fsys FS, dir Inode, after uint64, xattrs bool) iter.Seq2[Entry, error] {
	if p, ok := fsys.(PlusReader); ok {
		return p.ReadDirPlus(ctx, dir, after, xattrs)
	}
	return func(yield func(Entry, error) bool) {
		for d, err := range fsys.ReadDir(ctx, dir, after) {
			if err != nil {
				yield(Entry{}, err)
				return
			}
			if !yield(Describe(ctx, fsys, d, xattrs), nil) {
				return
			}
		}
	}
}

// Describe makes an Entry of a Dirent.
func Describe(ctx context.Context, fsys FS, d Dirent, xattrs bool) Entry {
	e := Entry{Dirent: d}
	if e.Attr, e.Err = fsys.Stat(ctx, d.Inode); e.Err != nil {
		return e
	}
	if x, ok := fsys.(XattrReader); ok && xattrs {
		e.Xattrs, e.Err = x.Xattrs(ctx, d.Inode)
	}
	return e
}
