package browse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// Stat implements [guestfs.FS].
func (n *Namespace) Stat(ctx context.Context, inode guestfs.Inode) (*guestfs.Attr, error) {
	slot, number, err := n.own(inode)
	if err != nil {
		return nil, err
	}
	if slot == 0 {
		return n.node(number).attr(), nil
	}
	var out *guestfs.Attr
	err = n.with(ctx, slot, func(fsys guestfs.FS) error {
		a, err := fsys.Stat(ctx, ownInode(fsys, number))
		if err != nil {
			return err
		}
		copied := *a
		copied.Inode, out = inode, &copied
		return nil
	})
	if err != nil && number == rootMark && ctx.Err() == nil {
		// A volume that cannot be read is there all the same; listing it says why.
		return &guestfs.Attr{Inode: inode, Mode: guestfs.TypeDir | 0o755, Links: 2}, nil
	}
	return out, err
}

// Lookup implements [guestfs.Lookuper].
func (n *Namespace) Lookup(ctx context.Context, dir guestfs.Inode, name string) (guestfs.Dirent, error) {
	slot, number, err := n.own(dir)
	if err != nil {
		return guestfs.Dirent{}, err
	}
	if slot == 0 {
		return n.lookup(ctx, n.node(number), name)
	}
	var out guestfs.Dirent
	err = n.with(ctx, slot, func(fsys guestfs.FS) error {
		e, err := guestfs.Lookup(ctx, fsys, ownInode(fsys, number), name)
		if err == nil {
			e.Inode = n.number(slot, fsys, e.Inode)
			out = e
		}
		return err
	})
	return out, err
}

// ReadDir implements [guestfs.FS].
func (n *Namespace) ReadDir(ctx context.Context, dir guestfs.Inode, after uint64) iter.Seq2[guestfs.Dirent, error] {
	return func(yield func(guestfs.Dirent, error) bool) {
		for e, err := range n.list(ctx, dir, after, func(fsys guestfs.FS, own guestfs.Inode) iter.Seq2[guestfs.Entry, error] {
			return func(yield func(guestfs.Entry, error) bool) {
				for d, err := range fsys.ReadDir(ctx, own, after) {
					if !yield(guestfs.Entry{Dirent: d}, err) {
						return
					}
				}
			}
		}) {
			if !yield(e.Dirent, err) {
				return
			}
		}
	}
}

// ReadDirPlus implements [guestfs.PlusReader].
func (n *Namespace) ReadDirPlus(ctx context.Context, dir guestfs.Inode, after uint64, xattrs bool) iter.Seq2[guestfs.Entry, error] {
	return n.list(ctx, dir, after, func(fsys guestfs.FS, own guestfs.Inode) iter.Seq2[guestfs.Entry, error] {
		return guestfs.ReadDirPlus(ctx, fsys, own, after, xattrs)
	})
}

// list lists a directory: below is how one of a tree is.
func (n *Namespace) list(ctx context.Context, dir guestfs.Inode, after uint64, below func(guestfs.FS, guestfs.Inode) iter.Seq2[guestfs.Entry, error]) iter.Seq2[guestfs.Entry, error] {
	return func(yield func(guestfs.Entry, error) bool) {
		slot, number, err := n.own(dir)
		if err == nil && slot == 0 {
			err = n.listAbove(ctx, n.node(number), after, func(e guestfs.Entry) bool { return yield(e, nil) })
		} else if err == nil {
			err = n.with(ctx, slot, func(fsys guestfs.FS) error {
				for e, err := range below(fsys, ownInode(fsys, number)) {
					if err != nil {
						return err
					}
					e.Inode = n.number(slot, fsys, e.Inode)
					if e.Attr != nil {
						a := *e.Attr
						a.Inode, e.Attr = e.Inode, &a
					}
					if !yield(e, nil) {
						return errStopped
					}
				}
				return nil
			})
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield(guestfs.Entry{}, err)
		}
	}
}

// errStopped says that whoever lists has seen enough.
var errStopped = errors.New("enough")

func (n *Namespace) listAbove(ctx context.Context, d *node, after uint64, yield func(guestfs.Entry) bool) error {
	list, err := n.entries(ctx, d)
	if err != nil {
		return err
	}
	for _, e := range list[min(after, uint64(len(list))):] {
		entry := guestfs.Entry{Dirent: e}
		if slot, number, err := n.own(e.Inode); err == nil && slot == 0 {
			entry.Attr = n.node(number).attr()
		} else {
			entry.Attr, entry.Err = n.Stat(ctx, e.Inode)
		}
		if !yield(entry) {
			return errStopped
		}
	}
	return nil
}

// Open implements [guestfs.FS]. The point stays open as long as the file.
func (n *Namespace) Open(ctx context.Context, inode guestfs.Inode) (disk.Image, error) {
	return n.open(ctx, inode, func(fsys guestfs.FS, own guestfs.Inode) (disk.Image, error) { return fsys.Open(ctx, own) })
}

func (n *Namespace) open(ctx context.Context, inode guestfs.Inode, below func(guestfs.FS, guestfs.Inode) (disk.Image, error)) (disk.Image, error) {
	slot, number, err := n.own(inode)
	if err != nil {
		return nil, err
	}
	if slot == 0 {
		d := n.node(number)
		if d.kind != diskNode {
			return nil, fmt.Errorf("%q is a directory", d.name)
		}
		return n.source.OpenDisk(ctx, d.point.ID, d.disk)
	}
	fsys, release, err := n.acquire(ctx, slot)
	if err != nil {
		return nil, err
	}
	img, err := below(fsys, ownInode(fsys, number))
	if err != nil {
		release()
		return nil, err
	}
	return &held{img, release}, nil
}

// held is a file that keeps its point open.
type held struct {
	disk.Image
	release func()
}

func (h *held) Close() error {
	defer h.release()
	return h.Image.Close()
}

// Extents implements [disk.Mapper].
func (h *held) Extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return disk.Extents(ctx, h.Image, within)
}

// Xattrs implements [guestfs.XattrReader].
func (n *Namespace) Xattrs(ctx context.Context, inode guestfs.Inode) (list []guestfs.Xattr, err error) {
	err = n.ability(ctx, inode, func(fsys guestfs.FS, own guestfs.Inode) error {
		if r, ok := fsys.(guestfs.XattrReader); ok {
			list, err = r.Xattrs(ctx, own)
		}
		return err
	})
	return list, err
}

// Streams implements [guestfs.StreamReader].
func (n *Namespace) Streams(ctx context.Context, inode guestfs.Inode) (list []guestfs.Stream, err error) {
	err = n.ability(ctx, inode, func(fsys guestfs.FS, own guestfs.Inode) error {
		if r, ok := fsys.(guestfs.StreamReader); ok {
			list, err = r.Streams(ctx, own)
		}
		return err
	})
	return list, err
}

// OpenStream implements [guestfs.StreamReader].
func (n *Namespace) OpenStream(ctx context.Context, inode guestfs.Inode, name string) (disk.Image, error) {
	return n.open(ctx, inode, func(fsys guestfs.FS, own guestfs.Inode) (disk.Image, error) {
		if r, ok := fsys.(guestfs.StreamReader); ok {
			return r.OpenStream(ctx, own, name)
		}
		return nil, fmt.Errorf("stream %q: %w", name, fs.ErrNotExist)
	})
}

// SecurityDescriptor implements [guestfs.SecurityReader].
func (n *Namespace) SecurityDescriptor(ctx context.Context, inode guestfs.Inode) (sd []byte, err error) {
	err = n.ability(ctx, inode, func(fsys guestfs.FS, own guestfs.Inode) error {
		if r, ok := fsys.(guestfs.SecurityReader); ok {
			sd, err = r.SecurityDescriptor(ctx, own)
		}
		return err
	})
	return sd, err
}

// ability asks the tree that an inode is in; what is above has none.
func (n *Namespace) ability(ctx context.Context, inode guestfs.Inode, fn func(guestfs.FS, guestfs.Inode) error) error {
	slot, number, err := n.own(inode)
	if err != nil || slot == 0 {
		return err
	}
	return n.with(ctx, slot, func(fsys guestfs.FS) error { return fn(fsys, ownInode(fsys, number)) })
}
