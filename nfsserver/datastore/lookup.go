package datastore

// Lookup finds name in the directory. "." is the directory itself and ".." its
// parent; the root's parent is the root.
func (n *Node) Lookup(c Cred, name string) (*Node, error) {
	child, err := n.lookup(c, name)
	return child, fail("lookup", name, err)
}

func (n *Node) lookup(c Cred, name string) (*Node, error) {
	if n.typ != TypeDirectory {
		return nil, ErrNotDir
	}
	if c.UID != 0 {
		a, err := n.Attr()
		if err != nil {
			return nil, err
		}
		if err := check(&c, &a, Exec); err != nil {
			return nil, err
		}
	}
	switch name {
	case ".":
		return n, nil
	case "..":
		return n.parent()
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	if n.sess == nil {
		if s := n.tree.session(name); s != nil && s.attached.Load() {
			return s.dir, nil
		}
		return nil, ErrNoEnt
	}
	dir, err := n.acquire() // outside of the lock: it may have to search
	if err != nil {
		return nil, err
	}
	defer n.release(dir)
	n.sess.ns.RLock()
	defer n.sess.ns.RUnlock()
	st, err := n.tree.statAt(dir.fd, name)
	if err != nil {
		return nil, err
	}
	return n.tree.adopt(n, dir.fd, name, &st)
}
