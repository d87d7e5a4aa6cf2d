package worker

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// listing is a directory with as much of each entry as is wanted.
func listing(ctx context.Context, fsys guestfs.FS, dir guestfs.Inode, after uint64, how byte) iter.Seq2[guestfs.Entry, error] {
	if how != listNames {
		return guestfs.ReadDirPlus(ctx, fsys, dir, after, how == listXattrs)
	}
	return func(yield func(guestfs.Entry, error) bool) {
		for d, err := range fsys.ReadDir(ctx, dir, after) {
			if !yield(guestfs.Entry{Dirent: d}, err) {
				return
			}
		}
	}
}

// files are the files that were opened lately.
type files struct {
	mu   sync.Mutex
	list []openFile // latest last
}

// fileKey is what a file's content is known by.
type fileKey struct {
	fs     guestfs.FS
	inode  guestfs.Inode
	named  bool
	stream string
}

type openFile struct {
	key fileKey
	img disk.Image
}

// maxOpen bounds the files that are kept open.
const maxOpen = 64

// open finds the file that a request is about, and opens it if it is not.
func (f *files) open(ctx context.Context, fsys guestfs.FS, inode guestfs.Inode, d *decoder) (disk.Image, error) {
	key := fileKey{fsys, inode, d.bool(), d.str()}
	if img := f.find(key); img != nil {
		return img, nil
	}
	img, err := openKey(ctx, key)
	if err != nil {
		return nil, err
	}
	f.keep(openFile{key, img})
	return img, nil
}

func openKey(ctx context.Context, key fileKey) (disk.Image, error) {
	if !key.named {
		return key.fs.Open(ctx, key.inode)
	}
	r, ok := key.fs.(guestfs.StreamReader)
	if !ok {
		return nil, &guestfs.UnsupportedError{FS: "file system", What: "a named stream"}
	}
	return r.OpenStream(ctx, key.inode, key.stream)
}

func (f *files) find(key fileKey) disk.Image {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := len(f.list) - 1; i >= 0; i-- {
		if o := f.list[i]; o.key == key {
			copy(f.list[i:], f.list[i+1:])
			f.list[len(f.list)-1] = o
			return o.img
		}
	}
	return nil
}

// keep does not close what it pushes out: somebody may be reading it. It is
// memory, and goes with the garbage.
func (f *files) keep(o openFile) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.list) >= maxOpen {
		f.list = append(f.list[:0], f.list[1:]...)
	}
	f.list = append(f.list, o)
}

// Limits of what comes with the answer to opOpen and opMap.
const (
	firstRuns  = 64
	moreRuns   = 4096
	inlineSize = 4096
)

// content answers the questions about what is in a file.
func content(op byte, img disk.Image, d *decoder, e *encoder) error {
	switch op {
	case opOpen:
		e.i64(img.Size())
		// A file whose place cannot be told can be opened: reading it says why.
		list, err := trace(img, 0, firstRuns)
		e.runs(list)
		if err != nil || img.Size() > inlineSize || len(list) != 1 || list[0].kind != pieceDecoded {
			e.bytes(nil)
			return nil //nolint:nilerr // see above
		}
		return readInto(e, img, 0, img.Size())
	case opMap:
		off := d.i64()
		if off < 0 || off >= img.Size() {
			return errProtocol
		}
		list, err := trace(img, off, moreRuns)
		e.runs(list)
		return err
	}
	off, n := d.i64(), int64(d.u32())
	if off < 0 || n > maxRead || off > img.Size()-n {
		return errProtocol
	}
	return readInto(e, img, off, n)
}

func readInto(e *encoder, img disk.Image, off, n int64) error {
	e.u32(uint32(n))
	at := len(e.b)
	e.b = append(e.b, make([]byte, n)...)
	m, err := img.ReadAt(e.b[at:], off)
	if int64(m) == n {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}
