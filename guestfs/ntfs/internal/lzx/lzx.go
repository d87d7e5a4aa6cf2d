// Package lzx decompresses LZX as WIM files and WOF use it: chunks of 32 KiB,
// each on its own, the window as large as the chunk. What is known of the
// format is in [MS-PATCH] and in the WIM specification; where WIM differs from
// cabinets (blocks' sizes, the translation of calls) is known from wimlib's
// documentation.
package lzx

import (
	"encoding/binary"

	"lifeboat/guestfs/ntfs/internal/lz"
)

const (
	// ChunkSize is the most that a chunk decompresses to, in bytes.
	ChunkSize = 32 << 10

	slots       = 30 // classes of distances within 32 KiB
	mainSymbols = 256 + 8*slots
	lenSymbols  = 249
	preSymbols  = 20
	minMatch    = 2
	longMatch   = 7 // more of the length follows

	blockVerbatim     = 1
	blockAligned      = 2
	blockUncompressed = 3
)

// Decoder decompresses chunks, one at a time. Its zero value is ready.
type Decoder struct {
	in                  reader
	recent              [3]int
	mainLen             [mainSymbols]byte
	lenLen              [lenSymbols]byte
	main, length, align lz.Code
	pre                 lz.Code
}

// reader reads words of 16 bits, most significant bit first.
type reader struct {
	src  []byte
	at   int
	bits uint64 // those that are left are the lowest
	left uint
}

// need makes at least 16 bits available; behind the end there are zeros.
func (r *reader) need() {
	if r.left < 16 {
		r.bits <<= 16
		if r.at+2 <= len(r.src) {
			r.bits |= uint64(binary.LittleEndian.Uint16(r.src[r.at:]))
		}
		r.at, r.left = r.at+2, r.left+16
	}
}

// take reads up to 16 bits.
func (r *reader) take(n uint) int {
	r.need()
	r.left -= n
	return int(r.bits>>r.left) & (1<<n - 1)
}

// symbol decodes one by a code; ok is false where there is none.
func (r *reader) symbol(c *lz.Code) (symbol int, ok bool) {
	r.need()
	s, n := c.Next(uint32(r.bits>>(r.left-16)) & 0xffff)
	r.left -= uint(n)
	return int(s), n > 0
}

// over reports whether more was read than there is.
func (r *reader) over() bool { return r.at > len(r.src)+4 }

// Decode decompresses a chunk that fills dst. lz.ErrCorrupt where src is none.
func (d *Decoder) Decode(dst, src []byte) error {
	if len(dst) > ChunkSize {
		return lz.ErrCorrupt
	}
	d.in = reader{src: src}
	d.recent = [3]int{1, 1, 1}
	clear(d.mainLen[:])
	clear(d.lenLen[:])
	for n := 0; n < len(dst); {
		kind, size := d.in.take(3), ChunkSize
		if d.in.take(1) == 0 {
			size = d.in.take(16)
		}
		if size == 0 || size > len(dst)-n {
			return lz.ErrCorrupt
		}
		var err error
		switch kind {
		case blockVerbatim, blockAligned:
			err = d.block(dst, n, n+size, kind == blockAligned)
		case blockUncompressed:
			err = d.raw(dst[n : n+size])
		default:
			err = lz.ErrCorrupt
		}
		if err != nil {
			return err
		}
		n += size
	}
	untranslate(dst)
	return nil
}

// raw copies a block that is not compressed.
func (d *Decoder) raw(dst []byte) error {
	r := &d.in
	if r.left == 0 { // where the words end at this bit, one is left out
		r.need()
	}
	r.at -= int(r.left / 16 * 2)
	r.left, r.bits = 0, 0
	if r.at+12+len(dst) > len(r.src) {
		return lz.ErrCorrupt
	}
	for i := range d.recent {
		n := binary.LittleEndian.Uint32(r.src[r.at+4*i:])
		if n == 0 || n > ChunkSize {
			return lz.ErrCorrupt
		}
		d.recent[i] = int(n)
	}
	r.at += 12
	copy(dst, r.src[r.at:])
	r.at += (len(dst) + 1) &^ 1
	return nil
}

// codes reads the codes of a block. Lengths are told by how they differ from
// those of the block before.
func (d *Decoder) codes(aligned bool) error {
	if aligned {
		var lengths [8]byte
		for i := range lengths {
			lengths[i] = byte(d.in.take(3))
		}
		if err := d.align.Build(lengths[:]); err != nil {
			return err
		}
	}
	for _, part := range [...][]byte{d.mainLen[:256], d.mainLen[256:]} {
		if err := d.lengths(part); err != nil {
			return err
		}
	}
	if err := d.main.Build(d.mainLen[:]); err != nil {
		return err
	}
	if err := d.lengths(d.lenLen[:]); err != nil {
		return err
	}
	return d.length.Build(d.lenLen[:])
}

// lengths reads lengths of codes, which are compressed themselves.
func (d *Decoder) lengths(lengths []byte) error {
	var pre [preSymbols]byte
	for i := range pre {
		pre[i] = byte(d.in.take(4))
	}
	if err := d.pre.Build(pre[:]); err != nil {
		return err
	}
	const zeros, manyZeros, same = 17, 18, 19
	delta := func(old byte, symbol int) (byte, bool) {
		n := int(old) - symbol
		if n < 0 {
			n += 17
		}
		return byte(n), symbol <= 16
	}
	for i := 0; i < len(lengths); {
		symbol, ok := d.in.symbol(&d.pre)
		if !ok || d.in.over() {
			return lz.ErrCorrupt
		}
		run, value := 1, byte(0)
		switch symbol {
		case zeros:
			run = 4 + d.in.take(4)
		case manyZeros:
			run = 20 + d.in.take(5)
		case same:
			run = 4 + d.in.take(1)
			if symbol, ok = d.in.symbol(&d.pre); !ok {
				return lz.ErrCorrupt
			}
			value, ok = delta(lengths[i], symbol)
		default:
			value, ok = delta(lengths[i], symbol)
		}
		if !ok {
			return lz.ErrCorrupt
		}
		for ; run > 0 && i < len(lengths); run, i = run-1, i+1 {
			lengths[i] = value
		}
	}
	return nil
}

// block decompresses dst from n to end.
func (d *Decoder) block(dst []byte, n, end int, aligned bool) error {
	if err := d.codes(aligned); err != nil {
		return err
	}
	for n < end {
		symbol, ok := d.in.symbol(&d.main)
		if !ok || d.in.over() {
			return lz.ErrCorrupt
		}
		if symbol < 256 {
			dst[n] = byte(symbol)
			n++
			continue
		}
		size := symbol & 7
		if size == longMatch {
			more, ok := d.in.symbol(&d.length)
			if !ok {
				return lz.ErrCorrupt
			}
			size += more
		}
		size += minMatch
		back, ok := d.distance((symbol-256)>>3, aligned)
		if !ok || back > n || size > end-n {
			return lz.ErrCorrupt
		}
		lz.Repeat(dst, n, back, size)
		n += size
	}
	return nil
}

// distance says how far back a match of a class is. The first three classes are
// the latest distances again.
func (d *Decoder) distance(slot int, aligned bool) (int, bool) {
	if slot < len(d.recent) {
		back := d.recent[slot]
		d.recent[slot], d.recent[0] = d.recent[0], back
		return back, true
	}
	extra := uint(max(0, slot/2-1))
	back := slot
	if slot >= 4 {
		back = (2 | slot&1) << extra
	}
	if aligned && extra >= 3 {
		back += d.in.take(extra-3) << 3
		low, ok := d.in.symbol(&d.align)
		if !ok {
			return 0, false
		}
		back += low
	} else {
		back += d.in.take(extra)
	}
	back -= 2 // the first classes
	d.recent = [3]int{back, d.recent[0], d.recent[1]}
	return back, true
}

// untranslate undoes what makes code for x86 compress better: the targets of
// calls (E8) had been made absolute, as in a file of 12,000,000 bytes.
func untranslate(b []byte) {
	const fileSize, tail, call = 12_000_000, 10, 0xe8
	for i := 0; i < len(b)-tail; i++ {
		if b[i] != call {
			continue
		}
		p := b[i+1 : i+5]
		switch target := int32(binary.LittleEndian.Uint32(p)); {
		case target >= 0 && target < fileSize:
			binary.LittleEndian.PutUint32(p, uint32(target-int32(i)))
		case target < 0 && target >= -int32(i):
			binary.LittleEndian.PutUint32(p, uint32(target+fileSize))
		}
		i += 4
	}
}
