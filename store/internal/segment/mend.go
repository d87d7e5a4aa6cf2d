package segment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"slices"

	"lifeboat/store/backend"
)

// MendOptions says what a segment is to be mended with.
type MendOptions struct {
	// Number is the segment's.
	Number uint64
	// Objects are the names of the generations that there are, newest first;
	// none when the segment is gone.
	Objects []string
	// Slots is how many slots there are at least, for when no table says so.
	Slots int
	// FramesPerSlot is block size / FrameSize, for when no trailer says so.
	FramesPerSlot int
	// Needed reports whether anybody needs a slot of which nothing is known: it
	// is marked as lost then. nil means nobody.
	Needed func(slot int) bool
	// Identity knows the identity of slots from elsewhere. It may be nil.
	Identity func(slot int) (Identity, bool)
	// Find looks elsewhere for the content of a slot. Where id is not nil, the
	// content must have it, which Mend checks. It may be nil.
	Find func(ctx context.Context, slot int, id *Identity) (Content, bool, error)
	// Before is called before the new object appears, for what the content refers
	// to must be there. It may be nil.
	Before func(ctx context.Context) error
	// Writer is for the new object; only Rand matters.
	Writer WriterOptions
}

// Content is a blob's.
type Content struct {
	Kind  Kind
	Plain []byte
	// Instead says that it may stand for what was lost although its identity is
	// another: a node of a map that leads to equal blocks elsewhere.
	Instead bool
}

// Mended is what a Mend did.
type Mended struct {
	Info     Info
	Restored []int // slots that got their content from elsewhere, ascending
	Lost     []Slot
}

// Mend writes the next generation of a damaged segment. Every frame that can be
// read in any of its objects is kept. What cannot, gets content that Find knows
// of, or is marked as lost, by frames where the rest of a slot is good. Tables,
// header and trailers are made anew. The result is read back and verified before
// Mend returns; on any error there is no new object. Old ones are the caller's
// to remove.
//
// The frames are sealed under a new key: nonces are slot and frame, and under
// the old key they have sealed other bytes already, perhaps of another length.
func Mend(ctx context.Context, b backend.Backend, keys KeySource, o MendOptions) (*Mended, error) {
	m := &mender{ctx: ctx, keys: keys, o: o, hash: NewHasher(keys), packer: NewPacker(), dec: newDecoder()}
	defer m.close()
	lay, err := m.open(b)
	if err != nil {
		return nil, err
	}
	if err := o.Writer.fill(lay.frameSalt[:]); err != nil {
		return nil, err
	}
	if m.w, err = startWriter(ctx, b, keys, lay, o.Writer); err != nil {
		return nil, err
	}
	defer m.w.Abort()
	for p := range (m.slots + pageSlots - 1) / pageSlots {
		if err := m.page(p); err != nil {
			return nil, err
		}
	}
	if o.Before != nil {
		if err := o.Before(ctx); err != nil {
			return nil, err
		}
	}
	if m.out.Info, err = m.w.Commit(ctx); err != nil {
		return nil, err
	}
	if err := m.readBack(b); err != nil {
		return nil, errors.Join(err, b.Remove(context.WithoutCancel(ctx), m.out.Info.Name))
	}
	return &m.out, nil
}

// mender is a Mend under way.
type mender struct {
	ctx    context.Context
	keys   KeySource
	o      MendOptions
	hash   *Hasher
	packer *Packer
	dec    *decoder

	sources []*mendSource
	slots   int
	w       *Writer
	out     Mended
	plain   [MaxFrames * FrameSize]byte
}

// mendSource is one object of the segment, and its tables of the current page;
// nil where they are damaged.
type mendSource struct {
	*verifier
	loc, ids []byte
}

func (m *mender) close() {
	for _, s := range m.sources {
		_ = s.obj.Close()
	}
}

// open opens those of the objects that can be, and says what the next one is.
func (m *mender) open(b backend.Backend) (layout, error) {
	next := layout{number: m.o.Number, generation: 1, frames: m.o.FramesPerSlot}
	m.slots = m.o.Slots
	for _, name := range m.o.Objects {
		_, g, err := ParseName(name)
		if err != nil {
			return next, err
		}
		if next.generation = max(next.generation, g+1); g+1 == 0 {
			return next, fmt.Errorf("segment: %s is the last generation there can be", name)
		}
		o, err := openObject(m.ctx, b, m.keys, name)
		if isDamage(err) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return next, err
		}
		m.sources = append(m.sources, &mendSource{verifier: newVerifier(o, m.keys, nil)})
		m.slots = max(m.slots, o.lay.slots)
		next.frames = max(next.frames, o.lay.frames)
	}
	if next.frames < 1 || next.frames > MaxFrames || m.slots > MaxSlots {
		return next, fmt.Errorf("segment: %d slots of %d frames cannot be", m.slots, next.frames)
	}
	return next, nil
}

// page mends the slots of one table page.
func (m *mender) page(p int) error {
	for _, s := range m.sources {
		if err := s.turnTo(p); err != nil {
			return err
		}
	}
	for slot := p * pageSlots; slot < min((p+1)*pageSlots, m.slots); slot++ {
		if err := m.ctx.Err(); err != nil {
			return context.Cause(m.ctx)
		}
		if err := m.slot(slot); err != nil {
			return err
		}
		if err := m.w.flush(flushAt); err != nil {
			return err
		}
	}
	return nil
}

func (s *mendSource) turnTo(p int) (err error) {
	s.loc, s.ids = nil, nil
	if p >= s.lay.pages() {
		return nil
	}
	if s.loc, err = s.tablePage(locations, p); err != nil && !isDamage(err) {
		return err
	}
	if s.ids, err = s.tablePage(identities, p); err != nil && !isDamage(err) {
		return err
	}
	return nil
}

// record is what the source's tables say of a slot.
func (s *mendSource) record(slot int) (e entry, ok bool) {
	if s.loc == nil || slot >= s.lay.slots {
		return e, false
	}
	e, err := s.entry(s.loc, slot)
	return e, err == nil
}

// slot mends one slot.
func (m *mender) slot(slot int) error {
	id := m.identity(slot)
	var best *salvage
	for i, s := range m.sources {
		e, ok := s.record(slot)
		switch {
		case !ok:
			continue
		case e.kind == 0 && i == 0 && !m.needed(slot):
			m.w.addSlot(entry{}, Identity{}) // dropped by compaction
			return nil
		case e.kind == 0:
			continue
		}
		got, err := m.salvage(s, slot, e, id)
		if err != nil {
			return err
		}
		if got.bad == 0 {
			m.keep(slot, got)
			return nil
		}
		if best == nil || bits.OnesCount16(got.bad) < bits.OnesCount16(best.bad) {
			best = got
		}
	}
	found, err := m.find(slot, id)
	if found || err != nil {
		return err
	}
	m.lose(slot, id, best)
	return nil
}

func (m *mender) needed(slot int) bool { return m.o.Needed != nil && m.o.Needed(slot) }

// identity is what the slot should hold, nil where nobody knows.
func (m *mender) identity(slot int) *Identity {
	for _, s := range m.sources {
		if s.ids == nil || slot >= s.lay.slots {
			continue
		}
		if id := Identity(s.ids[slot%pageSlots*identitySize:][:identitySize]); id != (Identity{}) {
			return &id
		}
	}
	if m.o.Identity != nil {
		if id, ok := m.o.Identity(slot); ok {
			return &id
		}
	}
	return nil
}

// salvage is what can be read of a slot: the frames as they were compressed.
type salvage struct {
	e      entry
	id     Identity
	frames [MaxFrames][]byte
	bad    uint16 // frames that cannot be read, a bit for each
}

// salvage reads the frames of a slot and checks them against its identity.
func (m *mender) salvage(s *mendSource, slot int, e entry, id *Identity) (*salvage, error) {
	out := &salvage{e: e, bad: e.lost()}
	off, size := e.span(0, e.frameCount())
	sealed, err := s.bytes(m.ctx, off, size)
	if err != nil && !isDamage(err) {
		return nil, err
	}
	if err != nil {
		sealed = nil
	}
	plain := m.plain[:e.rawLen]
	for i := range e.frameCount() {
		n := e.sealedLen(i)
		if out.bad&(1<<i) != 0 {
			continue
		}
		if len(sealed) < n {
			out.bad |= 1 << i
			continue
		}
		frame := bytes.Clone(sealed[:n]) // opening it is in place
		sealed = sealed[n:]
		if err := m.dec.frame(s.object, slot, &e, i, frame, plain[i*FrameSize:]); err != nil {
			out.bad |= 1 << i
			continue
		}
		if n > 0 {
			out.frames[i] = frame[:n-tagSize]
		}
	}
	if out.bad != 0 {
		if id != nil {
			out.id = *id
		}
		return out, nil
	}
	out.id = m.hash.Identity(e.kind, plain)
	if id != nil && out.id != *id {
		// Which frame is wrong cannot be told: none is to be trusted.
		out.id, out.bad = *id, allFrames(e.rawLen)
	}
	return out, nil
}

// keep writes what was salvaged; bad frames become lost ones.
func (m *mender) keep(slot int, s *salvage) {
	e := entry{offset: uint32(m.w.Stored()), rawLen: s.e.rawLen, kind: s.e.kind}
	for i := range e.frameCount() {
		switch {
		case s.bad&(1<<i) != 0:
			e.lens[i] = lostFrame
		case len(s.frames[i]) > 0:
			raw := s.e.lens[i] & rawBit
			m.w.buf = m.w.aead.Seal(m.w.buf, m.w.s.frameNonce(slot, i), s.frames[i], m.w.s.frameAAD(m.o.Number, e.kind, raw != 0))
			e.lens[i] = s.e.lens[i]
		}
	}
	m.w.addSlot(e, s.id)
}

// find puts content from elsewhere into the slot, if there is some.
func (m *mender) find(slot int, id *Identity) (bool, error) {
	if m.o.Find == nil {
		return false, nil
	}
	c, ok, err := m.o.Find(m.ctx, slot, id)
	if !ok || err != nil {
		return false, err
	}
	got := m.hash.Identity(c.Kind, c.Plain)
	if id != nil && got != *id && !c.Instead {
		return false, nil
	}
	packed := m.packer.Pack(c.Kind, got, c.Plain)
	defer packed.Release()
	if _, err := m.w.Append(packed); err != nil {
		return false, err
	}
	m.out.Restored = append(m.out.Restored, slot)
	return true, nil
}

// lose marks what could not be found. A slot of which nothing is known and that
// nobody needs is dropped.
func (m *mender) lose(slot int, id *Identity, best *salvage) {
	if best == nil {
		if id == nil && !m.needed(slot) {
			m.w.addSlot(entry{}, Identity{})
			return
		}
		frames := m.w.lay.frames
		best = &salvage{e: entry{rawLen: frames * FrameSize, kind: Data}, bad: allFrames(frames * FrameSize)}
		if id != nil {
			best.id = *id
		}
	}
	m.keep(slot, best)
	m.out.Lost = append(m.out.Lost, Slot{
		Addr: MakeAddr(m.o.Number, slot), Kind: best.e.kind, Identity: best.id, RawLen: best.e.rawLen, Lost: best.bad,
	})
}

// readBack verifies what was written.
func (m *mender) readBack(b backend.Backend) error {
	var wrong error
	err := Verify(m.ctx, b, m.keys, m.out.Info.Name, func(d *DamageError) {
		if !errors.Is(d, ErrLost) {
			wrong = d
		}
	})
	if err == nil && wrong != nil {
		err = fmt.Errorf("segment: what was written does not read back: %w", wrong)
	}
	return err
}

// Generations lists the objects of a segment, newest first.
func Generations(ctx context.Context, b backend.Backend, number uint64) ([]string, error) {
	var names []string
	for info, err := range b.List(ctx, Prefix(number)) {
		if err != nil {
			return nil, fmt.Errorf("segment: cannot look for segment %x: %w", number, err)
		}
		if _, _, err := ParseName(info.Name); err == nil {
			names = append(names, info.Name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		_, g, _ := ParseName(a)
		_, h, _ := ParseName(b)
		return int(int64(h) - int64(g))
	})
	return names, nil
}
