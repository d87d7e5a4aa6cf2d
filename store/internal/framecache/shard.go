package framecache

import (
	"runtime"
	"sync"
	"sync/atomic"
)

const (
	none     = -1
	lenBits  = 15 // of slot.what: a length up to SlotSize
	maxFrame = 1<<16 - 1
	locked   = -1 << 30
	maxFreq  = 3
)

// slot describes one slot. All fields are atomic because readers take no lock;
// they are changed under the shard's mutex (key and chain, with pins locked
// too) except pins, freq and stamp, which readers change.
type slot struct {
	addr  atomic.Uint64
	what  atomic.Uint32 // frame<<lenBits | length of the data
	next  atomic.Int32  // in the hash chain
	pins  atomic.Int32  // readers; far below zero while the slot is changed
	stamp atomic.Uint32 // shard.clock when it came in or was last counted
	freq  atomic.Uint32 // how often it was asked for, at most maxFreq
}

// shard is an independent cache of every so manieth slot of the arena.
type shard struct {
	slots []slot
	heads []atomic.Int32 // of hash chains
	mask  uint64
	data  []byte // from the shard's first slot to the arena's end
	step  int    // from one of the shard's slots to the next, in bytes
	clock atomic.Uint32
	// period is how many frames must come in between two reads of a frame for
	// the second to count: a reader that goes through a frame in 4 KiB steps
	// asks for it once.
	period uint32

	mu       sync.Mutex
	used     int // slots given out since the start or the last drop
	small    fifo
	main     fifo
	smallMax int
	ghosts   []uint32 // upper halves of hashes that fell out of small, by lower half
	evicted  int64
}

func (s *shard) init(slots int, data []byte, step int) {
	s.slots, s.data, s.step = make([]slot, slots), data, step
	size := 1
	for size < slots {
		size *= 2
	}
	s.heads, s.ghosts, s.mask = make([]atomic.Int32, size), make([]uint32, size), uint64(size-1)
	for i := range s.heads {
		s.heads[i].Store(none)
	}
	for i := range s.slots {
		s.slots[i].pins.Store(locked)
	}
	s.small, s.main = newFIFO(slots), newFIFO(slots)
	s.smallMax = max(slots/10, 1)
	s.period = uint32(max(s.smallMax/4, 1))
}

func (s *shard) bytes(i int32) []byte {
	return s.data[int(i)*s.step:][:SlotSize:SlotSize]
}

// copyOut copies from slot i if, once pinned, it still holds the frame.
func (s *shard) copyOut(i int32, addr uint64, frame int, dst []byte, off int) bool {
	m := &s.slots[i]
	if m.pins.Add(1) <= 0 {
		m.pins.Add(-1)
		return false
	}
	what := m.what.Load()
	ok := m.addr.Load() == addr && what>>lenBits == uint32(frame) && off >= 0 && off+len(dst) <= int(what&(1<<lenBits-1))
	if ok {
		copy(dst, s.bytes(i)[off:])
		if now := s.clock.Load(); now-m.stamp.Load() >= s.period {
			m.stamp.Store(now)
			if f := m.freq.Load(); f < maxFreq {
				m.freq.Store(f + 1)
			}
		}
	}
	m.pins.Add(-1)
	return ok
}

// put takes a frame in unless it is there already.
func (s *shard) put(h, addr uint64, frame int, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.find(h, addr, frame) != none {
		return
	}
	i := s.take()
	if i == none {
		return
	}
	m := &s.slots[i]
	copy(s.bytes(i), data)
	m.addr.Store(addr)
	m.what.Store(uint32(frame)<<lenBits | uint32(len(data)))
	m.freq.Store(0)
	m.stamp.Store(s.clock.Add(1))
	head := &s.heads[h&s.mask]
	m.next.Store(head.Load())
	head.Store(i)
	m.pins.Add(-locked)
	if ghost := &s.ghosts[h&s.mask]; *ghost == fingerprint(h) {
		*ghost = 0
		s.main.push(i)
	} else {
		s.small.push(i)
	}
}

func fingerprint(h uint64) uint32 { return uint32(h>>32) | 1 }

func (s *shard) find(h, addr uint64, frame int) int32 {
	i := s.heads[h&s.mask].Load()
	for i != none {
		m := &s.slots[i]
		if m.addr.Load() == addr && m.what.Load()>>lenBits == uint32(frame) {
			return i
		}
		i = m.next.Load()
	}
	return none
}

// take returns a slot that is in no chain and no queue, with its pins locked,
// or none if readers hold on to everything.
func (s *shard) take() int32 {
	if s.used < len(s.slots) {
		s.used++
		return int32(s.used - 1) // its pins are locked since init or lockAll
	}
	// Each turn either evicts or lowers a frequency, or meets a pin.
	for range (maxFreq + 2) * len(s.slots) {
		if s.small.n > s.smallMax || s.main.n == 0 {
			if i := s.fromSmall(); i != none {
				return i
			}
		} else if i := s.fromMain(); i != none {
			return i
		}
	}
	return none
}

// fromSmall evicts the oldest frame of the small queue, or promotes it.
func (s *shard) fromSmall() int32 {
	i := s.small.pop()
	m := &s.slots[i]
	switch {
	case m.freq.Load() > 0:
		m.freq.Store(0)
		s.main.push(i)
	case !m.pins.CompareAndSwap(0, locked):
		s.small.push(i)
	default:
		h := s.unlink(i)
		s.ghosts[h&s.mask] = fingerprint(h)
		return i
	}
	return none
}

// fromMain evicts the oldest frame of the main queue, or gives it another turn.
func (s *shard) fromMain() int32 {
	i := s.main.pop()
	m := &s.slots[i]
	if f := m.freq.Load(); f > 0 {
		m.freq.Store(f - 1)
	} else if m.pins.CompareAndSwap(0, locked) {
		s.unlink(i)
		return i
	}
	s.main.push(i)
	return none
}

// unlink takes a slot out of its chain and returns its hash.
func (s *shard) unlink(i int32) uint64 {
	m := &s.slots[i]
	h := hash(m.addr.Load(), int(m.what.Load()>>lenBits))
	at := &s.heads[h&s.mask]
	for at.Load() != i {
		at = &s.slots[at.Load()].next
	}
	at.Store(m.next.Load())
	s.evicted++
	return h
}

// lockAll stops the shard: no reader holds or gets a slot. unlockAll empties it
// and lets it go again; the slots stay locked until they are given out.
func (s *shard) lockAll() {
	s.mu.Lock()
	for i := range s.used {
		for !s.slots[i].pins.CompareAndSwap(0, locked) {
			runtime.Gosched() // a pin lasts as long as one copy
		}
	}
}

func (s *shard) unlockAll() {
	for i := range s.heads {
		s.heads[i].Store(none)
	}
	for i := range s.used {
		m := &s.slots[i]
		m.what.Store(0)
		m.addr.Store(0)
	}
	s.used = 0
	s.small.clear()
	s.main.clear()
	s.mu.Unlock()
}

func (s *shard) stats(sum *Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum.Slots += len(s.slots)
	sum.Used += s.small.n + s.main.n
	sum.Main += s.main.n
	sum.Puts += int64(s.clock.Load())
	sum.Evicted += s.evicted
}

// fifo is a queue of slots in a ring that never fills up: it has room for all.
type fifo struct {
	ring  []int32
	first int
	n     int
}

func newFIFO(size int) fifo { return fifo{ring: make([]int32, size)} }

func (q *fifo) push(i int32) {
	at := q.first + q.n
	if at >= len(q.ring) {
		at -= len(q.ring)
	}
	q.ring[at] = i
	q.n++
}

func (q *fifo) pop() int32 {
	i := q.ring[q.first]
	if q.first++; q.first == len(q.ring) {
		q.first = 0
	}
	q.n--
	return i
}

func (q *fifo) clear() { q.first, q.n = 0, 0 }
