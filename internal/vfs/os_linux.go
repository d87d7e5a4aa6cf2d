package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// OS is the host's file system. Its files implement [NoWaitReader].
func OS() FS { return osFS{} }

type osFS struct{}

func (osFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return newOSFile(f)
}

func (osFS) Rename(oldname, newname string) error { return os.Rename(oldname, newname) }

// RenameExclusive is renameat2(2) with RENAME_NOREPLACE. File systems without
// it (NFS, some FUSE ones) have an exclusive link(2) instead.
func (osFS) RenameExclusive(oldname, newname string) error {
	err := ignoringEINTR(func() error {
		return unix.Renameat2(unix.AT_FDCWD, oldname, unix.AT_FDCWD, newname, unix.RENAME_NOREPLACE)
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EINVAL), unsupported(err):
		return linkExclusive(oldname, newname)
	}
	return &os.LinkError{Op: "renameat2", Old: oldname, New: newname, Err: err}
}

// linkExclusive gives a file its new name by link and unlink. A crash between
// the two leaves the file under both names, which callers take for a stale
// temporary file and remove.
//
// Over NFS a retransmitted LINK may be answered EEXIST although the first one
// did the work; that the two names are one file tells.
func linkExclusive(oldname, newname string) error {
	if err := os.Link(oldname, newname); err != nil {
		if !errors.Is(err, fs.ErrExist) || !sameFile(oldname, newname) {
			return err
		}
	}
	return os.Remove(oldname)
}

func sameFile(a, b string) bool {
	ai, err := os.Lstat(a)
	if err != nil {
		return false
	}
	bi, err := os.Lstat(b)
	return err == nil && os.SameFile(ai, bi)
}

func (osFS) Remove(name string) error { return os.Remove(name) }

func (o osFS) MkdirAll(name string, perm fs.FileMode) error {
	return mkdirAll(o, filepath.Clean(name), perm)
}

func mkdirAll(o osFS, name string, perm fs.FileMode) error {
	info, err := os.Stat(name)
	if err == nil {
		if info.IsDir() {
			return nil
		}
		return &fs.PathError{Op: "mkdir", Path: name, Err: unix.ENOTDIR}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(name)
	if err := mkdirAll(o, parent, perm); err != nil {
		return err
	}
	// Whoever loses a race for the name syncs too: the winner may not have
	// done so yet, and we promise durability now.
	if err := os.Mkdir(name, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return o.SyncDir(parent)
}

func (osFS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }

func (osFS) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

func (osFS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		return errors.Join(err, d.Close())
	}
	return d.Close()
}

func (osFS) Free(name string) (int64, error) {
	var st unix.Statfs_t
	err := ignoringEINTR(func() error { return unix.Statfs(name, &st) })
	if err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// unsupported reports whether err says that the file system or the kernel does
// not know the operation at all.
func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}

func ignoringEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func checkRange(op, name string, off, n int64) error {
	if off < 0 || n < 0 || off+n < 0 {
		return &fs.PathError{Op: op, Path: name, Err: fmt.Errorf("range %d+%d: %w", off, n, fs.ErrInvalid)}
	}
	return nil
}
