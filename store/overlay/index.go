package overlay

import "math/bits"

// position is where a page lies in the log: the log file's number and the page
// in that file. Positions ascend in the order in which the log is written, and
// 0 is none: log files are numbered from 1.
type position uint64

// positionBits is how many bits of a position are the page in the file.
const positionBits = 20

// maxLogPages is how many pages a log file can have: 4 GiB.
const maxLogPages = 1 << positionBits

func positionOf(file uint64, page uint32) position {
	return position(file<<positionBits | uint64(page))
}

func (p position) file() uint64 { return uint64(p) >> positionBits }
func (p position) page() uint32 { return uint32(p & (maxLogPages - 1)) }

// index finds the newest place of a page in the log. It is an open-addressed
// table without pointers: the garbage collector never looks into it, and its
// size is bounded by the log's (16 bytes per slot, at most 2/3 full). Entries
// are never deleted: a page that was zeroed is known by its state, which is
// asked first.
type index struct {
	slots []slot
	shift uint // 64 - log2(len(slots))
	n     int
}

type slot struct {
	key uint64 // page number + 1; 0: free
	pos position
}

const minSlots = 1 << 10

func newIndex() *index { return &index{} }

// get returns the place of page, or 0. It may be called on nil.
func (x *index) get(page int64) position {
	if x == nil || x.n == 0 {
		return 0
	}
	key, mask := uint64(page)+1, len(x.slots)-1
	for i := x.start(key); ; i = (i + 1) & mask {
		switch s := &x.slots[i]; s.key {
		case key:
			return s.pos
		case 0:
			return 0
		}
	}
}

// ref returns where the place of page is kept, and makes room for it if there
// is none yet. It is good until the next call.
func (x *index) ref(page int64) *position {
	if 3*(x.n+1) > 2*len(x.slots) {
		x.grow()
	}
	key, mask := uint64(page)+1, len(x.slots)-1
	for i := x.start(key); ; i = (i + 1) & mask {
		s := &x.slots[i]
		if s.key == 0 {
			s.key = key
			x.n++
			return &s.pos
		}
		if s.key == key {
			return &s.pos
		}
	}
}

func (x *index) start(key uint64) int { return int(key * 0x9e3779b97f4a7c15 >> x.shift) }

func (x *index) grow() {
	old := x.slots
	x.slots = make([]slot, max(minSlots, 2*len(old)))
	x.shift = 64 - uint(bits.TrailingZeros(uint(len(x.slots))))
	x.n = 0
	for _, s := range old {
		if s.key != 0 {
			*x.ref(int64(s.key - 1)) = s.pos
		}
	}
}

// entries lists what the index holds, in no order.
func (x *index) entries() []slot {
	list := make([]slot, 0, x.n)
	for _, s := range x.slots {
		if s.key != 0 {
			list = append(list, s)
		}
	}
	return list
}
