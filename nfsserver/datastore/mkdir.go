package datastore

import "golang.org/x/sys/unix"

// Mkdir makes a directory. Durable when it returns.
func (n *Node) Mkdir(c Cred, name string, set SetAttr) (*Node, WCC, error) {
	var wcc WCC
	dir, err := n.makeEntry(&c, name, &wcc, func(ch *change) (int, error) { return ch.mkdir(&c, name, &set) })
	return dir, wcc, fail("mkdir", name, err)
}

// Symlink makes a symbolic link. We never follow one; what target means is the
// client's affair. Durable when it returns.
func (n *Node) Symlink(c Cred, name, target string, set SetAttr) (*Node, WCC, error) {
	var wcc WCC
	if target == "" {
		return nil, wcc, fail("symlink", name, ErrInval)
	}
	node, err := n.makeEntry(&c, name, &wcc, func(ch *change) (int, error) {
		err := retry(func() error { return unix.Symlinkat(target, ch.fd, name) })
		if err != nil {
			return -1, err
		}
		return -1, ch.own(ch.fd, name, &c, &set)
	})
	return node, wcc, fail("symlink", name, err)
}

// Mknod is refused: no client of a datastore needs devices, sockets or FIFOs.
func (n *Node) Mknod(Cred, string, Type, SetAttr) (*Node, WCC, error) {
	var wcc WCC
	a, err := n.Attr()
	wcc.before(a, err)
	wcc.after(a, err)
	return nil, wcc, fail("mknod", "", ErrNotSupp)
}

// makeEntry runs add, which adds name to the directory and may return a
// descriptor of what it has made, to be synced and closed; else -1.
func (n *Node) makeEntry(c *Cred, name string, wcc *WCC, add func(*change) (int, error)) (*Node, error) {
	ch, err := n.begin(c, name, wcc)
	if err != nil {
		return nil, err
	}
	defer ch.release()
	var node *Node
	fd := -1
	if err = ch.room(c); err == nil {
		fd, err = add(ch)
	}
	if err == nil {
		node, err = ch.adoptNew(name)
	}
	ch.end()
	if fd >= 0 {
		defer unix.Close(fd)
	}
	if err != nil {
		return nil, err
	}
	return node, ch.persistNew(fd)
}

func (ch *change) mkdir(c *Cred, name string, set *SetAttr) (fd int, err error) {
	if err := retry(func() error { return unix.Mkdirat(ch.fd, name, 0o700) }); err != nil {
		return -1, err
	}
	fd, _, err = openNode(ch.fd, name, TypeDirectory)
	if err == nil {
		ch.late = true
		mode := uint32(defaultDirMode)
		if set.Mode != nil {
			mode = *set.Mode & 0o7777
		}
		mode |= ch.attr.Mode & unix.S_ISGID // inherited, as on the host
		if err = ch.own(fd, "", c, set); err == nil {
			err = unix.Fchmod(fd, mode)
		}
		if err == nil {
			err = set.setTimes(fd)
		}
	}
	if err != nil {
		_ = unix.Unlinkat(ch.fd, name, unix.AT_REMOVEDIR)
	}
	return fd, err
}
