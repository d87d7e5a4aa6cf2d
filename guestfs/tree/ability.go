package tree

import (
	"context"
	"fmt"
	"io/fs"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// What a file system below may or may not be able to do, with the answer of one
// that has no such thing.

func info(fsys guestfs.FS) guestfs.Info {
	if d, ok := fsys.(guestfs.Describer); ok {
		return d.Info()
	}
	return guestfs.Info{Used: -1}
}

func xattrs(ctx context.Context, fsys guestfs.FS, inode guestfs.Inode) ([]guestfs.Xattr, error) {
	if r, ok := fsys.(guestfs.XattrReader); ok {
		return r.Xattrs(ctx, inode)
	}
	return nil, nil
}

func streams(ctx context.Context, fsys guestfs.FS, inode guestfs.Inode) ([]guestfs.Stream, error) {
	if r, ok := fsys.(guestfs.StreamReader); ok {
		return r.Streams(ctx, inode)
	}
	return nil, nil
}

func openStream(ctx context.Context, fsys guestfs.FS, inode guestfs.Inode, name string) (disk.Image, error) {
	if r, ok := fsys.(guestfs.StreamReader); ok {
		return r.OpenStream(ctx, inode, name)
	}
	return nil, fmt.Errorf("stream %q: %w", name, fs.ErrNotExist)
}

func descriptor(ctx context.Context, fsys guestfs.FS, inode guestfs.Inode) ([]byte, error) {
	if r, ok := fsys.(guestfs.SecurityReader); ok {
		return r.SecurityDescriptor(ctx, inode)
	}
	return nil, nil
}
