package esxsim

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// volume is where a datastore's files are: a directory here, or a tree on an
// NFS server. Names are slash-separated paths inside.
type volume interface {
	open(name string, how openHow) (file, error)
	stat(name string) (entry, error)
	list(dir string) ([]entry, error)
	change(op fileOp, name, to string) error
}

type openHow int

const (
	openRead  openHow = iota // shared
	openWrite                // with a lock where the volume has locks
	openNew                  // created; must not exist
)

type fileOp int

const (
	opRemove fileOp = iota
	opRename        // name → to
	opMkdir         // with parents; no error if it exists
	opRemoveAll
)

// file is an open file of a volume.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error
	Sync() error
}

type entry struct {
	name string
	size int64
	dir  bool
}

// datastore is one datastore, whichever hosts have it mounted.
type datastore struct {
	sim  *Sim
	obj  *simulator.Datastore
	ref  ref
	name string
	vol  volume
	nas  *nasVolume // nil: VMFS
}

// dsPath is a path in a datastore, "[name] path" in the API.
type dsPath struct {
	ds   *datastore
	path string
}

func (p dsPath) String() string { return "[" + p.ds.name + "] " + p.path }

func (p dsPath) dir() dsPath { return dsPath{p.ds, path.Dir(p.path)} }

func (p dsPath) join(name string) dsPath { return dsPath{p.ds, path.Join(p.path, name)} }

// resolve reads "[name] path" as a host sees it. The lock is held.
func (s *Sim) resolve(text string) (dsPath, types.BaseMethodFault) {
	rest, ok := strings.CutPrefix(text, "[")
	name, rest, ok2 := strings.Cut(rest, "]")
	if !ok || !ok2 {
		return dsPath{}, &types.InvalidDatastorePath{DatastorePath: text}
	}
	rest = strings.TrimPrefix(rest, " ")
	clean := path.Clean("/" + rest)[1:]
	for _, d := range s.datastores {
		if d.name == name {
			return dsPath{d, clean}, nil
		}
	}
	return dsPath{}, &types.InvalidDatastore{Name: name}
}

// localVolume is a directory.
type localVolume struct{ dir string }

func (v localVolume) host(name string) string {
	return filepath.Join(v.dir, filepath.FromSlash(path.Clean("/"+name)))
}

func (v localVolume) open(name string, how openHow) (file, error) {
	flags := map[openHow]int{openRead: os.O_RDONLY, openWrite: os.O_RDWR, openNew: os.O_RDWR | os.O_CREATE | os.O_EXCL}[how]
	f, err := os.OpenFile(v.host(name), flags, 0o644)
	if err != nil {
		return nil, err
	}
	return localFile{f}, nil
}

func (v localVolume) stat(name string) (entry, error) {
	fi, err := os.Stat(v.host(name))
	if err != nil {
		return entry{}, err
	}
	return entry{fi.Name(), fi.Size(), fi.IsDir()}, nil
}

func (v localVolume) list(dir string) ([]entry, error) {
	found, err := os.ReadDir(v.host(dir))
	if err != nil {
		return nil, err
	}
	var list []entry
	for _, f := range found {
		if fi, err := f.Info(); err == nil { // else: gone meanwhile
			list = append(list, entry{f.Name(), fi.Size(), f.IsDir()})
		}
	}
	return list, nil
}

func (v localVolume) change(op fileOp, name, to string) error {
	switch op {
	case opRemove:
		return os.Remove(v.host(name))
	case opRename:
		return os.Rename(v.host(name), v.host(to))
	case opMkdir:
		return os.MkdirAll(v.host(name), 0o755)
	default:
		return os.RemoveAll(v.host(name))
	}
}

type localFile struct{ *os.File }

// Sync does nothing: no simulation outlives its machine, and tests should not
// wait for real disks.
func (f localFile) Sync() error { return nil }

func (f localFile) Size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// readFile reads a small file whole.
func readFile(v volume, name string, limit int64) ([]byte, error) {
	f, err := v.open(name, openRead)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, errors.New("the file is too big for what it should be")
	}
	return io.ReadAll(io.NewSectionReader(f, 0, size))
}

// writeFile replaces a small file.
func writeFile(v volume, name string, content []byte) error {
	if err := v.change(opRemove, name, ""); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := v.open(name, openNew)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(content, 0); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// fileFault is what a host says of a file that it could not use.
func fileFault(p string, err error) types.BaseMethodFault {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return said(&types.FileNotFound{FileFault: types.FileFault{File: p}}, "msg.fileNotFound", "File %s was not found", p)
	case errors.Is(err, fs.ErrExist):
		return &types.FileAlreadyExists{FileFault: types.FileFault{File: p}}
	case errors.Is(err, errLocked):
		return said(&types.FileLocked{FileFault: types.FileFault{File: p}}, "msg.fileio.lock", "Unable to access file %s since it is locked", p)
	}
	return said(&types.CannotAccessFile{FileFault: types.FileFault{File: p}}, "msg.fileio", "Unable to access file %s: %v", p, err)
}

var errLocked = errors.New("the file is locked")
