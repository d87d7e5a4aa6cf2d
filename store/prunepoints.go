package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"lifeboat/store/internal/segment"
)

// pruneePoints is the points as a prune sees them.
type pruneePoints struct {
	stones []tombstone
	listed map[string]struct{}   // L, voids among them
	remove []string              // X
	later  map[string]laterPoint // forgotten, and not to be removed now, by ID
	orphan []string              // have a tombstone and no object
	gone   map[string]struct{}   // X, to look up
}

// laterPoint is a forgotten point that stays for now.
type laterPoint struct {
	when time.Time // when it can go; the zero time: not known
	why  string
}

// look reads who is there and decides which points go: steps 2 to 5.
func (p *pruner) look(ctx context.Context) error {
	var err error
	if p.points.stones, err = p.r.tombstones(ctx); err != nil {
		return err
	}
	if p.crew, err = p.r.crewNow(ctx, p.claim); err != nil {
		return err
	}
	ids, err := p.r.pointIDs(ctx)
	if err != nil {
		return err
	}
	p.points.listed, p.points.gone = make(map[string]struct{}, len(ids)), make(map[string]struct{})
	for _, id := range ids {
		p.points.listed[id] = struct{}{}
	}
	return p.choose(ctx)
}

// choose fills X.
func (p *pruner) choose(ctx context.Context) error {
	var candidates []string
	keepers := p.crew.keepers()
	p.points.later = make(map[string]laterPoint)
	later := func(id string, when time.Time, why string) { p.points.later[id] = laterPoint{when, why} }
	for _, s := range p.points.stones {
		_, there := p.points.listed[s.id]
		why := keepers[s.id]
		switch {
		case !there:
			p.points.orphan = append(p.points.orphan, s.id)
		case p.crew.unknown != "":
			later(s.id, time.Time{}, p.crew.unknown)
		case why != "":
			later(s.id, time.Time{}, why)
		case !p.old(s.modified):
			later(s.id, s.modified.Add(p.opts.Grace), "forgotten; `lifeboat unforget` brings it back until then")
		default:
			candidates = append(candidates, s.id)
		}
	}
	protected, err := p.r.checkRemovable(ctx, candidates)
	if err != nil {
		return err
	}
	for _, id := range candidates {
		if why := protected[id]; why != nil {
			var e *ProtectedError
			until := time.Time{}
			if errors.As(why, &e) {
				until = e.Until
			}
			later(id, until, why.Error())
			continue
		}
		p.points.remove = append(p.points.remove, id)
		p.points.gone[id] = struct{}{}
	}
	return nil
}

// mark finds out what the points need that stay: step 6.
func (p *pruner) mark(ctx context.Context) error {
	var ids []string
	for id := range p.points.listed {
		if _, ok := p.points.gone[id]; !ok {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	if err := p.distrust(ctx); err != nil {
		return err
	}
	p.needed = newAddrBits()
	// What has no tombstone is marked first, so that what the others need beyond
	// that can be told.
	live := slices.DeleteFunc(slices.Clone(ids), func(id string) bool {
		_, ok := p.points.later[id]
		return ok
	})
	if err := p.markIDs(ctx, live, p.needed); err != nil {
		return err
	}
	return p.markLater(ctx)
}

// markIDs marks what points need. One that cannot be read ends it, unless it was
// forgotten and nobody has it open.
func (p *pruner) markIDs(ctx context.Context, ids []string, set *addrBits) error {
	p.tell("reading restore points", 0, int64(len(ids)))
	var bad error
	for _, id := range ids {
		p.r.distrustPoint(id)
	}
	recs, err := p.r.readPoints(ctx, ids, func(id string, err error) {
		if l, ok := p.points.later[id]; ok && errors.Is(err, ErrDamaged) && !l.when.IsZero() {
			p.r.log.Warn("a forgotten restore point cannot be read: what only it needs is not kept", "point", id, "error", err)
			return
		}
		bad = fmt.Errorf("what point %s needs is not known: %w; forget it, or repair it from a copy", id, err)
	})
	if err = errors.Join(err, bad); err != nil {
		return err
	}
	var nodes atomic.Int64
	done := make(chan error, 1)
	go func() { done <- p.r.mark(ctx, recs, set, markOptions{nodes: &nodes, known: p.needed}) }()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			p.tell("marking what is needed", nodes.Load(), 0)
		}
	}
}

// distrust makes the cache on disk forget what a repair on another host may have
// made anew: under the same address, a node that was mended from a copy leads to
// other blocks than before. Of a segment that has another generation only the
// first is opened without a look whether it is there.
func (p *pruner) distrust(ctx context.Context) error {
	if !p.r.keepsOnDisk() {
		return nil
	}
	for info, err := range p.r.backend.List(ctx, "segments/") {
		if err != nil {
			return fmt.Errorf("list the segments: %w", err)
		}
		if number, generation, err := segment.ParseName(info.Name); err == nil && generation > 0 {
			p.r.near.Forget(segment.Name(number, 0))
			p.r.segments.Forget(number)
		}
	}
	return nil
}

// laterGroup is points that can go at the same time, for the same reason.
type laterGroup struct {
	laterPoint
	ids   []string
	slots map[uint64]int // needed by them and by nobody who stays longer, by segment
	bytes int64
}

// maxLaterGroups is how many groups the report tells apart.
const maxLaterGroups = 16

// markLater marks what the forgotten points need that stay for now, and counts
// what goes with them: those that stay longest first.
func (p *pruner) markLater(ctx context.Context) error {
	for _, g := range p.laterGroups() {
		fresh := newAddrBits()
		if err := p.markIDs(ctx, g.ids, fresh); err != nil {
			return err
		}
		g.slots = make(map[uint64]int)
		for number, b := range fresh.all() {
			into := p.needed.make(number)
			for w, v := range b.words() {
				g.slots[number] += bits.OnesCount64(into.set(w, v))
			}
		}
		p.segments.later = append(p.segments.later, g)
	}
	return nil
}

// laterGroups is those that stay longest first.
func (p *pruner) laterGroups() []*laterGroup {
	by := make(map[laterPoint]*laterGroup)
	for id, l := range p.points.later {
		if !l.when.IsZero() {
			l.when = l.when.Add(time.Hour - time.Nanosecond).Truncate(time.Hour)
		}
		g := by[l]
		if g == nil {
			g = &laterGroup{laterPoint: l}
			by[l] = g
		}
		g.ids = append(g.ids, id)
	}
	groups := slices.SortedFunc(maps.Values(by), func(a, b *laterGroup) int {
		if a.when.IsZero() != b.when.IsZero() {
			return map[bool]int{true: -1, false: 1}[a.when.IsZero()]
		}
		return cmp.Or(b.when.Compare(a.when), strings.Compare(a.why, b.why))
	})
	if len(groups) > maxLaterGroups {
		last := groups[maxLaterGroups-1]
		for _, g := range groups[maxLaterGroups:] {
			last.ids = append(last.ids, g.ids...)
		}
		groups = groups[:maxLaterGroups]
	}
	for _, g := range groups {
		slices.Sort(g.ids)
	}
	return groups
}
