package datastore

import "sync"

// groupSync lets callers who need the same thing synced share one sync.
//
// Whoever calls do has made his change before. He joins the batch that has not
// started; the first of a batch to get the turn runs one sync for all of it.
// A batch is closed to newcomers before its sync starts, so each caller's
// change precedes the sync whose outcome he gets. While one sync runs the next
// batch fills up: with n callers at once, each waits for two syncs at most.
type groupSync struct {
	turn sync.Mutex // held while a sync runs; taken before mu

	mu      sync.Mutex
	waiting *syncBatch // joinable; nil when there is none
}

type syncBatch struct {
	ran bool  // guarded by turn
	err error // guarded by turn
}

func (g *groupSync) do(run func() error) error {
	g.mu.Lock()
	b := g.waiting
	if b == nil {
		b = &syncBatch{}
		g.waiting = b
	}
	g.mu.Unlock()

	g.turn.Lock()
	defer g.turn.Unlock()
	if !b.ran {
		g.mu.Lock()
		g.waiting = nil
		g.mu.Unlock()
		b.ran, b.err = true, run()
	}
	return b.err
}
