package store

import (
	"context"
	"sync"
)

// prefetchGate counts requests in.
type prefetchGate struct {
	limit   int
	waiting func() bool // somebody waits for a real read; may be nil

	mu     sync.Mutex
	cond   sync.Cond
	inside int
}

func newPrefetchGate(limit int, waiting func() bool) *prefetchGate {
	g := &prefetchGate{limit: limit, waiting: waiting}
	g.cond.L = &g.mu
	return g
}

// enter waits until one more request may be made. It need not be told when
// nobody waits any more: whenever it blocks, a request is under way whose end
// wakes it.
func (g *prefetchGate) enter(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.cond.Broadcast()
	})
	defer stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.inside >= g.allowed() && ctx.Err() == nil {
		g.cond.Wait()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	g.inside++
	return nil
}

func (g *prefetchGate) allowed() int {
	if g.waiting != nil && g.waiting() {
		return max(g.limit/4, 1)
	}
	return g.limit
}

func (g *prefetchGate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	g.cond.Signal()
}
