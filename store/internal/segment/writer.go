package segment

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"lifeboat/store/backend"
)

// flushAt is the size of the writes to the backend, in bytes.
const flushAt = 1 << 20

// Writer writes one segment. It is for one goroutine. After an error every
// further Append and Commit fails with it, and only Abort is left to do.
type Writer struct {
	out    backend.Writer
	keys   KeySource
	lay    layout
	aead   cipher.AEAD // of frames
	target int64
	s      scratch

	buf       []byte // not written yet
	written   int64
	idents    []byte // identity table, plain
	locs      []byte // location table, plain
	err       error
	committed bool
}

var (
	errNumber = errors.New("segment number out of range")
	errSpent  = errors.New("segment writer was committed or aborted already")
)

// NewWriter starts segment number (1…MaxNumber), generation 0. ctx governs the
// writing until Commit.
func NewWriter(ctx context.Context, b backend.Backend, keys KeySource, number uint64, o WriterOptions) (*Writer, error) {
	if number == 0 || number > MaxNumber {
		return nil, fmt.Errorf("segment: %x: %w", number, errNumber)
	}
	lay := layout{number: number, frames: o.FramesPerSlot}
	if lay.frames == 0 {
		lay.frames = 4
	}
	if lay.frames < 1 || lay.frames > MaxFrames {
		return nil, fmt.Errorf("segment: %d frames per slot, not 1…%d", lay.frames, MaxFrames)
	}
	if err := o.fill(lay.frameSalt[:]); err != nil {
		return nil, err
	}
	return startWriter(ctx, b, keys, lay, o)
}

// fill draws a salt.
func (o *WriterOptions) fill(salt []byte) error {
	r := o.Rand
	if r == nil {
		r = rand.Reader
	}
	if _, err := io.ReadFull(r, salt); err != nil {
		return fmt.Errorf("segment: cannot draw a salt: %w", err)
	}
	return nil
}

// startWriter starts the object of lay, whose frame salt is set.
func startWriter(ctx context.Context, b backend.Backend, keys KeySource, lay layout, o WriterOptions) (*Writer, error) {
	if err := o.fill(lay.footerSalt[:]); err != nil {
		return nil, err
	}
	out, err := b.Create(ctx, lay.name(), backend.Exclusive)
	if err != nil {
		return nil, fmt.Errorf("segment: cannot create %s: %w", lay.name(), err)
	}
	target := o.TargetSize
	if target <= 0 {
		target = TargetSize
	}
	w := &Writer{
		out: out, keys: keys, lay: lay, target: min(target, 1<<30),
		aead: newAEAD(keys, purposeFrames, lay.frameSalt[:]),
		buf:  make([]byte, 0, flushAt+MaxFrames*maxSealed),
	}
	w.buf = append(w.buf, lay.header()...)
	return w, nil
}

// Append seals and writes a blob and returns its address. It does not release p.
func (w *Writer) Append(p *Packed) (Addr, error) {
	switch {
	case w.err != nil:
		return 0, w.err
	case p.err != nil:
		return 0, p.err
	case p.rawLen > w.lay.frames*FrameSize:
		return 0, fmt.Errorf("segment: a blob of %d bytes does not fit a slot of %d frames", p.rawLen, w.lay.frames)
	case w.lay.slots >= MaxSlots || w.Stored()+int64(p.StoredLen()) > maxFramesEnd:
		return 0, fmt.Errorf("segment: %s is full", w.lay.name())
	}
	slot := w.lay.slots
	e := entry{offset: uint32(w.Stored()), rawLen: p.rawLen, kind: p.Kind}
	rest := p.buf
	for i, l := range p.lens[:e.frameCount()] {
		if l == 0 {
			continue
		}
		n, raw := int(l&^rawBit), l&rawBit
		w.buf = w.aead.Seal(w.buf, w.s.frameNonce(slot, i), rest[:n], w.s.frameAAD(w.lay.number, p.Kind, raw != 0))
		e.lens[i] = uint16(n+tagSize) | raw
		rest = rest[n:]
	}
	w.addSlot(e, p.ID)
	return MakeAddr(w.lay.number, slot), w.flush(flushAt)
}

// addSlot enters the next slot in both tables.
func (w *Writer) addSlot(e entry, id Identity) {
	w.locs = e.append(w.locs, w.lay.frames)
	w.idents = append(w.idents, id[:]...)
	w.lay.slots++
}

// flush writes the buffer out once it holds at least atLeast bytes.
func (w *Writer) flush(atLeast int) error {
	if w.err != nil || len(w.buf) < atLeast {
		return w.err
	}
	if _, err := w.out.Write(w.buf); err != nil {
		w.err = fmt.Errorf("segment: cannot write %s: %w", w.lay.name(), err)
		return w.err
	}
	w.written += int64(len(w.buf))
	w.buf = w.buf[:0]
	return nil
}

// Stored is the number of bytes written so far, tables not included.
func (w *Writer) Stored() int64 { return w.written + int64(len(w.buf)) }

// Slots is the number of blobs so far.
func (w *Writer) Slots() int { return w.lay.slots }

// Full reports that the next blob belongs in another segment.
func (w *Writer) Full() bool { return w.Stored() >= w.target || w.lay.slots >= MaxSlots }

// Commit writes the tables and publishes the object, durably. It fails with
// fs.ErrExist where the object exists already.
func (w *Writer) Commit(ctx context.Context) (Info, error) {
	if w.err != nil {
		return Info{}, w.err
	}
	w.lay.framesEnd = w.Stored()
	trailer := w.lay.trailer(w.keys)
	w.buf = append(w.buf, trailer...)
	footer := newAEAD(w.keys, purposeFooter, w.lay.footerSalt[:])
	w.sealTable(footer, identities, w.idents)
	w.sealTable(footer, locations, w.locs)
	w.buf = append(w.buf, trailer...)
	if err := w.flush(1); err != nil {
		return Info{}, err
	}
	err := w.out.Commit(ctx)
	w.err = errSpent
	if err != nil {
		return Info{}, fmt.Errorf("segment: cannot commit %s: %w", w.lay.name(), err)
	}
	w.committed = true
	return Info{Name: w.lay.name(), Number: w.lay.number, Generation: w.lay.generation, Size: w.written, Slots: w.lay.slots}, nil
}

func (w *Writer) sealTable(footer cipher.AEAD, t table, plain []byte) {
	size := pageSlots * w.lay.recordSize(t)
	for p := 0; len(plain) > 0; p++ {
		n := min(size, len(plain))
		w.buf = footer.Seal(w.buf, w.s.footerNonce(t, p), plain[:n], w.s.pageAAD(w.lay.number, w.lay.generation))
		plain = plain[n:]
	}
}

// Abort drops the segment. After Commit it does nothing.
func (w *Writer) Abort() {
	w.err = errSpent
	if !w.committed {
		w.out.Abort()
	}
}
