// Package crashfs is a file system in memory that loses power on purpose. It
// keeps the contract of package vfs and not one promise more, so that code
// which leans on what a particular file system happens to do fails here.
//
// What an image of the disk after power loss ([FS.Crash]) holds is drawn by
// seed, within the contract:
//
//   - Of what was written to a file since its last Sync, each 512-byte sector
//     independently is the old or the new one, so that a longer write is torn.
//     A sector that was overwritten several times may hold a version from in
//     between. The size is one that the file had since the Sync.
//   - Of the directory changes since the last SyncDir of a directory that they
//     touch, any may be lost, and a later one may survive an earlier one
//     unless both touch the same name. A rename is one change.
//   - After a Sync that was made to fail, what it should have written may stay
//     lost although a later Sync succeeds, as on Linux.
//
// Every call that changes something is a point at which the machine can be
// stopped ([FS.StopAtPoint]); a test counts them in one run and then loops over
// all of them. Calls can be made to fail ([FS.Fail]), the disk can be full
// ([Options.Capacity]).
//
// With one goroutine everything is reproducible from the seeds.
package crashfs

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"lifeboat/internal/vfs"
)

// SectorSize is the unit that power loss leaves old or new, in bytes.
const SectorSize = 512

// ErrPowerLoss is what every call returns once the machine has stopped.
var ErrPowerLoss = errors.New("the machine has lost power")

// Options are what seldom needs to be other than the zero value.
type Options struct {
	// Capacity is the size of the disk in bytes; what would need more fails
	// with syscall.ENOSPC. Space is counted in pages of 4 KiB of content;
	// names cost nothing. 0 means no limit.
	Capacity int64
}

// FS is a disk and its file system. It implements [vfs.FS].
type FS struct {
	mu       sync.Mutex
	seed     uint64
	capacity int64 // 0 = no limit
	used     int64 // bytes in allocated pages
	root     *node
	nodes    uint64 // given out so far
	pending  []*change

	points, syncs       int
	stopPoint, stopSync int // 0 = never
	stopped             bool
	rules               []*rule
	onSync              func(n int) error
}

var _ vfs.FS = (*FS)(nil)

// New is an empty file system. seed decides what happens to be written back
// before it is synced.
func New(seed uint64, opts Options) *FS {
	f := &FS{seed: seed, capacity: opts.Capacity}
	f.root = f.newNode(true)
	return f
}

func (f *FS) newNode(dir bool) *node {
	f.nodes++
	n := &node{id: f.nodes, modified: time.Now()}
	if dir {
		n.entries, n.durable = map[string]*node{}, map[string]*node{}
	} else {
		n.pages, n.soil = map[int64]*page{}, map[int64]*page{}
		n.sizes = []int64{0}
	}
	return n
}

// SetCapacity changes [Options.Capacity].
func (f *FS) SetCapacity(bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.capacity = bytes
}

// Used is the space taken, in bytes.
func (f *FS) Used() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used
}

// clean makes a name absolute; the working directory is the root.
func clean(name string) string { return path.Clean("/" + name) }

// lookup finds the node of an absolute, clean name.
func (f *FS) lookup(name string) (*node, error) {
	n := f.root
	for part := range strings.SplitSeq(strings.TrimPrefix(name, "/"), "/") {
		if part == "" {
			continue
		}
		if n.entries == nil {
			return nil, syscall.ENOTDIR
		}
		child, ok := n.entries[part]
		if !ok {
			return nil, syscall.ENOENT
		}
		n = child
	}
	return n, nil
}

// parent finds the directory that holds name, and name's last component.
func (f *FS) parent(name string) (*node, string, error) {
	dir, base := path.Split(name)
	if base == "" {
		return nil, "", syscall.EINVAL // the root itself
	}
	n, err := f.lookup(path.Clean(dir))
	if err != nil {
		return nil, "", err
	}
	if n.entries == nil {
		return nil, "", syscall.ENOTDIR
	}
	return n, base, nil
}

func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// OpenFile implements [vfs.FS].
func (f *FS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	full := clean(name)
	op := OpOpen
	if flag&os.O_CREATE != 0 {
		op = OpCreate
	}
	var file *file
	err := f.do(call{op: op, path: full}, func() (err error) {
		file, err = f.open(full, flag)
		return err
	})
	if err != nil {
		return nil, pathError("open", name, err)
	}
	file.name = name
	return file, nil
}

func (f *FS) open(full string, flag int) (*file, error) {
	dir, base, err := f.parent(full)
	if err != nil {
		return nil, err
	}
	writable := flag&(os.O_WRONLY|os.O_RDWR) != 0
	n := dir.entries[base]
	switch {
	case n == nil && flag&os.O_CREATE == 0:
		return nil, syscall.ENOENT
	case n == nil:
		n = f.newNode(false)
		f.apply(&change{edits: []edit{{dir, base, n}}})
	case flag&os.O_CREATE != 0 && flag&os.O_EXCL != 0:
		return nil, syscall.EEXIST
	case n.entries != nil:
		return nil, syscall.EISDIR
	case flag&os.O_TRUNC != 0 && writable:
		f.truncate(n, 0)
	}
	n.open++
	return &file{fs: f, node: n, path: full, writable: writable}, nil
}

// Rename implements [vfs.FS].
func (f *FS) Rename(oldname, newname string) error {
	return f.rename("rename", oldname, newname, false)
}

// RenameExclusive implements [vfs.FS].
func (f *FS) RenameExclusive(oldname, newname string) error {
	return f.rename("renameat2", oldname, newname, true)
}

func (f *FS) rename(op, oldname, newname string, exclusive bool) error {
	from, to := clean(oldname), clean(newname)
	err := f.do(call{op: OpRename, path: to}, func() error { return f.move(from, to, exclusive) })
	if err != nil {
		return &os.LinkError{Op: op, Old: oldname, New: newname, Err: err}
	}
	return nil
}

func (f *FS) move(from, to string, exclusive bool) error {
	olddir, oldbase, err := f.parent(from)
	if err != nil {
		return err
	}
	newdir, newbase, err := f.parent(to)
	if err != nil {
		return err
	}
	n, target := olddir.entries[oldbase], newdir.entries[newbase]
	switch {
	case n == nil:
		return syscall.ENOENT
	case target != nil && exclusive:
		return syscall.EEXIST
	case target != nil && target.entries != nil:
		return syscall.EEXIST // as os.Rename has it, even where rename(2) could
	case n == target:
		return nil
	case n.entries != nil && strings.HasPrefix(to, from+"/"):
		return syscall.EINVAL
	case target != nil && n.entries != nil:
		return syscall.ENOTDIR
	}
	f.apply(&change{edits: []edit{{olddir, oldbase, nil}, {newdir, newbase, n}}})
	return nil
}

// Remove implements [vfs.FS].
func (f *FS) Remove(name string) error {
	full := clean(name)
	return pathError("remove", name, f.do(call{op: OpRemove, path: full}, func() error {
		dir, base, err := f.parent(full)
		if err != nil {
			return err
		}
		switch n := dir.entries[base]; {
		case n == nil:
			return syscall.ENOENT
		case len(n.entries) > 0:
			return syscall.ENOTEMPTY
		}
		f.apply(&change{edits: []edit{{dir, base, nil}}})
		return nil
	}))
}

// MkdirAll implements [vfs.FS].
func (f *FS) MkdirAll(name string, perm fs.FileMode) error {
	full := clean(name)
	return pathError("mkdir", name, f.mkdirAll(full))
}

func (f *FS) mkdirAll(full string) error {
	f.mu.Lock()
	n, err := f.lookup(full)
	f.mu.Unlock()
	if err == nil && n.entries == nil {
		return syscall.ENOTDIR
	}
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := f.mkdirAll(path.Dir(full)); err != nil {
		return err
	}
	if err := f.do(call{op: OpMkdir, path: full}, func() error { return f.mkdir(full) }); err != nil {
		return err
	}
	return f.syncDir(path.Dir(full))
}

func (f *FS) mkdir(full string) error {
	dir, base, err := f.parent(full)
	if err == nil && dir.entries[base] == nil {
		f.apply(&change{edits: []edit{{dir, base, f.newNode(true)}}})
	}
	return err
}

// SyncDir implements [vfs.FS].
func (f *FS) SyncDir(name string) error {
	return pathError("sync", name, f.syncDir(clean(name)))
}

func (f *FS) syncDir(full string) error {
	return f.do(call{op: OpSyncDir, path: full}, func() error {
		dir, err := f.lookup(full)
		if err == nil && dir.entries == nil {
			err = syscall.ENOTDIR
		}
		if err == nil {
			f.settle(dir)
		}
		return err
	})
}

// Free implements [vfs.FS].
func (f *FS) Free(name string) (int64, error) {
	full := clean(name)
	free := int64(1) << 40
	err := f.do(call{op: OpStat, path: full}, func() error {
		if f.capacity > 0 {
			free = max(f.capacity-f.used, 0)
		}
		_, err := f.lookup(full)
		return err
	})
	return free, pathError("statfs", name, err)
}
