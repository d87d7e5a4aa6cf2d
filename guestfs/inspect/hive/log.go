package hive

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"slices"
)

const (
	logEntries  = 512 // where they begin in a log
	entryHeader = 40
	logNew      = 6 // type of a log since Windows 8.1; before, 1 and 2
	// maxHive bounds what logs can make a hive grow to, in bytes.
	maxHive = 1 << 30
	// slack is how much a hive can grow at once.
	slack = 64 << 20
)

// entry is a transaction in a log: pages of the hive as they were to be written.
type entry struct {
	sequence uint32
	size     uint32 // of the cells, bytes
	pages    []page
}

type page struct {
	at   int64 // in the cells
	data []byte
}

// replay applies what logs have that the hive has not, and reports whether the
// hive is whole then.
func replay(data []byte, logs [][]byte) ([]byte, bool) {
	var all []entry
	for _, log := range logs {
		if len(log) < logEntries || string(log[:4]) != "regf" || !sumOK(log) {
			continue
		}
		if u32(log, 28) == logNew {
			all = append(all, newEntries(log)...)
		} else if e, ok := oldEntry(log); ok && (!sumOK(data) || u32(log, 4) >= u32(data, 8)) {
			return e.apply(data)
		}
	}
	slices.SortStableFunc(all, func(a, b entry) int { return cmp.Compare(a.sequence, b.sequence) })
	// What was written to the hive last is in its second number; where its header
	// is torn, all that the logs have is newer or the same.
	next, started, whole := u32(data, 8), false, false
	if !sumOK(data) {
		next = 0
	}
	for _, e := range all {
		if e.sequence < next || started && e.sequence != next {
			continue
		}
		var ok bool
		if data, ok = e.apply(data); !ok {
			return data, false
		}
		next, started, whole = e.sequence+1, true, true
	}
	return data, whole
}

// apply writes a transaction's pages.
func (e entry) apply(data []byte) ([]byte, bool) {
	need := baseSize + int64(e.size)
	if need > maxHive || need > int64(len(data))+slack {
		return data, false
	}
	if grow := need - int64(len(data)); grow > 0 {
		data = append(data, make([]byte, grow)...)
	}
	for _, p := range e.pages {
		if p.at < 0 || p.at > int64(len(data)-baseSize-len(p.data)) {
			return data, false
		}
		copy(data[baseSize+p.at:], p.data)
	}
	return data, true
}

// newEntries reads a log of the kind that appends (HvLE), up to the first entry
// that is not whole: the log is a ring that is written over.
func newEntries(log []byte) []entry {
	var out []entry
	for at := logEntries; at+entryHeader <= len(log); {
		b := log[at:]
		size, n := int(u32(b, 4)), int(u32(b, 20))
		if string(b[:4]) != "HvLE" || size < entryHeader || size%512 != 0 || size > len(b) || n > (size-entryHeader)/8 {
			return out
		}
		b = b[:size]
		if marvin(b[entryHeader:]) != binary.LittleEndian.Uint64(b[24:]) || marvin(b[:32]) != binary.LittleEndian.Uint64(b[32:]) {
			return out
		}
		e := entry{sequence: u32(b, 12), size: u32(b, 16)}
		body := b[entryHeader+8*n:]
		for i := range n {
			ref := b[entryHeader+8*i:]
			length := int(u32(ref, 4))
			if length > len(body) {
				return out
			}
			e.pages = append(e.pages, page{int64(u32(ref, 0)), body[:length]})
			body = body[length:]
		}
		out = append(out, e)
		at += size
	}
	return out
}

// oldEntry reads a log of the kind that holds one transaction: a bitmap of the
// sectors that follow it.
func oldEntry(log []byte) (entry, bool) {
	const sector = 512
	if len(log) < logEntries+4 || string(log[logEntries:logEntries+4]) != "DIRT" {
		return entry{}, false
	}
	e := entry{sequence: u32(log, 4), size: u32(log, 40)}
	bitmap := int(e.size / (8 * sector))
	if bitmap > len(log)-logEntries-4 {
		return entry{}, false
	}
	at := (logEntries + 4 + bitmap + sector - 1) &^ (sector - 1)
	for i := range 8 * bitmap {
		if log[logEntries+4+i/8]>>(i%8)&1 == 0 {
			continue
		}
		if at+sector > len(log) {
			return entry{}, false
		}
		e.pages = append(e.pages, page{int64(i) * sector, log[at : at+sector]})
		at += sector
	}
	return e, true
}

// marvin is the checksum Marvin32 with the seed that Windows uses here.
func marvin(b []byte) uint64 {
	lo, hi := uint32(0x7a4e55c5), uint32(0x82ef4d88)
	mix := func(v uint32) {
		lo += v
		hi ^= lo
		lo = bits.RotateLeft32(lo, 20) + hi
		hi = bits.RotateLeft32(hi, 9) ^ lo
		lo = bits.RotateLeft32(lo, 27) + hi
		hi = bits.RotateLeft32(hi, 19)
	}
	for ; len(b) >= 4; b = b[4:] {
		mix(u32(b, 0))
	}
	last := uint32(0x80)
	for i := len(b) - 1; i >= 0; i-- {
		last = last<<8 | uint32(b[i])
	}
	mix(last)
	mix(0)
	return uint64(hi)<<32 | uint64(lo)
}
