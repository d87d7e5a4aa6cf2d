package datastore

import (
	"golang.org/x/sys/unix"
)

// change is one change of a directory under way. Everything that changes names
// has the same shape:
//
//	begin      take the namespace lock, read the attributes before
//	           (check, and make the change by system calls relative to fd)
//	end        read the attributes after, give the lock back
//	persist    make the change durable, with the lock free, so that changes
//	           made by others meanwhile share one fsync of the directory
//
// The reply may go out only when persist has returned.
type change struct {
	dir  *Node
	fd   int
	attr Attr // of the directory, before
	file *openFile
	wcc  *WCC
}

// begin also checks that c may change entries of the directory.
func (n *Node) begin(c *Cred, name string, wcc *WCC) (*change, error) {
	if n.typ != TypeDirectory {
		return nil, ErrNotDir
	}
	if n.sess == nil {
		wcc.before(n.Attr())
		wcc.after(n.Attr())
		return nil, ErrROFS
	}
	f, err := n.acquire()
	if err != nil {
		return nil, err
	}
	n.sess.ns.Lock()
	ch := &change{dir: n, fd: f.fd, file: f, wcc: wcc}
	if err := ch.start(c, name); err != nil {
		ch.end()
		ch.release()
		return nil, err
	}
	return ch, nil
}

func (ch *change) start(c *Cred, name string) (err error) {
	if ch.attr, err = ch.dir.fresh(); err != nil {
		return err
	}
	ch.wcc.before(ch.attr, nil)
	if err := checkName(name); err != nil {
		return err
	}
	return check(c, &ch.attr, Write|Exec)
}

func (ch *change) end() {
	ch.dir.changed()
	ch.wcc.after(ch.dir.fresh())
	ch.dir.sess.ns.Unlock()
}

func (ch *change) release() { ch.dir.release(ch.file) }

// persist makes the directory's entries durable.
func (ch *change) persist() error { return ch.dir.syncDir(ch.fd) }

func (n *Node) syncDir(fd int) error {
	return n.group().do(func() error { return retry(func() error { return unix.Fsync(fd) }) })
}

// lookup describes name in the directory. The namespace lock is held.
func (ch *change) lookup(name string) (stat, error) { return ch.dir.tree.statAt(ch.fd, name) }

// sticky refuses that c removes or renames what st describes from a directory
// with the sticky bit, as the host would.
func (ch *change) sticky(c *Cred, st *stat) error {
	if c.UID == 0 || ch.attr.Mode&unix.S_ISVTX == 0 || c.UID == st.attr.UID || c.UID == ch.attr.UID {
		return nil
	}
	return ErrPerm
}
