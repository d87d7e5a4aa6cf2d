package blockcache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"syscall"

	"golang.org/x/sync/singleflight"

	"lifeboat/store/backend"
)

// maxSources is how many objects are kept open at the backend: some backends
// keep the end of each open object in memory.
const maxSources = 64

// sources are the objects open at the backend. The one used longest ago is
// closed first, when nobody reads from it any more.
type sources struct {
	ctx   context.Context // governs open objects, which outlive the call that opened them
	b     backend.Backend
	sized backend.SizedOpener // nil: the backend is none
	opens singleflight.Group
	count *counters

	mu    sync.Mutex
	clock uint64
	open  map[string]*source
}

type source struct {
	backend.Object
	used   uint64 // clock of the last use
	refs   int
	closed bool // to be closed by the last who reads from it
}

func newSources(ctx context.Context, b backend.Backend, count *counters) *sources {
	s := &sources{ctx: ctx, b: b, count: count, open: make(map[string]*source)}
	s.sized, _ = backend.As[backend.SizedOpener](b)
	return s
}

// size opens an object at the backend and returns its size.
func (s *sources) size(ctx context.Context, name string) (int64, error) {
	src, err := s.acquire(ctx, name, -1)
	if err != nil {
		return 0, err
	}
	defer s.release(src)
	return src.Size(), nil
}

// readAt reads from an object of a size that is known. Where it is not there
// any more, or not as large, the error matches fs.ErrNotExist.
func (s *sources) readAt(name string, size int64, p []byte, off int64) (int, error) {
	src, err := s.acquire(s.ctx, name, size)
	if err != nil {
		return 0, err
	}
	defer s.release(src)
	if src.Size() != size {
		s.forget(name)
		return 0, fmt.Errorf("%s is not the object that it was: %w", name, fs.ErrNotExist)
	}
	n, err := src.ReadAt(p, off)
	if gone(err) {
		s.forget(name)
		err = fmt.Errorf("%s: %w (%w)", name, fs.ErrNotExist, err)
	}
	return n, err
}

// gone reports whether an error means that an object was removed while it was
// open.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESTALE)
}

// acquire returns the open object; release gives it back. Of several at the same
// time, one asks the backend.
func (s *sources) acquire(ctx context.Context, name string, size int64) (*source, error) {
	for {
		if src := s.lookup(name); src != nil {
			return src, nil
		}
		opened := s.opens.DoChan(name, func() (any, error) { return nil, s.load(name, size) })
		select {
		case res := <-opened:
			if res.Err != nil {
				return nil, res.Err
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (s *sources) lookup(name string) *source {
	s.mu.Lock()
	defer s.mu.Unlock()
	src := s.open[name]
	if src != nil {
		s.clock++
		src.used = s.clock
		src.refs++
	}
	return src
}

func (s *sources) load(name string, size int64) error {
	var obj backend.Object
	var err error
	if size >= 0 && s.sized != nil {
		obj, err = s.sized.OpenSized(s.ctx, name, size)
	} else {
		s.count.opens.Add(1)
		obj, err = s.b.Open(s.ctx, name)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return errors.Join(errClosed, obj.Close())
	}
	s.clock++
	s.open[name] = &source{Object: obj, used: s.clock}
	if len(s.open) > maxSources {
		s.evict()
	}
	return nil
}

// evict closes what was used longest ago. The caller has mu.
func (s *sources) evict() {
	oldest, used := "", s.clock
	for name, src := range s.open {
		if src.used < used {
			oldest, used = name, src.used
		}
	}
	s.drop(oldest)
}

// drop takes an object out. The caller has mu.
func (s *sources) drop(name string) {
	src, ok := s.open[name]
	if !ok {
		return
	}
	delete(s.open, name)
	src.closed = true
	if src.refs == 0 {
		_ = src.Close() // it was read from only
	}
}

func (s *sources) release(src *source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	src.refs--
	if src.closed && src.refs == 0 {
		_ = src.Close()
	}
}

// known is the size of an object that is open.
func (s *sources) known(name string) (int64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	src, ok := s.open[name]
	if !ok {
		return 0, false
	}
	return src.Size(), true
}

func (s *sources) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(name)
}

func (s *sources) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.open {
		s.drop(name)
	}
}
