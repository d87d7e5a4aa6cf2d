package store

import (
	"sync"
	"sync/atomic"
)

// Read-ahead. A reader that goes through a disk from front to back gets the
// blocks before it asks for them, decoded on other cores; a reader that jumps
// about pays for a look at a table of four offsets and nothing else.
//
// A read that begins where an earlier one ended (or a little after: clients
// send requests out of order) continues its stream. A stream that has gone on
// for aheadAfter bytes is read ahead of, in a window that doubles with each
// window consumed, up to a limit. While the window lasts, reads are served by
// ReadCached, which does not look at the table; so the middle of the window is
// kept in an atomic as the trigger at which the next window is started.
const (
	aheadAfter   = 128 << 10
	aheadMin     = 256 << 10
	aheadStreams = 4
	// aheadSlack is how far out of order requests of one stream may come.
	aheadSlack = 4 << 20
)

type readahead struct {
	max     int64        // largest window, bytes; 0: no read-ahead
	trigger atomic.Int64 // offset, or -1

	mu      sync.Mutex
	stopped bool
	running sync.WaitGroup // Add only under mu while not stopped
	clock   uint64
	streams [aheadStreams]stream
}

// stream is one sequential reader.
type stream struct {
	start  int64  // where it began
	next   int64  // where the next read of it should begin
	until  int64  // it has been read ahead up to here
	window int64  // bytes
	used   uint64 // clock of the last read
	goesOn bool   // it has been continued: it is more than one large read
}

func (a *readahead) init(maxWindow int64) {
	a.max = maxWindow
	a.trigger.Store(-1)
	for i := range a.streams {
		a.streams[i].next = -1
	}
}

// triggered reports whether a read crosses the trigger.
func (a *readahead) triggered(off int64, n int) bool {
	t := a.trigger.Load()
	return t >= off && t < off+int64(n)
}

// stop ends reading ahead and waits for what is running.
func (a *readahead) stop() {
	a.mu.Lock()
	a.stopped = true
	a.mu.Unlock()
	a.running.Wait()
}

// note takes a read into account and returns what to read ahead, if anything;
// then the caller owes a running.Done.
func (a *readahead) note(off int64, n int) (from, to int64) {
	if a.max == 0 || !a.mu.TryLock() {
		return 0, 0 // another read is at it; one lost observation does no harm
	}
	defer a.mu.Unlock()
	a.clock++
	s := a.find(off)
	s.used = a.clock
	s.next = max(s.next, off+int64(n))
	if a.stopped || !s.goesOn || s.next-s.start < aheadAfter || s.until-s.next > s.window/2 {
		return 0, 0
	}
	from = max(s.until, s.next)
	s.window = min(max(2*s.window, aheadMin), a.max)
	s.until = s.next + s.window
	a.trigger.Store(s.until - s.window/2)
	a.running.Add(1)
	return from, s.until
}

// find returns the stream that a read at off continues, or starts a new one in
// the place of the one that was idle longest.
func (a *readahead) find(off int64) *stream {
	oldest := &a.streams[0]
	for i := range a.streams {
		s := &a.streams[i]
		if s.next >= 0 && off >= s.start && off <= s.next+aheadSlack && off >= s.next-aheadSlack && s.near(off) {
			s.goesOn = true
			return s
		}
		if s.used < oldest.used {
			oldest = s
		}
	}
	*oldest = stream{start: off, next: off}
	return oldest
}

// near tells a read of the stream from a random one that happens to hit its
// surroundings: before it has proved itself a stream, it has to fit exactly.
func (s *stream) near(off int64) bool {
	return off == s.next || s.window > 0
}

// readAhead notes a read and starts what should be fetched before it is asked
// for. It never waits: when all read-ahead slots of the repository are taken,
// the window is left to the reader.
func (m *Image) readAhead(off int64, n int) {
	if n >= directMin {
		return // large reads use all processors as it is
	}
	from, to := m.ahead.note(off, n)
	if from == to {
		return
	}
	defer m.ahead.running.Done()
	next := new(atomic.Int64) // shared by the window's goroutines
	next.Store(from >> m.shift)
	end := (min(to, m.size) + 1<<m.shift - 1) >> m.shift
	for range cap(m.r.aheadSlots) {
		select {
		case m.r.aheadSlots <- struct{}{}:
		default:
			return
		}
		m.ahead.running.Go(func() {
			defer func() { <-m.r.aheadSlots }()
			for block := next.Add(1) - 1; block < end && m.ctx.Err() == nil; block = next.Add(1) - 1 {
				m.prefetch(block)
			}
		})
	}
}

// prefetch fetches one block. Its errors are the reader's to find.
func (m *Image) prefetch(block int64) {
	addr, err := m.blocks.Lookup(m.ctx, block)
	if err == nil && addr.Stored() {
		_ = m.fetch.prefetch(m.ctx, addr)
	}
}
