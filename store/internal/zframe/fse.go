package zframe

import (
	"encoding/binary"
	"math/bits"
)

// maxLog is the largest table of a coder: 512 states. zstd allows 512 for
// lengths and 256 for offsets.
const maxLog = 9

const maxSymbols = 53

// coder is a finite state entropy coder of one alphabet.
type coder struct {
	norm   [maxSymbols]int16 // of 1<<log; -1: less than one
	used   int               // symbols with a norm
	log    uint
	states [1 << maxLog]uint16
	tt     [maxSymbols]transform
	spread [1 << maxLog]uint8
	single int // the only symbol there is; -1
}

type transform struct {
	bits  uint32 // deltaNbBits of the reference coder
	state int32  // deltaFindState
}

func (c *coder) setDefault(norm []int16, log uint) {
	c.used, c.log, c.single = len(norm), log, -1
	copy(c.norm[:], norm)
	c.build()
}

// fit normalizes counts of total symbols, of which the last one with a count is
// counts[used-1].
func (c *coder) fit(counts *[maxSymbols]uint32, used, total int, log uint) {
	c.used, c.log, c.single = used, log, -1
	size := 1 << log
	left, largest := size, 0
	for s := range used {
		n := int(counts[s])
		switch {
		case n == 0:
			c.norm[s] = 0
			continue
		case n == total:
			c.single = s
			return
		case n<<log <= total:
			c.norm[s] = -1
			left--
			continue
		}
		share := n << log / total
		// Up where that costs less than the rest of the table gains.
		if rest := n<<log - share*total; share < 8 && rest*20 > total*roundUp[share] {
			share++
		}
		c.norm[s] = int16(share)
		left -= share
		if counts[s] > counts[largest] || c.norm[largest] <= 0 {
			largest = s
		}
	}
	c.norm[largest] += int16(max(left, -int(c.norm[largest])/2))
	// What could not be taken from the largest is taken from whoever has most.
	sum := 0
	for s := range used {
		sum += int(abs16(c.norm[s]))
	}
	for ; sum > size; sum-- {
		most := 0
		for s := range used {
			if c.norm[s] > c.norm[most] {
				most = s
			}
		}
		c.norm[most]--
	}
	c.norm[largest] += int16(size - sum)
}

// roundUp is from which rest on a share is rounded up, in twentieths.
var roundUp = [8]int{0, 9, 10, 10, 11, 13, 14, 16}

func abs16(n int16) int16 {
	if n < 0 {
		return -n
	}
	return n
}

// build makes the tables from the norms.
func (c *coder) build() {
	size := 1 << c.log
	var first [maxSymbols]uint16
	high, at := size-1, 0
	for s := range c.used {
		first[s] = uint16(at)
		if n := c.norm[s]; n == -1 {
			c.spread[high] = uint8(s)
			high--
			at++
		} else {
			at += int(n)
		}
	}
	step, mask, pos := size>>1+size>>3+3, size-1, 0
	for s := range c.used {
		for range c.norm[s] {
			c.spread[pos] = uint8(s)
			pos = (pos + step) & mask
			for pos > high {
				pos = (pos + step) & mask
			}
		}
	}
	for u, s := range c.spread[:size] {
		c.states[first[s]&(1<<maxLog-1)] = uint16(size + u)
		first[s]++
	}
	total := int32(0)
	for s := range c.used {
		switch n := c.norm[s]; n {
		case 0:
			c.tt[s] = transform{uint32((c.log+1)<<16) - uint32(size), 0}
		case 1, -1:
			c.tt[s] = transform{uint32(c.log<<16) - uint32(size), total - 1}
			total++
		default:
			out := c.log - uint(bits.Len16(uint16(n-1))-1)
			c.tt[s] = transform{uint32(out<<16) - uint32(n)<<out, total - int32(n)}
			total += int32(n)
		}
	}
}

// begin is the state that s, the last symbol, leaves behind for the decoder to
// begin with.
func (c *coder) begin(s uint8) uint32 {
	if c.single >= 0 {
		return 0
	}
	t := c.tt[s]
	out := (t.bits + 1<<15) >> 16
	value := out<<16 - t.bits
	return uint32(c.states[(int32(value>>out)+t.state)&(1<<maxLog-1)])
}

// appendNorms appends the table's description.
func (c *coder) appendNorms(dst []byte) []byte {
	size := 1 << c.log
	var w bitWriter
	w.add(uint64(c.log-5), 4)
	remaining, threshold, width := size+1, size, c.log+1
	zero := false
	for s := 0; s < c.used && remaining > 1; {
		if zero {
			start := s
			for c.norm[s] == 0 {
				s++
			}
			for ; s >= start+3; start += 3 {
				w.add(3, 2)
				dst = w.drain(dst)
			}
			w.add(uint64(s-start), 2)
		}
		n := int(c.norm[s])
		s++
		most := 2*threshold - 1 - remaining
		remaining -= int(abs16(int16(n)))
		n++
		zero = n == 1
		if n >= threshold {
			n += most
		}
		if n < most {
			w.add(uint64(n), width-1)
		} else {
			w.add(uint64(n), width)
		}
		for remaining < threshold {
			width--
			threshold >>= 1
		}
		dst = w.drain(dst)
	}
	return w.finish(dst)
}

// bitWriter collects bits, the first one lowest. Up to 56 fit between two
// drains.
type bitWriter struct {
	acc uint64
	n   uint
}

func (w *bitWriter) add(value uint64, n uint) {
	w.acc |= value << (w.n & 63)
	w.n += n
}

// drain appends whole bytes.
func (w *bitWriter) drain(dst []byte) []byte {
	k := w.n >> 3
	dst = binary.LittleEndian.AppendUint64(dst, w.acc)
	w.acc >>= k * 8 & 63
	w.n &= 7
	return dst[:len(dst)-8+int(k)]
}

// finish appends what is left, filled up with zeros.
func (w *bitWriter) finish(dst []byte) []byte {
	dst = w.drain(dst)
	if w.n > 0 {
		dst = append(dst, byte(w.acc))
	}
	*w = bitWriter{}
	return dst
}
