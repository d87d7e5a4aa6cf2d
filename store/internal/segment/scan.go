package segment

import (
	"context"
	"iter"

	"lifeboat/store/backend"
)

// Scan yields the live slots of an object in order, from its tables alone;
// those with lost frames are left out. A
// damaged table page is yielded as a *DamageError and the scan goes on with
// the next page; after any other error it ends.
func Scan(ctx context.Context, b backend.Backend, keys KeySource, object string) iter.Seq2[Slot, error] {
	return func(yield func(Slot, error) bool) {
		o, err := openObject(ctx, b, keys, object)
		if err != nil {
			yield(Slot{}, err)
			return
		}
		defer o.obj.Close()
		for p := range o.lay.pages() {
			if ctx.Err() != nil {
				yield(Slot{}, ctx.Err())
				return
			}
			if !o.scanPage(p, yield) {
				return
			}
		}
	}
}

// scanPage yields the slots of one page of both tables and reports whether to
// go on.
func (o *object) scanPage(p int, yield func(Slot, error) bool) bool {
	loc, err := o.tablePage(locations, p)
	if err != nil {
		return yield(Slot{}, err) && isDamage(err)
	}
	ids, err := o.tablePage(identities, p)
	if err != nil {
		return yield(Slot{}, err) && isDamage(err)
	}
	for slot := p * pageSlots; slot < min((p+1)*pageSlots, o.lay.slots); slot++ {
		e, err := o.entry(loc, slot)
		if err == nil && (e.kind == 0 || e.lost() != 0) {
			continue
		}
		s := Slot{Addr: MakeAddr(o.lay.number, slot)}
		if err == nil {
			s = o.slot(slot, &e, ids)
		}
		if !yield(s, err) {
			return false
		}
	}
	return true
}

func (o *object) slot(slot int, e *entry, ids []byte) Slot {
	s := Slot{Addr: MakeAddr(o.lay.number, slot), Kind: e.kind, RawLen: e.rawLen, Stored: e.stored(), Lost: e.lost()}
	copy(s.Identity[:], ids[slot%pageSlots*identitySize:])
	return s
}

// ScanLost returns the slots of an object with lost frames. Table pages that are
// damaged are left out.
func ScanLost(ctx context.Context, b backend.Backend, keys KeySource, object string) ([]Slot, error) {
	o, err := openObject(ctx, b, keys, object)
	if err != nil {
		return nil, err
	}
	defer o.obj.Close()
	var lost []Slot
	for p := range o.lay.pages() {
		loc, err1 := o.tablePage(locations, p)
		ids, err2 := o.tablePage(identities, p)
		for _, err := range []error{err1, err2, ctx.Err()} {
			if err != nil && !isDamage(err) {
				return nil, err
			}
		}
		if err1 != nil || err2 != nil {
			continue
		}
		for slot := p * pageSlots; slot < min((p+1)*pageSlots, o.lay.slots); slot++ {
			if e, err := o.entry(loc, slot); err == nil && e.lost() != 0 {
				lost = append(lost, o.slot(slot, &e, ids))
			}
		}
	}
	return lost, nil
}
