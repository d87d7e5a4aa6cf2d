package vddk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"sort"
	"strings"
	"time"

	"lifeboat/disk"
)

// folderPort reads the flat files of a disk in ranges, over HTTP.
//
// A request that breaks off is taken up again where it stopped, and one that
// fails is repeated after a while: connections to hosts do break, and a backup
// that ran for hours must not end with one of them. Every byte comes with a
// length that was asked for, so a reply that is cut is never taken for whole.
type folderPort struct {
	files   FileReader
	parts   []folderPart // ascending, without gaps
	length  int64
	timeout time.Duration
}

// folderPart is a run of the disk and the file that holds it.
type folderPart struct {
	start, length int64
	path          string // "" = zeros
	at            int64  // where in the file it begins
}

func openFolder(ctx context.Context, req Request, opts Options) (port, error) {
	return folderOf(ctx, req, opts)
}

// folderOf finds the files of the disk through its descriptor.
func folderOf(ctx context.Context, req Request, opts Options) (*folderPort, error) {
	if req.Files == nil || req.Path == "" {
		return nil, unavailable("there is no way to the datastore's files")
	}
	p := &folderPort{files: req.Files, timeout: opts.Timeout}
	if strings.HasSuffix(req.Path, "-flat.vmdk") {
		p.add(folderPart{length: req.Size, path: req.Path})
		return p, p.check(ctx)
	}
	text, err := p.descriptor(ctx, req.Path)
	if err != nil {
		return nil, err
	}
	extents, err := flatExtents(req.Path, text)
	if err != nil {
		return nil, err
	}
	folder := folderName(req.Path)
	for _, e := range extents {
		part := folderPart{length: e.Sectors * disk.SectorSize, at: e.Offset * disk.SectorSize}
		if e.Type != disk.ExtentZero {
			part.path = folder + e.File
		}
		p.add(part)
	}
	return p, p.check(ctx)
}

// folderName is the part of a datastore path before the file's own name: "[ds] "
// or "[ds] dir/".
func folderName(path string) string {
	if slash := strings.LastIndexByte(path, '/'); slash >= 0 {
		return path[:slash+1]
	}
	return path[:strings.LastIndexByte(path, ' ')+1]
}

// descriptor fetches the text of the disk's descriptor.
func (p *folderPort) descriptor(ctx context.Context, path string) ([]byte, error) {
	size, err := p.files.Size(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("find the descriptor %s: %w", path, err)
	}
	if size <= 0 || size > maxDescriptor {
		return nil, fmt.Errorf("%s has %d bytes, which is no descriptor: %w", path, size, disk.ErrUnsupported)
	}
	text := make([]byte, size)
	if err := p.fetch(ctx, path, 0, text); err != nil {
		return nil, fmt.Errorf("read the descriptor %s: %w", path, err)
	}
	return text, nil
}

func (p *folderPort) add(part folderPart) {
	part.start = p.length
	p.parts = append(p.parts, part)
	p.length += part.length
}

// check finds out that the files are there and long enough.
func (p *folderPort) check(ctx context.Context) error {
	for _, part := range p.parts {
		if part.path == "" {
			continue
		}
		size, err := p.files.Size(ctx, part.path)
		if err != nil {
			return fmt.Errorf("find %s: %w", part.path, err)
		}
		if size-part.at < part.length {
			return fmt.Errorf("%s has %d bytes, and %d at %d are expected in it: %w", part.path, size, part.length, part.at, disk.ErrFormat)
		}
	}
	return nil
}

func (p *folderPort) transport() string { return Folder }
func (p *folderPort) size() int64       { return p.length }
func (p *folderPort) close() error      { return nil }

func (p *folderPort) smallReadsAreDear() {}

// find is the part that holds off.
func (p *folderPort) find(off int64) folderPart {
	return p.parts[sort.Search(len(p.parts), func(i int) bool { return p.parts[i].start > off })-1]
}

func (p *folderPort) read(ctx context.Context, b []byte, off int64) error {
	for len(b) > 0 {
		part := p.find(off)
		n := min(int64(len(b)), part.start+part.length-off)
		if part.path == "" {
			clear(b[:n])
		} else if err := p.fetch(ctx, part.path, part.at+off-part.start, b[:n]); err != nil {
			return err
		}
		b, off = b[n:], off+n
	}
	return nil
}

// extents: a flat file read over HTTP does not tell its holes.
func (p *folderPort) extents(_ context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		for off := within.Offset; off < within.End(); {
			part := p.find(off)
			n := min(within.End(), part.start+part.length) - off
			if !yield(disk.Extent{Offset: off, Length: n, Hole: part.path == ""}, nil) {
				return
			}
			off += n
		}
	}
}

// A request that fails is repeated after a pause that doubles from the first to
// the longest, for as long as the source's timeout, counted from when something
// came last: a vCenter that restarts is back after a minute or two.
const (
	folderPause   = 100 * time.Millisecond
	folderLongest = 5 * time.Second
)

// fetch fills b from off of the file called path.
func (p *folderPort) fetch(ctx context.Context, path string, off int64, b []byte) error {
	pause, since := folderPause, time.Now()
	for {
		n, err := p.attempt(ctx, path, off, b)
		b, off = b[n:], off+int64(n)
		if len(b) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if n > 0 {
			pause, since = folderPause, time.Now()
		}
		if permanent(err) || time.Since(since)+pause > p.timeout {
			return fmt.Errorf("%s at %d: %w", path, off, lost(err))
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, folderLongest)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// attempt is one request, in bounded time.
func (p *folderPort) attempt(ctx context.Context, path string, off int64, b []byte) (int, error) {
	hung := fmt.Errorf("%w: %d bytes of %s took more than %v", ErrHung, len(b), path, p.timeout)
	limited, cancel := context.WithTimeoutCause(ctx, p.timeout, hung)
	defer cancel()
	n, err := p.files.ReadRange(limited, path, off, b)
	if n < 0 || n > len(b) {
		return 0, fmt.Errorf("%d bytes came where %d were asked for", n, len(b))
	}
	if n < len(b) && err == nil {
		err = io.ErrUnexpectedEOF
	}
	switch {
	case limited.Err() != nil && ctx.Err() == nil:
		err = hung
	case n < len(b) && err == io.EOF: // and not one inside another: a connection that ended says so too
		err = fmt.Errorf("it ends at %d now: %w", off+int64(n), disk.ErrChanged)
	}
	return n, err
}

// permanent errors do not go away by asking again.
func permanent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) ||
		errors.Is(err, ErrCredentials) || errors.Is(err, disk.ErrOutOfRange) || errors.Is(err, disk.ErrChanged)
}

// lost marks an error as the end of a connection, if it is not something else.
func lost(err error) error {
	if err == nil || permanent(err) || errors.Is(err, ErrLost) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrLost, err)
}
