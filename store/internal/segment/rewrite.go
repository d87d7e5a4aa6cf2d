package segment

import (
	"context"
	"errors"
	"fmt"

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

// copyPage copies the live slots of one table page, and reports whether there
// were any.
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
	for slot := p * pageSlots; slot < min((p+1)*pageSlots, src.lay.slots); slot++ {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		e, err := src.entry(loc, slot)
		if err != nil {
			return false, err
		}
		if e.kind == 0 || !live(slot) {
			w.addSlot(entry{}, Identity{})
			continue
		}
		kept = true
		if err := w.copySlot(src, slot, &e, src.slot(slot, &e, ids).Identity); err != nil {
			return false, err
		}
	}
	return kept, nil
}

func (w *Writer) copySlot(src *object, slot int, e *entry, id Identity) error {
	off, size := e.span(0, e.frameCount())
	e.offset = uint32(w.Stored())
	at := len(w.buf)
	w.buf = append(w.buf, make([]byte, size)...)
	if err := src.read(w.buf[at:], off); err != nil {
		return located(err, src, slot, 0, e.frameCount(), e)
	}
	w.addSlot(*e, id)
	return w.flush(flushAt)
}
