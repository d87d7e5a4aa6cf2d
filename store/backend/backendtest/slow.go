package backendtest

import (
	"context"
	"io/fs"
	"iter"
	"sync"
	"time"

	"lifeboat/store/backend"
)

// Slow is a backend that is far away: every request takes a while before it is
// answered, and how many there were is counted. A read of an open object is a
// request, as it is on object storage; so are opening and listing. Writes are
// passed on as they are.
type Slow struct {
	backend.Backend
	delay time.Duration

	mu    sync.Mutex
	stats SlowStats
	hold  chan struct{} // not nil: requests wait until it is closed
}

// SlowStats is a count of requests.
type SlowStats struct {
	Opens, Reads, Lists int
	Bytes               int64          // read
	ByObject            map[string]int // reads
}

// NewSlow puts delay before every request to b.
func NewSlow(b backend.Backend, delay time.Duration) *Slow {
	return &Slow{Backend: b, delay: delay, stats: SlowStats{ByObject: map[string]int{}}}
}

// Stats is what was asked since the last call.
func (s *Slow) Stats() SlowStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stats
	s.stats = SlowStats{ByObject: map[string]int{}}
	return out
}

// Hold makes all requests to come wait until the function it returns is called.
func (s *Slow) Hold() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hold := make(chan struct{})
	s.hold = hold
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.hold = nil
		close(hold)
	})
}

// request counts one and waits for its answer.
func (s *Slow) request(ctx context.Context, count func(*SlowStats)) error {
	s.mu.Lock()
	count(&s.stats)
	hold := s.hold
	s.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if s.delay == 0 {
		return ctx.Err()
	}
	t := time.NewTimer(s.delay)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Open implements backend.Backend.
func (s *Slow) Open(ctx context.Context, name string) (backend.Object, error) {
	if err := s.request(ctx, func(c *SlowStats) { c.Opens++ }); err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	obj, err := s.Backend.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return &slowObject{Object: obj, s: s, ctx: ctx, name: name}, nil
}

// List implements backend.Backend.
func (s *Slow) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		if err := s.request(ctx, func(c *SlowStats) { c.Lists++ }); err != nil {
			yield(backend.Info{}, err)
			return
		}
		s.Backend.List(ctx, prefix)(yield)
	}
}

type slowObject struct {
	backend.Object
	s    *Slow
	ctx  context.Context
	name string
}

// ReadAt implements io.ReaderAt.
func (o *slowObject) ReadAt(p []byte, off int64) (int, error) {
	err := o.s.request(o.ctx, func(c *SlowStats) {
		c.Reads++
		c.Bytes += int64(len(p))
		c.ByObject[o.name]++
	})
	if err != nil {
		return 0, &fs.PathError{Op: "read", Path: o.name, Err: err}
	}
	return o.Object.ReadAt(p, off)
}
