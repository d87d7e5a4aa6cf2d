package dedupe

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"

	"lifeboat/store/internal/segment"
)

// Runs are merged by size: a tier holds runs of less than four times the size
// of the one below, and when it has four they become one. So an entry is
// rewritten once per tier, and there are at most three runs a tier.
const (
	fanIn    = 4
	baseTier = 16 << 10 // entries: smaller runs are all of tier 0
	maxFanIn = 16
	// readPages is how many pages a merge reads at a time from one run.
	readPages = 64
)

func tier(entries int) int {
	if entries < baseTier {
		return 0
	}
	return 1 + int(math.Log(float64(entries)/baseTier)/math.Log(fanIn))
}

// NeedsMerge reports whether Merge has something to do: cheap enough to ask
// after every Publish.
func (x *Index) NeedsMerge() bool { return pick(*x.runs.Load(), 0) != nil }

// chooser says which of the runs to merge next, after some merges.
type chooser func(runs []*run, merges int) []*run

// pick chooses the runs of the lowest tier that has enough of them.
func pick(runs []*run, _ int) []*run {
	tiers := map[int][]*run{}
	lowest := math.MaxInt
	for _, r := range runs {
		t := tier(r.entries)
		tiers[t] = append(tiers[t], r)
		if len(tiers[t]) >= fanIn {
			lowest = min(lowest, t)
		}
	}
	chosen := tiers[lowest]
	return chosen[:min(len(chosen), maxFanIn)]
}

// pickAll chooses all runs, as many as go at a time, until they are one.
func pickAll(runs []*run, merges int) []*run {
	if merges > 0 && len(runs) == 1 {
		return nil
	}
	return runs[:min(len(runs), maxFanIn)]
}

// Merge joins runs until there are few enough, and removes those that have
// been replaced. Its memory does not depend on their size. It may be
// interrupted at any moment, and run beside writers and other merges.
func (x *Index) Merge(ctx context.Context) error {
	return x.merge(ctx, pick, nil)
}

// MergeKeeping is Merge that leaves out the entries of the runs it joins whose
// address keep refuses.
func (x *Index) MergeKeeping(ctx context.Context, keep func(segment.Addr) bool) error {
	return x.merge(ctx, pick, keep)
}

// Compact joins all runs into one and leaves out the entries whose address
// keep refuses. keep nil keeps all.
func (x *Index) Compact(ctx context.Context, keep func(segment.Addr) bool) error {
	return x.merge(ctx, pickAll, keep)
}

// maxMerges ends a race that others keep winning.
const maxMerges = 1000

func (x *Index) merge(ctx context.Context, choose chooser, keep func(segment.Addr) bool) error {
	x.publish.Lock()
	defer x.publish.Unlock()
	bad := map[runID]bool{}
	merges := 0
	for range maxMerges {
		replaced, err := x.refresh(ctx)
		if err != nil {
			return err
		}
		if err := x.remove(ctx, replaced); err != nil {
			return fmt.Errorf("dedupe index: %w", err)
		}
		usable := slices.DeleteFunc(slices.Clone(*x.runs.Load()), func(r *run) bool { return bad[r.id] || !r.whole() })
		chosen := choose(usable, merges)
		if len(chosen) == 0 {
			return nil
		}
		err = x.mergeRuns(ctx, chosen, keep)
		var source *sourceError
		switch {
		case err == nil:
			merges++
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist): // somebody else has merged it
		case errors.As(err, &source):
			x.warn(err)
			bad[source.run.id] = true
		default:
			return fmt.Errorf("dedupe index: merge %d runs: %w", len(chosen), err)
		}
	}
	return nil
}

func (x *Index) remove(ctx context.Context, ids []runID) error {
	for _, id := range ids {
		if err := x.b.Remove(ctx, id.object()); err != nil {
			return err
		}
	}
	return nil
}

// mergeRuns writes one run in the place of several. What those have replaced
// themselves is gone by now: merge removes it, durably, before it looks for
// more to do. So nobody need say so any more.
func (x *Index) mergeRuns(ctx context.Context, runs []*run, keep func(segment.Addr) bool) error {
	var stamp int64
	var replaces []runID
	for _, r := range runs {
		stamp = max(stamp, r.stamp)
		replaces = append(replaces, r.id)
	}
	id, err := x.write(ctx, stamp, replaces, func(yield func(Entry, error) bool) {
		mergeEntries(runs, func(e Entry, err error) bool {
			if err == nil && keep != nil && !keep(e.Addr) {
				return true
			}
			return yield(e, err)
		})
	})
	if err != nil {
		return err
	}
	if id == 0 { // nothing was kept
		x.replaceRuns(slices.DeleteFunc(slices.Clone(*x.runs.Load()), func(r *run) bool { return slices.Contains(runs, r) }))
	} else if err := x.adopt(ctx, id); err != nil {
		return err
	}
	return x.remove(ctx, replaces)
}

// sourceError says which run could not be read.
type sourceError struct {
	run *run
	err error
}

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// mergeEntries yields the entries of all runs in order, the newest first among
// those with the same identity.
func mergeEntries(runs []*run, yield func(Entry, error) bool) {
	h := make(mergeHeap, 0, len(runs))
	for _, r := range runs {
		c := &cursor{run: r, buf: make([]byte, readPages*pageSize)}
		if ok, err := c.next(); err != nil {
			yield(Entry{}, err)
			return
		} else if ok {
			h = append(h, c)
		}
	}
	heap.Init(&h)
	for len(h) > 0 {
		c := h[0]
		if !yield(c.entry, nil) {
			return
		}
		ok, err := c.next()
		switch {
		case err != nil:
			yield(Entry{}, err)
			return
		case ok:
			heap.Fix(&h, 0)
		default:
			heap.Pop(&h)
		}
	}
}

type mergeHeap []*cursor

func (h mergeHeap) Len() int      { return len(h) }
func (h mergeHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *mergeHeap) Push(c any)   { *h = append(*h, c.(*cursor)) }

func (h mergeHeap) Less(i, j int) bool {
	if c := bytesCompare(h[i].entry.ID, h[j].entry.ID); c != 0 {
		return c < 0
	}
	return h[i].run.stamp > h[j].run.stamp
}

func (h *mergeHeap) Pop() any {
	last := len(*h) - 1
	c := (*h)[last]
	*h = (*h)[:last]
	return c
}

// cursor reads a run from its beginning.
type cursor struct {
	run     *run
	part    int // partition
	page    int // next page of it to open
	buf     []byte
	loaded  []byte // sealed pages that have been read
	entries []byte // of the page that has been opened
	entry   Entry
	nonce   [12]byte
}

// next moves on to the next entry and reports whether there is one. An error
// is a *sourceError.
func (c *cursor) next() (bool, error) {
	for len(c.entries) == 0 {
		if c.part == len(c.run.parts) {
			return false, nil
		}
		if err := c.nextPage(); err != nil {
			return false, &sourceError{c.run, err}
		}
	}
	e := getEntry(c.entries)
	if c.entry.ID != (segment.Identity{}) && bytesCompare(c.entry.ID, e.ID) >= 0 {
		p := c.run.parts[min(c.part, len(c.run.parts)-1)]
		return false, &sourceError{c.run, c.run.damage(p.offset, int64(p.pages())*pageSize, "its entries are out of order")}
	}
	c.entry, c.entries = e, c.entries[entrySize:]
	return true, nil
}

func (c *cursor) nextPage() (err error) {
	p := c.run.parts[c.part]
	if len(c.loaded) == 0 {
		n := min(readPages, p.pages()-c.page)
		c.loaded = c.buf[:n*pageSize]
		if err := c.run.read(c.loaded, p.offset+int64(c.page)*pageSize); err != nil {
			return err
		}
	}
	c.entries, err = c.run.openPage(p, c.page, c.loaded[:pageSize], &c.nonce)
	c.loaded = c.loaded[pageSize:]
	if c.page++; c.page == p.pages() {
		c.part, c.page, c.loaded = c.part+1, 0, nil
	}
	return err
}

// whole reports whether all of the run's summaries could be read.
func (r *run) whole() bool { return !slices.Contains(r.parts, nil) }
