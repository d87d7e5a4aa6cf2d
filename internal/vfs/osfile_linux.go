package vfs

import (
	"errors"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// zeroChunk is how many zeros are written at a time where the file system can
// neither allocate nor punch, in bytes.
const zeroChunk = 1 << 20

// osFile is a file of the host. System calls that os.File does not offer go
// through its SyscallConn, which keeps the descriptor open while they run: a
// racing Close can never make one hit another file.
type osFile struct {
	f      *os.File
	conn   syscall.RawConn
	noWait atomic.Bool // false once the file system refused RWF_NOWAIT
	reads  sync.Pool   // of *noWaitRead
}

func newOSFile(f *os.File) (File, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	file := &osFile{f: f, conn: conn}
	file.noWait.Store(true)
	file.reads.New = newNoWaitRead
	return file, nil
}

func (f *osFile) Name() string                             { return f.f.Name() }
func (f *osFile) Close() error                             { return f.f.Close() }
func (f *osFile) ReadAt(p []byte, off int64) (int, error)  { return f.f.ReadAt(p, off) }
func (f *osFile) WriteAt(p []byte, off int64) (int, error) { return f.f.WriteAt(p, off) }
func (f *osFile) Truncate(size int64) error                { return f.f.Truncate(size) }

func (f *osFile) Size() (int64, error) {
	info, err := f.f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f *osFile) Sync() error {
	return f.control("fdatasync", unix.Fdatasync)
}

func (f *osFile) Allocate(off, n int64) error {
	if err := checkRange("fallocate", f.Name(), off, n); err != nil || n == 0 {
		return err
	}
	err := f.control("fallocate", func(fd int) error { return unix.Fallocate(fd, 0, off, n) })
	if unsupported(err) {
		return f.allocateByWriting(off, n)
	}
	return err
}

func (f *osFile) PunchHole(off, n int64) error {
	if err := checkRange("punch hole", f.Name(), off, n); err != nil || n == 0 {
		return err
	}
	err := f.control("fallocate", func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
	if !unsupported(err) {
		return err
	}
	size, err := f.Size()
	if err != nil {
		return err
	}
	return f.writeZeros(off, min(off+n, size))
}

// allocateByWriting fills the holes of [off, off+n) with zeros and leaves the
// data there alone. Unlike fallocate(2) it must not run beside writes to the
// same range: it may overwrite one that fills a hole meanwhile.
func (f *osFile) allocateByWriting(off, n int64) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	end := off + n
	for pos, inside := off, min(end, size); pos < inside; {
		hole, err := f.seek(pos, unix.SEEK_HOLE)
		if err != nil || hole >= inside {
			break // all data, or the file system does not tell
		}
		data, err := f.seek(hole, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			data = inside // a hole up to the end
		} else if err != nil {
			return err
		}
		pos = min(data, inside)
		if err := f.writeZeros(hole, pos); err != nil {
			return err
		}
	}
	return f.writeZeros(max(off, size), end)
}

func (f *osFile) seek(off int64, whence int) (int64, error) {
	var pos int64
	err := f.control("lseek", func(fd int) (err error) {
		pos, err = unix.Seek(fd, off, whence)
		return err
	})
	return pos, err
}

func (f *osFile) writeZeros(from, to int64) error {
	if from >= to {
		return nil
	}
	zeros := make([]byte, min(to-from, zeroChunk))
	for from < to {
		n, err := f.f.WriteAt(zeros[:min(to-from, zeroChunk)], from)
		if err != nil {
			return err
		}
		from += int64(n)
	}
	return nil
}

// control runs call on the descriptor, again when a signal interrupted it.
func (f *osFile) control(op string, call func(fd int) error) error {
	var err error
	cerr := f.conn.Control(func(fd uintptr) {
		err = ignoringEINTR(func() error { return call(int(fd)) })
	})
	if cerr != nil {
		return &fs.PathError{Op: op, Path: f.Name(), Err: cerr}
	}
	if err != nil {
		return &fs.PathError{Op: op, Path: f.Name(), Err: err}
	}
	return nil
}

// ReadAtNoWait implements [NoWaitReader].
func (f *osFile) ReadAtNoWait(p []byte, off int64) bool {
	if len(p) == 0 {
		return true
	}
	if off < 0 || !f.noWait.Load() {
		return false
	}
	r := f.reads.Get().(*noWaitRead)
	r.iov.Base, r.off = &p[0], off
	r.iov.SetLen(len(p))
	err := f.conn.Control(r.call)
	n, errno := r.n, r.errno
	r.iov.Base = nil
	f.reads.Put(r)
	if errno != 0 && unsupported(errno) {
		f.noWait.Store(false)
	}
	return err == nil && errno == 0 && n == len(p)
}

// noWaitRead is one preadv2(2), pooled with its closure so that a read that
// hits the page cache allocates nothing.
type noWaitRead struct {
	iov   unix.Iovec
	off   int64
	n     int
	errno syscall.Errno
	call  func(fd uintptr)
}

func newNoWaitRead() any {
	r := new(noWaitRead)
	r.call = r.read
	return r
}

func (r *noWaitRead) read(fd uintptr) {
	// On 64-bit kernels the whole offset travels in pos_l; pos_h is ignored.
	n, _, errno := syscall.Syscall6(unix.SYS_PREADV2, fd, uintptr(unsafe.Pointer(&r.iov)), 1,
		uintptr(r.off), uintptr(r.off>>32), unix.RWF_NOWAIT)
	r.n, r.errno = int(n), errno
}
