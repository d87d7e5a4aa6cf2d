package tree

import (
	"context"
	"iter"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// Sub is fsys with another directory as its root: a subvolume that a guest
// mounts. It hides nothing: inodes outside can be asked for by number.
func Sub(fsys guestfs.FS, root guestfs.Inode) guestfs.FS {
	return &sub{FS: fsys, root: root}
}

type sub struct {
	guestfs.FS
	root guestfs.Inode
}

func (s *sub) Root() guestfs.Inode { return s.root }

func (s *sub) Lookup(ctx context.Context, dir guestfs.Inode, name string) (guestfs.Dirent, error) {
	return guestfs.Lookup(ctx, s.FS, dir, name)
}

func (s *sub) ReadDirPlus(ctx context.Context, dir guestfs.Inode, after uint64, xattrs bool) iter.Seq2[guestfs.Entry, error] {
	return guestfs.ReadDirPlus(ctx, s.FS, dir, after, xattrs)
}

func (s *sub) Info() guestfs.Info { return info(s.FS) }

func (s *sub) Xattrs(ctx context.Context, inode guestfs.Inode) ([]guestfs.Xattr, error) {
	return xattrs(ctx, s.FS, inode)
}

func (s *sub) Streams(ctx context.Context, inode guestfs.Inode) ([]guestfs.Stream, error) {
	return streams(ctx, s.FS, inode)
}

func (s *sub) OpenStream(ctx context.Context, inode guestfs.Inode, name string) (disk.Image, error) {
	return openStream(ctx, s.FS, inode, name)
}

func (s *sub) SecurityDescriptor(ctx context.Context, inode guestfs.Inode) ([]byte, error) {
	return descriptor(ctx, s.FS, inode)
}
