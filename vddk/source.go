package vddk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat/disk"
)

// port is what one transport has to be able to do. The source on top of it sees
// to edges, sizes of requests, how many there are at once, rates and closing.
type port interface {
	// transport is the name that users see.
	transport() string
	size() int64
	// read fills p from off: inside the disk, at most requestBytes. When ctx
	// ends it returns soon, and never touches p after it has returned.
	read(ctx context.Context, p []byte, off int64) error
	// extents is Mapper's Extents, of a range inside the disk that is not
	// empty; all one run of data where it is not known better.
	extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error]
	// close is called once, after the last read has returned.
	close() error
}

// writePort is a port for writing.
type writePort interface {
	port
	// write is read's counterpart.
	write(ctx context.Context, p []byte, off int64) error
	// sync is called with no write in flight that it has to cover.
	sync(ctx context.Context) error
}

// selfLimited is implemented by ports that ask the limiter themselves, because
// their reads are not what goes over the network.
type selfLimited interface{ limitsItself() }

// faraway is implemented by ports for which a small read costs as much as a
// large one.
type faraway interface{ smallReadsAreDear() }

// life is the context of an open disk and how to end it.
type life struct {
	context.Context
	cancel context.CancelCauseFunc
}

// newLimit ends a life that takes longer to begin than after.
func newLimit(after time.Duration, cancel context.CancelCauseFunc) *time.Timer {
	return time.AfterFunc(after, func() {
		cancel(fmt.Errorf("%w: it was not open after %v", ErrHung, after))
	})
}

// source makes a Source of a port.
//
// mu is held for reading by whoever uses the port and for writing by Close, so
// that a port is never closed under a request; blocks that are read ahead are
// waited for with it held. Close cancels the life first, which is what makes
// the requests let go. slots bounds requests in flight and
// is taken with mu held; nothing is taken with a slot held.
type source struct {
	port
	life  life
	opts  Options // the limiter is nil for ports that see to it themselves
	slots chan struct{}
	ahead *ahead // nil where small reads are cheap, or the disk may change

	mu     sync.RWMutex
	closed bool
}

func newSource(life life, p port, opts Options) *source {
	if _, ok := p.(selfLimited); ok {
		opts.Limiter = nil
	}
	return &source{port: p, life: life, opts: opts, slots: make(chan struct{}, opts.Buffers)}
}

// newReader is a source that nobody writes to.
func newReader(life life, p port, opts Options) *source {
	s := newSource(life, p, opts)
	if _, ok := p.(faraway); ok {
		s.ahead = newAhead(p.size(), func(b []byte, off int64) error { return s.one(b, off, p.read) },
			func() bool { return life.Err() != nil })
	}
	return s
}

// Transport implements Source.
func (s *source) Transport() string { return s.transport() }

// Size implements disk.Image.
func (s *source) Size() int64 { return s.size() }

// Close implements disk.Image. Requests in flight fail with os.ErrClosed.
func (s *source) Close() error {
	s.life.cancel(os.ErrClosed)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.ahead != nil {
		s.ahead.work.Wait()
	}
	return s.close()
}

// enter holds the port open; the caller releases s.mu.
func (s *source) enter() error {
	s.mu.RLock()
	if s.life.Err() != nil {
		s.mu.RUnlock()
		return context.Cause(s.life)
	}
	return nil
}

// ReadAt implements io.ReaderAt.
func (s *source) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, disk.ErrOutOfRange)
	}
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.mu.RUnlock()
	if off >= s.size() {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.size()-off))
	var err error
	if s.ahead != nil && n < aheadBytes {
		err = s.ahead.read(s.life, p[:n], off)
	} else {
		err = s.split(p[:n], off, s.read)
	}
	if err != nil {
		return 0, fmt.Errorf("read %d bytes at %d through %s: %w", n, off, s.transport(), err)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// split does one range as several requests at once, cut at multiples of their
// size so that two readers next to each other do not ask for slivers.
func (s *source) split(p []byte, off int64, do func(context.Context, []byte, int64) error) error {
	if first := requestBytes - off%requestBytes; int64(len(p)) <= first {
		return s.one(p, off, do)
	}
	// A failure keeps further requests from being made and lets those in flight
	// end: cutting them off would cost the connection.
	var group errgroup.Group
	group.SetLimit(s.opts.Buffers)
	var failed atomic.Bool
	for len(p) > 0 && !failed.Load() {
		n := min(int64(len(p)), requestBytes-off%requestBytes)
		piece, at := p[:n], off
		group.Go(func() error {
			err := s.one(piece, at, do)
			failed.CompareAndSwap(false, err != nil)
			return err
		})
		p, off = p[n:], off+n
	}
	return group.Wait()
}

func (s *source) one(p []byte, off int64, do func(context.Context, []byte, int64) error) error {
	if len(p) == 0 {
		return nil
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-s.life.Done():
		return context.Cause(s.life)
	}
	if s.opts.Limiter != nil {
		if err := s.opts.Limiter.Wait(s.life, int64(len(p))); err != nil {
			return err
		}
	}
	err := do(s.life, p, off)
	switch {
	case err != nil && s.life.Err() != nil:
		return context.Cause(s.life)
	case errors.Is(err, io.EOF): // of a connection; whoever reads must not take it for the disk's
		err = fmt.Errorf("%w: %v", ErrLost, err) //nolint:errorlint // it must not match io.EOF
		s.life.cancel(err)
	case errors.Is(err, ErrLost):
		s.life.cancel(err) // what is lost stays lost
	}
	return err
}

// Extents implements disk.Mapper.
func (s *source) Extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		if err := s.enter(); err != nil {
			yield(disk.Extent{}, err)
			return
		}
		defer s.mu.RUnlock()
		end := min(max(within.End(), 0), s.size())
		within.Offset = max(within.Offset, 0)
		if within.Length = end - within.Offset; within.Length <= 0 {
			return
		}
		if ctx.Err() != nil {
			yield(disk.Extent{}, context.Cause(ctx))
			return
		}
		for ext, err := range s.extents(ctx, within) {
			if err != nil {
				err = fmt.Errorf("allocated areas through %s: %w", s.transport(), err)
			}
			if !yield(ext, err) || err != nil {
				return
			}
		}
	}
}

// device makes a disk.Device of a writePort.
type device struct {
	*source
	port writePort
}

func newDevice(life life, p writePort, opts Options) *device {
	return &device{source: newSource(life, p, opts), port: p}
}

// WriteAt implements disk.Device.
func (d *device) WriteAt(p []byte, off int64) (int, error) {
	if err := d.enter(); err != nil {
		return 0, err
	}
	defer d.mu.RUnlock()
	if off < 0 || off > d.size() || int64(len(p)) > d.size()-off {
		return 0, fmt.Errorf("write of %d bytes at %d to a disk of %d: %w", len(p), off, d.size(), disk.ErrOutOfRange)
	}
	if err := d.split(p, off, d.port.write); err != nil {
		return 0, fmt.Errorf("write %d bytes at %d through %s: %w", len(p), off, d.transport(), err)
	}
	return len(p), nil
}

// Sync implements disk.Device.
func (d *device) Sync() error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.mu.RUnlock()
	if err := d.port.sync(d.life); err != nil {
		return fmt.Errorf("sync through %s: %w", d.transport(), err)
	}
	return nil
}
