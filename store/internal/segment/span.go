package segment

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
)

// Span is where the sealed frames of one blob stand in its segment's object.
type Span struct {
	Addr   Addr
	Offset int64 // bytes from the start of the object
	Length int   // bytes; 0 where all frames are zeros

	entry      entry
	generation uint32
}

// End is the offset of the first byte after the span.
func (s *Span) End() int64 { return s.Offset + int64(s.Length) }

// Object is the name of the object that the span is in.
func (s *Span) Object() string { return Name(s.Addr.Segment(), s.generation) }

// Locate finds blobs that are all in one segment, from the tables alone, and
// returns their spans by offset. Those that cannot be found are left out, and
// the error says why the first of them was.
func (r *Reader) Locate(ctx context.Context, addrs []Addr) ([]Span, error) {
	if len(addrs) == 0 {
		return nil, nil
	}
	h, err := r.acquire(ctx, addrs[0].Segment())
	if err != nil {
		return nil, concerning(addrs[0], err)
	}
	defer r.release(h)
	spans := make([]Span, 0, len(addrs))
	var first error
	for _, addr := range addrs {
		e, err := r.entry(h.object, addr)
		if err != nil {
			if err = r.moved(addr, err); first == nil {
				first = err
			}
			continue
		}
		off, size := e.span(0, e.frameCount())
		spans = append(spans, Span{Addr: addr, Offset: off, Length: size, entry: e, generation: h.lay.generation})
	}
	slices.SortFunc(spans, func(a, b Span) int { return int(a.Offset - b.Offset) })
	return spans, first
}

// maxFetch bounds what Fetch reads at once, in bytes.
const maxFetch = 16 << 20

// ErrMoved: the segment was compacted since its blobs were located.
var ErrMoved = errors.New("the segment was compacted meanwhile")

// moved tells an object that went away from damage: it was compacted. The next
// one who asks finds its next generation.
func (r *Reader) moved(addr Addr, err error) error {
	if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrDamaged) {
		return err
	}
	r.Forget(addr.Segment())
	return fmt.Errorf("%w: %w", ErrMoved, err)
}

// Batch is the sealed bytes of blobs of one segment, read with one I/O.
type Batch struct {
	r      *Reader
	o      *object // for its name and its cipher: it may be closed by now
	spans  []Span
	start  int64
	sealed []byte
}

// Fetch reads everything from the first of the spans to the last, which Locate
// returned and which the caller chose to be close together, into room, which is
// grown where it is too small. Nothing is opened or checked yet. When ctx is
// cancelled Fetch returns at once and leaves the read behind, and room with it:
// after an error the caller must not use it again.
func (r *Reader) Fetch(ctx context.Context, spans []Span, room []byte) (*Batch, error) {
	if len(spans) == 0 {
		return &Batch{r: r}, nil
	}
	addr, start, end := spans[0].Addr, spans[0].Offset, int64(0)
	for i := range spans {
		end = max(end, spans[i].End())
	}
	h, err := r.acquire(ctx, addr.Segment())
	if err != nil {
		return nil, concerning(addr, err)
	}
	switch {
	case h.lay.generation != spans[0].generation:
		err = fmt.Errorf("segment: %s: %w", h.name, ErrMoved)
	case end-start > maxFetch:
		err = fmt.Errorf("segment: %s: %d bytes at once are too many", h.name, end-start)
	}
	if err != nil {
		r.release(h)
		return nil, err
	}
	size := int(end - start)
	b := &Batch{r: r, o: h.object, spans: spans, start: start, sealed: slices.Grow(room[:0], size)[:size]}
	read := make(chan error, 1)
	go func() {
		defer r.release(h)
		read <- b.read()
	}()
	select {
	case err := <-read:
		if err != nil {
			return nil, r.moved(addr, concerning(addr, err))
		}
		return b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (b *Batch) read() error {
	if len(b.sealed) == 0 {
		return nil
	}
	return b.o.read(b.sealed, b.start)
}

// Len is the number of blobs.
func (b *Batch) Len() int { return len(b.spans) }

// Addr is the address of blob i.
func (b *Batch) Addr(i int) Addr { return b.spans[i].Addr }

// Room gives back the memory that the sealed bytes are in; the Batch is spent.
func (b *Batch) Room() []byte { return b.sealed }

// Open opens and decompresses blob i into dst, which must have room for it, and
// returns its length. It works in place, so each blob can be opened once.
// Damage is a *DamageError.
func (b *Batch) Open(i int, dst []byte) (int, error) {
	d := b.r.coders.Get().(*decoder)
	defer b.r.coders.Put(d)
	s := &b.spans[i]
	if len(dst) < s.entry.rawLen {
		return 0, shortBuffer(len(dst), s.entry.rawLen)
	}
	sealed := b.sealed[s.Offset-b.start:][:s.Length:s.Length]
	for frame := range s.entry.frameCount() {
		n := s.entry.sealedLen(frame)
		if err := d.frame(b.o, s.Addr.Slot(), &s.entry, frame, sealed[:n:n], dst); err != nil {
			return 0, b.o.frameDamage(s.Addr.Slot(), frame, &s.entry, err)
		}
		sealed, dst = sealed[n:], dst[s.entry.frameRaw(frame):]
	}
	return s.entry.rawLen, nil
}
