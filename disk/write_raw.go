package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// holeUnit is the granularity in which raw files get holes: what most file
// systems allocate, bytes.
const holeUnit = 4096

// WriteRaw writes the content of img to f as a raw image. A regular file is
// emptied first and becomes sparse: holes and blocks of zeros are left out. A
// block device, which must be large enough, gets zeros where img has none. Into
// anything else (a pipe) it writes as [WriteRawTo] does. progress may be nil;
// it is called with bytes of the disk done, and all. The file is not synced.
func WriteRaw(ctx context.Context, f *os.File, img Image, progress func(done, total int64)) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("write raw image: %w", err)
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		err = writeSparse(ctx, f, img, progress)
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		err = writeDevice(ctx, f, img, progress)
	default:
		return WriteRawTo(ctx, f, img, progress)
	}
	if err != nil {
		return fmt.Errorf("write raw image %s: %w", f.Name(), err)
	}
	return nil
}

// writeSparse writes from all workers at once: a file takes blocks in any order.
func writeSparse(ctx context.Context, f *os.File, img Image, progress func(done, total int64)) error {
	if err := errors.Join(f.Truncate(0), f.Truncate(img.Size())); err != nil {
		return err
	}
	c := copier{img: img, unit: holeUnit, progress: progress}
	c.work = func(b *batch) error {
		return b.runs(func(off int64, p []byte) error {
			p = p[:min(int64(len(p)), img.Size()-off)]
			_, err := f.WriteAt(p, off)
			startWriteback(f, off, int64(len(p)))
			return err
		})
	}
	return c.run(ctx)
}

// startWriteback asks the system to bring what was written to the disk now,
// while the rest is being made, instead of when the file is synced
// (sync_file_range(2)). It is a wish: nothing is lost where it is not granted.
func startWriteback(f *os.File, off, n int64) {
	conn, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) {
		_ = unix.SyncFileRange(int(fd), off, n, unix.SYNC_FILE_RANGE_WRITE)
	})
}

// runs calls write for each run of neighbouring units.
func (b *batch) runs(write func(off int64, p []byte) error) error {
	for i := 0; i < len(b.units); {
		from := b.units[i].off
		to := from
		for i < len(b.units) && b.units[i].off == to {
			to += int64(len(b.units[i].data))
			i++
		}
		if err := write(from, b.buf[from-b.off:to-b.off]); err != nil {
			return err
		}
	}
	return nil
}

// WriteRawTo writes the content of img to w, zeros and all, in order.
func WriteRawTo(ctx context.Context, w io.Writer, img Image, progress func(done, total int64)) error {
	err := writeDense(ctx, img, progress, func(_ int64, p []byte) error {
		_, err := w.Write(p)
		return err
	}, func(_, n int64) error { return writeZeros(w, n) })
	if err != nil {
		return fmt.Errorf("write raw image: %w", err)
	}
	return nil
}

// writeDense calls write and zero so that together they cover the disk, in
// order.
func writeDense(ctx context.Context, img Image, progress func(done, total int64),
	write func(off int64, p []byte) error, zero func(off, n int64) error,
) error {
	next := int64(0)
	fill := func(to int64) error {
		from := next
		next = max(next, to)
		for from < to {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			n := min(to-from, 64<<20)
			if err := zero(from, n); err != nil {
				return err
			}
			from += n
		}
		return nil
	}
	c := copier{img: img, unit: holeUnit, progress: progress}
	c.emit = func(b *batch) error {
		return b.runs(func(off int64, p []byte) error {
			if err := fill(off); err != nil {
				return err
			}
			p = p[:min(int64(len(p)), img.Size()-off)]
			next = off + int64(len(p))
			return write(off, p)
		})
	}
	if err := c.run(ctx); err != nil {
		return err
	}
	return fill(img.Size())
}

func writeZeros(w io.Writer, n int64) error {
	_, err := io.CopyN(w, zeroReader{}, n)
	return err
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func writeDevice(ctx context.Context, f *os.File, img Image, progress func(done, total int64)) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if size < img.Size() {
		return fmt.Errorf("the device has %d bytes, the disk %d: %w", size, img.Size(), unix.ENOSPC)
	}
	return writeDense(ctx, img, progress, func(off int64, p []byte) error {
		_, err := f.WriteAt(p, off)
		return err
	}, func(off, n int64) error { return zeroDevice(f, off, n) })
}

// zeroDevice lets the device make the zeros where it can (fallocate(2) on a
// block device), and writes them where it cannot.
func zeroDevice(f *os.File, off, n int64) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	const mode = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
	var sys error
	if err := conn.Control(func(fd uintptr) { sys = unix.Fallocate(int(fd), mode, off, n) }); err != nil {
		return err
	}
	if sys == nil {
		return nil
	}
	return writeZeros(io.NewOffsetWriter(f, off), n)
}
