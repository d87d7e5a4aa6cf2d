// Package wtf8 turns the UTF-16 that Windows keeps names in into bytes and back,
// without loss: an unpaired surrogate, which UTF-8 has no place for, becomes
// the three bytes that its number would be (WTF-8, Simon Sapin).
package wtf8

import (
	"encoding/binary"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	surrogates    = 0xd800
	lowSurrogates = 0xdc00
	surrogatesEnd = 0xe000
	beyond        = 0x10000
)

// Decode makes a name of UTF-16 code units.
func Decode(units []uint16) string {
	out := make([]byte, 0, len(units)+len(units)/2)
	for i := 0; i < len(units); i++ {
		u := rune(units[i])
		switch {
		case u < surrogates || u >= surrogatesEnd:
			out = utf8.AppendRune(out, u)
		case u < lowSurrogates && i+1 < len(units) && units[i+1] >= lowSurrogates && units[i+1] < surrogatesEnd:
			out = utf8.AppendRune(out, utf16.DecodeRune(u, rune(units[i+1])))
			i++
		default:
			out = append(out, 0xe0|byte(u>>12), 0x80|byte(u>>6)&0x3f, 0x80|byte(u&0x3f))
		}
	}
	return string(out)
}

// DecodeBytes is Decode of little-endian bytes; an odd one at the end is left
// out.
func DecodeBytes(b []byte) string {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return Decode(units)
}

// Encode is the reverse of Decode. Bytes that are no WTF-8 become U+FFFD.
func Encode(name string) []uint16 {
	out := make([]uint16, 0, len(name))
	for i := 0; i < len(name); {
		r, n := utf8.DecodeRuneInString(name[i:])
		if r == utf8.RuneError && n == 1 {
			if u, ok := surrogate(name[i:]); ok {
				out, i = append(out, u), i+3
				continue
			}
		}
		i += n
		if r < beyond {
			out = append(out, uint16(r))
			continue
		}
		out = utf16.AppendRune(out, r)
	}
	return out
}

// surrogate decodes an unpaired surrogate at the start of s.
func surrogate(s string) (uint16, bool) {
	if len(s) < 3 || s[0] != 0xed || s[1] < 0xa0 || s[1] > 0xbf || s[2]&0xc0 != 0x80 {
		return 0, false
	}
	return 0xd000 | uint16(s[1]&0x3f)<<6 | uint16(s[2]&0x3f), true
}
