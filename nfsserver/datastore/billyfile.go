package datastore

import (
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/go-git/go-billy/v5"
	"golang.org/x/sys/unix"
)

// billyFile is an open file. It holds no resource: a node is one.
type billyFile struct {
	node *Node
	cred Cred
	name string
	flag int

	mu     sync.Mutex
	pos    int64
	closed bool
}

func (f *billyFile) Name() string { return f.name }

func (f *billyFile) usable(op string, forbidden int) error {
	switch {
	case f.closed:
		return &fs.PathError{Op: op, Path: f.name, Err: fs.ErrClosed}
	case f.flag&unix.O_ACCMODE == forbidden:
		return pathError(op, f.name, ErrAcces)
	}
	return nil
}

func (f *billyFile) Read(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.readAt(p, f.pos)
	f.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (f *billyFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.readAt(p, off)
}

func (f *billyFile) readAt(p []byte, off int64) (int, error) {
	if err := f.usable("read", os.O_WRONLY); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, pathError("read", f.name, ErrInval)
	}
	n, _, err := f.node.ReadAt(p, uint64(off))
	if err == nil && n < len(p) {
		return n, io.EOF
	}
	return n, pathError("read", f.name, err)
}

func (f *billyFile) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.usable("write", os.O_RDONLY); err != nil {
		return 0, err
	}
	if f.flag&os.O_APPEND != 0 {
		a, err := f.node.Attr()
		if err != nil {
			return 0, pathError("write", f.name, err)
		}
		f.pos = int64(a.Size)
	}
	n, _, err := f.node.WriteAt(p, uint64(f.pos))
	f.pos += int64(n)
	return n, pathError("write", f.name, err)
}

func (f *billyFile) Seek(off int64, whence int) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		off += f.pos
	case io.SeekEnd:
		a, err := f.node.Attr()
		if err != nil {
			return 0, pathError("seek", f.name, err)
		}
		off += int64(a.Size)
	}
	if off < 0 {
		return 0, pathError("seek", f.name, ErrInval)
	}
	f.pos = off
	return off, nil
}

func (f *billyFile) Truncate(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.usable("truncate", os.O_RDONLY); err != nil {
		return err
	}
	if size < 0 {
		return pathError("truncate", f.name, ErrInval)
	}
	u := uint64(size)
	_, err := f.node.SetAttr(f.cred, SetAttr{Size: &u}, nil)
	return pathError("truncate", f.name, err)
}

// Lock is not supported: NFS has locks of its own, and ESXi files for them.
func (f *billyFile) Lock() error { return billy.ErrNotSupported }

// Unlock is not supported.
func (f *billyFile) Unlock() error { return billy.ErrNotSupported }

func (f *billyFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return &fs.PathError{Op: "close", Path: f.name, Err: fs.ErrClosed}
	}
	f.closed = true
	return nil
}

// fileInfo is an Attr in the form of the standard library. Sys is a
// *syscall.Stat_t.
type fileInfo struct {
	name string
	attr Attr
}

func (i fileInfo) Name() string       { return i.name }
func (i fileInfo) Size() int64        { return int64(i.attr.Size) }
func (i fileInfo) ModTime() time.Time { return i.attr.Mtime.std() }
func (i fileInfo) IsDir() bool        { return i.attr.Type == TypeDirectory }

func (i fileInfo) Mode() os.FileMode {
	m := os.FileMode(i.attr.Mode & 0o777)
	for _, b := range modeFlags() {
		if i.attr.Mode&b.bit != 0 {
			m |= b.flag
		}
	}
	switch i.attr.Type {
	case TypeDirectory:
		m |= os.ModeDir
	case TypeSymlink:
		m |= os.ModeSymlink
	case TypeBlock:
		m |= os.ModeDevice
	case TypeChar:
		m |= os.ModeDevice | os.ModeCharDevice
	case TypeSocket:
		m |= os.ModeSocket
	case TypeFIFO:
		m |= os.ModeNamedPipe
	}
	return m
}

func (i fileInfo) Sys() any {
	a := &i.attr
	return &syscall.Stat_t{
		Ino: a.FileID, Nlink: uint64(a.Nlink), Uid: a.UID, Gid: a.GID, Size: int64(a.Size), Blocks: int64(a.Used / 512),
		Rdev: unix.Mkdev(a.RdevMajor, a.RdevMinor), Mode: a.Mode,
		Atim: syscall.Timespec{Sec: a.Atime.Sec, Nsec: int64(a.Atime.Nsec)},
		Mtim: syscall.Timespec{Sec: a.Mtime.Sec, Nsec: int64(a.Mtime.Nsec)},
		Ctim: syscall.Timespec{Sec: a.Ctime.Sec, Nsec: int64(a.Ctime.Nsec)},
	}
}

type modeFlag struct {
	bit  uint32
	flag os.FileMode
}

func modeFlags() [3]modeFlag {
	return [3]modeFlag{
		{unix.S_ISUID, os.ModeSetuid}, {unix.S_ISGID, os.ModeSetgid}, {unix.S_ISVTX, os.ModeSticky},
	}
}

func modeBits(m os.FileMode) uint32 {
	bits := uint32(m.Perm())
	for _, b := range modeFlags() {
		if m&b.flag != 0 {
			bits |= b.bit
		}
	}
	return bits
}
