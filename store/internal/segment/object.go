package segment

import (
	"bytes"
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"

	"lifeboat/store/backend"
)

// object is one open segment object whose trailer was authenticated.
type object struct {
	name   string
	obj    backend.Object
	lay    layout
	whole  bool // the last trailer is good and ends the object, as it should
	frames cipher.AEAD
	footer cipher.AEAD
}

// openObject opens one object by name. Errors: fs.ErrNotExist, ErrVersion,
// *DamageError, or I/O.
func openObject(ctx context.Context, b backend.Backend, keys KeySource, name string) (*object, error) {
	number, generation, err := ParseName(name)
	if err != nil {
		return nil, err
	}
	obj, err := b.Open(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("segment: cannot open %s: %w", name, err)
	}
	o := &object{name: name, obj: obj}
	if err := o.findTrailer(keys); err != nil {
		_ = obj.Close()
		return nil, err
	}
	if o.lay.number != number || o.lay.generation != generation {
		_ = obj.Close()
		err := fmt.Errorf("it says it is %s", o.lay.name())
		return nil, o.damage(PartObject, 0, obj.Size(), err)
	}
	o.frames = newAEAD(keys, purposeFrames, o.lay.frameSalt[:])
	o.footer = newAEAD(keys, purposeFooter, o.lay.footerSalt[:])
	return o, nil
}

func (o *object) damage(part Part, off, length int64, err error) *DamageError {
	return &DamageError{Object: o.name, Part: part, Frame: -1, Page: -1, Offset: off, Length: length, Err: err}
}

// read fills p from off. Bytes that are not there are damage; other errors
// are I/O.
func (o *object) read(p []byte, off int64) error {
	n, err := o.obj.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return o.damage(PartObject, off+int64(n), int64(len(p)-n), fmt.Errorf("it ends there: %w", io.ErrUnexpectedEOF))
	}
	return fmt.Errorf("segment: cannot read %s at %d: %w", o.name, off, err)
}

// findTrailer reads the trailer at the end or, if that is damaged, any good
// copy before it.
func (o *object) findTrailer(keys KeySource) error {
	end := o.obj.Size() - trailerSize
	if end < headerSize {
		return o.damage(PartObject, 0, o.obj.Size(), errors.New("too short for a segment"))
	}
	b := make([]byte, trailerSize)
	if err := o.read(b, end); err != nil {
		return err
	}
	lay, err := parseTrailer(keys, b)
	if err == nil {
		o.lay, o.whole = lay, end == lay.trailerOffset()
		return nil
	}
	lay, ok, ioErr := o.searchTrailer(keys)
	switch {
	case ioErr != nil:
		return ioErr
	case ok:
		o.lay = lay
		return nil
	case errors.Is(err, ErrVersion):
		return fmt.Errorf("segment: %s: %w", o.name, err)
	}
	return o.damage(PartObject, end, trailerSize, fmt.Errorf("no trailer can be read: %w", err))
}

// Bounds of the search for another trailer: no segment's tables are longer,
// and no honest segment holds the magic so often.
const (
	searchBytes = 4 << 20
	searchTries = 1000
)

// searchTrailer looks for a trailer of this very object in its last bytes.
func (o *object) searchTrailer(keys KeySource) (layout, bool, error) {
	number, generation, _ := ParseName(o.name)
	tail := make([]byte, min(o.obj.Size(), searchBytes))
	if err := o.read(tail, o.obj.Size()-int64(len(tail))); err != nil {
		return layout{}, false, err
	}
	until := len(tail)
	for range searchTries {
		i := bytes.LastIndex(tail[:until], []byte(trailerMagic))
		if i < 0 {
			break
		}
		if i+trailerSize <= len(tail) {
			lay, err := parseTrailer(keys, tail[i:i+trailerSize])
			if err == nil && lay.number == number && lay.generation == generation {
				return lay, true, nil
			}
		}
		until = i + len(trailerMagic) - 1
	}
	return layout{}, false, nil
}

// tablePage reads and opens one page of a table.
func (o *object) tablePage(t table, page int) ([]byte, error) {
	part := PartLocationTable
	if t == identities {
		part = PartIdentityTable
	}
	off, size := o.lay.page(t, page)
	b := make([]byte, size)
	err := o.read(b, off)
	if err == nil {
		var s scratch
		b, err = o.footer.Open(b[:0], s.footerNonce(t, page), b, s.pageAAD(o.lay.number, o.lay.generation))
		if err == nil {
			return b, nil
		}
		err = errTag
	} else if !errors.Is(err, ErrDamaged) {
		return nil, err
	}
	d := o.damage(part, off, int64(size), err)
	d.Page = page
	return nil, d
}

// entry reads the record of a slot from its location page.
func (o *object) entry(page []byte, slot int) (entry, error) {
	n := o.lay.entrySize()
	i := slot % pageSlots * n
	e, err := o.lay.parseEntry(page[i : i+n])
	if err != nil {
		off, size := o.lay.page(locations, slot/pageSlots)
		d := o.damage(PartLocationTable, off, int64(size), err)
		d.Page, d.Addr = slot/pageSlots, MakeAddr(o.lay.number, slot)
		return e, d
	}
	return e, nil
}

// frameDamage describes a damaged frame, or a whole blob with frame -1.
func (o *object) frameDamage(slot, frame int, e *entry, err error) *DamageError {
	from, to := frame, frame+1
	if frame < 0 {
		from, to = 0, e.frameCount()
	}
	off, n := e.span(from, to)
	return &DamageError{
		Object: o.name, Part: PartFrame, Addr: MakeAddr(o.lay.number, slot),
		Frame: frame, Page: -1, Offset: off, Length: int64(n), Err: err,
	}
}

// newest finds the generation of a segment that there is: nearly always 0.
// Errors match fs.ErrNotExist where there is none.
func newest(ctx context.Context, b backend.Backend, number uint64) (string, error) {
	var name string
	var best uint32
	for info, err := range b.List(ctx, Prefix(number)) {
		if err != nil {
			return "", fmt.Errorf("segment: cannot look for segment %x: %w", number, err)
		}
		_, g, err := ParseName(info.Name)
		if err == nil && (name == "" || g > best) {
			name, best = info.Name, g
		}
	}
	if name == "" {
		return "", fmt.Errorf("segment: segment %x: %w", number, fs.ErrNotExist)
	}
	return name, nil
}

// openTries bounds how often an object may be replaced by the next generation
// while we look for it.
const openTries = 4

// openSegment opens the segment in whatever generation it has.
func openSegment(ctx context.Context, b backend.Backend, keys KeySource, number uint64, log *slog.Logger) (*object, error) {
	name := Name(number, 0)
	for try := 0; ; try++ {
		o, err := openObject(ctx, b, keys, name)
		if err == nil {
			if !o.whole {
				log.Warn("segment: the trailer is damaged; its first copy is used", "object", o.name)
			}
			return o, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if try == openTries {
			return nil, &DamageError{Object: name, Part: PartObject, Frame: -1, Page: -1, Err: err}
		}
		next, lerr := newest(ctx, b, number)
		if errors.Is(lerr, fs.ErrNotExist) {
			return nil, &DamageError{Object: Name(number, 0), Part: PartObject, Frame: -1, Page: -1, Err: errMissing}
		} else if lerr != nil {
			return nil, lerr
		}
		name = next
	}
}

var errMissing = fmt.Errorf("there is no object of this segment: %w", fs.ErrNotExist)
