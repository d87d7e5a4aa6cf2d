package vfs

import (
	"errors"
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

func (osFS) RenameExclusive(oldname, newname string) error {
	return renameExclusive(place{unix.AT_FDCWD, oldname}, place{unix.AT_FDCWD, newname})
}

func (osFS) Remove(name string) error { return os.Remove(name) }

func (o osFS) MkdirAll(name string, perm fs.FileMode) error {
	return mkdirAll(hostMaker{o}, filepath.Clean(name), perm)
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
