package vfs

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// OpenRoot implements [Rooter] with os.Root.
func (osFS) OpenRoot(dir string) (RootFS, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &rootFS{root}, nil
}

// rootFS is what lies below one directory of the host. Every name is resolved
// by os.Root, component by component, so that neither ".." nor a symbolic link
// planted at any moment leads out.
type rootFS struct{ root *os.Root }

func (r *rootFS) Close() error { return r.root.Close() }

// OpenFile opens regular files only. O_NONBLOCK keeps a FIFO that somebody put
// in a file's place from blocking the open for ever; on files it does nothing.
func (r *rootFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := r.root.OpenFile(name, flag|unix.O_NONBLOCK, perm)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.IsDir():
		err = &fs.PathError{Op: "open", Path: name, Err: unix.EISDIR}
	case !info.Mode().IsRegular():
		err = &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return newOSFile(f)
}

func (r *rootFS) Rename(oldname, newname string) error { return r.root.Rename(oldname, newname) }

func (r *rootFS) RenameExclusive(oldname, newname string) error {
	olddir, err := r.root.Open(filepath.Dir(oldname))
	if err != nil {
		return err
	}
	defer olddir.Close()
	newdir, err := r.root.Open(filepath.Dir(newname))
	if err != nil {
		return err
	}
	defer newdir.Close()
	return renameExclusive(
		place{int(olddir.Fd()), filepath.Base(oldname)},
		place{int(newdir.Fd()), filepath.Base(newname)})
}

func (r *rootFS) Remove(name string) error { return r.root.Remove(name) }

func (r *rootFS) MkdirAll(name string, perm fs.FileMode) error {
	return mkdirAll(rootMaker{r}, filepath.Clean(name), perm)
}

func (r *rootFS) ReadDir(name string) ([]fs.DirEntry, error) {
	d, err := r.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return entries, err
}

// Stat does not follow a symbolic link at the end of name.
func (r *rootFS) Stat(name string) (fs.FileInfo, error) { return r.root.Lstat(name) }

func (r *rootFS) SyncDir(name string) error {
	d, err := r.root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (r *rootFS) Free(name string) (int64, error) {
	d, err := r.root.Open(name)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	var st unix.Statfs_t
	err = ignoringEINTR(func() error { return unix.Fstatfs(int(d.Fd()), &st) })
	if err != nil {
		return 0, &fs.PathError{Op: "fstatfs", Path: name, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, nil
}
