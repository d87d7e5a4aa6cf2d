package datastore

import (
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
)

// session is one directory of the root, prepared (Bind) or attached (Attach).
type session struct {
	tree *Tree
	name string
	dir  *Node

	attached atomic.Bool // clients can see it
	ended    atomic.Bool // Detach was called; set with ns held

	// ns is the namespace lock: held for writing while names change, for
	// reading while a name is turned into a node or a descriptor.
	ns sync.RWMutex

	count int // nodes; guarded by tree.mu

	indexing sync.Mutex // taken before ns
	indexed  bool       // guarded by indexing
	failed   error      // outcome of an index that failed; guarded by indexing
	failedAt time.Duration
}

// Attach shows the session's directory, which must exist in the root, to
// clients. [ErrExist] if it is attached already.
func (t *Tree) Attach(name string) error {
	t.admin.Lock()
	defer t.admin.Unlock()
	s, err := t.prepare(name)
	if err != nil {
		return fail("attach session", name, err)
	}
	if s.attached.Swap(true) {
		return fail("attach session", name, ErrExist)
	}
	t.root.changed()
	t.log.Info("session attached", "session", name)
	return nil
}

// prepare opens the directory of a session. admin is held.
func (t *Tree) prepare(name string) (*session, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if s := t.session(name); s != nil {
		return s, nil
	}
	root, err := t.root.acquire()
	if err != nil {
		return nil, err
	}
	defer t.root.release(root)
	st, err := t.statAt(root.fd, name)
	switch {
	case err != nil:
		return nil, err
	case st.attr.Type != TypeDirectory:
		return nil, ErrNotDir
	case st.dev != t.dev:
		return nil, ErrXDev
	}
	gen, err := t.generation(root.fd, name, &st)
	if err != nil {
		return nil, err
	}
	s := &session{tree: t, name: name}
	dir := t.newNode(s, &st, gen)
	dir.links = []link{{t.root, name}}
	s.dir = dir
	t.mu.Lock()
	defer t.mu.Unlock()
	s.count = 1
	t.nodes[dir.ino] = dir
	t.sessions[name] = s
	return s, nil
}

func (t *Tree) session(name string) *session {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.sessions[name]
}

// Detach hides the session from clients, whose handles get [ErrJukebox] from
// now on, and ends its bindings; the Devices are the caller's to close once
// requests that hold one have ended. The times of virtual disks are put on
// their placeholders.
func (t *Tree) Detach(name string) error {
	t.admin.Lock()
	defer t.admin.Unlock()
	s := t.session(name)
	if s == nil {
		return fail("detach session", name, ErrNoEnt)
	}
	s.attached.Store(false)
	var first error
	for _, n := range t.nodesOf(s) {
		if d := n.disk.Load(); d != nil {
			if err := d.settle(n, true); err != nil && first == nil {
				first = fail("detach session", name, err)
			}
		}
	}
	for _, n := range t.end(s) {
		n.unbind()
		t.files.drop(n)
		n.changed()
	}
	t.root.changed()
	t.log.Info("session detached", "session", name)
	return first
}

// end forgets the session and returns its nodes. No operation that holds the
// namespace lock is under way then, and none that comes later finds a node.
func (t *Tree) end(s *session) []*Node {
	s.ns.Lock()
	defer s.ns.Unlock()
	s.ended.Store(true)
	nodes := t.nodesOf(s)
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.sessions, s.name)
	for _, n := range nodes {
		delete(t.nodes, n.ino)
	}
	return nodes
}

func (t *Tree) nodesOf(s *session) []*Node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var nodes []*Node
	for _, n := range t.nodes {
		if n.sess == s {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// Bind makes the file at path ("<session>/<folder>/x-flat.vmdk") a virtual
// disk: size, space used and content are dev's from now on, everything else
// stays the placeholder's. The placeholder must exist and be a regular file.
//
// Bind the disks of a session before Attach, so that no client sees an empty
// file in their place. (Should one be seen all the same, reading and writing a
// placeholder that was bound once fails with [ErrJukebox].)
func (t *Tree) Bind(path string, dev disk.Device) error {
	t.admin.Lock()
	defer t.admin.Unlock()
	return fail("bind", path, t.bind(path, dev))
}

func (t *Tree) bind(path string, dev disk.Device) error {
	names, err := splitPath(path)
	if err != nil {
		return err
	}
	if len(names) < 2 {
		return ErrInval
	}
	s, err := t.prepare(names[0])
	if err != nil {
		return err
	}
	n := s.dir
	for _, name := range names[1:] {
		if n, err = n.lookup(Cred{}, name); err != nil {
			return err
		}
	}
	switch {
	case n.typ == TypeDirectory:
		return ErrIsDir
	case n.typ != TypeRegular:
		return ErrInval
	case n.disk.Load() != nil:
		return ErrExist
	}
	d, err := n.newDisk(dev)
	if err != nil {
		return err
	}
	n.disk.Store(d)
	t.diskBytes.Add(dev.Size())
	n.changed()
	t.log.Info("virtual disk bound", "path", path, slog.Int64("size", dev.Size()))
	return nil
}

// retryIndex bounds how often a listing that fails is tried again.
const retryIndex = time.Second

// index makes every file of the session known, so that the handles that
// clients hold from before a restart are found. That is needed once; again
// asks for it anyway, when a file was moved on the host.
func (s *session) index(again bool) error {
	s.indexing.Lock()
	defer s.indexing.Unlock()
	switch {
	case s.indexed && !again:
		return nil
	case s.failed != nil && s.tree.clock()-s.failedAt < retryIndex:
		return s.failed
	}
	start := s.tree.clock()
	s.ns.RLock()
	defer s.ns.RUnlock()
	found, failed := 0, error(nil)
	for queue := []*Node{s.dir}; len(queue) > 0; {
		dir := queue[0]
		queue = queue[1:]
		dirs, n, err := dir.adoptAll()
		if err != nil && (dir == s.dir || !errors.Is(err, errLost)) {
			// One directory must not hide the others. But a file that may be in
			// it must not be called stale: nothing is settled.
			failed = err
			s.tree.log.Warn("index", "session", s.name, "dir", s.tree.path(dir), "err", err)
		}
		found += n
		queue = append(queue, dirs...)
	}
	if failed != nil {
		s.failed, s.failedAt = &OpError{Op: "index", Name: s.name, Kind: ErrJukebox, Err: failed}, s.tree.clock()
		return s.failed
	}
	s.indexed, s.failed = true, nil
	s.tree.log.Debug("session indexed", "session", s.name, "files", found, "took", s.tree.clock()-start)
	return nil
}

// adoptAll makes all entries of a directory known and returns its directories.
func (n *Node) adoptAll() (dirs []*Node, found int, err error) {
	f, err := n.acquireHeld()
	if err != nil {
		return nil, 0, err
	}
	defer n.release(f)
	// A descriptor of its own, because reading moves its position.
	fd, err := reopenDir(f.fd)
	if err != nil {
		return nil, 0, err
	}
	defer unix.Close(fd)
	for e, err := range listDir(fd, 0) {
		if err != nil {
			return dirs, found, err
		}
		name := string(e.name)
		var child *Node
		st, err := n.tree.statAt(fd, name)
		if err == nil {
			child, err = n.tree.adopt(n, fd, name, &st)
		}
		if err == unix.ENOENT || err == ErrXDev {
			continue // removed on the host just now, or mounted there
		}
		if err != nil {
			return dirs, found, err
		}
		found++
		if child.typ == TypeDirectory {
			dirs = append(dirs, child)
		}
	}
	return dirs, found, nil
}
