package datastore

import (
	"errors"
	"io"
	"math"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
)

var errDiskSize = errors.New("the size of a virtual disk is fixed")

// ReadAt reads into p from off. eof says that the read has reached the end of
// the file; n is short only then. No permission is checked: see [Node.Permit].
func (n *Node) ReadAt(p []byte, off uint64) (count int, eof bool, err error) {
	count, eof, err = n.readAt(p, off)
	return count, eof, fail("read", "", err)
}

func (n *Node) readAt(p []byte, off uint64) (int, bool, error) {
	if err := n.content(); err != nil {
		return 0, false, err
	}
	if off > math.MaxInt64 {
		return 0, true, nil
	}
	if d := n.disk.Load(); d != nil {
		return readDevice(d.dev, p, int64(off))
	}
	f, err := n.acquire()
	if err != nil {
		return 0, false, err
	}
	defer n.release(f)
	p = p[:min(uint64(len(p)), math.MaxInt64-off)]
	done := 0
	for done < len(p) {
		k, err := 0, error(nil)
		err = retry(func() error { k, err = unix.Pread(f.fd, p[done:], int64(off)+int64(done)); return err })
		if err != nil {
			return done, false, err
		}
		if k == 0 {
			return done, true, nil
		}
		done += k
	}
	a, err := n.Attr()
	return done, err == nil && off+uint64(done) >= a.Size, err
}

func readDevice(dev disk.Device, p []byte, off int64) (int, bool, error) {
	size := dev.Size()
	if off >= size {
		return 0, true, nil
	}
	if int64(len(p)) > size-off {
		p = p[:size-off]
	}
	k, err := dev.ReadAt(p, off)
	if err == io.EOF && k == len(p) {
		err = nil
	}
	return k, err == nil && off+int64(k) >= size, err
}

// content refuses reading and writing of what has no content.
func (n *Node) content() error {
	switch n.typ {
	case TypeRegular:
		return n.available()
	case TypeDirectory:
		return ErrIsDir
	}
	return ErrInval
}

// WriteAt writes p at off; all of it, or it fails. The data are visible to all
// when it returns, and durable after [Node.Sync]. A virtual disk does not grow:
// a write beyond its end is [ErrFBig] and changes nothing. No permission is
// checked: see [Node.Permit].
func (n *Node) WriteAt(p []byte, off uint64) (count int, wcc WCC, err error) {
	count, err = n.writeAt(p, off, &wcc)
	return count, wcc, fail("write", "", err)
}

func (n *Node) writeAt(p []byte, off uint64, wcc *WCC) (int, error) {
	if err := n.content(); err != nil {
		return 0, err
	}
	if off > math.MaxInt64 || uint64(len(p)) > math.MaxInt64-off {
		return 0, ErrFBig
	}
	if d := n.disk.Load(); d != nil {
		return n.writeDevice(d.dev, p, int64(off), wcc)
	}
	f, err := n.acquire()
	if err != nil {
		return 0, err
	}
	defer n.release(f)
	if !f.writable {
		return 0, ErrAcces
	}
	n.changing.Lock()
	defer n.changing.Unlock()
	wcc.before(n.attrBy(f))
	done := 0
	for done < len(p) && err == nil {
		var k int
		err = retry(func() error { k, err = unix.Pwrite(f.fd, p[done:], int64(off)+int64(done)); return err })
		done += max(k, 0)
	}
	n.changed()
	wcc.after(n.attrBy(f))
	return done, err
}

// attrBy describes the file as it is now through its descriptor.
func (n *Node) attrBy(f *openFile) (Attr, error) {
	st, err := n.tree.statAt(f.fd, "")
	if d := n.disk.Load(); d != nil && err == nil {
		d.describe(&st.attr)
	}
	return st.attr, err
}

func (n *Node) writeDevice(dev disk.Device, p []byte, off int64, wcc *WCC) (int, error) {
	if off+int64(len(p)) > dev.Size() {
		return 0, &OpError{Op: "write", Kind: ErrFBig, Err: errDiskSize}
	}
	k, err := dev.WriteAt(p, off)
	if errors.Is(err, disk.ErrOutOfRange) {
		return k, &OpError{Op: "write", Kind: ErrFBig, Err: err}
	}
	*wcc = n.Written()
	return k, err
}

// Sync makes durable all that was written before, by anybody. Callers share.
func (n *Node) Sync() error { return fail("sync", "", n.sync()) }

func (n *Node) sync() error {
	if err := n.content(); err != nil {
		return err
	}
	if d := n.disk.Load(); d != nil {
		if err := d.dev.Sync(); err != nil {
			return err
		}
		return d.settle(n, false)
	}
	f, err := n.acquire()
	if err != nil {
		return err
	}
	defer n.release(f)
	return n.group().content.do(nil, func() error { return retry(func() error { return unix.Fdatasync(f.fd) }) })
}

// Readlink returns what a symbolic link says.
func (n *Node) Readlink() (string, error) {
	target, err := n.readlink()
	return target, fail("readlink", "", err)
}

func (n *Node) readlink() (string, error) {
	if n.typ != TypeSymlink {
		return "", ErrInval
	}
	f, err := n.acquire()
	if err != nil {
		return "", err
	}
	defer n.release(f)
	var buf [unix.PathMax]byte
	k, err := unix.Readlinkat(f.fd, "", buf[:])
	if err != nil {
		return "", err
	}
	return string(buf[:k]), nil
}
