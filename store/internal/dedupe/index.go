// Package dedupe is the index that answers, for every block a backup reads,
// whether the repository holds it already and where.
//
// The index is a set of immutable runs: objects of sorted entries in sealed
// pages. Of each run only a filter and a fence per page are kept in memory,
// some 1.17 bytes an entry, which is 19 MB per TB of unique data. So a block
// that is new costs no I/O (but for one false alarm in 256 per run), and one
// that is known costs one page read.
//
// The index is a cache: all of it can be rebuilt from the segments, a missing
// entry only means that a block is stored twice, and what does not
// authenticate is taken for missing and reported.
//
// # Several writers, and crashes
//
// Every run is published under a new random name, in one atomic step, and
// never changes. A merged run holds all entries of the runs that it names as
// replaced, so at every moment the runs that are there, less those which
// another one there names as replaced, hold every entry ever published. The
// replaced ones are removed after the merged run is durable, and by whoever
// comes across them. Two processes that merge the same runs do each other's
// work again and lose nothing.
//
// A run that is damaged is not merged: its damage stays to be found by Verify,
// until Rebuild.
package dedupe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lifeboat/store/backend"
	"lifeboat/store/internal/segment"
)

// Options are what seldom needs to be other than the zero value.
type Options struct {
	// Logger gets what is damaged. Default: nowhere.
	Logger *slog.Logger
	// NoLookups is for who merges runs and looks nothing up: the index then
	// takes 0.02 bytes an entry instead of 1.17. Lookup gives the same answers,
	// slowly.
	NoLookups bool
	// Now is the clock that stamps runs. Default: time.Now.
	Now func() time.Time
}

// Index is an open dedupe index. All methods are safe for concurrent use.
//
// Lock order: publish before retired.
type Index struct {
	ctx  context.Context
	b    backend.Backend
	keys Keys
	opts Options

	runs atomic.Pointer[[]*run] // newest first; lookups take no lock

	publish sync.Mutex // one Publish, Merge, Refresh or Rebuild at a time
	build   builder    // under publish

	retired struct { // objects of runs that lookups may still be using
		sync.Mutex
		objects []backend.Object
	}
	warned atomic.Int64 // damage reported by lookups
}

// maxWarnings is how many failing lookups are logged one by one.
const maxWarnings = 20

// Open reads what lookups need to have in memory. ctx governs all reads until
// Close. A damaged run is logged and left out.
func Open(ctx context.Context, b backend.Backend, keys Keys, opts Options) (*Index, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	x := &Index{ctx: ctx, b: b, keys: keys, opts: opts}
	x.runs.Store(new([]*run))
	if err := x.Refresh(ctx); err != nil {
		return nil, errors.Join(err, x.Close())
	}
	return x, nil
}

// Close ends all use of the index. It must not be called beside other calls.
func (x *Index) Close() error {
	x.replaceRuns(nil)
	x.retired.Lock()
	defer x.retired.Unlock()
	var err error
	for _, o := range x.retired.objects {
		err = errors.Join(err, o.Close())
	}
	x.retired.objects = nil
	return err
}

// replaceRuns makes runs the current ones and retires those not among them.
func (x *Index) replaceRuns(runs []*run) {
	slices.SortStableFunc(runs, func(a, b *run) int { return cmp.Compare(b.stamp, a.stamp) })
	old := *x.runs.Swap(&runs)
	x.retired.Lock()
	defer x.retired.Unlock()
	for _, r := range old {
		if !slices.Contains(runs, r) {
			x.retired.objects = append(x.retired.objects, r.obj)
		}
	}
}

// Lookup finds the address of a blob. Where several runs know it, the one
// published last counts. What cannot be read is logged and taken for unknown.
func (x *Index) Lookup(id segment.Identity) (segment.Addr, bool) {
	key := filterKey(id)
	for _, r := range *x.runs.Load() {
		addr, ok, err := r.lookup(id, key)
		if ok {
			return addr, true
		}
		if err != nil {
			x.warn(err)
		}
	}
	return 0, false
}

func (x *Index) warn(err error) {
	n := x.warned.Add(1)
	if n > maxWarnings || x.ctx.Err() != nil {
		return
	}
	x.opts.Logger.Warn("the dedupe index cannot be read in one place: blocks that it knows there are stored again",
		"err", err, "last_warning", n == maxWarnings)
}

// Stats describes an index.
type Stats struct {
	Runs    int
	Entries int64 // an identity in two runs counts twice
	Memory  int64 // bytes held for lookups
}

// Stats describes the index as it is now.
func (x *Index) Stats() Stats {
	var s Stats
	for _, r := range *x.runs.Load() {
		s.Runs++
		s.Entries += int64(r.entries)
		s.Memory += int64(r.memory())
	}
	return s
}

// Refresh takes notice of runs that others published or removed.
func (x *Index) Refresh(ctx context.Context) error {
	x.publish.Lock()
	defer x.publish.Unlock()
	_, err := x.refresh(ctx)
	return err
}

// refresh returns the names of runs that another one has replaced and that are
// still there.
func (x *Index) refresh(ctx context.Context) (replaced []runID, err error) {
	ids, err := x.list(ctx)
	if err != nil {
		return nil, fmt.Errorf("dedupe index: %w", err)
	}
	known := map[runID]*run{}
	for _, r := range *x.runs.Load() {
		known[r.id] = r
	}
	var runs []*run
	for _, id := range ids {
		r := known[id]
		if r == nil {
			if r, err = x.open(ctx, id); err != nil {
				x.retire(runs, known)
				return nil, err
			}
		}
		if r != nil {
			runs = append(runs, r)
		}
	}
	current, gone := split(runs)
	x.retire(runs, known, current...)
	x.replaceRuns(current)
	return slices.DeleteFunc(ids, func(id runID) bool { return !gone[id] }), nil
}

// retire keeps the objects of newly opened runs that are not used after all,
// so that Close closes them.
func (x *Index) retire(runs []*run, known map[runID]*run, but ...*run) {
	x.retired.Lock()
	defer x.retired.Unlock()
	for _, r := range runs {
		if known[r.id] == nil && !slices.Contains(but, r) {
			x.retired.objects = append(x.retired.objects, r.obj)
		}
	}
}

// split tells which runs count and which names one of them replaces.
func split(runs []*run) (current []*run, gone map[runID]bool) {
	gone = map[runID]bool{}
	for _, r := range runs {
		for _, id := range r.replaces {
			gone[id] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(runs), func(r *run) bool { return gone[r.id] }), gone
}

// open opens a run; nil without an error means that it is of no use.
func (x *Index) open(ctx context.Context, id runID) (*run, error) {
	report := func(d *DamageError) {
		x.opts.Logger.Warn("part of the dedupe index is lost until it is rebuilt", "err", d)
	}
	r, err := openRun(x.ctx, x.b, x.keys, id, opening{damaged: report, replaces: x.blindRuns, blind: x.opts.NoLookups})
	var damage *DamageError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil // merged meanwhile
	case errors.As(err, &damage):
		report(damage)
		return nil, nil
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("dedupe index: %w", err)
	}
	return r, nil
}

func (x *Index) list(ctx context.Context) ([]runID, error) {
	var ids []runID
	for info, err := range x.b.List(ctx, Prefix) {
		if err != nil {
			return nil, err
		}
		if id, ok := parseName(info.Name); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Publish adds entries in one new run, durably: they are found from now on, by
// everybody who opens or refreshes the index. It sorts the slice it is given.
// Of entries with the same identity any one counts.
func (x *Index) Publish(ctx context.Context, entries []Entry) error {
	if len(entries) == 0 {
		return nil
	}
	slices.SortFunc(entries, func(a, b Entry) int { return bytesCompare(a.ID, b.ID) })
	x.publish.Lock()
	defer x.publish.Unlock()
	id, err := x.write(ctx, x.opts.Now().UnixNano(), nil, func(yield func(Entry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	})
	if err != nil {
		return fmt.Errorf("dedupe index: publish %d entries: %w", len(entries), err)
	}
	return x.adopt(ctx, id)
}

// write writes a run; 0 means that there was no entry.
func (x *Index) write(ctx context.Context, stamp int64, replaces []runID, entries func(func(Entry, error) bool)) (runID, error) {
	w, err := newRunWriter(ctx, x.b, x.keys, &x.build, stamp, replaces)
	if err != nil {
		return 0, err
	}
	defer w.abort()
	entries(func(e Entry, failed error) bool {
		if err = failed; err == nil {
			err = w.add(e)
		}
		if err == nil && w.entries%(1<<16) == 0 {
			err = ctx.Err()
		}
		return err == nil
	})
	if err != nil || w.entries == 0 {
		return 0, err
	}
	return w.id, w.commit(ctx)
}

// adopt opens a run of our own, and drops those that it replaces.
func (x *Index) adopt(ctx context.Context, id runID) error {
	r, err := x.open(ctx, id)
	if err != nil || r == nil {
		return err
	}
	current, _ := split(append(slices.Clone(*x.runs.Load()), r))
	x.replaceRuns(current)
	return nil
}
