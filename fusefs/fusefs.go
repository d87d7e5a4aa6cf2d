// Package fusefs mounts the tree of all restore points (package browse) through
// FUSE, read-only.
//
// The kernel's node IDs are the tree's own inode numbers, with the root's in the
// place that FUSE has for it. So nothing has to be remembered about a file for as
// long as the kernel knows it, and a walk over millions of files costs no memory;
// with one exception, which links are for.
//
// # Symbolic links
//
// A guest's link means a place in the guest. On the host an absolute one, or one
// with enough "..", would mean a file of the host, which the guest's owner could
// thus show to whoever reads the mount. So what the kernel gets to see is:
//
//   - the link as it is, where it is relative and goes up no further than its
//     volume, as it stands;
//   - otherwise a relative path, without a link in it, to the place in the volume
//     that it leads to for the guest; and where there is none, one that leads
//     nowhere.
//
// That takes the path from the volume's root to the link. For directories and
// links (only) the file system therefore remembers under which name the kernel
// found them, until the kernel forgets them. A link with several names gets a
// node for each directory that it was found in.
//
// # Caching
//
// What a restore point holds never changes: the kernel may keep names, attributes
// and content for as long as it likes. New points come, so the upper directories
// are asked for again after a few seconds.
//
// Lock order: links.mu and dir.mu are taken alone, and dir.mu is held while a
// directory is read.
package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/browse"
)

// How long the kernel may believe what it was told.
const (
	keepForever = 24 * time.Hour
	keepUpper   = 3 * time.Second
)

// patience is how long an operation goes on after the process that waits for it
// got a signal. Programs in Go get signals all the time and do not want to be
// interrupted; a person who presses Ctrl-C does.
const patience = time.Second

// rawFS implements go-fuse's interface on a Namespace.
type rawFS struct {
	fuse.RawFileSystem // what is not implemented is refused
	tree               *browse.Namespace
	log                *slog.Logger
	links              links

	handles  sync.Map // uint64 → *file or *dir
	lastFile atomic.Uint64
	xattrs   attrCache
}

func newRawFS(tree *browse.Namespace, log *slog.Logger) *rawFS {
	return &rawFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), tree: tree, log: log, links: newLinks(tree)}
}

func (r *rawFS) String() string { return "lifeboat" }

// status makes an error one of the kernel's.
func (r *rawFS) status(what string, inode guestfs.Inode, err error) fuse.Status {
	switch {
	case err == nil:
		return fuse.OK
	case errors.Is(err, fs.ErrNotExist):
		return fuse.ENOENT
	case errors.Is(err, errInterrupted), errors.Is(err, context.Canceled):
		return fuse.EINTR
	case errors.Is(err, guestfs.ErrNotDir):
		return fuse.ENOTDIR
	}
	// What else there is a person wants to know more of than a number.
	r.log.Warn("a file cannot be read", "operation", what, "inode", inode, "error", err)
	switch {
	case errors.Is(err, guestfs.ErrEncrypted):
		return fuse.Status(unix.ENOKEY)
	case errors.Is(err, guestfs.ErrUnsupported):
		return fuse.Status(unix.EOPNOTSUPP)
	case errors.Is(err, guestfs.ErrCorrupt):
		return fuse.Status(unix.EUCLEAN)
	}
	return fuse.EIO
}

var errInterrupted = errors.New("interrupted")

// request is the context of one operation. It ends when the process that waits
// was interrupted and patience is over.
type request struct {
	context.Context
	stop context.CancelFunc
}

func newRequest(cancel <-chan struct{}) request {
	ctx, stop := context.WithCancelCause(context.Background())
	if cancel == nil {
		return request{ctx, func() { stop(nil) }}
	}
	done := make(chan struct{})
	go func() {
		select {
		case <-done:
			return
		case <-cancel:
		}
		t := time.NewTimer(patience)
		defer t.Stop()
		select {
		case <-done:
		case <-t.C:
			stop(errInterrupted)
		}
	}()
	return request{ctx, sync.OnceFunc(func() { close(done); stop(nil) })}
}

// fill describes a file for the kernel.
func (r *rawFS) fill(out *fuse.Attr, a *guestfs.Attr) {
	out.Ino, out.Size, out.Blocks = uint64(a.Inode), uint64(a.Size), uint64(a.Allocated+511)/512
	out.Mode, out.Nlink, out.Uid, out.Gid = a.Mode, a.Links, a.UID, a.GID
	out.Rdev, out.Blksize = uint32(unix.Mkdev(a.Major, a.Minor)), 4096
	set := func(sec *uint64, nsec *uint32, t time.Time) {
		if !t.IsZero() {
			*sec, *nsec = uint64(t.Unix()), uint32(t.Nanosecond())
		}
	}
	set(&out.Mtime, &out.Mtimensec, a.Mtime)
	set(&out.Ctime, &out.Ctimensec, a.Ctime)
	set(&out.Atime, &out.Atimensec, a.Atime)
}

// entry fills in what a lookup found.
func (r *rawFS) entry(out *fuse.EntryOut, parent uint64, name string, a *guestfs.Attr) {
	out.NodeId, out.Generation = r.links.node(parent, name, a), 1
	keep := keepForever
	if tree, root := r.tree.TreeOf(a.Inode); tree == 0 || root {
		keep = keepUpper
	}
	out.SetEntryTimeout(keep)
	out.SetAttrTimeout(keep)
	r.fill(&out.Attr, a)
}

// Lookup implements fuse.RawFileSystem.
func (r *rawFS) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	ctx := newRequest(cancel)
	defer ctx.stop()
	dir := r.links.inode(h.NodeId)
	e, err := r.tree.Lookup(ctx, dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		if tree, _ := r.tree.TreeOf(dir); tree != 0 {
			out.SetEntryTimeout(keepForever) // node 0: it is not there, and never will be
			return fuse.OK
		}
		return fuse.ENOENT
	}
	if err != nil {
		return r.status("lookup", dir, err)
	}
	a, err := r.tree.Stat(ctx, e.Inode)
	if err != nil {
		return r.status("stat", e.Inode, err)
	}
	r.entry(out, h.NodeId, name, a)
	return fuse.OK
}

// Forget implements fuse.RawFileSystem.
func (r *rawFS) Forget(node, lookups uint64) { r.links.forget(node, lookups) }

// GetAttr implements fuse.RawFileSystem.
func (r *rawFS) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	ctx := newRequest(cancel)
	defer ctx.stop()
	inode := r.links.inode(in.NodeId)
	a, err := r.tree.Stat(ctx, inode)
	if err != nil {
		return r.status("stat", inode, err)
	}
	keep := keepForever
	if tree, root := r.tree.TreeOf(inode); tree == 0 || root {
		keep = keepUpper
	}
	out.SetTimeout(keep)
	r.fill(&out.Attr, a)
	return fuse.OK
}

// Readlink implements fuse.RawFileSystem.
func (r *rawFS) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	ctx := newRequest(cancel)
	defer ctx.stop()
	inode := r.links.inode(h.NodeId)
	dir, ok := r.links.directory(h.NodeId)
	if !ok {
		return nil, fuse.Status(unix.ESTALE)
	}
	l, err := r.tree.ReadLink(ctx, inode, "/"+dir.String())
	if err != nil {
		return nil, r.status("read link", inode, err)
	}
	return []byte(dir.safe(l)), fuse.OK
}

// Access implements fuse.RawFileSystem: the kernel decides, or it is root.
func (r *rawFS) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

// StatFs implements fuse.RawFileSystem. There is no telling how large everything
// together is.
func (r *rawFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: 255}
	return fuse.OK
}

// file is an open file.
type file struct {
	img  disk.Image
	stop context.CancelFunc
}

func (r *rawFS) handle(h any) uint64 {
	n := r.lastFile.Add(1)
	r.handles.Store(n, h)
	return n
}

// Open implements fuse.RawFileSystem.
func (r *rawFS) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.Flags&unix.O_ACCMODE != unix.O_RDONLY {
		return fuse.EROFS
	}
	inode := r.links.inode(in.NodeId)
	// Reads go on for as long as the file is open.
	ctx, stop := context.WithCancel(context.Background())
	opening := newRequest(cancel)
	defer opening.stop()
	defer context.AfterFunc(opening, stop)()
	img, err := r.tree.Open(ctx, inode)
	if err != nil {
		stop()
		if errors.Is(context.Cause(opening), errInterrupted) {
			err = errInterrupted
		}
		return r.status("open", inode, err)
	}
	out.Fh = r.handle(&file{img, stop})
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (r *rawFS) file(fh uint64) *file {
	h, _ := r.handles.Load(fh)
	f, _ := h.(*file)
	return f
}

// Read implements fuse.RawFileSystem.
func (r *rawFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f := r.file(in.Fh)
	if f == nil {
		return nil, fuse.EBADF
	}
	buf = buf[:min(len(buf), int(in.Size))]
	n, err := f.img.ReadAt(buf, int64(in.Offset))
	if err != nil && !errors.Is(err, io.EOF) && n < len(buf) {
		return nil, r.status("read", r.links.inode(in.NodeId), err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Lseek implements fuse.RawFileSystem: data and holes.
func (r *rawFS) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	f := r.file(in.Fh)
	if f == nil {
		return fuse.EBADF
	}
	if in.Offset >= uint64(f.img.Size()) {
		return fuse.Status(syscall.ENXIO)
	}
	ctx := newRequest(cancel)
	defer ctx.stop()
	off := int64(in.Offset)
	for e, err := range disk.Extents(ctx, f.img, disk.Extent{Offset: off, Length: f.img.Size() - off}) {
		if err != nil {
			return r.status("seek", r.links.inode(in.NodeId), err)
		}
		if e.Hole == (in.Whence == unix.SEEK_HOLE) {
			out.Offset = uint64(max(off, e.Offset))
			return fuse.OK
		}
	}
	if in.Whence == unix.SEEK_HOLE {
		out.Offset = uint64(f.img.Size())
		return fuse.OK
	}
	return fuse.Status(syscall.ENXIO)
}

// Release implements fuse.RawFileSystem.
func (r *rawFS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	h, ok := r.handles.LoadAndDelete(in.Fh)
	if f, isFile := h.(*file); ok && isFile {
		if err := f.img.Close(); err != nil {
			r.log.Warn("a file could not be closed", "error", fmt.Errorf("close: %w", err))
		}
		f.stop()
	}
}
