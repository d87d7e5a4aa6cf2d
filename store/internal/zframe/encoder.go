// Package zframe compresses small buffers to zstd frames (RFC 8878).
//
// General encoders are made for streams and keep more than a megabyte of tables.
// This one knows that nothing is larger than [MaxInput]. Its one table has 16-bit
// entries and stays in the processor's cache; everything that it finds goes into
// one block; and its output is what any zstd decoder reads: single segment,
// content size given, no checksum, no dictionary.
//
// A frame is three parts: matcher.go finds what repeats, literals (what does not)
// are Huffman-coded by package huff0, and sequences.go codes where to copy from,
// with the finite state entropy coder in fse.go.
package zframe

import (
	"encoding/binary"

	"github.com/klauspost/compress/huff0"
)

// MaxInput is the largest buffer that is compressed, in bytes.
const MaxInput = 16 << 10

// Encoder compresses. It keeps some 100 KB of memory and is for one goroutine.
type Encoder struct {
	m        matcher
	lits     []byte
	seqs     []sequence
	huff     huff0.Scratch
	ll, of   coder
	ml       coder
	bits     bitWriter
	llCodes  []uint8
	mlCodes  []uint8
	ofCodes  []uint8
	defaults [3]coder
}

// New returns an Encoder.
func New() *Encoder {
	e := &Encoder{lits: make([]byte, 0, MaxInput+8), seqs: make([]sequence, 0, MaxInput/4)}
	e.huff.Reuse = huff0.ReusePolicyNone
	for i, d := range [...]struct {
		norm []int16
		log  uint
	}{{defaultLL[:], 6}, {defaultOF[:], 5}, {defaultML[:], 6}} {
		e.defaults[i].setDefault(d.norm, d.log)
	}
	return e
}

// Append appends the zstd frame of src, which has 1 to MaxInput bytes, to dst,
// and reports whether it did: false means that the frame would not be shorter
// than limit bytes, and dst is what it was.
func (e *Encoder) Append(dst, src []byte, limit int) ([]byte, bool) {
	if len(src) == 0 || len(src) > MaxInput {
		return dst, false
	}
	begin := len(dst)
	dst = appendHeader(dst, len(src))
	block := len(dst)
	dst = append(dst, 0, 0, 0)
	e.lits, e.seqs = e.m.parse(src, e.lits[:0], e.seqs[:0])
	dst = e.appendSequences(e.appendLiterals(dst))
	const last, raw, compressed = 1, 0, 2
	h := uint32(last | compressed<<1 | (len(dst)-block-3)<<3)
	if len(dst)-block-3 >= len(src) { // more than a block may have
		dst = append(dst[:block+3], src...)
		h = uint32(last | raw<<1 | len(src)<<3)
	}
	if len(dst)-begin >= limit {
		return dst[:begin], false
	}
	dst[block], dst[block+1], dst[block+2] = byte(h), byte(h>>8), byte(h>>16)
	return dst, true
}

// appendHeader appends magic number and frame header.
func appendHeader(dst []byte, size int) []byte {
	const singleSegment = 1 << 5
	dst = append(dst, 0x28, 0xb5, 0x2f, 0xfd)
	if size < 256 {
		return append(dst, singleSegment, byte(size))
	}
	return binary.LittleEndian.AppendUint16(append(dst, singleSegment|1<<6), uint16(size-256))
}

// Kinds of a literals section.
const (
	litsRaw  = 0
	litsRLE  = 1
	litsHuff = 2
)

// appendLiterals appends the literals section.
func (e *Encoder) appendLiterals(dst []byte) []byte {
	n := len(e.lits)
	if n < 64 { // a table costs more than it can save
		return append(appendLitsHeader(dst, litsRaw, n), e.lits...)
	}
	four := n >= 256
	var out []byte
	var err error
	if four {
		out, _, err = huff0.Compress4X(e.lits, &e.huff)
	} else {
		out, _, err = huff0.Compress1X(e.lits, &e.huff)
	}
	switch {
	case err == huff0.ErrUseRLE:
		return append(appendLitsHeader(dst, litsRLE, n), e.lits[0])
	case err != nil || len(out)+5 >= n: // incompressible, which is no error
		return append(appendLitsHeader(dst, litsRaw, n), e.lits...)
	}
	size := len(out)
	switch {
	case !four:
		h := uint32(litsHuff | n<<4 | size<<14)
		dst = append(dst, byte(h), byte(h>>8), byte(h>>16))
	case n < 1<<10 && size < 1<<10:
		h := uint32(litsHuff | 1<<2 | n<<4 | size<<14)
		dst = append(dst, byte(h), byte(h>>8), byte(h>>16))
	case n < 1<<14:
		dst = binary.LittleEndian.AppendUint32(dst, uint32(litsHuff|2<<2|n<<4|size<<18))
	default:
		h := uint64(litsHuff | 3<<2 | n<<4 | size<<22)
		dst = binary.LittleEndian.AppendUint32(dst, uint32(h))
		dst = append(dst, byte(h>>32))
	}
	return append(dst, out...)
}

// appendLitsHeader is the header of literals that are not Huffman-coded.
func appendLitsHeader(dst []byte, kind, n int) []byte {
	switch {
	case n < 1<<5:
		return append(dst, byte(kind|n<<3))
	case n < 1<<12:
		return binary.LittleEndian.AppendUint16(dst, uint16(kind|1<<2|n<<4))
	default:
		h := uint32(kind | 3<<2 | n<<4)
		return append(dst, byte(h), byte(h>>8), byte(h>>16))
	}
}
