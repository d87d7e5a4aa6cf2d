package segment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"lifeboat/store/backend"
)

// Verify checks every byte of an object: that each frame opens, decompresses
// and has the identity that the table states, that tables, header and both
// trailers are what was written, and that there is nothing else in the object.
// It reports each damage found, in no particular order, and goes on. The error
// is of the check itself: the object cannot be read, its version is unknown,
// ctx was cancelled.
func Verify(ctx context.Context, b backend.Backend, keys KeySource, object string, report func(*DamageError)) error {
	o, err := openObject(ctx, b, keys, object)
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
	defer o.obj.Close()
	v := verifier{object: o, report: report, dec: newDecoder(), hash: NewHasher(keys), next: headerSize}
	if err := v.surroundings(keys); err != nil {
		return err
	}
	for p := range o.lay.pages() {
		if err := v.page(ctx, p); err != nil {
			return err
		}
	}
	v.gap(o.lay.framesEnd)
	return nil
}

func isDamage(err error) bool { return errors.Is(err, ErrDamaged) }

// verifier goes through one object front to back.
type verifier struct {
	*object
	report func(*DamageError)
	dec    *decoder
	hash   *Hasher

	next  int64 // where the next frame must begin; unknown (-1) after a damaged page
	ahead []byte
	start int64 // offset of ahead in the object
	block []byte
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

// page checks one page of both tables and the blobs that it describes.
func (v *verifier) page(ctx context.Context, p int) error {
	ids, err := v.tablePage(identities, p)
	if err := v.pass(err); err != nil {
		return err
	}
	loc, err := v.tablePage(locations, p)
	if err != nil {
		v.next = -1
		return v.pass(err)
	}
	for slot := p * pageSlots; slot < min((p+1)*pageSlots, v.lay.slots); slot++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := v.entry(loc, slot)
		if err != nil {
			v.next = -1
			v.report(err.(*DamageError)) //nolint:errorlint // entry returns nothing else
			continue
		}
		if e.kind == 0 {
			continue
		}
		if err := v.blob(slot, &e, ids); err != nil {
			return err
		}
	}
	return nil
}

// blob checks one blob. ids is its identity page, nil if that is damaged.
func (v *verifier) blob(slot int, e *entry, ids []byte) error {
	off, size := e.span(0, e.frameCount())
	v.gap(off)
	v.next = off + int64(size)
	sealed, err := v.bytes(off, size)
	if err != nil {
		return v.pass(located(err, v.object, slot, 0, e.frameCount(), e))
	}
	if cap(v.block) < e.rawLen {
		v.block = make([]byte, MaxFrames*FrameSize)
	}
	plain, good := v.block[:e.rawLen], true
	for i := range e.frameCount() {
		n := e.sealedLen(i)
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
func (v *verifier) bytes(off int64, size int) ([]byte, error) {
	if off < v.start || off+int64(size) > v.start+int64(len(v.ahead)) {
		if v.ahead == nil {
			v.ahead = make([]byte, flushAt)
		}
		v.ahead = v.ahead[:min(flushAt, max(0, v.lay.framesEnd-off))]
		v.start = off
		if err := v.read(v.ahead, off); err != nil {
			v.ahead = v.ahead[:0]
			return v.alone(off, size, err)
		}
	}
	at := off - v.start
	return v.ahead[at : at+int64(size)], nil
}

// alone reads just the bytes asked for, where reading ahead ran into err.
func (v *verifier) alone(off int64, size int, err error) ([]byte, error) {
	if !isDamage(err) {
		return nil, err
	}
	b := make([]byte, size)
	return b, v.read(b, off)
}
