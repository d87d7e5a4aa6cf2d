package segment

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// FrameSize is the plaintext of one frame, the unit that is compressed and
// sealed, in bytes. Only the last frame of a blob may be shorter.
const FrameSize = 16 << 10

// MaxFrames is the largest number of frames that one slot can hold: a block of
// 256 KiB.
const MaxFrames = 16

// MaxSlots is the largest number of slots in a segment. The slot number 65535
// is never given out, so that Addr+1 never leads from one segment into the next.
const MaxSlots = 1<<16 - 1

// MaxNumber is the largest segment number.
const MaxNumber = 1<<48 - 1

// Addr is the logical address of a blob: segment number (48 bit) and slot (16
// bit). It survives compaction, which moves bytes but keeps numbers.
type Addr uint64

const (
	// Hole is the address of a block of zeros, for which nothing is stored.
	Hole Addr = 0
	// Unreadable marks a block whose content was lost and that a repair gave
	// up on. Reading it is an I/O error there, and nowhere else.
	Unreadable Addr = 1
)

// MakeAddr joins a segment number and a slot.
func MakeAddr(number uint64, slot int) Addr { return Addr(number<<16 | uint64(slot)&0xffff) }

// Segment is the number of the segment that holds the blob.
func (a Addr) Segment() uint64 { return uint64(a) >> 16 }

// Slot is the place in the segment's tables.
func (a Addr) Slot() int { return int(a & 0xffff) }

// Stored says whether the address names a blob in a segment, so that it can be
// read: it is neither Hole, Unreadable nor one that was never given out.
func (a Addr) Stored() bool { return a.Segment() != 0 && a.Slot() < MaxSlots }

// String prints segment and slot, in hexadecimal and decimal.
func (a Addr) String() string {
	switch a {
	case Hole:
		return "hole"
	case Unreadable:
		return "unreadable"
	}
	return fmt.Sprintf("%x:%d", a.Segment(), a.Slot())
}

// Kind says what a blob is.
type Kind uint8

const (
	// Data is a block of a disk.
	Data Kind = 1
	// MapNode is a node of a block map (package blockmap).
	MapNode Kind = 2
)

// String is the kind's name in messages.
func (k Kind) String() string {
	switch k {
	case Data:
		return "data"
	case MapNode:
		return "map node"
	}
	return "kind " + strconv.Itoa(int(k))
}

func (k Kind) valid() bool { return k == Data || k == MapNode }

// Prefix is the start of the names of all generations of a segment.
func Prefix(number uint64) string { return fmt.Sprintf("segments/%02x/%012x.", number&0xff, number) }

// Name is the name of a segment's object.
func Name(number uint64, generation uint32) string {
	return Prefix(number) + strconv.FormatUint(uint64(generation), 10)
}

var errName = errors.New("not the name of a segment object")

// ParseName is the inverse of Name. It accepts no other spelling.
func ParseName(name string) (number uint64, generation uint32, err error) {
	base := name[strings.LastIndexByte(name, '/')+1:]
	hex, dec, ok := strings.Cut(base, ".")
	if ok && len(hex) == 12 {
		n, err1 := strconv.ParseUint(hex, 16, 48)
		g, err2 := strconv.ParseUint(dec, 10, 32)
		if err1 == nil && err2 == nil && n != 0 && Name(n, uint32(g)) == name {
			return n, uint32(g), nil
		}
	}
	return 0, 0, fmt.Errorf("segment: %q: %w", name, errName)
}
