package segment

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// decodeSlack is room behind a frame that lets the decompressor copy in whole
// words up to the end, which saves it a slower, careful path: 10 % of a read.
const decodeSlack = 64

// decoder opens and decompresses frames. It is for one goroutine at a time.
type decoder struct {
	scratch
	entry entry // of the blob being read
	zstd  *zstd.Decoder
}

func newDecoder() *decoder {
	dec, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxMemory(FrameSize),
		zstd.WithDecoderMaxWindow(FrameSize),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic("segment: zstd options: " + err.Error()) // constants: cannot happen
	}
	d := &decoder{zstd: dec}
	d.plain = make([]byte, 0, FrameSize+decodeSlack)
	return d
}

// read reads frames [from, to) of a blob, which lie side by side, with one I/O.
// Of dst, bytes beyond those asked for may be overwritten.
func (d *decoder) read(o *object, slot int, e *entry, from, to int, dst []byte) (int, error) {
	want := 0
	for i := from; i < to; i++ {
		want += e.frameRaw(i)
	}
	if len(dst) < want {
		return 0, shortBuffer(len(dst), want)
	}
	off, size := e.span(from, to)
	if cap(d.sealed) < size {
		d.sealed = make([]byte, max(size, maxSealed))
	}
	sealed := d.sealed[:size]
	if size > 0 {
		if err := o.read(sealed, off); err != nil {
			return 0, located(err, o, slot, from, to, e)
		}
	}
	for i := from; i < to; i++ {
		n := e.sealedLen(i)
		if err := d.frame(o, slot, e, i, sealed[:n], dst); err != nil {
			return 0, o.frameDamage(slot, i, e, err)
		}
		sealed, dst = sealed[n:], dst[e.frameRaw(i):]
	}
	return want, nil
}

var errLength = errors.New("does not decompress to its length")

// frame opens one frame, in place, and decompresses it to the start of dst,
// which has room for it. Where dst has room to spare, some of that is
// overwritten, and a copy is saved.
func (d *decoder) frame(o *object, slot int, e *entry, frame int, sealed, dst []byte) error {
	want := e.frameRaw(frame)
	if e.lens[frame] == lostFrame {
		return ErrLost
	}
	if len(sealed) == 0 {
		clear(dst[:want])
		return nil
	}
	raw := e.lens[frame]&rawBit != 0
	plain, err := o.frames.Open(sealed[:0], d.frameNonce(slot, frame), sealed, d.frameAAD(o.lay.number, e.kind, raw))
	if err != nil {
		return errTag
	}
	if !raw {
		room := d.plain[:0]
		if len(dst) >= want+decodeSlack {
			room = dst[: 0 : want+decodeSlack]
		}
		if plain, err = d.zstd.DecodeAll(plain, room); err != nil {
			return fmt.Errorf("authentic, and does not decompress: %w", err)
		}
	}
	if len(plain) != want {
		return errLength
	}
	copy(dst, plain) // nothing where it is there already
	return nil
}

// located adds to damage found while reading which blob it concerns.
func located(err error, o *object, slot, from, to int, e *entry) error {
	var d *DamageError
	if !errors.As(err, &d) {
		return err
	}
	frame := -1
	if to == from+1 {
		frame = from
	}
	return o.frameDamage(slot, frame, e, d.Err)
}
