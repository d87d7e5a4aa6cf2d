// Package kernelfs shows a directory that some kernel has mounted as a
// guestfs.FS: in the micro-VM, whose kernel knows what no reader of ours does,
// and on the host itself, for the administrator who explicitly wants that.
//
// An inode is found again by the name that it was seen under: file handles
// (open_by_handle_at) would be faster, but not every file system has them. The
// names of the latest several hundred thousand inodes are kept; one that was
// seen longer ago has to be listed again.
package kernelfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// maxNames bounds the inodes whose names are known, in each of two generations.
const maxNames = 200_000

// Bits of an inode: btrfs gives each subvolume inode numbers of its own, which
// are told apart by the device number that goes with them.
const (
	numberBits = 48
	maxDevices = 1 << (64 - numberBits)
)

// FS is a mounted directory.
type FS struct {
	root int // O_PATH
	top  guestfs.Inode
	dev  uint64

	// mu guards what follows and is never held during I/O.
	mu       sync.Mutex
	young    map[guestfs.Inode]place
	old      map[guestfs.Inode]place
	devices  map[uint64]uint64
	closed   bool
	describe guestfs.Info
}

// place is where an inode was seen.
type place struct {
	parent guestfs.Inode
	name   string
}

var (
	_ guestfs.FS          = (*FS)(nil)
	_ guestfs.XattrReader = (*FS)(nil)
	_ guestfs.Describer   = (*FS)(nil)
	_ guestfs.Lookuper    = (*FS)(nil)
)

// Open shows the directory dir. info is what Info returns; its sizes are filled
// in from the kernel where they are 0.
func Open(dir string, info guestfs.Info) (*FS, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	st, err := stat(fd, "")
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	f := &FS{root: fd, dev: device(st), young: map[guestfs.Inode]place{}, devices: map[uint64]uint64{}, describe: info}
	f.devices[f.dev] = 0
	f.top = guestfs.Inode(st.Ino)
	var sf unix.Statfs_t
	if err := unix.Fstatfs(fd, &sf); err == nil && info.Size == 0 {
		f.describe.Size, f.describe.Used = int64(sf.Blocks)*sf.Bsize, int64(sf.Blocks-sf.Bfree)*sf.Bsize
	}
	return f, nil
}

// Close lets go of the directory. Open files stay open.
func (f *FS) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	return unix.Close(f.root)
}

// Info implements [guestfs.Describer].
func (f *FS) Info() guestfs.Info { return f.describe }

// Root implements [guestfs.FS].
func (f *FS) Root() guestfs.Inode { return f.top }

func device(st *unix.Statx_t) uint64 { return unix.Mkdev(st.Dev_major, st.Dev_minor) }

// stat describes name in a directory, or the open file itself.
func stat(fd int, name string) (*unix.Statx_t, error) {
	var st unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	for {
		err := unix.Statx(fd, name, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
		if !errors.Is(err, unix.EINTR) {
			return &st, err
		}
	}
}

// number makes an Inode of what the kernel says.
func (f *FS) number(st *unix.Statx_t) (guestfs.Inode, error) {
	dev := device(st)
	if dev == f.dev {
		return guestfs.Inode(st.Ino), nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	i, ok := f.devices[dev]
	if !ok {
		i = uint64(len(f.devices))
		if i >= maxDevices {
			return 0, &guestfs.UnsupportedError{FS: f.describe.Type, What: "more than 65,535 subvolumes"}
		}
		f.devices[dev] = i
	}
	if st.Ino >= 1<<numberBits {
		return 0, &guestfs.UnsupportedError{FS: f.describe.Type, What: fmt.Sprintf("inode number %d in a subvolume", st.Ino)}
	}
	return guestfs.Inode(i<<numberBits | st.Ino), nil
}

// remember notes where an inode is.
func (f *FS) remember(inode guestfs.Inode, p place) {
	if inode == f.top {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put(inode, p)
}

func (f *FS) put(inode guestfs.Inode, p place) {
	if len(f.young) >= maxNames {
		f.old, f.young = f.young, make(map[guestfs.Inode]place, maxNames/4)
	}
	f.young[inode] = p
}

// maxDepth bounds the names between the root and a file.
const maxDepth = 4096

// path is the names that lead to an inode.
func (f *FS) path(inode guestfs.Inode) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for at := inode; at != f.top; {
		p, ok := f.young[at]
		if !ok {
			if p, ok = f.old[at]; !ok || len(names) > maxDepth {
				return nil, fmt.Errorf("inode %d was not listed before: %w", inode, fs.ErrNotExist)
			}
			f.put(at, p)
		}
		names = append(names, p.name)
		at = p.parent
	}
	slices.Reverse(names)
	return names, nil
}

// open opens an inode for its description (O_PATH).
func (f *FS) open(inode guestfs.Inode) (fd int, err error) {
	names, err := f.path(inode)
	if err != nil {
		return -1, err
	}
	if fd, err = openat(f.root, ".", unix.O_PATH); err != nil {
		return -1, err
	}
	for _, name := range names {
		next, err := openat(fd, name, unix.O_PATH)
		unix.Close(fd)
		if err != nil {
			return -1, fmt.Errorf("inode %d: %w", inode, err)
		}
		fd = next
	}
	return fd, nil
}

func openat(fd int, name string, flags int) (int, error) {
	for {
		n, err := unix.Openat(fd, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return n, failure(err)
		}
	}
}

// failure makes an error of the kernel one that callers decide on.
func failure(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EBADMSG): // EFSCORRUPTED, EFSBADCRC
		return fmt.Errorf("%w: the kernel says: %w", guestfs.ErrCorrupt, err)
	case errors.Is(err, unix.ENOKEY):
		return fmt.Errorf("%w by the guest: %w", guestfs.ErrEncrypted, err)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w: %w", guestfs.ErrNotDir, err)
	}
	return err
}

// procPath names an open file where a call wants a path.
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// Stat implements [guestfs.FS].
func (f *FS) Stat(ctx context.Context, inode guestfs.Inode) (*guestfs.Attr, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	fd, err := f.open(inode)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	st, err := stat(fd, "")
	if err != nil {
		return nil, failure(err)
	}
	return attr(inode, st), nil
}

func attr(inode guestfs.Inode, st *unix.Statx_t) *guestfs.Attr {
	a := &guestfs.Attr{
		Inode: inode, Mode: uint32(st.Mode), Links: st.Nlink, UID: st.Uid, GID: st.Gid, Size: int64(st.Size), Allocated: int64(st.Blocks) * 512,
		Atime: clock(st.Atime), Mtime: clock(st.Mtime), Ctime: clock(st.Ctime), Major: st.Rdev_major, Minor: st.Rdev_minor,
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		a.Btime = clock(st.Btime)
	}
	for bit, flag := range map[uint64]guestfs.Flags{
		unix.STATX_ATTR_COMPRESSED: guestfs.Compressed, unix.STATX_ATTR_IMMUTABLE: guestfs.Immutable, unix.STATX_ATTR_APPEND: guestfs.AppendOnly,
		unix.STATX_ATTR_ENCRYPTED: guestfs.EncryptedFile, unix.STATX_ATTR_VERITY: guestfs.Verity,
	} {
		if st.Attributes&bit != 0 {
			a.Flags |= flag
		}
	}
	return a
}

func clock(t unix.StatxTimestamp) time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }

// Lookup implements [guestfs.Lookuper]: as the kernel compares names.
func (f *FS) Lookup(ctx context.Context, dir guestfs.Inode, name string) (guestfs.Dirent, error) {
	if ctx.Err() != nil {
		return guestfs.Dirent{}, context.Cause(ctx)
	}
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return guestfs.Dirent{}, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
	}
	fd, err := f.open(dir)
	if err != nil {
		return guestfs.Dirent{}, err
	}
	defer unix.Close(fd)
	st, err := stat(fd, name)
	if err != nil {
		return guestfs.Dirent{}, failure(err)
	}
	return f.entry(dir, name, st, 0)
}

func (f *FS) entry(dir guestfs.Inode, name string, st *unix.Statx_t, cookie uint64) (guestfs.Dirent, error) {
	inode, err := f.number(st)
	if err != nil {
		return guestfs.Dirent{}, err
	}
	f.remember(inode, place{dir, name})
	return guestfs.Dirent{Name: name, Inode: inode, Type: uint32(st.Mode) & guestfs.TypeMask, Cookie: cookie}, nil
}

// ReadDir implements [guestfs.FS]. A cookie is the kernel's (d_off), plus one:
// some file systems give their last entry 0 or the largest number there is.
func (f *FS) ReadDir(ctx context.Context, dir guestfs.Inode, after uint64) iter.Seq2[guestfs.Dirent, error] {
	return func(yield func(guestfs.Dirent, error) bool) {
		stopped := false
		err := f.readDir(ctx, dir, after, func(d guestfs.Dirent) bool {
			stopped = !yield(d, nil)
			return !stopped
		})
		if err != nil && !stopped {
			yield(guestfs.Dirent{}, err)
		}
	}
}

func (f *FS) readDir(ctx context.Context, dir guestfs.Inode, after uint64, yield func(guestfs.Dirent) bool) error {
	at, err := f.open(dir)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	fd, err := openat(at, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if after > 0 {
		if _, err := unix.Seek(fd, int64(after-1), 0); err != nil {
			return failure(err)
		}
	}
	buf := make([]byte, 64<<10)
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := unix.Getdents(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return failure(err)
		}
		for d := range dirents(buf[:n]) {
			st, err := stat(fd, d.name)
			if err != nil {
				return fmt.Errorf("%q: %w", d.name, failure(err))
			}
			e, err := f.entry(dir, d.name, st, d.next+1)
			if err != nil {
				return err
			}
			if !yield(e) {
				return nil
			}
		}
	}
}

// Xattrs implements [guestfs.XattrReader].
func (f *FS) Xattrs(ctx context.Context, inode guestfs.Inode) ([]guestfs.Xattr, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	fd, err := f.open(inode)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	list, err := grow(func(b []byte) (int, error) { return unix.Listxattr(procPath(fd), b) })
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return nil, nil
		}
		return nil, failure(err)
	}
	var out []guestfs.Xattr
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value, err := grow(func(b []byte) (int, error) { return unix.Getxattr(procPath(fd), name, b) })
		if err != nil {
			return nil, fmt.Errorf("attribute %q: %w", name, failure(err))
		}
		out = append(out, guestfs.Xattr{Name: name, Value: value})
	}
	return out, nil
}

// grow calls what fills a buffer until the buffer is large enough: the kernel's
// limit for both lists and values is 64 KiB.
func grow(fill func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 8 {
		b := make([]byte, size)
		n, err := fill(b)
		if errors.Is(err, unix.ERANGE) && size < 1<<18 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return b[:n], nil
	}
}

// Open implements [guestfs.FS].
func (f *FS) Open(ctx context.Context, inode guestfs.Inode) (disk.Image, error) {
	fd, err := f.open(inode)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	st, err := stat(fd, "")
	if err != nil {
		return nil, failure(err)
	}
	switch uint32(st.Mode) & guestfs.TypeMask {
	case guestfs.TypeSymlink:
		target, err := grow(func(b []byte) (int, error) {
			n, err := unix.Readlinkat(fd, "", b)
			if err == nil && n == len(b) {
				err = unix.ERANGE
			}
			return n, err
		})
		if err != nil {
			return nil, failure(err)
		}
		return disk.Bytes(ctx, target), nil
	case guestfs.TypeFile:
		return openFile(ctx, fd, int64(st.Size))
	}
	return nil, fmt.Errorf("inode %d is not a file", inode)
}
