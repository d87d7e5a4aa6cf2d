package vfs

import (
	"io/fs"
	"path"
	"syscall"
)

// Rooter is implemented by file systems with symbolic links.
type Rooter interface {
	// OpenRoot is the file system of what lies below the directory dir.
	OpenRoot(dir string) (RootFS, error)
}

// RootFS is the part of a file system below one directory. Names are relative
// to that directory ("." is itself) and lead nowhere else, whatever symbolic
// links there are. Only regular files can be opened, and Stat does not follow
// a link at the end of a name.
type RootFS interface {
	FS
	Close() error
}

// Sub confines fsys to the existing directory dir. A file system that is no
// [Rooter] has no symbolic links, and names are just joined.
func Sub(fsys FS, dir string) (RootFS, error) {
	if r, ok := fsys.(Rooter); ok {
		return r.OpenRoot(dir)
	}
	info, err := fsys.Stat(dir)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: syscall.ENOTDIR}
	}
	return &subFS{fsys, dir}, nil
}

type subFS struct {
	fsys FS
	dir  string
}

func (s *subFS) at(name string) string { return path.Join(s.dir, path.Join("/", name)) }

func (s *subFS) Close() error { return nil }

func (s *subFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	return s.fsys.OpenFile(s.at(name), flag, perm)
}

func (s *subFS) Rename(o, n string) error          { return s.fsys.Rename(s.at(o), s.at(n)) }
func (s *subFS) RenameExclusive(o, n string) error { return s.fsys.RenameExclusive(s.at(o), s.at(n)) }
func (s *subFS) Remove(name string) error          { return s.fsys.Remove(s.at(name)) }

func (s *subFS) MkdirAll(name string, perm fs.FileMode) error {
	return s.fsys.MkdirAll(s.at(name), perm)
}

func (s *subFS) ReadDir(name string) ([]fs.DirEntry, error) { return s.fsys.ReadDir(s.at(name)) }
func (s *subFS) Stat(name string) (fs.FileInfo, error)      { return s.fsys.Stat(s.at(name)) }
func (s *subFS) SyncDir(name string) error                  { return s.fsys.SyncDir(s.at(name)) }
func (s *subFS) Free(name string) (int64, error)            { return s.fsys.Free(s.at(name)) }
