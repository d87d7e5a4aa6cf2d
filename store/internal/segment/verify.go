package segment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"lifeboat/store/backend"
)

// VerifyOptions says how thoroughly to verify. The zero value is every byte.
type VerifyOptions struct {
	// Slots, if not nil, chooses the slots whose frames are read. Header, both
	// trailers and all tables are always checked, and so is whether the frames
	// fill the object without gaps.
	Slots func(slot int) bool
	// Wait, if not nil, is asked before n bytes are read: a rate limit.
	Wait func(ctx context.Context, n int) error
}

// Verify checks every byte of an object: that each frame opens, decompresses
// and has the identity that the table states, that tables, header and both
// trailers are what was written, and that there is nothing else in the object.
// It reports each damage found, in no particular order, and goes on. The error
// is of the check itself: the object cannot be read, its version is unknown,
// ctx was cancelled.
func Verify(ctx context.Context, b backend.Backend, keys KeySource, object string, report func(*DamageError)) error {
	return VerifyPart(ctx, b, keys, object, VerifyOptions{}, report)
}

// VerifyPart is Verify of as many bytes as o asks for.
func VerifyPart(ctx context.Context, b backend.Backend, keys KeySource, object string, o VerifyOptions, report func(*DamageError)) error {
	obj, err := openObject(ctx, b, keys, object)
	var d *DamageError
	switch {
	case errors.As(err, &d):
		report(d)
		return nil
	case errors.Is(err, fs.ErrNotExist):
		report(&DamageError{Object: object, Part: PartObject, Frame: -1, Page: -1, Err: err})
		return nil
	case err != nil:
		return err
	}
	defer obj.obj.Close()
	v := newVerifier(obj, keys, report)
	v.wait = o.Wait
	if err := v.surroundings(keys); err != nil {
		return err
	}
	for p := range obj.lay.pages() {
		if err := v.page(ctx, p, o.Slots); err != nil {
			return err
		}
	}
	v.gap(obj.lay.framesEnd)
	return nil
}

func isDamage(err error) bool { return errors.Is(err, ErrDamaged) }

// readAhead is how much a verification reads at a time, in bytes: enough for
// storage that takes long to answer.
const readAhead = 4 << 20

// closeBy is the gap between two wanted slots that is read over, in bytes.
const closeBy = 128 << 10

// verifier goes through one object front to back.
type verifier struct {
	*object
	keys   KeySource
	report func(*DamageError)
	wait   func(ctx context.Context, n int) error
	dec    *decoder // made when the first frame is read
	hash   *Hasher

	next  int64 // where the next frame must begin; unknown (-1) after a damaged page
	ahead []byte
	start int64 // offset of ahead in the object
	until int64 // offset up to which bytes are wanted
	alone bool  // reading ahead ran into damage
	block []byte
}

func newVerifier(o *object, keys KeySource, report func(*DamageError)) *verifier {
	return &verifier{object: o, keys: keys, report: report, next: headerSize, until: o.lay.framesEnd}
}

// pass reports damage and hands on other errors.
func (v *verifier) pass(err error) error {
	var d *DamageError
	if errors.As(err, &d) {
		v.report(d)
		return nil
	}
	return err
}

// surroundings checks what surrounds frames and tables.
func (v *verifier) surroundings(keys KeySource) error {
	if have, want := v.obj.Size(), v.lay.objectSize(); have > want {
		v.report(v.damage(PartObject, want, have-want, errors.New("bytes were added at the end")))
	} else if have < want {
		v.report(v.damage(PartObject, have, want-have, errors.New("bytes are missing at the end")))
	}
	trailer := v.lay.trailer(keys)
	for _, c := range []struct {
		part Part
		off  int64
		want []byte
	}{
		{PartHeader, 0, v.lay.header()},
		{PartTrailerCopy, v.lay.copyOffset(), trailer},
		{PartTrailer, v.lay.trailerOffset(), trailer},
	} {
		got := make([]byte, len(c.want))
		err := v.read(got, c.off)
		if err == nil && !bytes.Equal(got, c.want) {
			err = v.damage(c.part, c.off, int64(len(got)), errTag)
		}
		if err := v.pass(err); err != nil {
			return err
		}
	}
	return nil
}

// page checks one page of both tables and those of its blobs that are wanted.
func (v *verifier) page(ctx context.Context, p int, wanted func(slot int) bool) error {
	ids, err := v.tablePage(identities, p)
	if err := v.pass(err); err != nil {
		return err
	}
	loc, err := v.tablePage(locations, p)
	if err != nil {
		v.next = -1
		return v.pass(err)
	}
	first, end := p*pageSlots, min((p+1)*pageSlots, v.lay.slots)
	for slot := first; slot < end; slot++ {
		e, err := v.entry(loc, slot)
		if err != nil {
			v.next = -1
			v.report(err.(*DamageError)) //nolint:errorlint // entry returns nothing else
			continue
		}
		if e.kind == 0 {
			continue
		}
		off, size := e.span(0, e.frameCount())
		v.gap(off)
		v.next = off + int64(size)
		if wanted != nil && !wanted(slot) {
			v.marks(slot, &e)
			continue
		}
		if off+int64(size) > v.start+int64(len(v.ahead)) {
			v.until = v.runEnd(loc, slot, end, wanted)
		}
		if err := v.blob(ctx, slot, &e, ids); err != nil {
			return err
		}
	}
	return nil
}

// runEnd is where the run of wanted frames that begins with slot ends: reading
// ahead of it would be for nothing.
func (v *verifier) runEnd(loc []byte, slot, end int, wanted func(int) bool) int64 {
	if wanted == nil {
		return v.lay.framesEnd
	}
	until := int64(0)
	for ; slot < end; slot++ {
		e, err := v.entry(loc, slot)
		if err != nil || e.kind == 0 || !wanted(slot) {
			continue
		}
		off, size := e.span(0, e.frameCount())
		if until > 0 && off-until > closeBy {
			break
		}
		until = off + int64(size)
	}
	return until
}

// marks reports the frames that a repair marked as lost.
func (v *verifier) marks(slot int, e *entry) {
	lost := e.lost()
	if lost != 0 && lost == allFrames(e.rawLen) {
		v.report(v.frameDamage(slot, -1, e, ErrLost))
		return
	}
	for i := range e.frameCount() {
		if lost&(1<<i) != 0 {
			v.report(v.frameDamage(slot, i, e, ErrLost))
		}
	}
}

// blob checks one blob. ids is its identity page, nil if that is damaged.
func (v *verifier) blob(ctx context.Context, slot int, e *entry, ids []byte) error {
	off, size := e.span(0, e.frameCount())
	sealed, err := v.bytes(ctx, off, size)
	if err != nil {
		return v.pass(located(err, v.object, slot, 0, e.frameCount(), e))
	}
	if v.dec == nil {
		v.dec, v.hash = newDecoder(), NewHasher(v.keys)
		v.block = make([]byte, MaxFrames*FrameSize)
	}
	plain, good := v.block[:e.rawLen], e.lost() == 0
	v.marks(slot, e)
	for i := range e.frameCount() {
		n := e.sealedLen(i)
		if e.lens[i] == lostFrame {
			continue
		}
		if err := v.dec.frame(v.object, slot, e, i, sealed[:n], plain[i*FrameSize:]); err != nil {
			v.report(v.frameDamage(slot, i, e, err))
			good = false
		}
		sealed = sealed[n:]
	}
	if good && ids != nil {
		want := v.slot(slot, e, ids).Identity
		if got := v.hash.Identity(e.kind, plain); got != want {
			v.report(v.frameDamage(slot, -1, e, fmt.Errorf("its identity is %v, the table says %v", got, want)))
		}
	}
	return nil
}

// gap reports the bytes between the last frame and off, where the next begins.
func (v *verifier) gap(off int64) {
	switch {
	case v.next < 0 || v.next == off:
	case v.next < off:
		v.report(v.damage(PartGap, v.next, off-v.next, errors.New("bytes that belong to no frame")))
	default:
		v.report(v.damage(PartGap, off, v.next-off, errors.New("frames overlap")))
	}
}

// bytes returns size bytes at off, reading ahead. They are the caller's to
// overwrite: none is asked for twice.
func (v *verifier) bytes(ctx context.Context, off int64, size int) ([]byte, error) {
	if off < v.start || off+int64(size) > v.start+int64(len(v.ahead)) {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		n := int64(size)
		if !v.alone {
			n = min(max(n, min(readAhead, v.until-off)), v.lay.framesEnd-off)
		}
		if v.wait != nil {
			if err := v.wait(ctx, int(n)); err != nil {
				return nil, err
			}
		}
		if int64(cap(v.ahead)) < n {
			v.ahead = make([]byte, n, min(readAhead, max(n, v.lay.framesEnd-headerSize)))
		}
		v.ahead = v.ahead[:n]
		v.start = off
		err := v.read(v.ahead, off)
		if isDamage(err) && !v.alone {
			v.alone = true
			v.ahead = v.ahead[:0]
			return v.bytes(ctx, off, size)
		}
		if err != nil {
			v.ahead = v.ahead[:0]
			return nil, err
		}
	}
	at := off - v.start
	return v.ahead[at : at+int64(size)], nil
}
