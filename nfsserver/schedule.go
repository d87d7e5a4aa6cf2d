package nfsserver

import "sync"

// Requests that must wait for something are tasks. Each connection has a queue
// of them for each class, and a fixed number of workers serves the connections
// in turn, so that neither one client's thousand reads nor reads as such can
// keep others waiting:
//
//   - connections take turns: a worker takes one task of the connection at the
//     front of the ring, and the connection goes to the back;
//   - each class has its own share of the workers and of a connection's
//     InFlight: half for READs, a quarter for WRITEs, a quarter for the rest;
//   - a task starts only when its reply fits into the connection's memory.
//
// NULL, GETATTR and everything else that needs no waiting never come here.
//
// Lock order: scheduler.mu is innermost; nothing is called while it is held.

type class int

const (
	classMeta  class = iota // names, attributes, syncs
	classWrite              // WRITEs that must wait
	classRead               // READs that are not in memory
	classes
)

// task is one request on its way through the scheduler.
type task struct {
	conn    *conn
	call    call
	args    *buffer // holds the request's arguments
	class   class
	argCost int // bytes counted while the task waits and works
	outCost int // bytes reserved for its reply
}

// lane is a connection's share of the scheduler. All fields are the
// scheduler's, guarded by its mu.
type lane struct {
	queue   [classes]fifo[*task]
	working [classes]int
	listed  [classes]bool // the lane is in the scheduler's ring
	args    int           // bytes of requests waiting or at work
	out     int           // bytes of replies reserved or under way
	room    sync.Cond     // something finished: for the connection's reader
}

type scheduler struct {
	limits Limits
	run    func(*task)

	mu      sync.Mutex
	work    sync.Cond
	ring    [classes]fifo[*lane]
	working [classes]int
	workers int // running
	idle    int // of them waiting for work
	closed  bool
	done    sync.WaitGroup
}

func newScheduler(limits Limits, run func(*task)) *scheduler {
	s := &scheduler{limits: limits, run: run}
	s.work.L = &s.mu
	return s
}

func (s *scheduler) newLane() *lane {
	l := &lane{}
	l.room.L = &s.mu
	return l
}

// share is what class c may have of n.
func (c class) share(n int) int {
	if c == classRead {
		return max(1, n/2)
	}
	return max(1, n/4)
}

// submit queues t and reports whether l has room for more. If not, the reader
// must await it before it goes on: that is what stops the reading of a
// connection that asks for too much.
func (s *scheduler) submit(l *lane, t *task) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.queue[t.class].push(t)
	l.args += t.argCost
	s.list(l, t.class)
	return s.hasRoom(l)
}

func (s *scheduler) awaitRoom(l *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.hasRoom(l) {
		l.room.Wait()
	}
}

// tryReserve counts n bytes of replies that are under way without a task, if
// there is room for them.
func (s *scheduler) tryReserve(l *lane, n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.fits(l, n) {
		return false
	}
	l.out += n
	return true
}

// fits reports whether n more bytes of replies may be under way. One reply
// always may, however large it is.
func (s *scheduler) fits(l *lane, n int) bool {
	return l.out == 0 || l.out+n <= s.limits.MemoryPerConnection/2
}

// reserve is tryReserve that waits.
func (s *scheduler) reserve(l *lane, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.fits(l, n) {
		l.room.Wait()
	}
	l.out += n
}

func (s *scheduler) hasRoom(l *lane) bool {
	waiting := 0
	for c := range l.queue {
		waiting += l.queue[c].len()
	}
	return waiting < s.limits.Waiting && l.args < s.limits.MemoryPerConnection/2
}

// list puts l into the ring of class c if it has something to do there, and
// sees to it that a worker looks. The caller holds mu.
func (s *scheduler) list(l *lane, c class) {
	if l.listed[c] || !s.ready(l, c) {
		return
	}
	l.listed[c] = true
	s.ring[c].push(l)
	if s.idle > 0 {
		s.work.Signal()
	} else if s.workers < s.limits.Workers && !s.closed {
		s.workers++
		s.done.Add(1)
		go s.worker()
	}
}

// ready reports whether the task at the head of l's queue may start.
func (s *scheduler) ready(l *lane, c class) bool {
	return l.queue[c].len() > 0 && l.working[c] < c.share(s.limits.InFlight) && s.fits(l, l.queue[c].peek().outCost)
}

func (s *scheduler) worker() {
	defer s.done.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		t := s.take()
		if t == nil {
			if s.closed {
				return
			}
			s.idle++
			s.work.Wait()
			s.idle--
			continue
		}
		s.mu.Unlock()
		s.run(t)
		s.mu.Lock()
	}
}

// take picks the next task.
func (s *scheduler) take() *task {
	for c := range classes {
		for s.working[c] < c.share(s.limits.Workers) && s.ring[c].len() > 0 {
			l := s.ring[c].pop()
			l.listed[c] = false
			if !s.ready(l, c) {
				continue // listed again when something of its finishes
			}
			t := l.queue[c].pop()
			l.working[c]++
			l.out += t.outCost
			s.working[c]++
			s.list(l, c)
			return t
		}
	}
	return nil
}

// leave says that a worker is free of a task of class c; the request may still
// be at work elsewhere (a sync).
func (s *scheduler) leave(c class) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.working[c]--
	if s.ring[c].len() > 0 && s.idle > 0 {
		s.work.Signal()
	}
}

// finish says that t's request is done with; its reply still counts until
// release.
func (s *scheduler) finish(l *lane, t *task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.working[t.class]--
	l.args -= t.argCost
	s.wakeLane(l)
}

// release gives back n bytes of replies.
func (s *scheduler) release(l *lane, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.out -= n
	s.wakeLane(l)
}

func (s *scheduler) wakeLane(l *lane) {
	for c := range classes {
		s.list(l, c)
	}
	l.room.Broadcast()
}

// settle waits until l has nothing waiting, at work or under way.
func (s *scheduler) settle(l *lane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !l.empty() {
		l.room.Wait()
	}
}

func (l *lane) empty() bool {
	for c := range classes {
		if l.queue[c].len() > 0 || l.working[c] > 0 {
			return false
		}
	}
	return l.out == 0
}

// discard drops the tasks of l that have not started and hands them to drop.
func (s *scheduler) discard(l *lane, drop func(*task)) {
	s.mu.Lock()
	var dropped []*task
	for c := range classes {
		for l.queue[c].len() > 0 {
			t := l.queue[c].pop()
			l.args -= t.argCost
			dropped = append(dropped, t)
		}
	}
	l.room.Broadcast()
	s.mu.Unlock()
	for _, t := range dropped {
		drop(t)
	}
}

// close lets the workers end when nothing is left to do.
func (s *scheduler) close() {
	s.mu.Lock()
	s.closed = true
	s.work.Broadcast()
	s.mu.Unlock()
	s.done.Wait()
}
