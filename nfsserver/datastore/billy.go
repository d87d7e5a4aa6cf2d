package datastore

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/go-git/go-billy/v5"
	"golang.org/x/sys/unix"
)

// Billy is the part of the tree below dir, a directory, as a billy.Filesystem
// and billy.Change that acts with the rights of c.
//
// Paths are taken relative to dir, and cannot leave it: they are walked name by
// name through the tree, "..", wherever it stands, goes no higher than dir, and
// no symbolic link is followed (Stat is Lstat). Errors are *fs.PathError with an
// errno. Files can be changed, there are no temporary files and no locks.
func (t *Tree) Billy(dir *Node, c Cred) billy.Filesystem {
	return &billyFS{tree: t, dir: dir, cred: c}
}

type billyFS struct {
	tree *Tree
	dir  *Node
	cred Cred
}

var (
	_ billy.Filesystem = (*billyFS)(nil)
	_ billy.Change     = (*billyFS)(nil)
	_ billy.Capable    = (*billyFS)(nil)
)

// pathError turns an error of the tree into one that os.IsNotExist and the like
// understand.
func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	no := syscall.EIO
	var k *kind
	if errors.As(err, &k) {
		no = k.errno
	}
	return &fs.PathError{Op: op, Path: name, Err: no}
}

// clean makes name relative, without ".." and superfluous separators.
func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func (b *billyFS) walk(name string) (*Node, error) {
	names, err := splitPath(clean(name))
	if err != nil {
		return nil, err
	}
	n := b.dir
	for _, name := range names {
		if n, err = n.Lookup(b.cred, name); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// parent finds the directory of name, and its last component.
func (b *billyFS) parent(name string) (*Node, string, error) {
	dir, base := path.Split(clean(name))
	n, err := b.walk(dir)
	return n, base, err
}

func (b *billyFS) Capabilities() billy.Capability {
	return billy.WriteCapability | billy.ReadCapability | billy.ReadAndWriteCapability |
		billy.SeekCapability | billy.TruncateCapability
}

func (b *billyFS) Create(name string) (billy.File, error) {
	return b.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o666)
}

func (b *billyFS) Open(name string) (billy.File, error) { return b.OpenFile(name, os.O_RDONLY, 0) }

func (b *billyFS) OpenFile(name string, flag int, perm os.FileMode) (billy.File, error) {
	n, err := b.open(name, flag, perm)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return &billyFile{node: n, cred: b.cred, name: name, flag: flag}, nil
}

func (b *billyFS) open(name string, flag int, perm os.FileMode) (n *Node, err error) {
	var zero uint64
	if flag&os.O_CREATE == 0 {
		n, err = b.walk(name)
	} else {
		n, err = b.create(name, flag, perm)
	}
	if err != nil {
		return nil, err
	}
	if err := n.content(); err != nil {
		return nil, err
	}
	want := Read
	switch flag & unix.O_ACCMODE {
	case os.O_WRONLY:
		want = Write
	case os.O_RDWR:
		want = Read | Write
	}
	if err := n.Permit(&b.cred, want); err != nil {
		return nil, err
	}
	if flag&os.O_TRUNC != 0 {
		_, err = n.SetAttr(b.cred, SetAttr{Size: &zero}, nil)
	}
	return n, err
}

func (b *billyFS) create(name string, flag int, perm os.FileMode) (*Node, error) {
	dir, base, err := b.parent(name)
	if err != nil {
		return nil, err
	}
	mode := modeBits(perm)
	how := CreateHow{Attr: SetAttr{Mode: &mode}}
	if flag&os.O_EXCL != 0 {
		how.Mode = Guarded
	}
	n, _, err := dir.Create(b.cred, base, how)
	return n, err
}

func (b *billyFS) Stat(name string) (os.FileInfo, error) { return b.info("stat", name) }

func (b *billyFS) Lstat(name string) (os.FileInfo, error) { return b.info("lstat", name) }

func (b *billyFS) info(op, name string) (os.FileInfo, error) {
	n, err := b.walk(name)
	if err != nil {
		return nil, pathError(op, name, err)
	}
	a, err := n.Attr()
	if err != nil {
		return nil, pathError(op, name, err)
	}
	return fileInfo{name: path.Base("/" + clean(name)), attr: a}, nil
}

func (b *billyFS) Rename(from, to string) error {
	src, name, err := b.parent(from)
	if err != nil {
		return pathError("rename", from, err)
	}
	dst, toName, err := b.parent(to)
	if err == nil {
		_, _, err = src.Rename(b.cred, name, dst, toName)
	}
	return pathError("rename", from, err)
}

// Remove removes a file or an empty directory.
func (b *billyFS) Remove(name string) error {
	dir, base, err := b.parent(name)
	if err != nil {
		return pathError("remove", name, err)
	}
	_, err = dir.Remove(b.cred, base)
	if errors.Is(err, ErrIsDir) {
		_, err = dir.Rmdir(b.cred, base)
	}
	return pathError("remove", name, err)
}

func (b *billyFS) Join(elem ...string) string { return path.Join(elem...) }

func (b *billyFS) TempFile(string, string) (billy.File, error) { return nil, billy.ErrNotSupported }

func (b *billyFS) ReadDir(name string) ([]os.FileInfo, error) {
	n, err := b.walk(name)
	if err != nil {
		return nil, pathError("readdir", name, err)
	}
	var list []os.FileInfo
	for e, err := range n.ReadDir(b.cred, 0, 0, true) {
		if err != nil {
			return list, pathError("readdir", name, err)
		}
		if e.HasAttr && e.Cookie > cookieDotDot {
			list = append(list, fileInfo{name: e.Name, attr: e.Attr})
		}
	}
	return list, nil
}

func (b *billyFS) MkdirAll(name string, perm os.FileMode) error {
	names, err := splitPath(clean(name))
	if err != nil {
		return pathError("mkdir", name, err)
	}
	mode := modeBits(perm)
	n := b.dir
	for _, elem := range names {
		next, err := n.Lookup(b.cred, elem)
		if errors.Is(err, ErrNoEnt) {
			next, _, err = n.Mkdir(b.cred, elem, SetAttr{Mode: &mode})
		}
		if errors.Is(err, ErrExist) { // another was faster
			next, err = n.Lookup(b.cred, elem)
		}
		if err == nil && next.typ != TypeDirectory {
			err = ErrNotDir
		}
		if err != nil {
			return pathError("mkdir", name, err)
		}
		n = next
	}
	return nil
}

func (b *billyFS) Symlink(target, name string) error {
	dir, base, err := b.parent(name)
	if err == nil {
		_, _, err = dir.Symlink(b.cred, base, target, SetAttr{})
	}
	return pathError("symlink", name, err)
}

func (b *billyFS) Readlink(name string) (string, error) {
	n, err := b.walk(name)
	if err != nil {
		return "", pathError("readlink", name, err)
	}
	target, err := n.Readlink()
	return target, pathError("readlink", name, err)
}

func (b *billyFS) Chroot(name string) (billy.Filesystem, error) {
	n, err := b.walk(name)
	if err == nil && n.typ != TypeDirectory {
		err = ErrNotDir
	}
	if err != nil {
		return nil, pathError("chroot", name, err)
	}
	return b.tree.Billy(n, b.cred), nil
}

// Root is the path of the file system's root in the tree.
func (b *billyFS) Root() string { return "/" + b.tree.path(b.dir) }

func (b *billyFS) set(op, name string, set SetAttr) error {
	n, err := b.walk(name)
	if err == nil {
		_, err = n.SetAttr(b.cred, set, nil)
	}
	return pathError(op, name, err)
}

func (b *billyFS) Chmod(name string, mode os.FileMode) error {
	bits := modeBits(mode)
	return b.set("chmod", name, SetAttr{Mode: &bits})
}

func (b *billyFS) Lchown(name string, uid, gid int) error {
	return b.set("chown", name, SetAttr{UID: idOf(uid), GID: idOf(gid)})
}

// Chown is Lchown: no link is followed.
func (b *billyFS) Chown(name string, uid, gid int) error { return b.Lchown(name, uid, gid) }

func (b *billyFS) Chtimes(name string, atime, mtime time.Time) error {
	to := func(t time.Time) SetTime { return SetTime{How: ToClientOwn, To: timeOf(t.UnixNano())} }
	return b.set("chtimes", name, SetAttr{Atime: to(atime), Mtime: to(mtime)})
}

func idOf(id int) *uint32 {
	if id < 0 {
		return nil
	}
	v := uint32(id)
	return &v
}
