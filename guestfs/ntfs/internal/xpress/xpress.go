// Package xpress decompresses XPRESS with Huffman codes ([MS-XCA] 2.2), as WOF
// and WIM files use it: one code for all of a chunk of at most 64 KiB.
package xpress

import (
	"encoding/binary"

	"lifeboat/guestfs/ntfs/internal/lz"
)

const (
	symbols    = 512
	tableBytes = symbols / 2
	minMatch   = 3
	// MaxChunk is the most that a chunk decompresses to, in bytes.
	MaxChunk = 64 << 10
)

// Decoder decompresses chunks, one at a time. Its zero value is ready.
type Decoder struct {
	code    lz.Code
	lengths [symbols]byte
}

// Decode decompresses a chunk that fills dst. lz.ErrCorrupt where src is none.
//
// The bits come in words of 16, and between them bytes that belong to a match,
// wherever the reader stands at that moment: it must not read ahead any further
// than the compressor thought.
func (d *Decoder) Decode(dst, src []byte) error {
	if len(src) < tableBytes || len(dst) > MaxChunk {
		return lz.ErrCorrupt
	}
	for i, b := range src[:tableBytes] {
		d.lengths[2*i], d.lengths[2*i+1] = b&15, b>>4
	}
	if err := d.code.Build(d.lengths[:]); err != nil {
		return err
	}
	return d.body(dst, src[tableBytes:])
}

func (d *Decoder) body(dst, src []byte) error {
	var bits uint64 // those that are left are the lowest
	left, at, n := uint(0), 0, 0
	for n < len(dst) {
		if left < 16 {
			if at+2 <= len(src) {
				bits = bits<<16 | uint64(binary.LittleEndian.Uint16(src[at:]))
			} else { // behind the end there are zeros
				bits <<= 16
			}
			at, left = at+2, left+16
		}
		symbol, length := d.code.Next(uint32(bits>>(left-16)) & 0xffff)
		if length == 0 {
			return lz.ErrCorrupt
		}
		left -= uint(length)
		if symbol < 256 {
			dst[n] = byte(symbol)
			n++
			continue
		}
		if left < 16 {
			if at+2 <= len(src) {
				bits = bits<<16 | uint64(binary.LittleEndian.Uint16(src[at:]))
			} else {
				bits <<= 16
			}
			at, left = at+2, left+16
		}
		distance := uint(symbol >> 4 & 15)
		left -= distance
		back := 1<<distance | int(bits>>left)&(1<<distance-1)
		size := int(symbol & 15)
		if size == 15 {
			var ok bool
			if size, at, ok = long(src, at); !ok {
				return lz.ErrCorrupt
			}
		}
		size += minMatch
		if back > n || size > len(dst)-n || at > len(src)+4 {
			return lz.ErrCorrupt
		}
		lz.Repeat(dst, n, back, size)
		n += size
	}
	if at > len(src)+4 {
		return lz.ErrCorrupt
	}
	return nil
}

// long reads the length of a match that does not fit in its symbol: a byte more,
// or instead two bytes.
func long(src []byte, at int) (size, next int, ok bool) {
	if at >= len(src) {
		return 0, at, false
	}
	if src[at] != 0xff {
		return 15 + int(src[at]), at + 1, true
	}
	if at+3 > len(src) {
		return 0, at, false
	}
	return int(binary.LittleEndian.Uint16(src[at+1:])), at + 3, true
}
