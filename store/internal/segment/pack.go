package segment

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Packer compresses blobs, frame by frame. One per goroutine.
//
// It uses zstd's default level: on frames of 16 KiB the fastest one stores 4 to
// 6 % more for a quarter less time, and what is stored stays.
type Packer struct {
	enc  encoder
	dec  *zstd.Decoder
	back []byte     // what dec makes of a frame
	pool *sync.Pool // of *Packed; a Packed is released on another goroutine
}

// encoder appends the zstd frame of src to dst.
type encoder interface {
	EncodeAll(src, dst []byte) []byte
}

// NewPacker returns a Packer.
func NewPacker() *Packer {
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedDefault),
		zstd.WithWindowSize(FrameSize),
		zstd.WithSingleSegment(true),
		zstd.WithLowerEncoderMem(true),
		zstd.WithEncoderCRC(false), // the GCM tag is the checksum
		zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic("segment: zstd options: " + err.Error()) // constants: cannot happen
	}
	return &Packer{
		enc: enc, dec: newDecoder().zstd, back: make([]byte, 0, FrameSize+decodeSlack),
		pool: &sync.Pool{New: func() any { return new(Packed) }},
	}
}

// Packed is a compressed blob, not sealed yet. Whoever holds it last calls
// Release.
type Packed struct {
	Kind Kind
	ID   Identity

	rawLen int
	lens   [MaxFrames]uint16 // compressed length, without tag; rawBit as in the table
	buf    []byte            // the frames
	err    error             // what is wrong with the blob; Append reports it
	home   *sync.Pool
}

// Pack compresses plain, a blob of at most MaxFrames frames. The result does
// not refer to plain.
func (p *Packer) Pack(kind Kind, id Identity, plain []byte) *Packed {
	out := p.pool.Get().(*Packed)
	*out = Packed{Kind: kind, ID: id, rawLen: len(plain), buf: out.buf[:0], home: p.pool}
	if !kind.valid() || len(plain) == 0 || len(plain) > MaxFrames*FrameSize {
		out.err = fmt.Errorf("segment: a blob of %d bytes and %v cannot be stored", len(plain), kind)
		return out
	}
	for i := 0; len(plain) > 0; i++ {
		n := min(FrameSize, len(plain))
		out.lens[i] = p.frame(out, plain[:n])
		plain = plain[n:]
	}
	return out
}

// frame appends one frame, compressed or as it is, and returns its length.
func (p *Packer) frame(out *Packed, plain []byte) uint16 {
	if IsZero(plain) {
		return 0
	}
	start := len(out.buf)
	if !looksRandom(plain) {
		out.buf = p.enc.EncodeAll(plain, out.buf)
		// To save less than 6 % would not be worth the decoding.
		if n := len(out.buf) - start; n <= len(plain)*94/100 && p.reads(out.buf[start:], plain) {
			return uint16(n)
		}
	}
	out.buf = append(out.buf[:start], plain...)
	return uint16(len(plain)) | rawBit
}

// reads reports whether a compressed frame reads as what it was made of. It is
// asked of every frame before it is stored: neither a mistake in the encoder nor
// one of the processor or the memory becomes a backup that cannot be read.
func (p *Packer) reads(frame, plain []byte) bool {
	got, err := p.dec.DecodeAll(frame, p.back[:0])
	return err == nil && bytes.Equal(got, plain)
}

const (
	sampleRun   = 32 // bytes in a row, so that no stride of the data is in step
	sampleCount = 512
	// randomSquares is what the squares of the byte counts of 512 random bytes
	// add up to (mean 1534, standard deviation 45), with five deviations to
	// spare. A skew that zstd could use to save 6 % gives far more.
	randomSquares = 1760
)

// looksRandom reports whether a whole frame is encrypted or compressed data, by
// the distribution of a sample of its bytes: trying to compress it would cost
// four times the rest of storing it.
func looksRandom(frame []byte) bool {
	if len(frame) != FrameSize {
		return false
	}
	var counts [256]uint16
	const stride = FrameSize / (sampleCount / sampleRun)
	for at := 0; at < FrameSize; at += stride {
		for _, c := range frame[at : at+sampleRun] {
			counts[c]++
		}
	}
	squares := 0
	for _, n := range counts {
		squares += int(n) * int(n)
	}
	return squares < randomSquares
}

// RawLen is the length of the plaintext in bytes.
func (p *Packed) RawLen() int { return p.rawLen }

// StoredLen is what the blob's frames will take in the segment, in bytes.
func (p *Packed) StoredLen() int {
	n := len(p.buf)
	for _, l := range p.lens {
		if l != 0 {
			n += tagSize
		}
	}
	return n
}

// Release gives the memory back for another Pack. Append does not do so.
func (p *Packed) Release() {
	if home := p.home; home != nil {
		p.home = nil
		home.Put(p)
	}
}
