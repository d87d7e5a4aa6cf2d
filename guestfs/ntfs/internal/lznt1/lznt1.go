// Package lznt1 decompresses what NTFS compresses by itself ([MS-XCA] 2.5).
//
// The data is chunks of 4 KiB each. A chunk that is compressed is groups of eight
// elements, before each a byte that tells literals from matches. A match is 16
// bits; how many of them say how far back it goes depends on how far into the
// chunk it stands.
package lznt1

import (
	"encoding/binary"
	"errors"
	"math/bits"

	"lifeboat/guestfs/ntfs/internal/lz"
)

// ErrCorrupt says that the input is not what this compression makes.
var ErrCorrupt = errors.New("not LZNT1")

const (
	chunkSize  = 4096
	compressed = 1 << 15
	lengthMask = 0xfff
	minMatch   = 3
)

// Decode decompresses src into dst and returns how much that is; what follows
// are zeros. It ends when dst is full, at the end of src, or where src says so.
func Decode(dst, src []byte) (int, error) {
	at := 0
	for at < len(dst) && len(src) >= 2 {
		header := binary.LittleEndian.Uint16(src)
		if header == 0 {
			return at, nil
		}
		n := int(header&lengthMask) + 1
		src = src[2:]
		if n > len(src) {
			return at, ErrCorrupt
		}
		chunk := dst[at:min(len(dst), at+chunkSize)]
		var got int
		if header&compressed == 0 {
			got = copy(chunk, src[:n])
		} else {
			var ok bool
			if got, ok = decodeChunk(chunk, src[:n], len(dst)-at < chunkSize); !ok {
				return at, ErrCorrupt
			}
		}
		if src = src[n:]; got < len(chunk) {
			clear(chunk[got:]) // a chunk that is short is followed by zeros
		}
		at += len(chunk)
	}
	return at, nil
}

// decodeChunk decompresses one chunk. Where only its beginning is wanted, more
// than fits is no error.
func decodeChunk(dst, src []byte, beginning bool) (n int, ok bool) {
	i := 0
	for i < len(src) {
		flags := src[i]
		i++
		if flags == 0 && len(src)-i >= 8 && len(dst)-n >= 8 {
			*(*[8]byte)(dst[n:]) = [8]byte(src[i:])
			n, i = n+8, i+8
			continue
		}
		for range 8 {
			if i >= len(src) {
				return n, true
			}
			if flags&1 == 0 {
				if n >= len(dst) {
					return n, beginning
				}
				dst[n] = src[i]
				n, i = n+1, i+1
				flags >>= 1
				continue
			}
			flags >>= 1
			if i+2 > len(src) || n == 0 {
				return n, false
			}
			token := uint(src[i]) | uint(src[i+1])<<8
			i += 2
			shift := uint(12)
			if n > 16 {
				shift = 16 - uint(bits.Len(uint(n-1)))
			}
			back, length := int(token>>shift)+1, int(token&(1<<shift-1))+minMatch
			if back > n {
				return n, false
			}
			if length > len(dst)-n {
				if !beginning {
					return n, false
				}
				length = len(dst) - n
			}
			lz.Repeat(dst, n, back, length)
			n += length
		}
	}
	return n, true
}
