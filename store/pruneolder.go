package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"lifeboat/store/internal/segment"
)

// Older generations. A prune or a repair that was interrupted leaves a segment in
// two generations. Readers prefer generation 0, and so does a writer that looks
// whether what the dedupe index names is there. So what only the older one has is
// as good as any other slot: that it goes must be on the list of the condemned
// first, and settled, as when it was in the only one. A list that was lost in
// between, or an index that was made anew, would otherwise let a writer take it.

// chooseOlder condemns what only the older generations of segments have: so that
// compactSegment removes them.
func (p *pruner) chooseOlder(ctx context.Context) error {
	for _, s := range p.segments.twice {
		only, err := p.onlyOlder(ctx, s)
		if errors.Is(err, errNotNow) {
			continue
		}
		if err != nil {
			return err
		}
		needed := p.needed.of(s.number)
		left, all := 0, false
		for i, v := range only {
			for bit := range 8 {
				if v&(1<<bit) != 0 {
					left++
					all = all || needed.has(8*i+bit)
				}
			}
		}
		switch {
		case all:
			p.r.log.Error("a restore point needs what only an older generation of a segment has: it stays; verify the repository", "segment", s.name())
		case left == 0:
			for _, g := range s.older {
				p.segments.older = append(p.segments.older, segment.Name(s.number, g))
			}
		default:
			p.segments.on[s.number] = s
			p.segments.parts = append(p.segments.parts, condemnedPart{s.number, only})
		}
	}
	return nil
}

// onlyOlder is the slots that older generations of a segment have and the newest
// has not. What cannot be read of an older one is left out: nobody else can. It
// fails with errNotNow if the newest cannot be read, since then an older one may
// be all that there is.
func (p *pruner) onlyOlder(ctx context.Context, s pruneeSegment) ([]byte, error) {
	none := func(int) bool { return false }
	newest, err := segment.Weigh(ctx, p.r.backend, p.r.keys, s.name(), none)
	var only []byte
	for _, g := range s.older {
		if err != nil {
			break
		}
		var older segment.Weight
		older, err = segment.Weigh(ctx, p.r.backend, p.r.keys, segment.Name(s.number, g), none)
		if errors.Is(err, segment.ErrDamaged) || errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		only = unite(only, older.Slots)
	}
	switch {
	case errors.Is(err, segment.ErrDamaged), errors.Is(err, segment.ErrVersion), errors.Is(err, fs.ErrNotExist):
		p.r.log.Warn("the older generations of a segment stay; verify the repository", "segment", s.name(), "error", err)
		return nil, errNotNow
	case err != nil:
		return nil, fmt.Errorf("the generations of %s: %w", s.name(), err)
	}
	for i := range min(len(only), len(newest.Slots)) {
		only[i] &^= newest.Slots[i]
	}
	return only, nil
}

// removeOlder removes the older generations of a segment on the list, of which
// all that is not dead is in the newest.
func (p *pruner) removeOlder(ctx context.Context, s pruneeSegment, part condemnedPart) error {
	if len(s.older) == 0 {
		return nil
	}
	only, err := p.onlyOlder(ctx, s)
	if err != nil {
		return err
	}
	for i, v := range only {
		if i < len(part.Dead) {
			v &^= part.Dead[i]
		}
		if v != 0 {
			p.r.log.Error("a segment's newest generation lacks what an older one has: both stay; verify the repository", "segment", s.name())
			return errNotNow
		}
	}
	for _, g := range s.older {
		err := p.r.backend.Remove(ctx, segment.Name(s.number, g))
		if p.r.refusedByLock(ctx, err) {
			return errNotNow
		}
		if err != nil {
			return err
		}
	}
	p.r.segments.Forget(s.number)
	return nil
}
