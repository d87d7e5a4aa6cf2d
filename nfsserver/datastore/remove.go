package datastore

import "golang.org/x/sys/unix"

// Remove removes the name of a file that is not a directory. The change is
// durable when it returns. A file whose last name it was is gone: its handle is
// stale from then on, whoever still uses it; clients that want to go on using
// an open file rename it first (RFC 1813 §4.8 calls it the last close problem).
func (n *Node) Remove(c Cred, name string) (WCC, error) {
	return n.remove(&c, name, false)
}

// Rmdir removes an empty directory; else like Remove.
func (n *Node) Rmdir(c Cred, name string) (WCC, error) {
	return n.remove(&c, name, true)
}

func (n *Node) remove(c *Cred, name string, dir bool) (wcc WCC, err error) {
	op := "remove"
	if dir {
		op = "rmdir"
	}
	ch, err := n.begin(c, name, &wcc)
	if err != nil {
		return wcc, fail(op, name, err)
	}
	defer ch.release()
	lost, err := ch.unlink(c, name, dir)
	ch.end()
	if err == nil {
		err = ch.persist()
	}
	lost.settle(n.tree)
	return wcc, fail(op, name, err)
}

func (ch *change) unlink(c *Cred, name string, dir bool) (lost lostFile, err error) {
	st, err := ch.lookup(name)
	if err != nil {
		return lost, err
	}
	isDir := st.attr.Type == TypeDirectory
	switch {
	case dir && !isDir:
		return lost, ErrNotDir
	case !dir && isDir:
		return lost, ErrIsDir
	}
	if err := ch.mayRemove(c, &st); err != nil {
		return lost, err
	}
	lost = ch.hold(name, &st)
	flags := 0
	if dir {
		flags = unix.AT_REMOVEDIR
	}
	if err := retry(func() error { return unix.Unlinkat(ch.fd, name, flags) }); err != nil {
		lost.keep()
		return lostFile{}, err
	}
	ch.dir.tree.lose(&lost, link{ch.dir, name})
	return lost, nil
}

// lostFile is a file that loses a name, perhaps its last.
type lostFile struct {
	node  *Node // nil if it was not known
	fd    int   // holds the inode; 0: none
	last  bool  // it was the last name
	event *Unlinked
}

// hold prepares for the loss of name. The inode of a file that loses its last
// name is held open, so that its space is freed (which takes long for a big
// file) only after the locks are.
func (ch *change) hold(name string, st *stat) lostFile {
	l := lostFile{node: ch.dir.tree.known(st.attr.FileID)}
	l.last = st.attr.Nlink <= 1 || st.attr.Type == TypeDirectory
	if l.node != nil && !l.node.is(st) {
		l.node = nil
	}
	if l.last && st.attr.Type == TypeRegular {
		if fd, err := unix.Openat(ch.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err == nil {
			l.fd = fd
		}
	}
	return l
}

// keep undoes hold.
func (l *lostFile) keep() {
	if l.fd > 0 {
		_ = unix.Close(l.fd)
		l.fd = 0
	}
}

// lose notes that the file has lost a name. The namespace lock is held.
func (t *Tree) lose(l *lostFile, name link) {
	n := l.node
	if n == nil {
		return
	}
	if !l.last {
		t.unlinked(n, name)
		n.changed()
		return
	}
	if d := n.disk.Load(); d != nil {
		path := name.name
		if dir := t.path(name.parent); dir != "" {
			path = dir + "/" + path
		}
		l.event = &Unlinked{Session: n.sess.name, Path: path, FileID: n.ino, Device: d.dev}
	}
	t.forget(n)
}

// settle finishes the loss, with no lock held.
func (l *lostFile) settle(t *Tree) {
	l.keep()
	if l.event == nil {
		return
	}
	t.log.Warn("virtual disk removed by a client", "path", l.event.Path)
	if t.unlinkCB != nil {
		t.unlinkCB(*l.event)
	}
}
