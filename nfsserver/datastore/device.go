package datastore

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
)

// virtualDisk is the binding of a Device to its placeholder.
//
// The times of a virtual disk are kept in memory: a write changes them at once
// and costs no system call. They are put on the placeholder now and then, at
// Sync and at Detach. They must not go backwards when the process is killed in
// between, so the first write after a binding marks the placeholder as dirty; a
// clean Detach takes the mark away. A binding that finds the mark starts at the
// present time, which is later than any time that was shown before.
type virtualDisk struct {
	dev disk.Device

	mu    sync.Mutex
	mtime int64 // nanoseconds since 1970
	ctime int64
	dirty bool  // written since the binding; the mark is on the placeholder
	stale bool  // the placeholder's times are older
	tried int64 // when settle last ran
}

const (
	// diskMark says that the file is the placeholder of a virtual disk.
	diskMark = "user.lifeboat.disk"
	markDisk = "clean"
	markUsed = "dirty"

	// settleEvery is how long the times on the placeholder may lag behind.
	settleEvery = 5 * time.Second
)

// marked says whether fd is the placeholder of a virtual disk.
func marked(fd int) bool {
	_, err := unix.Fgetxattr(fd, diskMark, nil)
	return err == nil
}

// newDisk prepares the binding of dev to n: reads times and mark of the
// placeholder and makes the mark durable.
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
		st, err := n.tree.statAt(fd, "")
		if err != nil {
			return err
		}
		d.mtime, d.ctime = st.attr.Mtime.Unix(), st.attr.Ctime.Unix()
		return d.mark(fd)
	})
	if errors.Is(err, errLost) {
		err = ErrNoEnt
	}
	return d, err
}

func (d *virtualDisk) mark(fd int) error {
	var buf [16]byte
	k, err := unix.Fgetxattr(fd, diskMark, buf[:])
	switch {
	case err == nil && string(buf[:k]) == markDisk:
		return nil
	case err == nil:
		d.startNow()
		d.dirty = true
		return nil
	case err == unix.ENODATA:
		return d.setMark(fd, markDisk)
	case err == unix.EOPNOTSUPP:
		d.startNow() // no marks on this file system: assume the worst
		d.dirty = true
		return nil
	}
	return err
}

// startNow sets the times to the present, unless they are later already.
func (d *virtualDisk) startNow() {
	now := time.Now().UnixNano()
	d.mtime, d.ctime, d.stale = max(d.mtime, now), max(d.ctime, now), true
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
	w.Pre = PreAttr{Size: a.Size, Mtime: timeOf(d.mtime), Ctime: timeOf(max(d.ctime, a.Ctime.Unix()))}
	now := max(n.tree.now(), d.mtime+1, w.Pre.Ctime.Unix()+1)
	d.mtime, d.ctime, d.stale = now, now, true
	due := now-d.tried > int64(settleEvery)
	d.mu.Unlock()
	a.Mtime, a.Ctime = timeOf(now), timeOf(now)
	w.Post, w.HasPre, w.HasPost = a, true, true
	if due {
		if err := d.settle(n, false); err != nil {
			n.tree.log.Warn("times of a virtual disk", "path", n.tree.path(n), "err", err)
		}
	}
	return w
}

// settle puts the disk's times on the placeholder; with final also the mark
// that they are right, and makes all that durable.
func (d *virtualDisk) settle(n *Node, final bool) error {
	f, err := n.acquire()
	if err != nil {
		return err
	}
	defer n.release(f)
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.stale && !(final && d.dirty) {
		return nil
	}
	d.tried = n.tree.anchor()
	if !d.dirty {
		if err := d.setMark(f.fd, markUsed); err != nil {
			return err
		}
		d.dirty = true
	}
	if d.stale {
		if err := setTimes(f.fd, timespec{omit: true}, timespec{ns: d.mtime}); err != nil {
			return err
		}
		d.stale = false
	}
	if !final {
		return nil
	}
	if err := unix.Fsync(f.fd); err != nil {
		return err
	}
	if err := d.setMark(f.fd, markDisk); err != nil {
		return err
	}
	d.dirty = false
	return nil
}

// setMark is durable when it returns.
func (d *virtualDisk) setMark(fd int, value string) error {
	err := unix.Fsetxattr(fd, diskMark, []byte(value), 0)
	if err == unix.EOPNOTSUPP {
		return nil // newDisk has assumed the worst
	}
	if err != nil {
		return err
	}
	return unix.Fsync(fd)
}
