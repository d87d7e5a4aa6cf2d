package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// GetDirOptions say how files are written to a directory.
type GetDirOptions struct {
	Output  string // a directory; it is made where there is none
	Devices bool   // make device nodes, too; for root
}

// GetToDir takes files out of a guest into a directory, with whatever of their
// metadata the caller may set. Nothing that exists is written over. Files appear
// when all is done: until then they are in a directory of their own in it, which
// goes away when somebody interrupts, the disk is full or a place is not there;
// the output directory, too, if it was made for this.
//
// What a guest calls its files cannot lead out of the directory: every name is
// one name, made in the open directory that it belongs to and nowhere else, and no
// link is followed. A guest's links are made as they are.
func (g *Guest) GetToDir(ctx context.Context, req GetRequest, opts GetDirOptions) (_ *GetResult, err error) {
	if _, missing := os.Lstat(opts.Output); errors.Is(missing, os.ErrNotExist) {
		defer func() {
			if err != nil {
				_ = os.Remove(opts.Output) // not if somebody else has put something there
			}
		}()
	}
	if err := os.MkdirAll(opts.Output, 0o700); err != nil {
		return nil, fmt.Errorf("get: %w", err)
	}
	stage, err := os.MkdirTemp(opts.Output, ".lifeboat-part-*")
	if err != nil {
		return nil, fmt.Errorf("get: %w", err)
	}
	defer os.RemoveAll(stage)
	d := &dirTaker{root: os.Geteuid() == 0, devices: opts.Devices, output: opts.Output}
	defer d.close()
	for _, name := range []string{stage, opts.Output} {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("get into %s: %w", name, err)
		}
		d.open = append(d.open, fd)
	}
	d.stack = d.open[:1:1]
	result, err := g.get(ctx, req, d)
	if err != nil {
		return result, err
	}
	return result, d.publish()
}

// dirTaker writes into a directory. stack are the open directories on the way to
// where it is; the first is the stage.
type dirTaker struct {
	open    []int // stage, and the directory where things belong
	stack   []int
	top     []string // names at the top
	root    bool
	devices bool
	output  string
	buf     []byte
}

func (d *dirTaker) here() int { return d.stack[len(d.stack)-1] }

func (d *dirTaker) close() {
	if len(d.stack) > 1 {
		closeFDs(d.stack[1:])
	}
	closeFDs(d.open)
}

func closeFDs(list []int) {
	for _, fd := range list {
		unix.Close(fd)
	}
}

// arrive refuses a name at the top that is taken, before the work is done.
func (d *dirTaker) arrive(it *item) error {
	if len(d.stack) > 1 {
		return nil
	}
	d.top = append(d.top, it.name)
	var st unix.Stat_t
	if err := unix.Fstatat(d.open[1], it.name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		return d.failed(it, unix.EEXIST)
	}
	return nil
}

// publish moves what was taken to where it belongs.
func (d *dirTaker) publish() error {
	for _, name := range d.top {
		err := unix.Renameat2(d.open[0], name, d.open[1], name, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EINVAL) { // a file system that knows no flags
			err = unix.Renameat(d.open[0], name, d.open[1], name)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) { // ENOENT: it was left out
			return fmt.Errorf("%s: %w", filepath.Join(d.output, name), err)
		}
	}
	return nil
}

// failed says where it failed. A name that is taken is the caller's error.
func (d *dirTaker) failed(it *item, err error) error {
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%w: %s exists already; nothing is written over", ErrUsage, filepath.Join(d.output, it.path))
	}
	return fmt.Errorf("%s: %w", filepath.Join(d.output, it.path), err)
}

func (d *dirTaker) enter(_ context.Context, dir *item) error {
	if err := d.arrive(dir); err != nil {
		return err
	}
	if err := unix.Mkdirat(d.here(), dir.name, 0o700); err != nil {
		return d.failed(dir, err)
	}
	fd, err := unix.Openat(d.here(), dir.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return d.failed(dir, err)
	}
	d.stack = append(d.stack, fd)
	return nil
}

// leave gives a directory its metadata, when nothing in it changes them any more.
func (d *dirTaker) leave(_ context.Context, dir *item) error {
	fd := d.here()
	d.stack = d.stack[:len(d.stack)-1]
	defer unix.Close(fd)
	d.dress(fd, dir)
	return nil
}

func (d *dirTaker) take(ctx context.Context, it *item) error {
	if err := d.arrive(it); err != nil {
		return err
	}
	if it.linked != "" {
		return d.link(it)
	}
	switch it.attr.Type() {
	case guestfs.TypeFile:
		return d.file(ctx, it)
	case guestfs.TypeSymlink:
		return d.symlink(it)
	case guestfs.TypeChar, guestfs.TypeBlock:
		if !d.devices || !d.root {
			it.leave("device nodes", "they are made for root only, and with --devices")
			return nil
		}
	}
	return d.node(it)
}

// link makes another name of a file. The way to the first leads through
// directories that were made here, none of which is followed if it is a link.
func (d *dirTaker) link(it *item) error {
	parts := strings.Split(it.linked, "/")
	fd := d.stack[0]
	for _, part := range parts[:len(parts)-1] {
		next, err := unix.Openat(fd, part, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if fd != d.stack[0] {
			unix.Close(fd)
		}
		if err != nil {
			return d.failed(it, err)
		}
		fd = next
	}
	err := unix.Linkat(fd, parts[len(parts)-1], d.here(), it.name, 0)
	if fd != d.stack[0] {
		unix.Close(fd)
	}
	if err != nil {
		return d.failed(it, err)
	}
	return nil
}

// file writes a regular file; one that could not be read is taken away again.
func (d *dirTaker) file(ctx context.Context, it *item) error {
	fd, err := unix.Openat(d.here(), it.name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return d.failed(it, err)
	}
	f := os.NewFile(uintptr(fd), it.name)
	defer f.Close()
	if err := d.content(ctx, f, it); err != nil {
		return errors.Join(err, unix.Unlinkat(d.here(), it.name, 0))
	}
	if len(it.streams) > 0 {
		it.leave("named streams", "a directory has no room for them; --tar and --zip have")
	}
	if len(it.sd) > 0 {
		it.leave("security descriptors", "a directory has no room for them; --tar and --zip have")
	}
	d.dress(fd, it)
	return nil
}

func (d *dirTaker) content(ctx context.Context, f *os.File, it *item) error {
	img, err := it.open(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errContent, err)
	}
	defer img.Close()
	if d.buf == nil {
		d.buf = make([]byte, copyChunk)
	}
	for e, err := range disk.Extents(ctx, img, disk.Whole(img)) {
		if err != nil {
			return fmt.Errorf("%w: %w", errContent, err)
		}
		if e.Hole {
			it.written(e.Length)
			continue
		}
		if err := copyRun(ctx, f, img, e, d.buf, it.written); err != nil {
			return err
		}
	}
	if err := f.Truncate(img.Size()); err != nil {
		return fmt.Errorf("%s: %w", it.path, err)
	}
	return nil
}

// copyRun copies one run of data to where it belongs.
func copyRun(ctx context.Context, w io.WriterAt, img disk.Image, e disk.Extent, buf []byte, written func(int64)) error {
	for off := e.Offset; off < e.End(); {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n := int(min(int64(len(buf)), e.End()-off))
		if m, err := img.ReadAt(buf[:n], off); m < n {
			return fmt.Errorf("%w: at %d: %w", errContent, off+int64(m), unexpected(err))
		}
		if _, err := w.WriteAt(buf[:n], off); err != nil {
			return err
		}
		off += int64(n)
		written(int64(n))
	}
	return nil
}

func (d *dirTaker) symlink(it *item) error {
	if it.target == "" || strings.Contains(it.target, "\x00") {
		return fmt.Errorf("%w: it is a link to nothing", errContent)
	}
	if err := unix.Symlinkat(it.target, d.here(), it.name); err != nil {
		return d.failed(it, err)
	}
	d.dressNode(it)
	return nil
}

// node makes what is neither file nor directory nor link.
func (d *dirTaker) node(it *item) error {
	dev := unix.Mkdev(it.attr.Major, it.attr.Minor)
	err := unix.Mknodat(d.here(), it.name, it.attr.Type()|0o600, int(dev))
	if errors.Is(err, unix.EPERM) {
		it.leave("special files", err.Error())
		return nil
	}
	if err != nil {
		return d.failed(it, err)
	}
	d.dressNode(it)
	return nil
}

// dress gives an open file or directory what belongs to it. The order matters: a
// change of owner takes capabilities and set-user-ID away.
func (d *dirTaker) dress(fd int, it *item) {
	a := it.attr
	if err := unix.Fchown(fd, int(a.UID), int(a.GID)); err != nil {
		it.leave("owner", why(err, d.root))
	}
	for _, x := range it.xattrs {
		if err := unix.Fsetxattr(fd, x.Name, x.Value, 0); err != nil {
			it.leave("attribute "+attributeClass(x.Name), why(err, d.root))
		}
	}
	mode := a.Mode & 0o7777
	if !d.root {
		mode &= 0o777 // set-user-ID to somebody else than the file had
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		it.leave("permissions", err.Error())
	}
	times := [2]unix.Timespec{timespec(a.Atime), timespec(a.Mtime)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), times[:], 0); err != nil {
		it.leave("times", err.Error())
	}
}

// dressNode does the same by name, for what is not opened. The name was made a
// moment ago in a directory that nobody else uses.
func (d *dirTaker) dressNode(it *item) {
	a := it.attr
	if err := unix.Fchownat(d.here(), it.name, int(a.UID), int(a.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		it.leave("owner", why(err, d.root))
	}
	for _, x := range it.xattrs {
		if err := unix.Lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", d.here(), it.name), x.Name, x.Value, 0); err != nil {
			it.leave("attribute "+attributeClass(x.Name), why(err, d.root))
		}
	}
	if a.Type() != guestfs.TypeSymlink {
		if err := unix.Fchmodat(d.here(), it.name, a.Mode&0o7777, 0); err != nil {
			it.leave("permissions", err.Error())
		}
	}
	times := [2]unix.Timespec{timespec(a.Atime), timespec(a.Mtime)}
	if err := unix.UtimesNanoAt(d.here(), it.name, times[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		it.leave("times", err.Error())
	}
}

// timespec leaves a time alone that the file system does not have.
func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

func attributeClass(name string) string {
	class, _, _ := strings.Cut(name, ".")
	return class
}

func why(err error, root bool) string {
	if !root && errors.Is(err, unix.EPERM) {
		return "only root may set it"
	}
	return err.Error()
}
