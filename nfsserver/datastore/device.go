package datastore

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
)

// virtualDisk is the binding of a Device to its placeholder.
//
// The times of a virtual disk are kept in memory: a write changes them at once
// and costs no system call. They are put on the placeholder by Sync, now and
// then, and by Detach. They must not go backwards when the process is killed in
// between. So the placeholder bears a mark: "open" from Bind on, "closed" after
// a clean Detach. A binding that finds the mark open starts at the present
// time, which is later than any time that was shown before.
type virtualDisk struct {
	dev disk.Device

	settling sync.Mutex // held while times are put on the placeholder; taken before mu
	settled  int64      // when that was last done; guarded by settling

	mu    sync.Mutex // never held during a system call
	mtime int64      // nanoseconds since 1970
	ctime int64
	stale bool // the placeholder's times are older
}

const (
	// diskMark is the extended attribute of the placeholder of a virtual disk.
	diskMark   = "user.lifeboat.disk"
	markOpen   = "open"
	markClosed = "closed"

	// settleEvery is how long the times on the placeholder may lag behind while
	// the disk is synced again and again.
	settleEvery = int64(5 * time.Second)
)

// marked says whether fd is the placeholder of a virtual disk.
func (t *Tree) marked(fd int) bool {
	if !t.xattrs {
		return false
	}
	_, err := unix.Fgetxattr(fd, diskMark, nil)
	return err == nil
}

// newDisk prepares the binding of dev to n: reads the times of the placeholder
// and marks it.
func (n *Node) newDisk(dev disk.Device) (*virtualDisk, error) {
	n.sess.ns.RLock()
	defer n.sess.ns.RUnlock()
	d := &virtualDisk{dev: dev}
	err := n.eachLink(func(dirfd int, name string) error {
		fd, _, err := n.openAt(dirfd, name)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return d.start(n.tree, fd)
	})
	return d, err
}

func (d *virtualDisk) start(t *Tree, fd int) error {
	st, err := t.statAt(fd, "")
	if err != nil {
		return err
	}
	d.mtime, d.ctime = st.attr.Mtime.Unix(), st.attr.Ctime.Unix()
	if !t.xattrs { // no marks: assume the worst
		d.startNow()
		return nil
	}
	var buf [16]byte
	k, err := unix.Fgetxattr(fd, diskMark, buf[:])
	switch {
	case err != nil && err != unix.ENODATA:
		return err
	case err == nil && string(buf[:max(k, 0)]) != markClosed:
		d.startNow()
	}
	return t.setMark(fd, markOpen)
}

// setMark is durable when it returns.
func (t *Tree) setMark(fd int, value string) error {
	if !t.xattrs {
		return nil
	}
	if err := unix.Fsetxattr(fd, diskMark, []byte(value), 0); err != nil {
		return err
	}
	return syncFD(fd)
}

// startNow sets the times to the present, unless they are later already.
func (d *virtualDisk) startNow() {
	now := time.Now().UnixNano()
	d.mtime, d.ctime, d.stale = max(d.mtime, now), max(d.ctime, now), true
}

// unbind ends the binding, if there is one.
func (n *Node) unbind() {
	if d := n.disk.Swap(nil); d != nil {
		n.tree.diskBytes.Add(-d.dev.Size())
	}
}

// describe puts the disk's own attributes into those of its placeholder.
func (d *virtualDisk) describe(a *Attr) {
	a.Size = uint64(d.dev.Size())
	a.Used = a.Size
	if u, ok := d.dev.(disk.Usage); ok {
		a.Used = uint64(max(u.Used(), 0))
	}
	d.mu.Lock()
	a.Mtime = timeOf(d.mtime)
	a.Ctime = timeOf(max(d.ctime, a.Ctime.Unix()))
	d.mu.Unlock()
}

// Written notes that the virtual disk's content changed: mtime and ctime move
// forward, strictly, so that each write can be told from the next. It returns
// the WCC data of the write. For the server, which writes to [Node.Device]
// directly; call it after the data are visible and before the reply. On an
// ordinary file it does nothing.
func (n *Node) Written() (w WCC) {
	d := n.disk.Load()
	if d == nil {
		return w
	}
	a, err := n.Attr()
	if err != nil {
		return w
	}
	d.mu.Lock()
	ctime := max(d.ctime, a.Ctime.Unix())
	w.Pre = PreAttr{Size: a.Size, Mtime: timeOf(d.mtime), Ctime: timeOf(ctime)}
	now := max(n.tree.now(), d.mtime+1, ctime+1)
	d.mtime, d.ctime, d.stale = now, now, true
	d.mu.Unlock()
	a.Mtime, a.Ctime = timeOf(now), timeOf(now)
	w.Post, w.HasPre, w.HasPost = a, true, true
	return w
}

// settle puts the disk's times on the placeholder. With final, that is durable
// when it returns, and so is the mark that they are right.
func (d *virtualDisk) settle(n *Node, final bool) error {
	d.settling.Lock()
	defer d.settling.Unlock()
	now := n.tree.anchor()
	if !final && now-d.settled < settleEvery {
		return nil
	}
	d.settled = now
	f, err := n.acquire()
	if err != nil {
		return err
	}
	defer n.release(f)
	d.mu.Lock()
	mtime, stale := d.mtime, d.stale
	d.stale = false
	d.mu.Unlock()
	if stale {
		if err := setTimes(f.fd, timespec{omit: true}, timespec{ns: mtime}); err != nil {
			d.mu.Lock()
			d.stale = true
			d.mu.Unlock()
			return err
		}
	}
	if !final {
		return nil
	}
	// The times first: the mark vouches for them.
	if err := syncFD(f.fd); err != nil {
		return err
	}
	return n.tree.setMark(f.fd, markClosed)
}
