package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"lifeboat/store/internal/dedupe"
	"lifeboat/store/internal/segment"
)

// act removes what may be removed: steps 9 to 11.
func (p *pruner) act(ctx context.Context) error {
	if err := p.removePoints(ctx); err != nil {
		return err
	}
	// All is decided; what it was decided by takes 5 MB for each TB.
	p.needed, p.segments.maybe, p.segments.unsure = nil, nil, nil
	todo := p.settledBatches()
	if err := p.compactIndex(ctx, todo); err != nil {
		return err
	}
	for _, b := range todo {
		if err := p.removeSegments(ctx, b); err != nil {
			return err
		}
		if err := p.compactSegments(ctx, b); err != nil {
			return err
		}
	}
	p.reportPending()
	p.report.FreedBytes = p.report.RemovedBytes + p.report.CompactedBytes
	if p.opts.DryRun {
		return nil
	}
	if p.changed {
		p.list.Sequence++
		if err := p.ours(ctx); err != nil {
			return err
		}
		if err := p.r.putCondemned(ctx, p.list); err != nil {
			return err
		}
	}
	return p.tidy(ctx)
}

// still makes sure, from time to time, that our claim is still ours: a prune that
// was asleep for long must not go on with what it knew before.
func (p *pruner) still(ctx context.Context) error {
	p.checking.Lock()
	defer p.checking.Unlock()
	now := wallClock()
	if since := now.Sub(p.checked); since >= 0 && since < p.r.lease/5 {
		return ctx.Err()
	}
	if err := p.ours(ctx); err != nil {
		return err
	}
	p.checked = now
	return nil
}

// ours fails with ErrFenced when another process took this prune for dead. The
// fence is asked, too: a prune that was asleep in the middle of a renewal has put
// its claim back after it was swept.
func (p *pruner) ours(ctx context.Context) error {
	if err := p.claim.update(ctx, func(*claimRecord) {}); err != nil {
		return err
	}
	return p.claim.lost(ctx)
}

// removePoints removes the points in X, and then their tombstones.
func (p *pruner) removePoints(ctx context.Context) error {
	p.report.PointsRemoved = len(p.points.remove)
	if p.opts.DryRun {
		return nil
	}
	for i, id := range p.points.remove {
		p.tell("removing forgotten points", int64(i), int64(len(p.points.remove)))
		if err := p.still(ctx); err != nil {
			return err
		}
		for _, name := range []string{pointName(id), tombstoneName(id)} {
			if err := p.r.backend.Remove(ctx, name); err != nil {
				return err
			}
		}
		p.r.points.drop(id)
	}
	return nil
}

// settledBatches is the batches whose segments may be removed.
func (p *pruner) settledBatches() []*condemnedBatch {
	var out []*condemnedBatch
	for i := range p.list.Batches {
		if ok, _, _ := p.settled(&p.list.Batches[i]); ok {
			out = append(out, &p.list.Batches[i])
		}
	}
	return out
}

// compactIndexBelow is the size in bytes of a dedupe index that is compacted
// whenever something goes; a larger one when a sixteenth of its segments have gone.
const compactIndexBelow = 256 << 20

// compactIndex leaves what is about to be removed out of the dedupe index. That
// saves those who look something up a look at a segment; nothing depends on it.
func (p *pruner) compactIndex(ctx context.Context, batches []*condemnedBatch) error {
	going := &condemnedSet{dead: make(map[uint64][]byte)}
	for _, b := range batches {
		going = going.with(&condemnedRecord{Batches: []condemnedBatch{*b}})
	}
	if len(going.dead) == 0 || p.opts.DryRun {
		return nil
	}
	var size int64
	for info, err := range p.r.backend.List(ctx, indexPrefix) {
		if err != nil {
			return fmt.Errorf("list the dedupe index: %w", err)
		}
		size += info.Size
	}
	p.changed = true
	p.list.Stale += int64(len(going.dead))
	if size >= compactIndexBelow && p.list.Stale < p.segments.total/16 {
		return nil
	}
	p.tell("compacting the dedupe index", 0, 0)
	index, err := dedupe.Open(ctx, p.r.backend, p.r.keys, dedupe.Options{Logger: p.r.log, Now: p.r.clock, NoLookups: true})
	if err != nil {
		return err
	}
	err = index.Compact(ctx, func(a segment.Addr) bool { return !going.has(a) })
	p.list.Stale = 0
	return errors.Join(err, index.Close())
}

// removeSegments removes the segments of a batch that are of no use at all.
func (p *pruner) removeSegments(ctx context.Context, b *condemnedBatch) error {
	var mu sync.Mutex // guards kept and the report
	var kept []uint64 // by the storage
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(pointReaders)
	for i, n := range b.Segments {
		s := p.segments.on[n]
		if p.opts.DryRun {
			p.report.Removed++
			p.report.RemovedBytes += s.size
			continue
		}
		p.tell("removing segments", int64(i), int64(len(b.Segments)))
		group.Go(func() error {
			err := p.removeSegment(gctx, s)
			mu.Lock()
			defer mu.Unlock()
			if p.r.refusedByLock(gctx, err) {
				kept = append(kept, n)
				return nil
			}
			p.report.Removed++
			p.report.RemovedBytes += s.size
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	p.changed = p.changed || len(b.Segments) > len(kept)
	slices.Sort(kept)
	b.Segments = kept
	return nil
}

func (p *pruner) removeSegment(ctx context.Context, s pruneeSegment) error {
	if err := p.still(ctx); err != nil {
		return err
	}
	for _, g := range append(s.older, s.generation) {
		if err := p.r.backend.Remove(ctx, segment.Name(s.number, g)); err != nil {
			return err
		}
	}
	p.r.segments.Forget(s.number)
	return nil
}

// compactSegments writes the segments of a batch anew without what is dead in
// them.
func (p *pruner) compactSegments(ctx context.Context, b *condemnedBatch) error {
	var mu sync.Mutex // guards left, done and the report
	var left []condemnedPart
	done := 0
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(min(4, runtime.GOMAXPROCS(0)))
	for _, part := range b.Parts {
		group.Go(func() error {
			freed, err := p.compactSegment(gctx, part)
			if err != nil && !errors.Is(err, errNotNow) {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				left = append(left, part)
				return nil
			}
			done++
			p.tell("compacting segments", int64(done), int64(len(b.Parts)))
			p.report.Compacted++
			p.report.CompactedBytes += freed
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	p.changed = p.changed || len(left) != len(b.Parts)
	slices.SortFunc(left, func(a, b condemnedPart) int { return int(int64(a.Segment) - int64(b.Segment)) })
	if !p.opts.DryRun {
		b.Parts = left
	} else {
		b.Parts = nil
	}
	return nil
}

// errNotNow: a segment cannot be compacted now.
var errNotNow = errors.New("not now")

// compactSegment writes the next generation of a segment, makes sure that it can
// be read, and removes the one before. It returns how many bytes that freed.
func (p *pruner) compactSegment(ctx context.Context, part condemnedPart) (int64, error) {
	s := p.segments.on[part.Segment]
	if p.opts.DryRun {
		return deadBytes(s, part), nil
	}
	if err := p.still(ctx); err != nil {
		return 0, err
	}
	if locked, err := p.r.objectLocked(ctx, s.name(), p.crew.now); err != nil || locked {
		return 0, cmp.Or(err, errNotNow) // its space would not be free
	}
	if err := p.removeOlder(ctx, s, part); err != nil {
		return 0, err
	}
	live := func(slot int) bool { return !deadSlot(part.Dead, slot) }
	if w, err := segment.Weigh(ctx, p.r.backend, p.r.keys, s.name(), live); err == nil && w.Dead == 0 {
		return 0, nil // by a prune that was interrupted
	}
	info, err := segment.Rewrite(ctx, p.r.backend, p.r.keys, s.name(), live, segment.WriterOptions{})
	switch {
	case errors.Is(err, segment.ErrNothingLive):
		return s.size, p.removeSegment(ctx, s)
	case errors.Is(err, fs.ErrExist):
		return 0, errNotNow // made by a prune that was interrupted, or is not as dead as it looked
	case errors.Is(err, segment.ErrDamaged):
		p.r.log.Warn("a segment cannot be compacted; verify the repository", "segment", s.name(), "error", err)
		return 0, errNotNow
	case err != nil:
		return 0, err
	}
	if _, err := segment.Weigh(ctx, p.r.backend, p.r.keys, info.Name, live); err != nil {
		return 0, fmt.Errorf("%s was just written and cannot be read; the one before stays: %w", info.Name, err)
	}
	if err := p.still(ctx); err != nil {
		return 0, err
	}
	if err := p.r.backend.Remove(ctx, s.name()); err != nil {
		return 0, err
	}
	p.r.segments.Forget(s.number)
	return s.size - info.Size, nil
}

// deadBytes is about what the dead slots of a segment take.
func deadBytes(s pruneeSegment, part condemnedPart) int64 {
	dead := 0
	for _, v := range part.Dead {
		dead += bits.OnesCount8(v)
	}
	return s.size * int64(dead) / int64(max(8*len(part.Dead), 1))
}

// reportPending says what will be free when.
func (p *pruner) reportPending() {
	add := func(e PrunePending) {
		if e.Bytes > 0 || len(e.Points) > 0 {
			e.When = e.When.UTC()
			p.report.Pending = append(p.report.Pending, e)
		}
	}
	for i := range p.list.Batches {
		b := &p.list.Batches[i]
		_, why, when := p.settled(b)
		e := PrunePending{When: when, Why: why}
		for _, n := range b.Segments {
			p.report.Condemned++
			p.report.CondemnedBytes += p.segments.on[n].size
			e.Bytes += p.segments.on[n].size
		}
		for _, part := range b.Parts {
			e.Bytes += deadBytes(p.segments.on[part.Segment], part)
		}
		add(e)
	}
	if y := p.segments.young; y.count > 0 {
		p.report.Condemned += y.count
		p.report.CondemnedBytes += y.bytes
		add(PrunePending{When: y.until, Bytes: y.bytes, Why: "of no use, but too new to tell for good"})
	}
	for _, g := range p.segments.later {
		add(PrunePending{When: g.when, Bytes: g.bytes, Points: g.ids, Why: g.why})
	}
	slices.SortStableFunc(p.report.Pending, func(a, b PrunePending) int {
		if a.When.IsZero() != b.When.IsZero() {
			return map[bool]int{true: 1, false: -1}[a.When.IsZero()]
		}
		return a.When.Compare(b.When)
	})
}

// tidy removes what is left behind by others, and by prunes that were interrupted.
func (p *pruner) tidy(ctx context.Context) error {
	if err := p.still(ctx); err != nil {
		return err
	}
	var names []string
	names = append(names, p.segments.older...)
	for _, s := range p.points.stones {
		if slices.Contains(p.points.orphan, s.id) && p.crew.now.Sub(s.modified) >= p.settle() {
			if _, err := p.r.readPoint(ctx, s.id); errors.Is(err, fs.ErrNotExist) {
				names = append(names, tombstoneName(s.id))
			}
		}
	}
	for _, h := range p.crew.ended {
		// Twice the lease: its owner may be renewing it at this very moment.
		if p.crew.now.Sub(h.modified) > 2*h.Until.Sub(h.modified) || !h.Lasting && !h.Damaged && p.r.proc.Dead(h.process) {
			names = append(names, holdName(h.ID))
		}
	}
	for info, err := range p.r.backend.List(ctx, pointPrefix) {
		if err != nil {
			return fmt.Errorf("list the restore points: %w", err)
		}
		id := strings.TrimPrefix(info.Name, pointPrefix)
		if !validID(id) || p.crew.now.Sub(info.Modified) < voidLife || p.r.points.get(id) != nil {
			continue
		}
		if rec, err := p.r.readPoint(ctx, id); err == nil && rec.Void {
			names = append(names, info.Name)
		}
	}
	for _, name := range names {
		if err := p.r.backend.Remove(ctx, name); err != nil && !p.r.refusedByLock(ctx, err) {
			return err
		}
	}
	return p.r.sweepTraces(ctx)
}
