// Package lz is what Microsoft's compressions have in common: matches, and
// canonical Huffman codes in a stream of 16-bit words, most significant bit
// first.
package lz

import "errors"

// ErrCorrupt says that the input is not what the compression makes.
var ErrCorrupt = errors.New("not what this compression makes")

// Repeat writes n bytes to b from at on that are those from at-back on, some of
// which it may have to write first. The caller has checked that there is room.
func Repeat(b []byte, at, back, n int) {
	if n < 16 {
		for i := at; i < at+n; i++ {
			b[i] = b[i-back]
		}
		return
	}
	from, end := at-back, at+n
	for at < end {
		at += copy(b[at:end], b[from:at])
	}
}

const (
	// MaxBits is the length of the longest code.
	MaxBits  = 16
	fastBits = 10
	maxCodes = 512
)

// Code decodes a canonical Huffman code: short ones by a table, long ones by
// comparing with the first code of each length.
type Code struct {
	fast    [1 << fastBits]uint16 // symbol<<4 | length; 0: a longer one, or none
	limit   [MaxBits + 2]uint32   // behind the codes of a length, in 16 bits
	offset  [MaxBits + 2]int32    // symbol of a code of a length, less the code
	symbols [maxCodes]uint16      // by length, then by number
}

// Build makes the code whose symbols have these lengths, of at most 512 symbols
// and 16 bits. A code that leaves room is refused; one without symbols is not,
// as long as nothing is decoded by it.
func (c *Code) Build(lengths []byte) error {
	var count [MaxBits + 1]int32
	for _, l := range lengths {
		count[l]++
	}
	clear(c.fast[:])
	if int(count[0]) == len(lengths) {
		clear(c.limit[:])
		return nil
	}
	count[0] = 0
	var next [MaxBits + 1]int32
	code, index := uint32(0), int32(0)
	for l := 1; l <= MaxBits; l++ {
		code <<= 1
		next[l] = index
		c.offset[l] = index - int32(code)
		code += uint32(count[l])
		index += count[l]
		if code > 1<<l {
			return ErrCorrupt
		}
		c.limit[l] = code << (MaxBits - l)
	}
	if code != 1<<MaxBits {
		return ErrCorrupt
	}
	for symbol, l := range lengths {
		if l != 0 {
			c.symbols[next[l]] = uint16(symbol)
			next[l]++
		}
	}
	c.fill(&count)
	return nil
}

// fill makes the table of short codes: each stands for all that begins with it.
func (c *Code) fill(count *[MaxBits + 1]int32) {
	at, index := 0, int32(0)
	for l := 1; l <= fastBits; l++ {
		span := 1 << (fastBits - l)
		for range count[l] {
			e := c.symbols[index]<<4 | uint16(l)
			run := c.fast[at : at+span]
			for i := range run {
				run[i] = e
			}
			at += span
			index++
		}
	}
}

// Next is the symbol that the 16 bits begin with, and its length; length 0 where
// there is none.
func (c *Code) Next(bits uint32) (symbol, length uint32) {
	if e := uint32(c.fast[bits>>(MaxBits-fastBits)&(1<<fastBits-1)]); e != 0 {
		return e >> 4, e & 15
	}
	return c.long(bits)
}

func (c *Code) long(bits uint32) (symbol, length uint32) {
	for l := uint32(fastBits + 1); l <= MaxBits; l++ {
		if bits < c.limit[l] {
			return uint32(c.symbols[int32(bits>>(MaxBits-l))+c.offset[l]]), l
		}
	}
	return 0, 0
}
