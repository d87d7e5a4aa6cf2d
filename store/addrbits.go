package store

import (
	"iter"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"lifeboat/store/internal/segment"
)

// addrBits is a set of addresses, a bit for each, to which many goroutines can
// add at the same time. It only grows. A segment with up to 2048 slots in use
// takes some 270 bytes, one with more 700 to 8,600: so 1 TB of blocks of 64 KiB
// takes 4.5 MB where they can't be compressed, and less where they can.
type addrBits struct {
	mu    sync.RWMutex
	pages map[uint64]*bitsPage // by segment number / pageSegments
}

const (
	pageSegments = 64
	lowWords     = 32 // of the slots below 2048
	chunkWords   = 64 // of 4096 slots
	highChunks   = 16
)

type bitsPage [pageSegments]atomic.Pointer[segmentBits]

// segmentBits is the slots of one segment.
type segmentBits struct {
	low  [lowWords]atomic.Uint64
	high atomic.Pointer[[highChunks]atomic.Pointer[bitsChunk]] // slots from 2048 on, in chunks
}

type bitsChunk [chunkWords]atomic.Uint64

func newAddrBits() *addrBits { return &addrBits{pages: make(map[uint64]*bitsPage)} }

// of returns the slots of a segment, nil where there are none.
func (s *addrBits) of(number uint64) *segmentBits {
	s.mu.RLock()
	page := s.pages[number/pageSegments]
	s.mu.RUnlock()
	if page == nil {
		return nil
	}
	return page[number%pageSegments].Load()
}

// make returns the slots of a segment to add to.
func (s *addrBits) make(number uint64) *segmentBits {
	s.mu.RLock()
	page := s.pages[number/pageSegments]
	s.mu.RUnlock()
	if page == nil {
		s.mu.Lock()
		if page = s.pages[number/pageSegments]; page == nil {
			page = new(bitsPage)
			s.pages[number/pageSegments] = page
		}
		s.mu.Unlock()
	}
	b := page[number%pageSegments].Load()
	if b == nil {
		page[number%pageSegments].CompareAndSwap(nil, new(segmentBits))
		b = page[number%pageSegments].Load()
	}
	return b
}

func (s *addrBits) has(a segment.Addr) bool { return s.of(a.Segment()).has(a.Slot()) }

// add reports whether a is new to the set.
func (s *addrBits) add(a segment.Addr) bool {
	return s.make(a.Segment()).set(a.Slot()/64, 1<<(a.Slot()%64)) != 0
}

// all yields the segments of which there is an address, ascending.
func (s *addrBits) all() iter.Seq2[uint64, *segmentBits] {
	return func(yield func(uint64, *segmentBits) bool) {
		s.mu.RLock()
		keys := make([]uint64, 0, len(s.pages))
		for k := range s.pages {
			keys = append(keys, k)
		}
		s.mu.RUnlock()
		slices.Sort(keys)
		for _, k := range keys {
			s.mu.RLock()
			page := s.pages[k]
			s.mu.RUnlock()
			for i := range page {
				if b := page[i].Load(); b != nil && !yield(k*pageSegments+uint64(i), b) {
					return
				}
			}
		}
	}
}

// word is where the bits of slots 64·w … 64·w+63 are; nil if there is no room for
// them yet and grow is false.
func (b *segmentBits) word(w int, grow bool) *atomic.Uint64 {
	if w < lowWords {
		return &b.low[w]
	}
	chunks := b.high.Load()
	if chunks == nil {
		if !grow {
			return nil
		}
		b.high.CompareAndSwap(nil, new([highChunks]atomic.Pointer[bitsChunk]))
		chunks = b.high.Load()
	}
	// The first 2048 slots of the first chunk stay empty: simpler than an offset.
	p := &chunks[w/chunkWords]
	chunk := p.Load()
	if chunk == nil {
		if !grow {
			return nil
		}
		p.CompareAndSwap(nil, new(bitsChunk))
		chunk = p.Load()
	}
	return &chunk[w%chunkWords]
}

// set adds the bits of mask to a word and returns those that were new.
func (b *segmentBits) set(w int, mask uint64) uint64 {
	word := b.word(w, true)
	if word.Load()&mask == mask {
		return 0
	}
	return mask &^ word.Or(mask)
}

// setRun adds count slots from first on.
func (b *segmentBits) setRun(first, count int) {
	for count > 0 {
		n := min(count, 64-first%64)
		b.set(first/64, (^uint64(0)>>(64-n))<<(first%64))
		first, count = first+n, count-n
	}
}

// get is a word of slots.
func (b *segmentBits) get(w int) uint64 {
	if b == nil {
		return 0
	}
	if word := b.word(w, false); word != nil {
		return word.Load()
	}
	return 0
}

func (b *segmentBits) has(slot int) bool { return b.get(slot/64)&(1<<(slot%64)) != 0 }

// words yields the words that are not zero, ascending.
func (b *segmentBits) words() iter.Seq2[int, uint64] {
	return func(yield func(int, uint64) bool) {
		last := lowWords
		if b == nil {
			return
		}
		if b.high.Load() != nil {
			last = (segment.MaxSlots + 64) / 64
		}
		for w := range last {
			if v := b.get(w); v != 0 && !yield(w, v) {
				return
			}
		}
	}
}

// count is the number of slots in the set, and span one more than the highest.
func (b *segmentBits) count() (n, span int) {
	for w, v := range b.words() {
		n += bits.OnesCount64(v)
		span = w*64 + bits.Len64(v)
	}
	return n, span
}
