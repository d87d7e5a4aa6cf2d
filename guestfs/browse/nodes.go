package browse

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"lifeboat/guestfs"
)

// Kinds of what is above the guests' own trees.
type kind int

const (
	rootNode  kind = iota
	vmNode         // <vm>
	pointNode      // <vm>/<time>
	disksNode      // <vm>/<time>/disks
	diskNode       // <vm>/<time>/disks/disk0.raw
	filesNode      // <vm>/<time>/files
)

// node is a directory above the trees, or a disk. It is made when it is listed
// or looked up, and stays: there are few.
type node struct {
	number   guestfs.Inode
	kind     kind
	name     string
	vm       string
	point    Point
	disk     int
	children map[string]*node
}

const (
	disksName = "disks"
	filesName = "files"
)

// node finds one by its number.
func (n *Namespace) node(number guestfs.Inode) *node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.nodes[number]
}

// child is the node of that name below another, made if it is not there yet.
func (n *Namespace) child(parent *node, name string, fill func(*node)) *node {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c := parent.children[name]; c != nil {
		return c
	}
	c := &node{number: guestfs.Inode(len(n.nodes)), name: name, vm: parent.vm, point: parent.point}
	fill(c)
	n.nodes = append(n.nodes, c)
	if parent.children == nil {
		parent.children = map[string]*node{}
	}
	parent.children[name] = c
	return c
}

// entries lists what is in a directory above the trees. The cookies are places
// in the list, which may change while somebody reads it; new points come last.
func (n *Namespace) entries(ctx context.Context, d *node) ([]guestfs.Dirent, error) {
	switch d.kind {
	case rootNode:
		list, err := n.listVMs(ctx)
		return listed(list, err, func(v VM) guestfs.Dirent {
			return n.dirent(n.child(d, v.Name, func(c *node) { c.kind, c.vm, c.point.Time = vmNode, v.Name, v.Latest }))
		})
	case vmNode:
		list, err := n.listPoints(ctx, d.vm)
		return listed(list, err, func(p Point) guestfs.Dirent {
			return n.dirent(n.child(d, p.Name, func(c *node) { c.kind, c.point = pointNode, p }))
		})
	case pointNode:
		return listed([]string{disksName, filesName}, nil, func(name string) guestfs.Dirent {
			return n.dirent(n.child(d, name, func(c *node) {
				if c.kind = disksNode; name == filesName {
					c.kind = filesNode
				}
			}))
		})
	case disksNode:
		i := -1
		return listed(d.point.Disks, nil, func(k Disk) guestfs.Dirent {
			i++
			return n.dirent(n.child(d, k.Name, func(c *node) { c.kind, c.disk = diskNode, i }))
		})
	case filesNode:
		files, release, err := n.shelf.take(ctx, d.point.ID)
		if err != nil {
			return nil, err
		}
		defer release()
		i := -1
		return listed(files.Trees(), nil, func(name string) guestfs.Dirent {
			i++
			return guestfs.Dirent{Name: name, Inode: n.treeInode(treeID{d.point.ID, i}), Type: guestfs.TypeDir}
		})
	}
	return nil, guestfs.ErrNotDir
}

func listed[T any](list []T, err error, entry func(T) guestfs.Dirent) ([]guestfs.Dirent, error) {
	if err != nil {
		return nil, err
	}
	out := make([]guestfs.Dirent, 0, len(list))
	for i, v := range list {
		e := entry(v)
		e.Cookie = uint64(i) + 1
		out = append(out, e)
	}
	return out, nil
}

func (n *Namespace) dirent(c *node) guestfs.Dirent {
	e := guestfs.Dirent{Name: c.name, Inode: c.number, Type: guestfs.TypeDir}
	if c.kind == diskNode {
		e.Type = guestfs.TypeFile
	}
	return e
}

// lookup finds a name in a directory above the trees.
func (n *Namespace) lookup(ctx context.Context, d *node, name string) (guestfs.Dirent, error) {
	if d.kind == vmNode { // one point, without making nodes of all
		p, err := n.point(ctx, d.vm, name)
		if err != nil {
			return guestfs.Dirent{}, err
		}
		return n.dirent(n.child(d, name, func(c *node) { c.kind, c.point = pointNode, p })), nil
	}
	list, err := n.entries(ctx, d)
	if err != nil {
		return guestfs.Dirent{}, err
	}
	i := slices.IndexFunc(list, func(e guestfs.Dirent) bool { return e.Name == name })
	if i < 0 {
		return guestfs.Dirent{}, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
	}
	return list[i], nil
}

// attr describes a node.
func (d *node) attr() *guestfs.Attr {
	at := d.point.Time
	if at.IsZero() {
		at = time.Unix(0, 0)
	}
	a := &guestfs.Attr{Inode: d.number, Mode: guestfs.TypeDir | 0o755, Links: 2, Mtime: at, Ctime: at, Atime: at, Btime: at}
	if d.kind == diskNode {
		size := d.point.Disks[d.disk].Size
		a.Mode, a.Links, a.Size, a.Allocated = guestfs.TypeFile|0o444, 1, size, size
	}
	return a
}
