package tree

import (
	"context"
	"iter"
	"math"
	"slices"

	"lifeboat/guestfs"
)

// Cookies of what is mounted come from the end of all numbers; those of what is
// below are its own. What is mounted is listed first.
func (n *node) cookie(child *node) uint64 {
	return math.MaxUint64 - uint64(slices.Index(n.children, child))
}

// mountedAfter are the virtual children to list after a cookie, and the cookie
// that the listing below goes on after.
func (n *node) mountedAfter(after uint64) (children []*node, below uint64) {
	if after == 0 {
		return n.children, 0
	}
	i := math.MaxUint64 - after
	if i >= uint64(len(n.children)) {
		return nil, after
	}
	return n.children[i+1:], 0
}

// covered reports whether something virtual has the place of that name.
func (n *node) covered(name string) bool {
	return n != nil && slices.ContainsFunc(n.children, func(c *node) bool { return c.called(name) })
}

// ReadDir implements [guestfs.FS].
func (t *Tree) ReadDir(ctx context.Context, dir guestfs.Inode, after uint64) iter.Seq2[guestfs.Dirent, error] {
	return func(yield func(guestfs.Dirent, error) bool) {
		n := t.virtual(dir)
		if n != nil {
			var mounted []*node
			mounted, after = n.mountedAfter(after)
			for _, c := range mounted {
				if !yield(guestfs.Dirent{Name: c.name, Inode: c.inode, Type: guestfs.TypeDir, Cookie: n.cookie(c)}, nil) {
					return
				}
			}
		}
		m, fsys, own, err := t.fs(ctx, dir)
		if err != nil {
			yield(guestfs.Dirent{}, err)
			return
		}
		if fsys == nil {
			return
		}
		for e, err := range fsys.ReadDir(ctx, own, after) {
			if err != nil {
				yield(guestfs.Dirent{}, err)
				return
			}
			if n.covered(e.Name) {
				continue
			}
			e.Inode = t.number(m, e.Inode)
			if !yield(e, nil) {
				return
			}
		}
	}
}

// ReadDirPlus implements [guestfs.PlusReader].
func (t *Tree) ReadDirPlus(ctx context.Context, dir guestfs.Inode, after uint64, xattrs bool) iter.Seq2[guestfs.Entry, error] {
	return func(yield func(guestfs.Entry, error) bool) {
		n := t.virtual(dir)
		if n != nil {
			var mounted []*node
			mounted, after = n.mountedAfter(after)
			for _, c := range mounted {
				d := guestfs.Dirent{Name: c.name, Inode: c.inode, Type: guestfs.TypeDir, Cookie: n.cookie(c)}
				if !yield(guestfs.Describe(ctx, t, d, xattrs), nil) {
					return
				}
			}
		}
		m, fsys, own, err := t.fs(ctx, dir)
		if err != nil {
			yield(guestfs.Entry{}, err)
			return
		}
		if fsys == nil {
			return
		}
		for e, err := range guestfs.ReadDirPlus(ctx, fsys, own, after, xattrs) {
			if err != nil {
				yield(guestfs.Entry{}, err)
				return
			}
			if n.covered(e.Name) {
				continue
			}
			e.Inode = t.number(m, e.Inode)
			e.Attr = renumbered(e.Attr, e.Inode)
			if !yield(e, nil) {
				return
			}
		}
	}
}
