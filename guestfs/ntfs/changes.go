package ntfs

import (
	"context"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/patch"
)

var (
	_ guestfs.ChangeReader = (*FS)(nil)
	_ guestfs.Linked       = (*FS)(nil)
)

// Overlaid implements [guestfs.ChangeReader].
func (f *FS) Overlaid(context.Context) ([]disk.Extent, error) { return patch.Replaced(f.disk), nil }

// Links implements [guestfs.Linked], without the names that were made up for DOS,
// and those that no listing shows.
func (f *FS) Links(ctx context.Context, inode guestfs.Inode) ([]guestfs.Link, error) {
	n, err := f.node(ctx, inode)
	if err != nil {
		return nil, err
	}
	var out []guestfs.Link
	err = n.each(ctx, attrFileName, func(a *attr) bool {
		if !a.resident {
			return true
		}
		name, ok := parseFileName(a.value())
		hidden := ok && name.parent() == f.root && inode != f.root && uint64(inode)&numberMask < firstUser
		if ok && !hidden && name.namespace() != namespaceDOS {
			out = append(out, guestfs.Link{Dir: name.parent(), Name: name.String()})
		}
		return true
	})
	return out, err
}
