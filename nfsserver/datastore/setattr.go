package datastore

import (
	"math"

	"golang.org/x/sys/unix"
)

// SetTime is what to do with a time: nothing (the zero value), or set it to the
// server's time or to a given one (time_how, RFC 1813 §2.6).
type SetTime struct {
	How SetTimeHow
	To  Time
}

// SetTimeHow has the numbers of time_how.
type SetTimeHow uint32

// What to do with a time.
const (
	DontChange  SetTimeHow = 0
	ToServer    SetTimeHow = 1
	ToClientOwn SetTimeHow = 2 // to SetTime.To
)

// SetAttr are attributes to be set: sattr3 (RFC 1813 §2.6). nil: as it is.
type SetAttr struct {
	Mode  *uint32
	UID   *uint32
	GID   *uint32
	Size  *uint64
	Atime SetTime
	Mtime SetTime
}

type timespec struct {
	ns   int64
	now  bool
	omit bool
}

func (s SetTime) spec() timespec {
	switch s.How {
	case ToServer:
		return timespec{now: true}
	case ToClientOwn:
		return timespec{ns: s.To.Unix()}
	}
	return timespec{omit: true}
}

func (ts timespec) unix() unix.Timespec {
	switch {
	case ts.omit:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case ts.now:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	t := timeOf(ts.ns)
	return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)}
}

// setTimes sets the times of an open file.
func setTimes(fd int, atime, mtime timespec) error {
	if atime.omit && mtime.omit {
		return nil
	}
	ts := []unix.Timespec{atime.unix(), mtime.unix()}
	return unix.UtimesNanoAt(fd, "", ts, unix.AT_EMPTY_PATH)
}

func (s *SetAttr) setTimes(fd int) error { return setTimes(fd, s.Atime.spec(), s.Mtime.spec()) }

// SetAttr sets attributes. With a guard it does nothing and fails with
// [ErrNotSync] unless the file's ctime is *guard. The size of a virtual disk
// cannot be changed: its own size is accepted, any other is [ErrInval].
// Durable when it returns.
func (n *Node) SetAttr(c Cred, set SetAttr, guard *Time) (WCC, error) {
	var wcc WCC
	err := n.setAttr(&c, &set, guard, &wcc)
	return wcc, fail("setattr", "", err)
}

func (n *Node) setAttr(c *Cred, set *SetAttr, guard *Time, wcc *WCC) error {
	if n.sess == nil {
		wcc.before(n.Attr())
		wcc.after(n.Attr())
		return ErrROFS
	}
	f, err := n.acquire()
	if err != nil {
		return err
	}
	defer n.release(f)
	n.changing.Lock()
	a, err := n.attrBy(f)
	wcc.before(a, err)
	if err == nil && guard != nil && *guard != a.Ctime {
		err = ErrNotSync
	}
	if err == nil {
		err = n.apply(c, &a, set, f)
	}
	n.changed()
	wcc.after(n.attrBy(f))
	n.changing.Unlock()
	if err != nil {
		return err
	}
	return n.persistAttr(f)
}

// apply checks the whole request before it changes anything.
func (n *Node) apply(c *Cred, a *Attr, set *SetAttr, f *openFile) error {
	if err := n.checkSet(c, a, set); err != nil {
		return err
	}
	if n.typ != TypeRegular && n.typ != TypeDirectory {
		return n.applyByName(set)
	}
	if set.Size != nil && n.disk.Load() == nil {
		if !f.writable {
			return ErrAcces
		}
		if err := retry(func() error { return unix.Ftruncate(f.fd, int64(*set.Size)) }); err != nil {
			return err
		}
	}
	if set.UID != nil || set.GID != nil {
		if err := unix.Fchown(f.fd, orSame(set.UID), orSame(set.GID)); err != nil {
			return err
		}
	}
	if set.Mode != nil { // after the owner, whose change takes setuid away
		if err := unix.Fchmod(f.fd, *set.Mode&0o7777); err != nil {
			return err
		}
	}
	if d := n.disk.Load(); d != nil {
		return d.setTimes(n, f.fd, set)
	}
	return set.setTimes(f.fd)
}

func orSame(id *uint32) int {
	if id == nil {
		return -1
	}
	return int(*id)
}

// applyByName sets owner and times of a symbolic link, which no descriptor of
// ours can; its mode means nothing.
func (n *Node) applyByName(set *SetAttr) error {
	n.sess.ns.RLock()
	defer n.sess.ns.RUnlock()
	return n.eachLink(func(dirfd int, name string) error {
		st, err := n.tree.statAt(dirfd, name)
		if err == nil && !n.is(&st) {
			err = errLost
		}
		if err != nil {
			return err
		}
		if set.UID != nil || set.GID != nil {
			err = unix.Fchownat(dirfd, name, orSame(set.UID), orSame(set.GID), unix.AT_SYMLINK_NOFOLLOW)
			if err != nil {
				return err
			}
		}
		ts := []unix.Timespec{set.Atime.spec().unix(), set.Mtime.spec().unix()}
		return unix.UtimesNanoAt(dirfd, name, ts, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// checkSet decides who may set what, as POSIX has it.
func (n *Node) checkSet(c *Cred, a *Attr, set *SetAttr) error {
	owner := c.UID == 0 || c.UID == a.UID
	if set.Size != nil {
		if err := n.checkSize(c, a, *set.Size); err != nil {
			return err
		}
	}
	switch {
	case set.Mode != nil && !owner,
		set.UID != nil && c.UID != 0 && !(owner && *set.UID == a.UID),
		set.GID != nil && c.UID != 0 && !(owner && (*set.GID == a.GID || c.in(*set.GID))):
		return ErrPerm
	}
	for _, t := range []SetTime{set.Atime, set.Mtime} {
		switch {
		case t.How > ToClientOwn:
			return ErrInval
		case t.How == ToClientOwn && !owner:
			return ErrPerm
		case t.How == ToServer && !owner && allowed(c, a, Write) == 0:
			return ErrAcces
		}
	}
	return nil
}

func (n *Node) checkSize(c *Cred, a *Attr, size uint64) error {
	switch {
	case n.typ == TypeDirectory:
		return ErrIsDir
	case n.typ != TypeRegular:
		return ErrInval
	case c.UID != a.UID && allowed(c, a, Write) == 0:
		return ErrAcces
	case n.disk.Load() != nil && size != a.Size:
		return &OpError{Op: "setattr", Kind: ErrInval, Err: errDiskSize}
	case size > math.MaxInt64:
		return ErrFBig
	}
	return nil
}

// setTimes is SetAttr's part for the times of a virtual disk.
func (d *virtualDisk) setTimes(n *Node, fd int, set *SetAttr) error {
	if err := setTimes(fd, set.Atime.spec(), timespec{omit: true}); err != nil {
		return err
	}
	d.settling.Lock()
	defer d.settling.Unlock()
	d.mu.Lock()
	now := n.tree.now()
	d.ctime = max(d.ctime+1, now)
	switch set.Mtime.How {
	case ToServer:
		d.mtime = max(d.mtime+1, now)
	case ToClientOwn:
		d.mtime = set.Mtime.To.Unix()
	}
	mtime := timespec{ns: d.mtime}
	d.stale = false
	d.mu.Unlock()
	return setTimes(fd, timespec{omit: true}, mtime)
}

// persistAttr makes attributes durable.
func (n *Node) persistAttr(f *openFile) error {
	if n.typ == TypeRegular || n.typ == TypeDirectory {
		return n.syncAll(f.fd, nil)
	}
	// A symbolic link cannot be synced by itself; the journal that its
	// directory's sync writes holds its attributes too.
	parent, err := n.parent()
	if err != nil {
		return err
	}
	dir, err := parent.acquire()
	if err != nil {
		return err
	}
	defer parent.release(dir)
	return parent.syncAll(dir.fd, nil)
}
