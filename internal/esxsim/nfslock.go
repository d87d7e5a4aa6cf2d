package esxsim

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"lifeboat/nfsserver/nfstest"
)

// lockBytes is the size of ESXi's lock file [field].
const lockBytes = 84

// lockFileName: ".lck-" and the file's ID as 16 hexadecimal digits, the lowest
// byte first.
func lockFileName(fileID uint64) string {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], fileID)
	return ".lck-" + hex.EncodeToString(b[:])
}

// lock makes the file's lock file. One that is there is ours from before, or
// another's: that is watched, and broken when its heartbeat stands still.
func (f *nfsFile) lock() error {
	a, err := f.attr()
	if err != nil {
		return err
	}
	if a.FileID == 0 {
		return errors.New("the server gave a file the ID 0")
	}
	name := lockFileName(a.FileID)
	var h nfstest.Handle
	err = f.n.nfs.do(true, func(c *nfstest.Client) error {
		made, err := c.CreateGuarded(f.dir, name, nfstest.SetAttr{Mode: nfstest.Ptr[uint32](0o600)})
		if err == nil && made.Handle == nil {
			h, _, err = c.Lookup(f.dir, name)
			return err
		}
		h = made.Handle
		return err
	})
	if errors.Is(err, nfstest.Exist) {
		h, err = f.takeOver(name)
	}
	if err != nil {
		return fmt.Errorf("locking %s: %w", f.name, err)
	}
	f.lockH = h
	if err := f.beat(); err != nil {
		return fmt.Errorf("writing the lock of %s: %w", f.name, err)
	}
	f.lockName = name
	f.n.mu.Lock()
	f.n.locks[f] = struct{}{}
	f.n.mu.Unlock()
	return nil
}

// takeOver waits until another's lock is known to be dead.
func (f *nfsFile) takeOver(name string) (h nfstest.Handle, err error) {
	read := func() (b []byte, err error) {
		err = f.n.nfs.do(true, func(c *nfstest.Client) error {
			if h, _, err = c.Lookup(f.dir, name); err != nil {
				return err
			}
			r, err := c.Read(h, 0, lockBytes)
			b = r.Data
			return err
		})
		return b, err
	}
	first, err := read()
	if err != nil {
		return nil, err
	}
	if len(first) >= 16 && bytes.Equal(first[:16], f.n.owner[:]) {
		f.n.mu.Lock()
		defer f.n.mu.Unlock()
		for held := range f.n.locks {
			if held.lockName == name {
				return nil, errLocked
			}
		}
		return h, nil
	}
	for end := time.Now().Add(f.n.stale); time.Now().Before(end); {
		select {
		case <-f.n.nfs.ctx.Done():
			return nil, context.Cause(f.n.nfs.ctx)
		case <-time.After(f.n.stale / 8):
		}
		now, err := read()
		if errors.Is(err, nfstest.NoEnt) {
			return nil, fs.ErrNotExist
		}
		if err != nil || !bytes.Equal(now, first) {
			return nil, errors.Join(errLocked, err)
		}
	}
	return h, nil
}

// beat writes the lock's heartbeat.
func (f *nfsFile) beat() error {
	f.n.mu.Lock()
	f.n.count++
	count := f.n.count
	f.n.mu.Unlock()
	b := make([]byte, lockBytes)
	copy(b, f.n.owner[:])
	binary.LittleEndian.PutUint64(b[16:], count)
	binary.LittleEndian.PutUint64(b[24:], uint64(time.Now().UnixNano()))
	return f.n.nfs.do(false, func(c *nfstest.Client) error {
		_, err := c.Write(f.lockH, 0, b, nfstest.FileSync)
		return err
	})
}

// heartbeat looks at the datastore once and refreshes the locks. It tells
// whether the datastore turned active or inactive by it.
func (n *nasVolume) heartbeat() (changed bool) {
	before := n.active()
	err := n.nfs.do(false, func(c *nfstest.Client) error {
		_, err := c.Getattr(n.nfs.root)
		return err
	})
	n.mu.Lock()
	if err == nil {
		n.failures = 0
	} else {
		n.failures++
	}
	held := make([]*nfsFile, 0, len(n.locks))
	for f := range n.locks {
		held = append(held, f)
	}
	n.mu.Unlock()
	for _, f := range held {
		if err == nil {
			_ = f.beat() // a failure shows in the next GETATTR
		}
	}
	return n.active() != before
}
