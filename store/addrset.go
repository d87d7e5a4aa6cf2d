package store

import (
	"iter"
	"maps"
	"math/bits"
	"slices"

	"lifeboat/store/internal/segment"
)

// addrSet is a set of addresses: a bitmap of slots for each segment, which
// grows to the highest slot in use. It takes about a bit for each address where
// segments are used densely, which is the rule.
type addrSet struct {
	segments map[uint64][]uint64
	count    int64
}

func newAddrSet() *addrSet { return &addrSet{segments: make(map[uint64][]uint64)} }

// add reports whether a is new to the set.
func (s *addrSet) add(a segment.Addr) bool {
	words := s.segments[a.Segment()]
	word, bit := a.Slot()/64, uint64(1)<<(a.Slot()%64)
	if word >= len(words) {
		grown := make([]uint64, max(word+1, 2*len(words), 16))
		copy(grown, words)
		s.segments[a.Segment()] = grown
		words = grown
	}
	if words[word]&bit != 0 {
		return false
	}
	words[word] |= bit
	s.count++
	return true
}

func (s *addrSet) has(a segment.Addr) bool {
	words := s.segments[a.Segment()]
	word := a.Slot() / 64
	return word < len(words) && words[word]&(1<<(a.Slot()%64)) != 0
}

// numbers is the segments in the set, ascending.
func (s *addrSet) numbers() []uint64 { return slices.Sorted(maps.Keys(s.segments)) }

// slots yields the slots of a segment in the set, ascending.
func (s *addrSet) slots(number uint64) iter.Seq[int] {
	return func(yield func(int) bool) {
		for i, word := range s.segments[number] {
			for ; word != 0; word &= word - 1 {
				if !yield(i*64 + bits.TrailingZeros64(word)) {
					return
				}
			}
		}
	}
}
