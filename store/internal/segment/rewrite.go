package segment

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"lifeboat/store/backend"
)

// ErrNothingLive: no slot of the segment is in use, remove it instead.
var ErrNothingLive = errors.New("no slot is in use")

// Rewrite writes the next generation of a segment with those slots only for
// which live is true. Slot numbers, and so addresses, stay; frames are copied
// as they are, sealed. The old object is left for the caller to remove once
// nobody needs it. Of several that rewrite the same object one wins, the
// others fail with fs.ErrExist.
//
// A segment with damage in its tables, or cut short, is not rewritten: that is
// a *DamageError.
func Rewrite(ctx context.Context, b backend.Backend, keys KeySource, object string, live func(slot int) bool, o WriterOptions) (Info, error) {
	src, err := openObject(ctx, b, keys, object)
	if err != nil {
		return Info{}, err
	}
	defer src.obj.Close()
	lay := layout{number: src.lay.number, generation: src.lay.generation + 1, frames: src.lay.frames, frameSalt: src.lay.frameSalt}
	if lay.generation == 0 {
		return Info{}, fmt.Errorf("segment: %s is the last generation there can be", object)
	}
	w, err := startWriter(ctx, b, keys, lay, o)
	if err != nil {
		return Info{}, err
	}
	defer w.Abort()
	used := false
	for p := range src.lay.pages() {
		kept, err := w.copyPage(ctx, src, p, live)
		if err != nil {
			return Info{}, err
		}
		used = used || kept
	}
	if !used {
		return Info{}, fmt.Errorf("segment: %s: %w", object, ErrNothingLive)
	}
	return w.Commit(ctx)
}

// copyAhead bounds what is read at once, in bytes.
const copyAhead = 4 << 20

// copyPage copies the live slots of one table page, and reports whether there
// were any. Slots whose frames stand side by side are read together.
func (w *Writer) copyPage(ctx context.Context, src *object, p int, live func(int) bool) (bool, error) {
	loc, err := src.tablePage(locations, p)
	if err != nil {
		return false, err
	}
	ids, err := src.tablePage(identities, p)
	if err != nil {
		return false, err
	}
	kept := false
	run := copyRun{w: w, src: src}
	for slot := p * pageSlots; slot < min((p+1)*pageSlots, src.lay.slots); slot++ {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		e, err := src.entry(loc, slot)
		if err != nil {
			return false, err
		}
		if e.kind == 0 || !live(slot) {
			run.slots = append(run.slots, copySlot{})
			continue
		}
		kept = true
		if err := run.add(slot, e, src.slot(slot, &e, ids).Identity); err != nil {
			return false, err
		}
	}
	return kept, run.copy()
}

// copyRun is slots whose frames stand side by side, dropped ones in between.
type copyRun struct {
	w         *Writer
	src       *object
	slots     []copySlot
	off, size int64
	first     int // slot
}

type copySlot struct {
	entry entry // kind 0: dropped
	id    Identity
}

func (r *copyRun) add(slot int, e entry, id Identity) error {
	off, size := e.span(0, e.frameCount())
	if r.size > 0 && (off != r.off+r.size || r.size+int64(size) > copyAhead) {
		if err := r.copy(); err != nil {
			return err
		}
	}
	if r.size == 0 {
		r.off, r.first = off, slot
	}
	r.size += int64(size)
	e.offset = uint32(r.w.Stored() + off - r.off)
	r.slots = append(r.slots, copySlot{e, id})
	return nil
}

// copy reads the run's bytes and enters its slots.
func (r *copyRun) copy() error {
	w, at := r.w, len(r.w.buf)
	w.buf = slices.Grow(w.buf, int(r.size))[:at+int(r.size)]
	if err := r.src.read(w.buf[at:], r.off); err != nil {
		w.buf = w.buf[:at]
		var d *DamageError
		if errors.As(err, &d) {
			d.Addr = MakeAddr(r.src.lay.number, r.first)
		}
		return err
	}
	for _, s := range r.slots {
		w.addSlot(s.entry, s.id)
	}
	r.slots, r.size = r.slots[:0], 0
	return w.flush(flushAt)
}

// Weight is what of a segment is in use.
type Weight struct {
	Live, Dead int64  // stored bytes of the slots that are needed, and of the others
	Slots      []byte // the others: bit s%8 of byte s/8 is slot s
}

// Weigh finds out from the location table of an object what the slots for which
// needed is true take, and what the others do.
func Weigh(ctx context.Context, b backend.Backend, keys KeySource, object string, needed func(slot int) bool) (Weight, error) {
	var w Weight
	o, err := openObject(ctx, b, keys, object)
	if err != nil {
		return w, err
	}
	defer o.obj.Close()
	w.Slots = make([]byte, (o.lay.slots+7)/8)
	for p := range o.lay.pages() {
		if err := ctx.Err(); err != nil {
			return w, err
		}
		loc, err := o.tablePage(locations, p)
		if err != nil {
			return w, err
		}
		for slot := p * pageSlots; slot < min((p+1)*pageSlots, o.lay.slots); slot++ {
			e, err := o.entry(loc, slot)
			switch {
			case err != nil:
				return w, err
			case e.kind == 0:
			case needed(slot):
				w.Live += int64(e.stored())
			default:
				w.Dead += int64(e.stored())
				w.Slots[slot/8] |= 1 << (slot % 8)
			}
		}
	}
	return w, nil
}
