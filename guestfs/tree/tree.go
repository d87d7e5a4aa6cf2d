// Package tree puts a guest's file systems together as the guest sees them: one
// tree, with file systems mounted in each other, opened when somebody first
// looks. And it walks paths in it as the guest would, never leaving it.
//
// A Tree is a guestfs.FS. It has virtual directories where something is mounted
// and on the way there; each shows what the file system above has under the same
// name, if it has, with the mounts in its place. So nothing has to be opened or
// looked up to build one.
//
// Inode numbers say which file system they are of in 12 bits in their middle,
// which the numbers of ext4, XFS below 32 TiB, NTFS and FAT do not use. Numbers
// that do are given others from a table: those are stable for the life of the
// Tree only, and cost memory.
package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

const (
	mountShift = 36
	mountBits  = 12
	mountMask  = 1<<mountBits - 1
	wideMount  = mountMask     // numbers from the table
	virtual    = mountMask - 1 // virtual directories
	// MaxMounts is how many file systems a Tree can have.
	MaxMounts = mountMask - 2
)

// Opener opens a file system that a Tree shows.
type Opener func(ctx context.Context) (guestfs.FS, error)

// Tree is a composed file system. The zero value is not one; see New. Mount
// comes before everything else; after that it is safe for concurrent use.
type Tree struct {
	nodes  []*node  // virtual directories, by their number
	mounts []*mount // by their number: of the first, inodes are what they are
	wide   wideTable
}

var (
	_ guestfs.FS             = (*Tree)(nil)
	_ guestfs.Lookuper       = (*Tree)(nil)
	_ guestfs.XattrReader    = (*Tree)(nil)
	_ guestfs.StreamReader   = (*Tree)(nil)
	_ guestfs.SecurityReader = (*Tree)(nil)
	_ guestfs.PlusReader     = (*Tree)(nil)
)

// node is a virtual directory.
type node struct {
	inode    guestfs.Inode
	name     string
	parent   *node
	children []*node
	mount    *mount // nil: on the way to one

	mu     sync.Mutex
	looked bool // whether below is known
	below  place
}

// place is an inode of a file system.
type place struct {
	mount *mount // nil: there is none
	inode guestfs.Inode
}

// mount is a file system, opened once. An attempt that failed for good is
// remembered; one whose caller went away is not.
type mount struct {
	number uint64
	open   Opener

	mu  sync.Mutex
	fs  guestfs.FS
	err error
}

func (m *mount) get(ctx context.Context) (guestfs.FS, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fs != nil || m.err != nil {
		return m.fs, m.err
	}
	fsys, err := m.open(ctx)
	if err != nil && ctx.Err() == nil {
		m.err = err
	}
	if err == nil {
		m.fs = fsys
	}
	return fsys, err
}

// New makes an empty tree.
func New() *Tree {
	t := &Tree{}
	t.addNode(nil, "")
	return t
}

func (t *Tree) addNode(parent *node, name string) *node {
	n := &node{inode: guestfs.Inode(len(t.nodes) | virtual<<mountShift), name: name, parent: parent}
	t.nodes = append(t.nodes, n)
	if parent != nil {
		parent.children = append(parent.children, n)
	}
	return n
}

// Mount shows a file system at a path, in the place of what was there.
func (t *Tree) Mount(path string, open Opener) error {
	if len(t.mounts) >= MaxMounts {
		return fmt.Errorf("mount at %s: there are %d already", path, len(t.mounts))
	}
	n := t.nodes[0]
	for _, part := range split(path) {
		if part == "." || part == ".." {
			return fmt.Errorf("mount at %q: not a plain path", path)
		}
		i := slices.IndexFunc(n.children, func(c *node) bool { return c.name == part })
		if i < 0 {
			n = t.addNode(n, part)
			continue
		}
		n = n.children[i]
	}
	m := &mount{number: uint64(len(t.mounts)), open: open}
	t.mounts = append(t.mounts, m)
	n.mount = m
	return nil
}

// Root implements [guestfs.FS].
func (t *Tree) Root() guestfs.Inode { return t.nodes[0].inode }

// virtual is the virtual directory of that number, or nil.
func (t *Tree) virtual(inode guestfs.Inode) *node {
	if i := inode ^ virtual<<mountShift; i < guestfs.Inode(len(t.nodes)) {
		return t.nodes[i]
	}
	return nil
}

// number is the tree's number for an inode of a mount.
func (t *Tree) number(m *mount, inode guestfs.Inode) guestfs.Inode {
	if inode>>mountShift&mountMask == 0 {
		return inode | guestfs.Inode(m.number)<<mountShift
	}
	return t.wide.number(place{m, inode})
}

// resolve finds the file system and its own number of an inode. Of a virtual
// directory it is what is below; that may be nothing: a place without mount.
func (t *Tree) resolve(ctx context.Context, inode guestfs.Inode) (place, error) {
	if n := t.virtual(inode); n != nil {
		return n.lower(ctx)
	}
	number := uint64(inode) >> mountShift & mountMask
	if number == wideMount {
		if p, ok := t.wide.place(inode); ok {
			return p, nil
		}
	} else if number < uint64(len(t.mounts)) {
		return place{t.mounts[number], inode &^ (mountMask << mountShift)}, nil
	}
	return place{}, fmt.Errorf("inode %d: %w", inode, fs.ErrNotExist)
}

// lower is what a virtual directory shows: the root of what is mounted there, or
// the directory of that name in what is above.
func (n *node) lower(ctx context.Context) (place, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.looked {
		return n.below, nil
	}
	p, err := n.find(ctx)
	if err == nil {
		n.looked, n.below = true, p
	}
	return p, err
}

// find does what lower keeps. Locks are taken from a node to its parent.
func (n *node) find(ctx context.Context) (place, error) {
	if n.mount != nil {
		fsys, err := n.mount.get(ctx)
		if err != nil {
			return place{}, err
		}
		return place{n.mount, fsys.Root()}, nil
	}
	if n.parent == nil {
		return place{}, nil
	}
	up, err := n.parent.lower(ctx)
	if err != nil || up.mount == nil {
		return place{}, nil //nolint:nilerr // what is above cannot be read: there is only what is mounted
	}
	fsys, err := up.mount.get(ctx)
	if err != nil {
		return place{}, err
	}
	e, err := guestfs.Lookup(ctx, fsys, up.inode, n.name)
	if errors.Is(err, fs.ErrNotExist) {
		return place{}, nil
	}
	if err != nil {
		return place{}, err
	}
	a, err := fsys.Stat(ctx, e.Inode)
	if err != nil || a.Type() != guestfs.TypeDir {
		return place{}, err
	}
	return place{up.mount, e.Inode}, nil
}

// fs is the file system that an inode is of, and its number there; nil where
// there is nothing but a virtual directory.
func (t *Tree) fs(ctx context.Context, inode guestfs.Inode) (*mount, guestfs.FS, guestfs.Inode, error) {
	p, err := t.resolve(ctx, inode)
	if err != nil || p.mount == nil {
		return nil, nil, 0, err
	}
	fsys, err := p.mount.get(ctx)
	return p.mount, fsys, p.inode, err
}

// Stat implements [guestfs.FS]. A directory where something is mounted that
// cannot be read is there all the same; listing it says why.
func (t *Tree) Stat(ctx context.Context, inode guestfs.Inode) (*guestfs.Attr, error) {
	_, fsys, own, err := t.fs(ctx, inode)
	n := t.virtual(inode)
	if n != nil && (err != nil || fsys == nil) && ctx.Err() == nil {
		return &guestfs.Attr{Inode: inode, Mode: guestfs.TypeDir | 0o755, Links: 2}, nil
	}
	if err != nil {
		return nil, err
	}
	a, err := fsys.Stat(ctx, own)
	if err != nil {
		return nil, err
	}
	return renumbered(a, inode), nil
}

func renumbered(a *guestfs.Attr, inode guestfs.Inode) *guestfs.Attr {
	if a == nil {
		return nil
	}
	b := *a
	b.Inode = inode
	return &b
}

// Lookup implements [guestfs.Lookuper].
func (t *Tree) Lookup(ctx context.Context, dir guestfs.Inode, name string) (guestfs.Dirent, error) {
	n := t.virtual(dir)
	if n != nil {
		for _, c := range n.children {
			if c.called(name) {
				return guestfs.Dirent{Name: c.name, Inode: c.inode, Type: guestfs.TypeDir, Cookie: n.cookie(c)}, nil
			}
		}
	}
	m, fsys, own, err := t.fs(ctx, dir)
	if err != nil {
		return guestfs.Dirent{}, err
	}
	if fsys == nil {
		return guestfs.Dirent{}, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
	}
	e, err := guestfs.Lookup(ctx, fsys, own, name)
	if err == nil {
		e.Inode = t.number(m, e.Inode)
	}
	return e, err
}

// called reports whether that is the directory's name. Drives have no case.
func (n *node) called(name string) bool {
	return n.name == name || strings.HasSuffix(n.name, ":") && strings.EqualFold(n.name, name)
}

// Open implements [guestfs.FS].
func (t *Tree) Open(ctx context.Context, inode guestfs.Inode) (disk.Image, error) {
	_, fsys, own, err := t.file(ctx, inode)
	if err != nil {
		return nil, err
	}
	return fsys.Open(ctx, own)
}

// file is fs of what is no virtual directory.
func (t *Tree) file(ctx context.Context, inode guestfs.Inode) (*mount, guestfs.FS, guestfs.Inode, error) {
	if t.virtual(inode) != nil {
		return nil, nil, 0, fmt.Errorf("inode %d is a directory", inode)
	}
	return t.fs(ctx, inode)
}

// Xattrs implements [guestfs.XattrReader].
func (t *Tree) Xattrs(ctx context.Context, inode guestfs.Inode) ([]guestfs.Xattr, error) {
	_, fsys, own, err := t.fs(ctx, inode)
	if err != nil || fsys == nil {
		return nil, err
	}
	return xattrs(ctx, fsys, own)
}

// Streams implements [guestfs.StreamReader].
func (t *Tree) Streams(ctx context.Context, inode guestfs.Inode) ([]guestfs.Stream, error) {
	_, fsys, own, err := t.fs(ctx, inode)
	if err != nil || fsys == nil {
		return nil, err
	}
	return streams(ctx, fsys, own)
}

// OpenStream implements [guestfs.StreamReader].
func (t *Tree) OpenStream(ctx context.Context, inode guestfs.Inode, name string) (disk.Image, error) {
	_, fsys, own, err := t.fs(ctx, inode)
	if err != nil {
		return nil, err
	}
	return openStream(ctx, fsys, own, name)
}

// SecurityDescriptor implements [guestfs.SecurityReader].
func (t *Tree) SecurityDescriptor(ctx context.Context, inode guestfs.Inode) ([]byte, error) {
	_, fsys, own, err := t.fs(ctx, inode)
	if err != nil || fsys == nil {
		return nil, err
	}
	return descriptor(ctx, fsys, own)
}

func (t *Tree) windows(inode guestfs.Inode) bool {
	_, fsys, _, err := t.fs(context.Background(), inode)
	return err == nil && fsys != nil && isWindows(info(fsys).Type)
}
