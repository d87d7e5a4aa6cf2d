package zframe

import (
	"encoding/binary"
	"math/bits"
)

const (
	hashBits = 13
	// room is what must follow a position for it to be looked at: eight bytes
	// are read at once.
	room = 8
	// skipLog is after how many bytes without a match, as a power of two, the
	// steps get longer.
	skipLog = 7
)

// matcher finds what repeats, at least four bytes of it. It takes the first match
// that it comes across. Measured on frames of a Debian disk: looking for longer
// ones as well (a second table, of eight bytes) makes frames 1 % smaller and takes
// half as long again; a hash of six bytes instead of five makes them 2 % larger.
type matcher struct {
	last [1 << hashBits]uint16 // where the same five bytes were last, counted from 1
	rep  [3]int                // the last three offsets, as the decoder has them
}

func load32(b []byte, i int) uint32 { return binary.LittleEndian.Uint32(b[i:]) }
func load64(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }

func hash(v uint64) uint64 { return (v << 24) * 0x9fb21c651e98df25 >> (64 - hashBits) }

// common is how many bytes from i on are as those from j < i on.
func common(src []byte, i, j int) int {
	begin := i
	for i+8 <= len(src) {
		if x := load64(src, i) ^ load64(src, j); x != 0 {
			return i - begin + bits.TrailingZeros64(x)>>3
		}
		i, j = i+8, j+8
	}
	for i < len(src) && src[i] == src[j] {
		i, j = i+1, j+1
	}
	return i - begin
}

// parse splits src into literals and matches.
func (m *matcher) parse(src, lits []byte, seqs []sequence) ([]byte, []sequence) {
	clear(m.last[:])
	m.rep = [3]int{1, 4, 8}
	anchor, i := 0, 1
	end := len(src) - room
	if end > 0 {
		m.last[hash(load64(src, 0))] = 1
	}
	for i < end {
		v := load64(src, i)
		h := hash(v)
		j := int(m.last[h]) - 1
		m.last[h] = uint16(i + 1)
		at, length, offset := i, 0, 0
		if r := m.rep[0]; r <= i+1 && uint32(v>>8) == load32(src, i+1-r) {
			at, length, offset = i+1, 4+common(src, i+5, i+5-r), r
		} else if j >= 0 && load32(src, j) == uint32(v) {
			length, offset = 4+common(src, i+4, j+4), i-j
		} else {
			i += 1 + (i-anchor)>>skipLog
			continue
		}
		for at > anchor && at > offset && src[at-1] == src[at-1-offset] {
			at, length = at-1, length+1
		}
		lits = append(lits, src[anchor:at]...)
		seqs = append(seqs, m.sequence(at-anchor, length, offset))
		i = at + length
		anchor = i
		if i >= end {
			break
		}
		// Two positions in the match are enough to find most of what repeats it.
		m.enter(src, at+2)
		m.enter(src, i-2)
		// What came before the match often goes on behind it.
		for i < end && m.rep[1] <= i && load32(src, i) == load32(src, i-m.rep[1]) {
			length := 4 + common(src, i+4, i+4-m.rep[1])
			m.enter(src, i)
			seqs = append(seqs, m.sequence(0, length, m.rep[1]))
			i += length
			anchor = i
		}
	}
	return append(lits, src[anchor:]...), seqs
}

func (m *matcher) enter(src []byte, i int) {
	m.last[hash(load64(src, i))] = uint16(i + 1)
}

// sequence names a match's offset as the decoder will know it, and keeps the
// list of recent offsets as the decoder does (RFC 8878, 3.1.1.5).
func (m *matcher) sequence(lits, length, offset int) sequence {
	s := sequence{lits: uint16(lits), match: uint16(length - 3)}
	r := &m.rep
	which := 3 // in the list: not there
	switch {
	case offset == r[0] && lits > 0:
		s.off = 1
		return s
	case offset == r[1]:
		which, s.off = 1, 2
	case offset == r[2]:
		which, s.off = 2, 3
	case lits == 0 && offset == r[0]-1:
		s.off = 4 // one less below: 3
	default:
		s.off = uint16(offset + 3)
	}
	if lits == 0 && s.off <= 4 && (which < 3 || offset == r[0]-1) {
		s.off--
	}
	if which >= 2 {
		r[2] = r[1]
	}
	r[1] = r[0]
	r[0] = offset
	return s
}
