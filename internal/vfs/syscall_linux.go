package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// place is a name relative to an open directory, as the *at system calls take
// it.
type place struct {
	dirfd int
	name  string
}

// renameExclusive is renameat2(2) with RENAME_NOREPLACE. File systems without
// it (NFS, some FUSE ones) have an exclusive link(2) instead.
func renameExclusive(from, to place) error {
	err := ignoringEINTR(func() error {
		return unix.Renameat2(from.dirfd, from.name, to.dirfd, to.name, unix.RENAME_NOREPLACE)
	})
	if errors.Is(err, unix.EINVAL) || unsupported(err) {
		return linkExclusive(from, to)
	}
	return linkError("renameat2", from, to, err)
}

// linkExclusive gives a file its new name by link and unlink. A crash between
// the two leaves the file under both names, which callers take for a stale
// temporary file and remove.
//
// Over NFS a retransmitted LINK may be answered EEXIST although the first one
// did the work; that the two names are one file tells.
func linkExclusive(from, to place) error {
	err := ignoringEINTR(func() error {
		return unix.Linkat(from.dirfd, from.name, to.dirfd, to.name, 0)
	})
	if err != nil && !(errors.Is(err, unix.EEXIST) && sameFile(from, to)) {
		return linkError("link", from, to, err)
	}
	err = ignoringEINTR(func() error { return unix.Unlinkat(from.dirfd, from.name, 0) })
	return linkError("unlink", from, to, err)
}

func linkError(op string, from, to place, err error) error {
	if err == nil {
		return nil
	}
	return &os.LinkError{Op: op, Old: from.name, New: to.name, Err: err}
}

func sameFile(a, b place) bool {
	var as, bs unix.Stat_t
	if unix.Fstatat(a.dirfd, a.name, &as, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return false
	}
	if unix.Fstatat(b.dirfd, b.name, &bs, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return false
	}
	return as.Dev == bs.Dev && as.Ino == bs.Ino
}

// dirMaker is what MkdirAll needs of a file system.
type dirMaker interface {
	Stat(name string) (fs.FileInfo, error)
	mkdir(name string, perm fs.FileMode) error
	SyncDir(name string) error
}

func mkdirAll(m dirMaker, name string, perm fs.FileMode) error {
	info, err := m.Stat(name)
	if err == nil {
		if info.IsDir() {
			return nil
		}
		return &fs.PathError{Op: "mkdir", Path: name, Err: unix.ENOTDIR}
	}
	parent := filepath.Dir(name)
	if !errors.Is(err, fs.ErrNotExist) || parent == name {
		return err
	}
	if err := mkdirAll(m, parent, perm); err != nil {
		return err
	}
	// Whoever loses a race for the name syncs too: the winner may not have
	// done so yet, and we promise durability now.
	if err := m.mkdir(name, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return m.SyncDir(parent)
}

type hostMaker struct{ osFS }

func (hostMaker) mkdir(name string, perm fs.FileMode) error { return os.Mkdir(name, perm) }

type rootMaker struct{ *rootFS }

func (m rootMaker) mkdir(name string, perm fs.FileMode) error { return m.root.Mkdir(name, perm) }

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
