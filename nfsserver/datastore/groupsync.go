package datastore

import "sync"

// groupSync lets callers who need the same thing synced share one sync.
//
// Whoever calls do has made his change before. He joins the batch that has not
// started, or begins one and leads it: the leader waits for the sync under way,
// closes the batch to newcomers, and runs one sync for all of it. So each
// caller's change precedes the start of the sync whose outcome he gets, and with
// any number of callers each waits for two syncs at most.
type groupSync struct {
	mu      sync.Mutex
	waiting *syncBatch // joinable; nil when there is none
	latest  *syncBatch // the one started last; nil when there was none
}

type syncBatch struct {
	done chan struct{}
	err  error // written before done is closed
}

func (g *groupSync) do(run func() error) error {
	g.mu.Lock()
	if b := g.waiting; b != nil {
		g.mu.Unlock()
		<-b.done
		return b.err
	}
	b, before := &syncBatch{done: make(chan struct{})}, g.latest
	g.waiting = b
	g.mu.Unlock()

	if before != nil {
		<-before.done
	}
	g.mu.Lock()
	g.waiting, g.latest = nil, b
	g.mu.Unlock()
	b.err = run()
	close(b.done)
	return b.err
}
