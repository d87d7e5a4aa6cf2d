package esxsim

import (
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync"
	"time"

	"lifeboat/nfsserver/nfstest"
)

// nasVolume is a datastore on an NFS server.
type nasVolume struct {
	nfs   *nfsClient
	owner [16]byte // in our lock files
	stale time.Duration
	stop  func() // ends the heartbeat

	mu       sync.Mutex
	failures int // heartbeats in a row
	locks    map[*nfsFile]struct{}
	count    uint64 // of lock heartbeats
}

// maxFailures heartbeats in a row make a datastore inactive.
const maxFailures = 3

func (n *nasVolume) active() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.failures < maxFailures
}

// walk finds a directory and the name in it.
func (n *nasVolume) walk(c *nfstest.Client, name string) (dir nfstest.Handle, last string, err error) {
	name = strings.Trim(path.Clean("/"+name), "/")
	d, last := path.Split(name)
	dir = n.nfs.root
	if d = strings.Trim(d, "/"); d != "" {
		dir, err = c.Walk(dir, d)
	}
	return dir, last, err
}

func (n *nasVolume) at(c *nfstest.Client, name string) (nfstest.Handle, error) {
	dir, last, err := n.walk(c, name)
	if err != nil || last == "" {
		return dir, err
	}
	h, _, err := c.Lookup(dir, last)
	return h, err
}

func (n *nasVolume) stat(name string) (e entry, err error) {
	err = n.nfs.do(true, func(c *nfstest.Client) error {
		h, err := n.at(c, name)
		if err != nil {
			return err
		}
		a, err := c.Getattr(h)
		e = entry{path.Base(name), int64(a.Size), a.Type == 2}
		return err
	})
	return e, fsError(err)
}

func (n *nasVolume) list(dir string) (list []entry, err error) {
	err = n.nfs.do(true, func(c *nfstest.Client) error {
		h, err := n.at(c, dir)
		if err != nil {
			return err
		}
		all, err := c.ReadAll(h, 32<<10)
		list = nil
		for _, e := range all {
			// ESXi hides its own lock files from the browser.
			if e.Name == "." || e.Name == ".." || strings.HasPrefix(e.Name, ".lck-") || e.Attr == nil {
				continue
			}
			list = append(list, entry{e.Name, int64(e.Attr.Size), e.Attr.Type == 2})
		}
		return err
	})
	return list, fsError(err)
}

func (n *nasVolume) change(op fileOp, name, to string) error {
	if op == opRemoveAll {
		return n.removeAll(name)
	}
	return fsError(n.nfs.do(true, func(c *nfstest.Client) error {
		if op == opMkdir {
			return n.mkdir(c, name)
		}
		dir, last, err := n.walk(c, name)
		if err != nil {
			return err
		}
		if op == opRemove {
			_, err = c.Remove(dir, last)
			return err
		}
		toDir, toLast, err := n.walk(c, to)
		if err == nil {
			_, _, err = c.Rename(dir, last, toDir, toLast)
		}
		return err
	}))
}

func (n *nasVolume) mkdir(c *nfstest.Client, name string) error {
	dir := n.nfs.root
	for part := range strings.SplitSeq(strings.Trim(path.Clean("/"+name), "/"), "/") {
		if part == "" {
			continue
		}
		_, err := c.Mkdir(dir, part, nfstest.SetAttr{Mode: nfstest.Ptr[uint32](0o755)})
		if err != nil && !errors.Is(err, nfstest.Exist) {
			return err
		}
		if dir, _, err = c.Lookup(dir, part); err != nil {
			return err
		}
	}
	return nil
}

func (n *nasVolume) removeAll(name string) error {
	list, err := n.list(name)
	if err != nil {
		return err
	}
	for _, e := range list {
		child := path.Join(name, e.name)
		if e.dir {
			err = n.removeAll(child)
		} else {
			err = n.change(opRemove, child, "")
		}
		if err != nil {
			return err
		}
	}
	return fsError(n.nfs.do(true, func(c *nfstest.Client) error {
		dir, last, err := n.walk(c, name)
		if err == nil {
			_, err = c.Rmdir(dir, last)
		}
		return err
	}))
}

func (n *nasVolume) open(name string, how openHow) (file, error) {
	f := &nfsFile{n: n, name: name}
	err := n.nfs.do(true, func(c *nfstest.Client) error {
		dir, last, err := n.walk(c, name)
		if err != nil {
			return err
		}
		if f.dir = dir; how == openNew {
			made, err := c.CreateGuarded(dir, last, nfstest.SetAttr{Mode: nfstest.Ptr[uint32](0o600)})
			if err != nil {
				return err
			}
			if f.h = made.Handle; f.h != nil {
				return nil
			}
		}
		f.h, _, err = c.Lookup(dir, last)
		return err
	})
	if err != nil {
		return nil, fsError(err)
	}
	if how != openWrite {
		return f, nil
	}
	if err := f.lock(); err != nil {
		return nil, err
	}
	return f, nil
}

// nfsFile is an open file. Its handle is kept for as long as it is open: one
// that turns stale is the end of the VM, as with ESXi.
type nfsFile struct {
	n        *nasVolume
	name     string
	h, dir   nfstest.Handle
	lockName string // "": not locked
	lockH    nfstest.Handle
}

func (f *nfsFile) attr() (a nfstest.Attr, err error) {
	err = f.n.nfs.do(true, func(c *nfstest.Client) (err error) {
		a, err = c.Getattr(f.h)
		return err
	})
	return a, err
}

func (f *nfsFile) Size() (int64, error) {
	a, err := f.attr()
	return int64(a.Size), err
}

func (f *nfsFile) Truncate(size int64) error {
	return f.n.nfs.do(true, func(c *nfstest.Client) error {
		_, err := c.Setattr(f.h, nfstest.SetAttr{Size: nfstest.Ptr(uint64(size))}, nil)
		return err
	})
}

func (f *nfsFile) Sync() error {
	return f.n.nfs.do(true, func(c *nfstest.Client) error {
		_, _, err := c.Commit(f.h)
		return err
	})
}

// ReadAt sends all pieces at once.
func (f *nfsFile) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.n.nfs.do(true, func(c *nfstest.Client) error {
		var calls []*nfstest.Call
		for at := 0; at < len(p); at += f.n.nfs.rtmax {
			calls = append(calls, c.GoRead(f.h, uint64(off)+uint64(at), uint32(min(len(p)-at, f.n.nfs.rtmax))))
		}
		n = 0
		for i, call := range calls {
			r, err := call.ReadResult()
			if err != nil {
				return err
			}
			at := i * f.n.nfs.rtmax
			n = at + copy(p[at:], r.Data)
			if len(r.Data) < min(len(p)-at, f.n.nfs.rtmax) {
				return nil
			}
		}
		return nil
	})
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// WriteAt writes FILE_SYNC, as ESXi does for guests.
func (f *nfsFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.n.nfs.do(true, func(c *nfstest.Client) error {
		var calls []*nfstest.Call
		for at := 0; at < len(p); at += f.n.nfs.wtmax {
			calls = append(calls, c.GoWrite(f.h, uint64(off)+uint64(at), p[at:min(len(p), at+f.n.nfs.wtmax)], nfstest.FileSync))
		}
		n = 0
		for _, call := range calls {
			r, err := call.WriteResult()
			if err != nil {
				return err
			}
			if r.Committed != nfstest.FileSync {
				return fmt.Errorf("a FILE_SYNC write was answered as %d", r.Committed)
			}
			n += int(r.Count)
		}
		return nil
	})
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return n, err
}

func (f *nfsFile) Close() error {
	if f.lockName == "" {
		return nil
	}
	f.n.mu.Lock()
	delete(f.n.locks, f)
	f.n.mu.Unlock()
	err := f.n.nfs.do(false, func(c *nfstest.Client) error {
		_, err := c.Remove(f.dir, f.lockName)
		return err
	})
	f.lockName = ""
	if errors.Is(err, nfstest.NoEnt) || errors.Is(err, errDown) {
		return nil // nobody is there who could be told
	}
	return err
}
