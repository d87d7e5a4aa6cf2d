// Package browse is the one tree of all restore points, as people see it through
// FUSE and WebDAV:
//
//	<vm>/<time>/disks/disk0.raw          the disks, whole
//	<vm>/<time>/files/<volume>/…         what is on each volume
//	<vm>/<time>/files/C/…                of Windows, its drives as well
//	<vm>/<time>/files/guest/…            what the guest sees, everything in its place
//
// Nothing is opened before somebody looks at it, and of what was opened the
// latest few points stay open; a point that was closed is opened again without
// anybody noticing.
package browse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/tree"
)

// Source knows the restore points. Its methods are called by many at once.
type Source interface {
	// VMs lists the virtual machines.
	VMs(ctx context.Context) ([]VM, error)
	// Points lists the restore points of one, by the name that VMs gave it.
	Points(ctx context.Context, vm string) ([]Point, error)
	// OpenDisk opens a disk of a point.
	OpenDisk(ctx context.Context, point string, n int) (disk.Image, error)
	// OpenFiles finds what is on the disks of a point.
	OpenFiles(ctx context.Context, point string) (Files, error)
}

// VM is a virtual machine.
type VM struct {
	Name   string // of its directory: one path element, distinct
	Latest time.Time
}

// Point is a restore point.
type Point struct {
	ID    string
	Name  string // of its directory: one path element, distinct within the VM
	Time  time.Time
	Disks []Disk
}

// Disk is a disk of a point.
type Disk struct {
	Name string // of its file
	Size int64  // bytes
}

// Files is what is on a point's disks.
type Files interface {
	// Trees lists the directories that there are: one path element each,
	// distinct. It is the same every time that a point is opened.
	Trees() []string
	// Open opens one of them.
	Open(ctx context.Context, n int) (guestfs.FS, error)
	Close() error
}

// Defaults of Options.
const (
	DefaultOpen  = 12
	DefaultFresh = 5 * time.Second
)

// Options of a Namespace. The zero value is good.
type Options struct {
	// Open bounds how many points with their files are open at the same time;
	// points that are in use stay. 0 means DefaultOpen.
	Open int
	// Fresh is how long lists of VMs and points are believed; 0 means
	// DefaultFresh.
	Fresh time.Duration
}

// Namespace is the tree. It is a guestfs.FS, in which what a point holds keeps
// its own kinds of files; symbolic links in it are the guest's, and mean places
// in that guest: [Namespace.Walk] follows them there and nowhere else.
//
// Locks: mu guards the tables of nodes, numbers and lists, and shelf.mu which
// points are open. Neither is held while a source or a file system is asked.
type Namespace struct {
	source Source
	opts   Options
	shelf  *shelf

	mu      sync.Mutex
	nodes   []*node
	wide    map[wideKey]guestfs.Inode
	wideKey []wideKey
	vms     fresh[[]VM]
	points  map[string]*fresh[[]Point]
	trees   []treeID // by slot
	slots   map[treeID]uint32
}

// fresh is a list and when it was made.
type fresh[T any] struct {
	value T
	at    time.Time
}

var (
	_ guestfs.FS             = (*Namespace)(nil)
	_ guestfs.Lookuper       = (*Namespace)(nil)
	_ guestfs.XattrReader    = (*Namespace)(nil)
	_ guestfs.PlusReader     = (*Namespace)(nil)
	_ guestfs.StreamReader   = (*Namespace)(nil)
	_ guestfs.SecurityReader = (*Namespace)(nil)
)

// New makes the tree of a source.
func New(source Source, opts Options) *Namespace {
	if opts.Open <= 0 {
		opts.Open = DefaultOpen
	}
	if opts.Fresh <= 0 {
		opts.Fresh = DefaultFresh
	}
	n := &Namespace{
		source: source, opts: opts, shelf: newShelf(source, opts.Open),
		wide: map[wideKey]guestfs.Inode{}, points: map[string]*fresh[[]Point]{}, slots: map[treeID]uint32{},
	}
	n.nodes = []*node{nil, {number: rootNumber, kind: rootNode}}
	return n
}

// Close closes what is open. Nobody may be using the tree any more.
func (n *Namespace) Close() error { return n.shelf.close() }

// Root implements [guestfs.FS].
func (n *Namespace) Root() guestfs.Inode { return rootNumber }

// listVMs is the list of VMs, not older than it may be.
func (n *Namespace) listVMs(ctx context.Context) ([]VM, error) {
	n.mu.Lock()
	list, at := n.vms.value, n.vms.at
	n.mu.Unlock()
	if !at.IsZero() && time.Since(at) < n.opts.Fresh {
		return list, nil
	}
	list, err := n.source.VMs(ctx)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.vms = fresh[[]VM]{list, time.Now()}
	return list, nil
}

func (n *Namespace) listPoints(ctx context.Context, vm string) ([]Point, error) {
	n.mu.Lock()
	was := n.points[vm]
	n.mu.Unlock()
	if was != nil && time.Since(was.at) < n.opts.Fresh {
		return was.value, nil
	}
	list, err := n.source.Points(ctx, vm)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.points[vm] = &fresh[[]Point]{list, time.Now()}
	return list, nil
}

// point finds a point of a VM by its directory's name.
func (n *Namespace) point(ctx context.Context, vm, name string) (Point, error) {
	list, err := n.listPoints(ctx, vm)
	if err != nil {
		return Point{}, err
	}
	for _, p := range list {
		if p.Name == name {
			return p, nil
		}
	}
	return Point{}, fmt.Errorf("restore point %s of %s: %w", name, vm, fs.ErrNotExist)
}

// Place is where a path leads.
type Place struct {
	guestfs.Dirent
	// Path is the place's own: without links, "." and "..".
	Path string
}

// Walk finds a path, whose parts are separated by slashes. Symbolic links of a
// guest are followed within the volume that they are in.
func (n *Namespace) Walk(ctx context.Context, path string) (Place, error) {
	at := Place{Dirent: guestfs.Dirent{Inode: rootNumber, Type: guestfs.TypeDir}, Path: "/"}
	parts := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	for i, name := range parts {
		if slot, ok := n.treeRoot(at.Inode); ok {
			return n.walkTree(ctx, slot, at, strings.Join(parts[i:], "/"))
		}
		if name == "." || name == ".." {
			return Place{}, fmt.Errorf("%q: %w", path, fs.ErrNotExist)
		}
		e, err := n.Lookup(ctx, at.Inode, name)
		if err != nil {
			return Place{}, err
		}
		at = Place{e, strings.TrimSuffix(at.Path, "/") + "/" + e.Name}
	}
	return at, nil
}

func (n *Namespace) walkTree(ctx context.Context, slot uint32, root Place, rest string) (Place, error) {
	var place Place
	err := n.with(ctx, slot, func(fsys guestfs.FS) error {
		found, err := tree.Walk(ctx, fsys, rest, tree.Follow)
		if err != nil {
			return err
		}
		place = Place{found.Dirent, strings.TrimSuffix(root.Path+found.Path, "/")}
		place.Inode = n.number(slot, fsys, found.Inode)
		return nil
	})
	return place, err
}

// Link is what a symbolic link says, and where in its volume that leads.
type Link struct {
	Target string // as the guest wrote it
	// Resolved is the absolute path in the volume, without links, that Target
	// leads to for the guest; "" if it leads nowhere.
	Resolved string
}

// ReadLink reads a symbolic link that lies in the directory dir, a path of the
// volume without links.
func (n *Namespace) ReadLink(ctx context.Context, inode guestfs.Inode, dir string) (Link, error) {
	slot, own, err := n.own(inode)
	if err != nil {
		return Link{}, err
	}
	var l Link
	err = n.with(ctx, slot, func(fsys guestfs.FS) error {
		if l.Target, err = guestfs.ReadLink(ctx, fsys, own); err != nil {
			return err
		}
		path := l.Target
		if !strings.HasPrefix(path, "/") {
			path = dir + "/" + path
		}
		found, err := tree.Walk(ctx, fsys, path, tree.Follow)
		var loop *tree.LoopError
		if err == nil {
			l.Resolved = found.Path
		} else if errors.Is(err, fs.ErrNotExist) || errors.Is(err, guestfs.ErrNotDir) || errors.As(err, &loop) {
			err = nil
		}
		return err
	})
	return l, err
}
