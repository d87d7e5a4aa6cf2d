package crashfs

import (
	"fmt"
	"io"
	"io/fs"
	"syscall"
	"time"

	"lifeboat/internal/vfs"
)

// file is an open file.
type file struct {
	fs       *FS
	node     *node
	name     string // as given
	path     string // at opening; rules go by it
	writable bool
	closed   bool
}

var (
	_ vfs.File         = (*file)(nil)
	_ vfs.NoWaitReader = (*file)(nil)
)

func (f *file) Name() string { return f.name }

// do runs a call on the open file.
func (f *file) do(op Op, what string, run func() error) error {
	err := f.fs.do(call{op, f.path, f.node}, func() error {
		if f.closed {
			return fs.ErrClosed
		}
		if op&OpChanges != 0 && op != OpSync && !f.writable {
			return syscall.EBADF
		}
		return run()
	})
	return pathError(what, f.name, err)
}

// Close works on a stopped machine too.
func (f *file) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return pathError("close", f.name, fs.ErrClosed)
	}
	f.closed = true
	f.node.open--
	f.fs.release(f.node)
	return nil
}

func (f *file) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, pathError("read", f.name, syscall.EINVAL)
	}
	err = f.do(OpRead, "read", func() error {
		n = int(min(int64(len(p)), max(f.node.size-off, 0)))
		f.node.read(p[:n], off)
		return nil
	})
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// ReadAtNoWait implements [vfs.NoWaitReader]. Every fourth page or so happens
// not to be in memory.
func (f *file) ReadAtNoWait(p []byte, off int64) bool {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed || f.fs.stopped || f.fs.mayFail(OpRead) || off < 0 || off+int64(len(p)) > f.node.size {
		return false
	}
	if draw(f.fs.seed, f.node.id, uint64(off/pageSize), uint64(f.fs.points))%4 == 0 {
		return false
	}
	f.node.read(p, off)
	return true
}

func (f *file) WriteAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, pathError("write", f.name, syscall.EINVAL)
	}
	err = f.do(OpWrite, "write", func() (err error) {
		n, err = f.fs.write(f.node, p, off)
		return err
	})
	if err != nil && f.fs.Stopped() {
		n = 0
	}
	return n, err
}

func (f *file) Sync() error {
	return f.do(OpSync, "fdatasync", func() error {
		f.fs.flush(f.node)
		return nil
	})
}

func (f *file) Truncate(size int64) error {
	if size < 0 {
		return pathError("truncate", f.name, syscall.EINVAL)
	}
	return f.do(OpTruncate, "truncate", func() error {
		f.fs.truncate(f.node, size)
		return nil
	})
}

func (f *file) Size() (size int64, err error) {
	err = f.do(OpStat, "stat", func() error {
		size = f.node.size
		return nil
	})
	return size, err
}

func (f *file) Allocate(off, n int64) error {
	if err := checkRange(off, n); err != nil || n == 0 {
		return pathError("fallocate", f.name, err)
	}
	return f.do(OpAllocate, "fallocate", func() error { return f.fs.allocate(f.node, off, n) })
}

func (f *file) PunchHole(off, n int64) error {
	if err := checkRange(off, n); err != nil || n == 0 {
		return pathError("punch hole", f.name, err)
	}
	return f.do(OpPunch, "punch hole", func() error {
		f.node.modified = time.Now()
		f.fs.zero(f.node, off, min(off+n, f.node.size))
		return nil
	})
}

func checkRange(off, n int64) error {
	if off < 0 || n < 0 || off+n < 0 {
		return fmt.Errorf("range %d+%d: %w", off, n, fs.ErrInvalid)
	}
	return nil
}
