package store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat/store/internal/segment"
)

// pruneeSegments is the segments as a prune sees them.
type pruneeSegments struct {
	total int64 // how many there are

	on     map[uint64]pruneeSegment // on the list, or about to be
	whole  []uint64                 // to be condemned
	parts  []condemnedPart          // to be condemned
	older  []string                 // objects of which all is in the next generation, too
	twice  []pruneeSegment          // there in several generations, and not on the list
	maybe  []pruneeSegment          // probably worth compacting
	unsure []pruneeSegment          // in use in part or whole
	later  []*laterGroup
	young  pruneeYoung // of no use, but within the grace
	copied int64       // bytes that compacting what is on the list takes
}

// pruneeSegment is a segment in its newest generation.
type pruneeSegment struct {
	number     uint64
	generation uint32
	size       int64
	modified   time.Time
	older      []uint32
}

func (s pruneeSegment) name() string { return segment.Name(s.number, s.generation) }

// pruneeYoung is what is of no use and must stay for now.
type pruneeYoung struct {
	count int
	bytes int64
	until time.Time
}

// condemn lists the segments, and puts what nobody needs on the list: step 7.
func (p *pruner) condemn(ctx context.Context) error {
	var err error
	if p.list, err = p.r.readCondemned(ctx); err != nil {
		return err
	}
	p.changed = p.list.damaged
	p.segments.on = make(map[uint64]pruneeSegment)
	listed := p.listedSegments()
	p.tell("looking at segments", 0, 0)
	var s pruneeSegment
	for info, err := range p.r.backend.List(ctx, "segments/") {
		if err != nil {
			return fmt.Errorf("list the segments: %w", err)
		}
		number, generation, err := segment.ParseName(info.Name)
		if err != nil {
			continue
		}
		if number != s.number {
			p.segment(s, listed)
			s = pruneeSegment{number: number}
		} else {
			s.older = append(s.older, min(s.generation, generation))
		}
		if generation >= s.generation {
			s.generation, s.size, s.modified = generation, info.Size, info.Modified
		}
	}
	p.segment(s, listed)
	p.strike()
	if err := p.chooseParts(ctx); err != nil {
		return err
	}
	if err := p.chooseOlder(ctx); err != nil {
		return err
	}
	return p.extendList(ctx)
}

// listedSegments is what is on the list: whole or in part.
func (p *pruner) listedSegments() map[uint64]bool {
	listed := make(map[uint64]bool)
	for _, b := range p.list.Batches {
		for _, part := range b.Parts {
			if _, ok := listed[part.Segment]; !ok {
				listed[part.Segment] = false
			}
		}
		for _, n := range b.Segments {
			listed[n] = true
		}
	}
	return listed
}

// segment decides about one segment.
func (p *pruner) segment(s pruneeSegment, listed map[uint64]bool) {
	if s.number == 0 {
		return
	}
	p.segments.total++
	if p.segments.total%4096 == 0 {
		p.tell("looking at segments", p.segments.total, 0)
	}
	for _, g := range p.segments.later {
		if n := g.slots[s.number]; n > 0 {
			_, span := p.needed.of(s.number).count()
			g.bytes += s.size * int64(n) / int64(span)
		}
	}
	if p.crew.working(s.number) {
		return
	}
	used, span := p.needed.of(s.number).count()
	whole, on := listed[s.number]
	switch {
	case on && (whole || used > 0):
		p.segments.on[s.number] = s
	case !p.old(s.modified):
		if used == 0 {
			p.segments.young.add(s, s.modified.Add(p.opts.Grace))
		}
	case used == 0:
		p.segments.on[s.number] = s
		p.segments.whole = append(p.segments.whole, s.number)
	case len(s.older) > 0:
		p.segments.twice = append(p.segments.twice, s)
	case p.opts.MaxCompact <= 0 || s.size < minCompact:
	case littleUsed(s, used, span, p.r.blockSize):
		p.segments.maybe = append(p.segments.maybe, s)
	default:
		p.segments.unsure = append(p.segments.unsure, s)
	}
}

func (y *pruneeYoung) add(s pruneeSegment, until time.Time) {
	y.count++
	y.bytes += s.size
	if until.After(y.until) {
		y.until = until
	}
}

// littleUsed reports whether it is likely that little of a segment is in use, from
// what is known without a look at its tables.
func littleUsed(s pruneeSegment, used, span, blockSize int) bool {
	most := int64(used) * int64(blockSize+blockSize/512) // what is in use takes no more
	return used*100 < span*85 || most*100 < s.size*compactBelow
}

// maxUnsure is how many segments a prune looks at that may well be in use, since
// what is missing behind the last slot in use only the tables tell.
const maxUnsure = 4096

// candidates is the segments whose tables are worth a look.
func (p *pruner) candidates() []pruneeSegment {
	u := p.segments.unsure
	if len(u) > maxUnsure {
		rand.Shuffle(len(u), func(i, j int) { u[i], u[j] = u[j], u[i] })
		u = u[:maxUnsure]
	}
	return append(p.segments.maybe, u...)
}

// strike takes off the list what is needed again or is not there any more, and
// what is condemned as a whole now.
func (p *pruner) strike() {
	all := make(map[uint64]bool, len(p.segments.whole))
	for _, n := range p.segments.whole {
		all[n] = true
	}
	for i := range p.list.Batches {
		b := &p.list.Batches[i]
		before := len(b.Segments) + len(b.Parts)
		b.Segments = slices.DeleteFunc(b.Segments, func(n uint64) bool {
			used, _ := p.needed.of(n).count()
			_, on := p.segments.on[n]
			return used > 0 || !on
		})
		b.Parts = slices.DeleteFunc(b.Parts, func(part condemnedPart) bool {
			_, on := p.segments.on[part.Segment]
			return !on || all[part.Segment] || spare(part.Dead, p.needed.of(part.Segment)) == 0
		})
		p.changed = p.changed || len(b.Segments)+len(b.Parts) != before
	}
}

// chooseParts looks at the tables of segments and condemns what is dead in those
// that have the least left, as much as may be copied.
func (p *pruner) chooseParts(ctx context.Context) error {
	type weighed struct {
		s pruneeSegment
		w segment.Weight
	}
	var mu sync.Mutex
	var found []weighed
	var done int64
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(pointReaders)
	candidates := p.candidates()
	for _, s := range candidates {
		group.Go(func() error {
			needed := p.needed.of(s.number)
			w, err := segment.Weigh(gctx, p.r.backend, p.r.keys, s.name(), needed.has)
			mu.Lock()
			defer mu.Unlock()
			done++
			p.tell("weighing segments", done, int64(len(candidates)))
			switch {
			case errors.Is(err, segment.ErrDamaged), errors.Is(err, segment.ErrVersion), errors.Is(err, fs.ErrNotExist):
				p.r.log.Warn("a segment cannot be compacted; verify the repository", "segment", s.name(), "error", err)
			case err != nil:
				return err
			case w.Live*100 < (w.Live+w.Dead)*compactBelow && w.Dead >= minCompact:
				found = append(found, weighed{s, w})
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	slices.SortFunc(found, func(a, b weighed) int {
		if c := compareShare(a.w, b.w); c != 0 {
			return c
		}
		return strings.Compare(a.s.name(), b.s.name())
	})
	room := p.partsRoom()
	for _, f := range found {
		if room -= partBytes(f.w.Slots); room < 0 {
			break
		}
		if p.segments.copied += f.w.Live; p.segments.copied > p.opts.MaxCompact && len(p.segments.parts) > 0 {
			break
		}
		p.segments.on[f.s.number] = f.s
		p.segments.parts = append(p.segments.parts, condemnedPart{f.s.number, f.w.Slots})
	}
	return nil
}

// partsRoom is how many bytes of parts fit on the list beside those that wait
// there, perhaps for long, so that it never becomes too large to be written. Half
// of it is for whole segments: for more than any repository has.
func (p *pruner) partsRoom() int {
	room := maxCondemnedBytes / 2
	for _, b := range p.list.Batches {
		for _, part := range b.Parts {
			room -= partBytes(part.Dead)
		}
	}
	return room
}

// partBytes is what a part takes in the list, at most.
func partBytes(dead []byte) int { return base64.StdEncoding.EncodedLen(len(dead)) + 64 }

// compareShare orders by what is in use of each, the least first.
func compareShare(a, b segment.Weight) int {
	x, y := float64(a.Live)/float64(a.Live+a.Dead), float64(b.Live)/float64(b.Live+b.Dead)
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

// extendList writes the list with what is new on it.
func (p *pruner) extendList(ctx context.Context) error {
	p.list.Sequence = p.nextSequence()
	slices.Sort(p.segments.whole)
	slices.SortFunc(p.segments.parts, func(a, b condemnedPart) int { return int(int64(a.Segment) - int64(b.Segment)) })
	if len(p.segments.whole)+len(p.segments.parts) > 0 {
		p.list.Batches = append(p.list.Batches, condemnedBatch{
			Sequence: p.list.Sequence, Since: p.crew.now.Unix(), Segments: p.segments.whole, Parts: p.segments.parts,
		})
		p.changed = true
	}
	if !p.changed || p.opts.DryRun {
		return nil
	}
	// Not over the list of a prune that took our place.
	if err := p.ours(ctx); err != nil {
		return err
	}
	return p.r.putCondemned(ctx, p.list)
}

// nextSequence is higher than that of any list there ever was. One that was lost
// has been seen by writers, or was written at an earlier time.
func (p *pruner) nextSequence() uint64 {
	return max(p.list.Sequence+1, p.crew.seen()+1, uint64(max(p.crew.now.Unix(), 0)))
}

// lookAgain reads the writers and points that came meanwhile, and finds out what
// is settled: step 8.
func (p *pruner) lookAgain(ctx context.Context) error {
	crew, err := p.r.crewNow(ctx, p.claim)
	if err != nil {
		return err
	}
	p.crew = crew
	ids, err := p.r.pointIDs(ctx)
	if err != nil {
		return err
	}
	fresh := slices.DeleteFunc(ids, func(id string) bool {
		_, old := p.points.listed[id]
		return old
	})
	if err := p.markIDs(ctx, fresh, p.needed); err != nil {
		return err
	}
	p.strike()
	for i := range p.list.Batches {
		b := &p.list.Batches[i]
		if now := crew.now.Unix(); b.Clear == 0 && crew.unseen(b.Sequence) == nil || b.Clear > now {
			b.Clear, p.changed = now, true
		}
	}
	return nil
}

// settled reports whether what is in a batch may be removed; if not, why not, and
// when it can be, as far as that is known.
func (p *pruner) settled(b *condemnedBatch) (ok bool, why string, when time.Time) {
	if w := p.crew.unseen(b.Sequence); w != nil {
		return false, fmt.Sprintf("a backup on %s that began before must end first", w.Owner.Host), time.Time{}
	}
	if when = time.Unix(b.Clear, 0).Add(p.settle()); p.crew.now.Before(when) {
		return false, "writers were told of it only now", when
	}
	return true, "", time.Time{}
}
