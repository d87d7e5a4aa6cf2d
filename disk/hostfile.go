package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// readStep bounds what is asked of the kernel between two looks at the
// context, bytes.
const readStep = 1 << 20

// fileID tells files apart however they are named.
type fileID struct{ dev, ino uint64 }

// hostFile is a file or block device that holds (part of) an image.
//
// Each read is followed by a look at the file's state, so that no bytes are
// returned from a file that is known to have been cut or removed.
type hostFile struct {
	ctx    context.Context
	file   *os.File
	conn   syscall.RawConn
	name   string
	size   int64
	id     fileID
	blocks int64 // bytes allocated on the host when it was opened
	linked bool  // had a name when it was opened
	device bool
	probes sync.Pool // of *probe
}

// probe asks for a file's state without allocating: reads do it each time.
type probe struct {
	st  unix.Stat_t
	err error
	run func(fd uintptr)
}

func newHostFile(ctx context.Context, file *os.File, name string, deviceAllowed bool) (*hostFile, error) {
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	h := &hostFile{ctx: ctx, file: file, conn: conn, name: name}
	st, err := h.stat()
	if err != nil {
		return nil, err
	}
	h.id = fileID{st.Dev, st.Ino}
	h.size, h.blocks, h.linked = st.Size, st.Blocks*512, st.Nlink > 0
	switch kind := st.Mode & unix.S_IFMT; {
	case kind == unix.S_IFREG:
	case kind == unix.S_IFBLK && deviceAllowed:
		h.device = true
		h.id = fileID{dev: st.Rdev}
		if h.size, err = file.Seek(0, io.SeekEnd); err != nil {
			return nil, fmt.Errorf("size of block device %s: %w", name, err)
		}
	default:
		return nil, fmt.Errorf("%s is neither a regular file nor a block device: %w", name, ErrUnsupported)
	}
	return h, nil
}

func (h *hostFile) stat() (unix.Stat_t, error) {
	p, ok := h.probes.Get().(*probe)
	if !ok {
		p = &probe{}
		p.run = func(fd uintptr) { p.err = unix.Fstat(int(fd), &p.st) }
	}
	defer h.probes.Put(p)
	if err := h.conn.Control(p.run); err != nil {
		return unix.Stat_t{}, h.explain(err)
	}
	if p.err != nil {
		return unix.Stat_t{}, h.explain(p.err)
	}
	return p.st, nil
}

// readFull fills p from off; the range has to lie inside the file as it was
// when it was opened.
func (h *hostFile) readFull(p []byte, off int64) error {
	if off < 0 || off > h.size-int64(len(p)) {
		return fmt.Errorf("%s: %d bytes at %d are beyond its end at %d: %w", h.name, len(p), off, h.size, ErrFormat)
	}
	for len(p) > 0 {
		if h.ctx.Err() != nil {
			return context.Cause(h.ctx)
		}
		n := min(len(p), readStep)
		if _, err := h.file.ReadAt(p[:n], off); err != nil {
			return h.explain(err)
		}
		p, off = p[n:], off+int64(n)
	}
	if h.ctx.Err() != nil {
		return context.Cause(h.ctx)
	}
	return h.check()
}

// readUpTo reads as much of p as the file has from off on, and returns that
// part of p.
func (h *hostFile) readUpTo(p []byte, off int64) ([]byte, error) {
	if off < 0 || off >= h.size {
		return nil, fmt.Errorf("%s: offset %d is beyond its end at %d: %w", h.name, off, h.size, ErrFormat)
	}
	p = p[:min(int64(len(p)), h.size-off)]
	return p, h.readFull(p, off)
}

// check fails with ErrChanged if the file is not what was opened any more.
func (h *hostFile) check() error {
	if h.device {
		return nil
	}
	st, err := h.stat()
	switch {
	case err != nil:
		return err
	case st.Size < h.size:
		return fmt.Errorf("%s shrank from %d to %d bytes: %w", h.name, h.size, st.Size, ErrChanged)
	case st.Nlink == 0 && h.linked:
		return fmt.Errorf("%s was removed: %w", h.name, ErrChanged)
	}
	return nil
}

// explain turns what the kernel says about a read into what it means.
func (h *hostFile) explain(err error) error {
	switch {
	case errors.Is(err, os.ErrClosed):
		return fmt.Errorf("%s: %w", h.name, os.ErrClosed)
	case errors.Is(err, unix.ESTALE), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%s is gone: %w (%w)", h.name, ErrChanged, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s ends before %d bytes now: %w", h.name, h.size, ErrChanged)
	}
	return fmt.Errorf("read %s: %w", h.name, err)
}

// seek is lseek(2) with SEEK_DATA or SEEK_HOLE. It moves the file's position,
// which nothing here uses.
func (h *hostFile) seek(off int64, whence int) (int64, error) {
	var at int64
	var err error
	if e := h.conn.Control(func(fd uintptr) { at, err = unix.Seek(int(fd), off, whence) }); e != nil {
		err = e
	}
	return at, err
}
