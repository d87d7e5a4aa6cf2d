package kernelfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
)

// dirent is one entry of struct linux_dirent64.
type dirent struct {
	name string
	next uint64 // d_off
}

// dirents takes what getdents64 returned apart, without "." and "..".
func dirents(b []byte) iter.Seq[dirent] {
	const header = 19 // inode (8), offset (8), length (2), type (1)
	return func(yield func(dirent) bool) {
		for len(b) > header {
			n := int(binary.NativeEndian.Uint16(b[16:]))
			if n <= header || n > len(b) {
				return
			}
			name, _, _ := bytes.Cut(b[header:n], []byte{0})
			d := dirent{string(name), binary.NativeEndian.Uint64(b[8:])}
			b = b[n:]
			if d.name != "." && d.name != ".." && !yield(d) {
				return
			}
		}
	}
}

// file is an open file of the mounted file system. Its size is what it was when
// it was opened: nobody writes to it.
type file struct {
	ctx  context.Context
	f    *os.File
	size int64
}

// openFile opens the file that fd (O_PATH) names.
func openFile(ctx context.Context, fd int, size int64) (disk.Image, error) {
	opened, err := os.OpenFile(procPath(fd), os.O_RDONLY, 0)
	if err != nil {
		return nil, failure(err)
	}
	return &file{ctx, opened, size}, nil
}

func (f *file) Size() int64  { return f.size }
func (f *file) Close() error { return f.f.Close() }

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	if f.ctx.Err() != nil {
		return 0, context.Cause(f.ctx)
	}
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, disk.ErrOutOfRange)
	}
	n, err := f.f.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		err = failure(err)
	}
	return n, err
}

// PieceAt implements [disk.Piecewise]: data and holes, so that whoever asks for
// the content from far away need not fetch holes.
func (f *file) PieceAt(off int64) (disk.Piece, error) {
	for e, err := range f.Extents(f.ctx, disk.Extent{Offset: off, Length: f.size - off}) {
		if err != nil || e.Hole {
			return disk.Piece{Offset: off, Length: e.Length}, err
		}
		return disk.Piece{Offset: off, Length: e.Length, From: bytesOf{f}, At: off}, nil
	}
	return disk.Piece{}, io.EOF
}

// bytesOf is a file as nothing but its bytes.
type bytesOf struct{ f *file }

func (b bytesOf) Size() int64                             { return b.f.Size() }
func (b bytesOf) Close() error                            { return nil }
func (b bytesOf) ReadAt(p []byte, off int64) (int, error) { return b.f.ReadAt(p, off) }

// Extents implements [disk.Mapper] by SEEK_DATA and SEEK_HOLE.
func (f *file) Extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		end := min(within.End(), f.size)
		for off := max(0, within.Offset); off < end; {
			if ctx.Err() != nil {
				yield(disk.Extent{}, context.Cause(ctx))
				return
			}
			data, err := f.seek(off, unix.SEEK_DATA, end)
			if err != nil {
				yield(disk.Extent{}, err)
				return
			}
			if data > off && !yield(disk.Extent{Offset: off, Length: data - off, Hole: true}, nil) {
				return
			}
			if data >= end {
				return
			}
			hole, err := f.seek(data, unix.SEEK_HOLE, end)
			if err == nil && hole <= data {
				hole = end
			}
			if err != nil || !yield(disk.Extent{Offset: data, Length: hole - data}, nil) {
				if err != nil {
					yield(disk.Extent{}, err)
				}
				return
			}
			off = hole
		}
	}
}

func (f *file) seek(off int64, whence int, end int64) (int64, error) {
	at, err := unix.Seek(int(f.f.Fd()), off, whence)
	switch {
	case errors.Is(err, unix.ENXIO):
		return end, nil
	case err != nil:
		return 0, failure(err)
	}
	return min(at, end), nil
}
