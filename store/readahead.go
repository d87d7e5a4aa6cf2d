package store

import (
	"slices"
	"sync"
	"sync/atomic"

	"lifeboat/store/internal/blockcache"
	"lifeboat/store/internal/segment"
)

// Read-ahead. A reader that goes through a disk from front to back gets the
// blocks before it asks for them; a reader that jumps about pays for a look at a
// table of four offsets and nothing else.
//
// A read that begins where an earlier one ended (or a little after: clients
// send requests out of order) continues its stream. A stream that has gone on
// for aheadAfter bytes is read ahead of, in two ways, each in a window that
// doubles with each half of it consumed, up to a limit:
//
//   - Blocks are decoded, on other cores, into the cache of frames. Large reads
//     need that not: they use all cores as it is.
//   - From a backend that is far away, the sealed bytes are fetched, with large
//     requests, many at the same time. That window is large enough for what is
//     on a line of 10 Gbit/s and 15 ms, and costs no processor time.
//
// While a window lasts, reads are served by ReadCached, which does not look at
// the table; so the middle of the window is kept in an atomic as the trigger at
// which the next is started.
const (
	aheadAfter   = 128 << 10
	aheadMin     = 256 << 10
	farMin       = 1 << 20
	farMax       = 32 << 20
	farRequest   = 1 << 20 // sealed bytes
	aheadStreams = 4
	// aheadSlack is how far out of order requests of one stream may come.
	aheadSlack = 4 << 20
)

type readahead struct {
	near, far window       // the largest, bytes; 0: none of that kind
	trigger   atomic.Int64 // offset, or -1

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
	used   uint64 // clock of the last read
	goesOn bool   // it has been continued: it is more than one large read
	proved bool   // it has been read ahead of
	near   window // what was decoded
	far    window // what was fetched
}

// window is how far something was done ahead of a stream.
type window struct {
	until int64 // up to here
	size  int64 // bytes, of the last window
}

// span is a part of a disk.
type span struct{ from, to int64 }

// advance returns what to do next for a stream that is at next: nothing until
// half of the window is used up.
func (w *window) advance(next, least, most int64) span {
	if most == 0 || w.until-next > w.size/2 {
		return span{}
	}
	from := max(w.until, next)
	w.size = min(max(2*w.size, least), most)
	w.until = next + w.size
	return span{from, w.until}
}

func (a *readahead) init(near, far int64) {
	a.near.size, a.far.size = near, far
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

// note takes a read into account and returns what to decode and what to fetch
// ahead, if anything; then the caller owes a running.Done.
func (a *readahead) note(off int64, n int) (decode, fetch span) {
	large := n >= directMin
	if a.near.size == 0 || large && a.far.size == 0 || !a.mu.TryLock() {
		return span{}, span{} // another read is at it; one lost observation does no harm
	}
	defer a.mu.Unlock()
	a.clock++
	s := a.find(off)
	s.used = a.clock
	s.next = max(s.next, off+int64(n))
	if a.stopped || !s.goesOn || s.next-s.start < aheadAfter {
		return span{}, span{}
	}
	if !large {
		decode = s.near.advance(s.next, aheadMin, a.near.size)
	}
	fetch = s.far.advance(s.next, farMin, a.far.size)
	if decode == (span{}) && fetch == (span{}) {
		return decode, fetch
	}
	s.proved = true
	if decode != (span{}) {
		a.trigger.Store(decode.to - s.near.size/2)
	}
	a.running.Add(1)
	return decode, fetch
}

// find returns the stream that a read at off continues, or starts a new one in
// the place of the one that was idle longest.
func (a *readahead) find(off int64) *stream {
	oldest := &a.streams[0]
	for i := range a.streams {
		s := &a.streams[i]
		if s.next >= 0 && off >= s.start && off <= s.next+aheadSlack && off >= s.next-aheadSlack && s.fits(off) {
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

// fits tells a read of the stream from a random one that happens to hit its
// surroundings: before it has proved itself a stream, it has to fit exactly.
func (s *stream) fits(off int64) bool { return off == s.next || s.proved }

// readAhead notes a read and starts what should be done before it is asked for.
// It never waits: when all read-ahead slots of the repository are taken, the
// window is left to the reader.
func (m *Image) readAhead(off int64, n int) {
	decode, fetch := m.ahead.note(off, n)
	if decode == (span{}) && fetch == (span{}) {
		return
	}
	defer m.ahead.running.Done()
	if first, end := m.blocksOf(fetch); first < end {
		m.ahead.running.Go(func() { m.fetchAhead(first, end) })
	}
	m.decodeAhead(m.blocksOf(decode))
}

func (m *Image) blocksOf(s span) (first, end int64) {
	return s.from >> m.shift, (min(s.to, m.size) + 1<<m.shift - 1) >> m.shift
}

func (m *Image) decodeAhead(first, end int64) {
	if first >= end {
		return
	}
	next := new(atomic.Int64) // shared by the window's goroutines
	next.Store(first)
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

// prefetch decodes one block. Its errors are the reader's to find.
func (m *Image) prefetch(block int64) {
	addr, err := m.blocks.Lookup(m.ctx, block)
	if err == nil && addr.Stored() {
		_ = m.fetch.prefetch(m.ctx, addr)
	}
}

// fetchAhead asks for the sealed bytes of blocks. Its errors are the reader's to
// find.
func (m *Image) fetchAhead(first, end int64) {
	addrs := make([]segment.Addr, 0, end-first)
	for block := first; block < end && m.ctx.Err() == nil; block++ {
		addr, err := m.address(block)
		if err == nil && addr.Stored() && !m.fetch.inMemory(addr) {
			addrs = append(addrs, addr)
		}
	}
	slices.Sort(addrs)
	for _, spans := range m.r.locate(m.ctx, slices.Compact(addrs), farRequest) {
		last := &spans[len(spans)-1]
		m.r.near.Fetch(m.ctx, blockcache.Range{
			Object: last.Object(), Offset: spans[0].Offset, End: last.End(),
		})
	}
}
