package datastore

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"lifeboat/disk"
)

// Node is one file or directory: one inode, whatever its names are. There is
// one Node for an inode as long as its session is attached, so Nodes can be
// compared. All methods are safe for concurrent use. A Node may be kept; when
// its file is removed its methods fail with [ErrStale], and when its session is
// detached with [ErrJukebox].
type Node struct {
	tree   *Tree
	sess   *session // nil for the root
	ino    uint64
	gen    uint64
	btime  int64
	typ    Type
	handle [handleLen]byte

	links []link // names by which the file was last seen; guarded by tree.mu

	gone    atomic.Bool
	nascent atomic.Bool   // made by Create, and that is not durable yet
	attrSeq atomic.Uint64 // goes up with every change of the attributes
	attr    atomic.Pointer[cachedAttr]
	disk    atomic.Pointer[virtualDisk]
	syncs   atomic.Pointer[nodeSyncs]

	file *openFile // guarded by tree.files.mu

	// changing orders changes of an ordinary file's content and attributes, so
	// that the WCC data of each are exact.
	changing sync.Mutex
}

// link is one name of a file.
type link struct {
	parent *Node
	name   string
}

type cachedAttr struct {
	attr    Attr
	seq     uint64
	expires time.Duration // on the tree's monotonic clock
}

// attrTTL bounds how long a change that was made on the host, behind the
// tree's back, stays unseen. Changes through the tree are seen at once.
const attrTTL = time.Second

// Handle is the file handle (at most 64 bytes). It must not be modified.
func (n *Node) Handle() []byte { return n.handle[:] }

// FileID is the fileid: the host's inode number. Never 0, stable for the life
// of the file.
func (n *Node) FileID() uint64 { return n.ino }

// Type of the file. It never changes.
func (n *Node) Type() Type { return n.typ }

// Device is the virtual disk bound to the file, or nil for an ordinary file.
// Who writes to it directly calls [Node.Written] afterwards.
func (n *Node) Device() disk.Device {
	if d := n.disk.Load(); d != nil {
		return d.dev
	}
	return nil
}

// Session is the name of the session that the file belongs to; empty for the root.
func (n *Node) Session() string {
	if n.sess == nil {
		return ""
	}
	return n.sess.name
}

// Attr describes the file: from memory where that is known to be right, else
// from the host.
func (n *Node) Attr() (Attr, error) {
	if a, ok := n.TryAttr(); ok {
		return a, nil
	}
	c, err := n.refresh()
	if err != nil {
		return Attr{}, fail("getattr", "", err)
	}
	a := c.attr
	if d := n.disk.Load(); d != nil {
		d.describe(&a)
	}
	return a, nil
}

// TryAttr is Attr if that needs no system call: always for a virtual disk that
// has been described once and was not renamed or the like since; for other
// files for a second after the last Attr. Otherwise ok is false.
func (n *Node) TryAttr() (a Attr, ok bool) {
	c, d := n.attr.Load(), n.disk.Load()
	if c == nil || c.seq != n.attrSeq.Load() {
		return a, false
	}
	if d == nil {
		return c.attr, n.tree.clock() <= c.expires
	}
	a = c.attr
	d.describe(&a)
	return a, true
}

// refresh asks the host. The sequence number is read before, so that a change
// made meanwhile leaves the result out of date rather than believed.
func (n *Node) refresh() (*cachedAttr, error) {
	c := &cachedAttr{seq: n.attrSeq.Load(), expires: n.tree.clock() + attrTTL}
	st, err := n.stat()
	if err != nil {
		return nil, err
	}
	c.attr = st.attr
	n.attr.Store(c)
	return c, nil
}

// changed makes the next Attr ask the host.
func (n *Node) changed() { n.attrSeq.Add(1) }

// errLost: the file is under none of the names that we know for it.
var errLost = errors.New("file moved or removed on the host")

// available says why the node cannot be used at all, if so.
func (n *Node) available() error {
	switch {
	case n.gone.Load():
		return ErrStale
	case n.sess != nil && n.sess.ended.Load():
		return ErrJukebox
	}
	return nil
}

// stat describes the file. It looks for one that was moved on the host. As long
// as descriptors are at hand it takes no lock that a change of names, which may
// wait for the host's disk, holds: GETATTR is how clients see that we live.
func (n *Node) stat() (st stat, err error) {
	if err := n.available(); err != nil {
		return st, err
	}
	if st, ok := n.statOpen(); ok {
		return st, nil
	}
	err = n.find(func() error {
		st, err = n.statHeld()
		return err
	})
	return st, err
}

// statOpen describes the file by its own descriptor or by that of its directory,
// if one is open.
func (n *Node) statOpen() (st stat, ok bool) {
	if f := n.tree.files.get(n); f != nil {
		st, err := n.tree.statAt(f.fd, "")
		n.release(f)
		return st, err == nil && st.attr.Nlink > 0
	}
	n.tree.mu.RLock()
	links := n.links
	n.tree.mu.RUnlock()
	if len(links) == 0 {
		return st, false
	}
	dir := n.tree.files.get(links[0].parent)
	if dir == nil {
		return st, false
	}
	st, err := n.tree.statAt(dir.fd, links[0].name)
	n.release(dir)
	return st, err == nil && n.is(&st)
}

// acquire returns an open descriptor of the file, to be released. A directory's
// is for reading, a regular file's for writing if that is possible.
func (n *Node) acquire() (f *openFile, err error) {
	if f := n.tree.files.get(n); f != nil {
		if err := n.available(); err != nil {
			n.tree.files.release(f)
			return nil, err
		}
		return f, nil
	}
	err = n.find(func() error {
		f, err = n.acquireHeld()
		return err
	})
	return f, err
}

func (n *Node) release(f *openFile) { n.tree.files.release(f) }

// find runs f under the namespace lock, and once more with a fresh index if
// the file has been lost sight of. If it is still lost it is gone for good.
func (n *Node) find(f func() error) error {
	if n.sess == nil {
		return f()
	}
	n.sess.ns.RLock()
	err := f()
	n.sess.ns.RUnlock()
	if !errors.Is(err, errLost) {
		return err
	}
	if err := n.sess.index(true); err != nil {
		return err
	}
	n.sess.ns.RLock()
	defer n.sess.ns.RUnlock()
	if err = f(); errors.Is(err, errLost) {
		n.tree.forget(n)
		return ErrStale
	}
	return err
}

// statHeld is stat under the namespace lock.
func (n *Node) statHeld() (st stat, err error) {
	if err := n.available(); err != nil {
		return st, err
	}
	if f := n.tree.files.get(n); f != nil {
		defer n.release(f)
		st, err = n.tree.statAt(f.fd, "")
		if err == nil && st.attr.Nlink == 0 {
			n.tree.files.drop(n)
			return st, errLost
		}
		return st, err
	}
	err = n.eachLink(func(dirfd int, name string) error {
		st, err = n.tree.statAt(dirfd, name)
		if err == nil && !n.is(&st) {
			err = errLost
		}
		return err
	})
	return st, err
}

// is says whether st describes the node.
func (n *Node) is(st *stat) bool {
	return st.attr.FileID == n.ino && st.btime == n.btime && st.attr.Type == n.typ && st.dev == n.tree.dev
}

// nodeSyncs are what can be asked to be durable of a node. They are apart,
// because fdatasync(2) does not cover what fsync(2) does.
type nodeSyncs struct {
	content groupSync // fdatasync
	all     groupSync // fsync: attributes, or a directory's entries
}

// group is the node's nodeSyncs, made at first use.
func (n *Node) group() *nodeSyncs {
	if g := n.syncs.Load(); g != nil {
		return g
	}
	n.syncs.CompareAndSwap(nil, &nodeSyncs{})
	return n.syncs.Load()
}

// syncAll makes attributes, entries and content durable; fd is the node's.
func (n *Node) syncAll(fd int, coming *cohort) error {
	return n.group().all.do(coming, func() error { return syncFD(fd) })
}
