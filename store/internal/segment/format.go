package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	version = 1

	headerMagic  = "LBSEGMNT"
	trailerMagic = "LBSEGEND"

	headerSize  = 88
	trailerSize = 128
	tagSize     = 16
	saltSize    = 32

	pageSlots    = 256
	identitySize = 16
	entryFixed   = 8 // of a location entry: offset, raw length, kind

	// maxSealed is a whole frame stored raw.
	maxSealed = FrameSize + tagSize
	rawBit    = 1 << 15

	// lostFrame stands in place of the length of a frame whose content was lost:
	// no sealed frame is that short. It takes no bytes. Mend writes it.
	lostFrame = 1

	// maxFrames bounds the offset of a frame, which is a u32 in the table.
	maxFramesEnd = 1<<32 - 1
)

// layout is what a trailer states, and what follows from it.
type layout struct {
	frames     int // frame lengths in a location entry
	generation uint32
	number     uint64
	frameSalt  [saltSize]byte
	footerSalt [saltSize]byte
	slots      int
	framesEnd  int64 // end of the frames, from the start of the object
}

func (l *layout) pages() int           { return (l.slots + pageSlots - 1) / pageSlots }
func (l *layout) entrySize() int       { return entryFixed + 2*l.frames }
func (l *layout) copyOffset() int64    { return l.framesEnd }
func (l *layout) trailerOffset() int64 { return l.tableOffset(locations) + l.tableSize(locations) }
func (l *layout) objectSize() int64    { return l.trailerOffset() + trailerSize }

// table is one of the two tables. The value is in the nonce of its pages.
type table uint8

const (
	identities   table = 1
	locations    table = 2
	trailerNonce table = 3 // of the trailer's tag
)

func (l *layout) recordSize(t table) int {
	if t == identities {
		return identitySize
	}
	return l.entrySize()
}

func (l *layout) tableSize(t table) int64 {
	return int64(l.slots*l.recordSize(t) + l.pages()*tagSize)
}

func (l *layout) tableOffset(t table) int64 {
	off := l.copyOffset() + trailerSize
	if t == locations {
		off += l.tableSize(identities)
	}
	return off
}

// page is where page p of a table stands, sealed.
func (l *layout) page(t table, p int) (off int64, size int) {
	n := min(pageSlots, l.slots-p*pageSlots)
	rec := l.recordSize(t)
	return l.tableOffset(t) + int64(p)*int64(pageSlots*rec+tagSize), n*rec + tagSize
}

func (l *layout) name() string { return Name(l.number, l.generation) }

// appendIntro appends the 88 bytes that begin both header and trailer.
func (l *layout) appendIntro(b []byte, magic string) []byte {
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint16(b, version)
	b = binary.LittleEndian.AppendUint16(b, uint16(l.frames))
	b = binary.LittleEndian.AppendUint32(b, l.generation)
	b = binary.LittleEndian.AppendUint64(b, l.number)
	b = append(b, l.frameSalt[:]...)
	return append(b, l.footerSalt[:]...)
}

func (l *layout) header() []byte { return l.appendIntro(nil, headerMagic) }

// trailer is the sealed trailer.
func (l *layout) trailer(keys KeySource) []byte {
	b := l.appendIntro(make([]byte, 0, trailerSize), trailerMagic)
	b = binary.LittleEndian.AppendUint32(b, uint32(l.slots))
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(l.framesEnd))
	b = binary.LittleEndian.AppendUint64(b, uint64(l.objectSize()))
	var s scratch
	return newAEAD(keys, purposeFooter, l.footerSalt[:]).Seal(b, s.footerNonce(trailerNonce, 0), nil, b)
}

var (
	errMagic   = errors.New("no trailer here")
	errTag     = errors.New("authentication failed: the bytes are not what was written")
	errLayout  = errors.New("authentic, and states what cannot be")
	errVersion = fmt.Errorf("%w: this Lifeboat knows version %d; use a newer one", ErrVersion, version)
)

// parseTrailer authenticates and reads a trailer of trailerSize bytes.
func parseTrailer(keys KeySource, b []byte) (layout, error) {
	var l layout
	if len(b) != trailerSize || string(b[:8]) != trailerMagic {
		return l, errMagic
	}
	if binary.LittleEndian.Uint16(b[8:]) != version {
		return l, errVersion
	}
	copy(l.footerSalt[:], b[56:88])
	var s scratch
	aead := newAEAD(keys, purposeFooter, l.footerSalt[:])
	if _, err := aead.Open(nil, s.footerNonce(trailerNonce, 0), b[112:], b[:112]); err != nil {
		return l, errTag
	}
	l.frames = int(binary.LittleEndian.Uint16(b[10:]))
	l.generation = binary.LittleEndian.Uint32(b[12:])
	l.number = binary.LittleEndian.Uint64(b[16:])
	copy(l.frameSalt[:], b[24:56])
	slots := binary.LittleEndian.Uint32(b[88:])
	end := binary.LittleEndian.Uint64(b[96:])
	if l.frames < 1 || l.frames > MaxFrames || slots > MaxSlots || end < headerSize || end > maxFramesEnd {
		return l, errLayout
	}
	l.slots, l.framesEnd = int(slots), int64(end)
	if binary.LittleEndian.Uint32(b[92:]) != 0 || binary.LittleEndian.Uint64(b[104:]) != uint64(l.objectSize()) {
		return l, errLayout
	}
	return l, nil
}

// entry is one record of the location table.
type entry struct {
	offset uint32
	rawLen int
	kind   Kind              // 0: the slot was dropped by compaction
	lens   [MaxFrames]uint16 // sealed length of each frame, rawBit: not compressed, 0: zeros
}

func (e *entry) frameCount() int { return (e.rawLen + FrameSize - 1) / FrameSize }

// frameRaw is the length of a frame's plaintext.
func (e *entry) frameRaw(frame int) int { return min(FrameSize, e.rawLen-frame*FrameSize) }

func (e *entry) sealedLen(frame int) int {
	if e.lens[frame] == lostFrame {
		return 0
	}
	return int(e.lens[frame] &^ rawBit)
}

// allFrames is a bit for each frame of a blob.
func allFrames(rawLen int) uint16 { return uint16(1<<((rawLen+FrameSize-1)/FrameSize) - 1) }

// lost is the frames whose content was lost, a bit for each.
func (e *entry) lost() (frames uint16) {
	for i := range e.frameCount() {
		if e.lens[i] == lostFrame {
			frames |= 1 << i
		}
	}
	return frames
}

// span is where frames [from, to) stand.
func (e *entry) span(from, to int) (off int64, size int) {
	off = int64(e.offset)
	for i := range from {
		off += int64(e.sealedLen(i))
	}
	for i := from; i < to; i++ {
		size += e.sealedLen(i)
	}
	return off, size
}

func (e *entry) stored() int {
	_, n := e.span(0, e.frameCount())
	return n
}

func (e *entry) append(b []byte, frames int) []byte {
	b = binary.LittleEndian.AppendUint32(b, e.offset)
	b = binary.LittleEndian.AppendUint32(b, uint32(e.rawLen)|uint32(e.kind)<<24)
	for _, n := range e.lens[:frames] {
		b = binary.LittleEndian.AppendUint16(b, n)
	}
	return b
}

// parseEntry reads a location record and checks that it can be true. b has
// l.entrySize() bytes and is authentic; the checks bound what follows from it
// even so.
func (l *layout) parseEntry(b []byte) (entry, error) {
	word := binary.LittleEndian.Uint32(b[4:])
	e := entry{offset: binary.LittleEndian.Uint32(b), rawLen: int(word & 0xffffff), kind: Kind(word >> 24)}
	for i := range l.frames {
		e.lens[i] = binary.LittleEndian.Uint16(b[entryFixed+2*i:])
	}
	if e.kind == 0 {
		if len(bytes.TrimLeft(b, "\x00")) != 0 {
			return entry{}, errLayout
		}
		return e, nil
	}
	if !e.kind.valid() || e.rawLen == 0 || e.rawLen > l.frames*FrameSize || e.check(l) != nil {
		return entry{}, errLayout
	}
	return e, nil
}

func (e *entry) check(l *layout) error {
	for i := range l.frames {
		n, raw := e.sealedLen(i), e.lens[i]&rawBit != 0
		switch {
		case i < e.frameCount() && e.lens[i] == lostFrame:
		case i >= e.frameCount() || n == 0:
			if e.lens[i] != 0 {
				return errLayout
			}
		case raw && n != e.frameRaw(i)+tagSize, n <= tagSize, n > e.frameRaw(i)+tagSize:
			return errLayout
		}
	}
	if off, n := e.span(0, e.frameCount()); off < headerSize || off+int64(n) > l.framesEnd {
		return errLayout
	}
	return nil
}
