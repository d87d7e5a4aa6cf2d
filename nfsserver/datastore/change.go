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
	dir    *Node
	fd     int
	attr   Attr // of the directory, before
	file   *openFile
	wcc    *WCC
	coming *cohort // announces a sync of the directory; nil once it was asked for
	late   bool    // attributes of a new file were set after it had a name
}

// begin also checks that c may look names up in the directory.
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
	ch := &change{dir: n, fd: f.fd, file: f, wcc: wcc, coming: n.group().all.enter()}
	n.sess.ns.Lock()
	if err := ch.start(c, name); err != nil {
		ch.end()
		ch.release()
		return nil, err
	}
	return ch, nil
}

func (ch *change) start(c *Cred, name string) (err error) {
	if ch.attr, err = ch.now(); err != nil {
		return err
	}
	ch.wcc.before(ch.attr, nil)
	if err := checkName(name); err != nil {
		return err
	}
	return check(c, &ch.attr, Exec)
}

// mayWrite checks that c may change entries of the directory.
func (ch *change) mayWrite(c *Cred) error { return check(c, &ch.attr, Write) }

func (ch *change) end() {
	ch.dir.changed()
	ch.wcc.after(ch.now())
	ch.dir.sess.ns.Unlock()
}

// now describes the directory.
func (ch *change) now() (Attr, error) {
	if err := ch.dir.available(); err != nil {
		return Attr{}, err
	}
	a, err := ch.dir.attrBy(ch.file)
	if err == nil && a.Nlink == 0 {
		err = ErrStale // removed on the host
	}
	return a, err
}

func (ch *change) release() {
	ch.leave()
	ch.dir.release(ch.file)
}

// leave says that the directory will not be synced soon.
func (ch *change) leave() {
	if ch.coming != nil {
		ch.dir.group().all.leave(ch.coming)
		ch.coming = nil
	}
}

// persist makes the directory's entries durable.
func (ch *change) persist() error {
	coming := ch.coming
	ch.coming = nil
	return ch.dir.syncAll(ch.fd, coming)
}

// persistNew makes a new file (or directory) durable, open as fd, and its name.
// Where the host makes metadata durable in order, the sync of the directory
// covers the file too, if its attributes were set before it was put there.
func (ch *change) persistNew(fd int) error {
	if fd >= 0 && (ch.late || !ch.dir.tree.ordered) {
		if err := syncFD(fd); err != nil {
			return err
		}
	}
	return ch.persist()
}

// orderedMetadata says whether the file system that holds fd has one journal
// for all metadata, so that a change is never durable before an earlier one.
func orderedMetadata(fd int) bool {
	var h unix.Statfs_t
	if err := unix.Fstatfs(fd, &h); err != nil {
		return false
	}
	return h.Type == unix.EXT4_SUPER_MAGIC || h.Type == unix.XFS_SUPER_MAGIC || h.Type == unix.TMPFS_MAGIC
}

func syncFD(fd int) error { return retry(func() error { return unix.Fsync(fd) }) }

func openFD(dirfd int, name string, flags int, mode uint32) (fd int, err error) {
	err = retry(func() (err error) {
		fd, err = unix.Openat(dirfd, name, flags|unix.O_CLOEXEC, mode)
		return err
	})
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// lookup describes name in the directory. The namespace lock is held.
func (ch *change) lookup(name string) (stat, error) { return ch.dir.tree.statAt(ch.fd, name) }

// mayRemove checks that c may take the name of what st describes out of the
// directory: in one with the sticky bit only owners may.
func (ch *change) mayRemove(c *Cred, st *stat) error {
	if err := ch.mayWrite(c); err != nil {
		return err
	}
	if c.UID == 0 || ch.attr.Mode&unix.S_ISVTX == 0 || c.UID == st.attr.UID || c.UID == ch.attr.UID {
		return nil
	}
	return ErrPerm
}
