package datastore

import "sync"

// groupSync lets callers who need the same thing synced share one sync.
//
// Whoever calls do has made his change before. He joins the batch that has not
// started, or begins one and leads it: the leader waits for the sync under way,
// closes the batch to newcomers, and runs one sync for all of it. So each
// caller's change precedes the start of the sync whose outcome he gets.
//
// While a journal is committed, changes of the same metadata wait for it. So
// when a sync ends, most of those who want the next one are still on their way,
// and a leader who started at once would sync for himself alone. Therefore who
// is about to change something says so (enter), and a leader first lets those
// who have entered before him join. They must not wait for a sync, nor for
// anybody who does, until they have left or joined.
type groupSync struct {
	mu      sync.Mutex
	coming  *cohort    // who has entered since the last leader looked; may be nil
	waiting *syncBatch // joinable; nil when there is none
	latest  *syncBatch // the one started last; nil when there was none
}

type syncBatch struct {
	done chan struct{}
	err  error // written before done is closed
}

// cohort are callers on their way to do. Guarded by groupSync.mu.
type cohort struct {
	n       int
	awaited bool          // a leader waits for them
	gone    chan struct{} // closed when awaited and n is 0
}

// enter announces a change. Its result is given to leave or do, once.
func (g *groupSync) enter() *cohort {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.coming == nil {
		g.coming = &cohort{gone: make(chan struct{})}
	}
	g.coming.n++
	return g.coming
}

// leave takes the announcement back: there is nothing to sync, or not yet.
func (g *groupSync) leave(c *cohort) {
	g.mu.Lock()
	c.leave()
	g.mu.Unlock()
}

func (c *cohort) leave() {
	if c == nil {
		return
	}
	c.n--
	if c.n == 0 && c.awaited {
		close(c.gone)
	}
}

// do runs run, or waits for another caller's run that began after this call.
// c is what enter returned, or nil.
func (g *groupSync) do(c *cohort, run func() error) error {
	g.mu.Lock()
	c.leave()
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
	g.gather()
	g.mu.Lock()
	g.waiting, g.latest = nil, b
	g.mu.Unlock()
	b.err = run()
	close(b.done)
	return b.err
}

// gather waits for those who have entered until now.
func (g *groupSync) gather() {
	g.mu.Lock()
	c := g.coming
	g.coming = nil
	wait := c != nil && c.n > 0
	if wait {
		c.awaited = true
	}
	g.mu.Unlock()
	if wait {
		<-c.gone
	}
}
