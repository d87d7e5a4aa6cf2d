package datastore

import (
	"golang.org/x/sys/unix"
)

// Rename gives the file name in the directory n the name toName in the
// directory to, replacing what had it, atomically. Both must be in one session
// ([ErrXDev]). An existing target must be of the same sort as the source, and a
// directory must be empty, else [ErrExist] (RFC 1813 §3.3.14). Two names of one
// file: nothing happens. Handles stay valid. Durable when it returns.
func (n *Node) Rename(c Cred, name string, to *Node, toName string) (from, dst WCC, err error) {
	r := rename{c: &c, name: name, toName: toName}
	lost, err := r.run(n, to, &from, &dst)
	lost.settle(n.tree)
	return from, dst, fail("rename", name, err)
}

type rename struct {
	c            *Cred
	name, toName string
	src, dst     *change
}

func (r *rename) run(n, to *Node, from, dst *WCC) (lost lostFile, err error) {
	if n.sess != to.sess && n.sess != nil && to.sess != nil {
		return lost, ErrXDev
	}
	if to.typ != TypeDirectory {
		return lost, ErrNotDir
	}
	if to.sess == nil {
		return lost, ErrROFS
	}
	toFile, err := to.acquire()
	if err != nil {
		return lost, err
	}
	defer to.release(toFile)
	if r.src, err = n.begin(r.c, r.name, from); err != nil {
		return lost, err
	}
	defer r.src.release()
	r.dst = &change{dir: to, fd: toFile.fd, file: toFile, wcc: dst}
	if err = r.dst.start(r.c, r.toName); err == nil {
		lost, err = r.move()
	}
	to.changed()
	dst.after(r.dst.now())
	r.src.end()
	r.src.leave() // it waits for another directory's sync first
	if err != nil {
		return lost, err
	}
	// The new name first: a crash in between leaves two names, never none.
	if err := r.dst.persist(); err != nil {
		return lost, err
	}
	if n == to {
		return lost, nil
	}
	return lost, r.src.persist()
}

// move does it, with the namespace lock held.
func (r *rename) move() (lost lostFile, err error) {
	st, err := r.src.lookup(r.name)
	if err != nil {
		return lost, err
	}
	if err := r.permit(&st); err != nil {
		return lost, err
	}
	old, err := r.dst.lookup(r.toName)
	switch {
	case err == nil && old.attr.FileID == st.attr.FileID && old.dev == st.dev:
		return lost, nil
	case err == nil && (old.attr.Type == TypeDirectory) != (st.attr.Type == TypeDirectory):
		return lost, ErrExist
	case err == nil:
		if err := r.dst.mayRemove(r.c, &old); err != nil {
			return lost, err
		}
		lost = r.dst.hold(r.toName, &old)
	case err != unix.ENOENT:
		return lost, err
	}
	t := r.src.dir.tree
	node, err := t.adopt(r.src.dir, r.src.fd, r.name, &st)
	if err == nil {
		err = retry(func() error { return unix.Renameat(r.src.fd, r.name, r.dst.fd, r.toName) })
	}
	if err != nil {
		lost.keep()
		if err == unix.ENOTEMPTY {
			err = ErrExist
		}
		return lostFile{}, err
	}
	t.lose(&lost, link{r.dst.dir, r.toName})
	t.unlinked(node, link{r.src.dir, r.name})
	t.linked(node, link{r.dst.dir, r.toName})
	node.changed()
	return lost, nil
}

func (r *rename) permit(st *stat) error {
	if err := r.src.mayRemove(r.c, st); err != nil {
		return err
	}
	if st.attr.Type == TypeDirectory && r.src.dir != r.dst.dir {
		if err := check(r.c, &st.attr, Write); err != nil { // its ".." changes
			return err
		}
	}
	return r.dst.mayWrite(r.c)
}

// Link gives file another name in the directory n. Durable when it returns.
// Directories have one name only ([ErrInval]).
func (n *Node) Link(c Cred, file *Node, name string) (wcc WCC, err error) {
	err = n.link(&c, file, name, &wcc)
	return wcc, fail("link", name, err)
}

func (n *Node) link(c *Cred, file *Node, name string, wcc *WCC) error {
	switch {
	case file.typ == TypeDirectory:
		return ErrInval
	case file.sess != n.sess && n.sess != nil:
		return ErrXDev
	}
	if _, err := file.stat(); err != nil { // finds it, should it have been moved on the host
		return err
	}
	ch, err := n.begin(c, name, wcc)
	if err != nil {
		return err
	}
	defer ch.release()
	if err := ch.mayWrite(c); err != nil {
		ch.end()
		return err
	}
	err = file.eachLink(func(dirfd int, old string) error {
		st, err := n.tree.statAt(dirfd, old)
		if err == nil && !file.is(&st) {
			err = errLost
		}
		if err != nil {
			return err
		}
		return retry(func() error { return unix.Linkat(dirfd, old, ch.fd, name, 0) })
	})
	if err == nil {
		n.tree.linked(file, link{n, name})
		file.changed()
	}
	ch.end()
	switch {
	case err == errLost:
		return ErrStale
	case err != nil:
		return err
	}
	return ch.persist()
}
