package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"lifeboat/store/backend"
	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/dedupe"
	"lifeboat/store/internal/segment"
)

// Prune, in a form that is simple and safe: whole segments that no point needs
// are condemned; those that are found condemned by a prune at least a grace
// period later, and are still needed by no point, are removed. Nothing is
// rewritten. The grace is for those who have an image of a forgotten point open.
//
// It does not run beside writers. A writer puts up its claim and then looks for
// a prune's; a prune puts up its claim and then looks for a writer's. So at least
// one of the two sees the other and gives way, whatever the order, and what no
// point needs once the prune has seen no writer is needed by nobody until it
// ends. Whatever cannot be read (a point, a node of a map) ends the prune, since
// what it needs is not known.
const (
	condemnedName     = "prune/condemned"
	maxCondemnedBytes = 256 << 20
	// voidLife is how long the void that fenced a writer stays.
	voidLife = 30 * 24 * time.Hour
)

// DefaultGrace is how long a segment that no point needs stays.
const DefaultGrace = 72 * time.Hour

// PruneOptions says what to remove. The zero value is good.
type PruneOptions struct {
	// Grace is how long a segment must have been of no use; 0 means
	// DefaultGrace, and a negative one that it goes at once: only when no image
	// of a forgotten point is open anywhere.
	Grace time.Duration
	// DryRun only reports.
	DryRun bool
}

// PruneReport is what a prune did.
type PruneReport struct {
	Removed        int   `json:"removed"`       // segments
	RemovedBytes   int64 `json:"removed_bytes"` // of storage
	Condemned      int   `json:"condemned"`     // segments of no use that stay until their grace is over
	CondemnedBytes int64 `json:"condemned_bytes"`
}

// condemnedRecord is the object that remembers since when segments are of no
// use: their numbers, ascending, and the Unix time when a prune first found it.
type condemnedRecord struct {
	Format   int      `json:"format"`
	Segments []uint64 `json:"segments"`
	Since    []int64  `json:"since"`
}

// Prune removes what no restore point needs. ErrBusy: a backup or another prune
// is running.
func (r *Repository) Prune(ctx context.Context, opts PruneOptions) (*PruneReport, error) {
	if opts.Grace == 0 {
		opts.Grace = DefaultGrace
	}
	report, err := r.prune(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("prune: %w", err)
	}
	return report, nil
}

func (r *Repository) prune(ctx context.Context, opts PruneOptions) (report *PruneReport, err error) {
	c, err := r.takeClaim(ctx, claimPrune)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		c.renew(ctx, cancel)
	}()
	defer func() {
		cancel(nil)
		<-renewed
		err = errors.Join(err, c.close(context.WithoutCancel(ctx)))
	}()
	if err := r.sweep(ctx, c.rec.Number); err != nil {
		return nil, err
	}
	if err := r.aloneWithWriters(ctx, c.rec.Number); err != nil {
		return nil, err
	}
	if !opts.DryRun {
		if err := r.removeForgotten(ctx); err != nil {
			return nil, err
		}
	}
	needed, err := r.neededSegments(ctx)
	if err != nil {
		return nil, err
	}
	return r.removeUnneeded(ctx, needed, opts)
}

// removeForgotten removes the forgotten points.
func (r *Repository) removeForgotten(ctx context.Context) error {
	stones, err := r.tombstones(ctx)
	if err != nil {
		return err
	}
	for _, s := range stones {
		why, err := r.checkRemovable(ctx, []string{s.id})
		if err != nil {
			return err
		}
		if why[s.id] != nil {
			continue
		}
		for _, name := range []string{pointName(s.id), tombstoneName(s.id)} {
			if err := r.backend.Remove(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// aloneWithWriters fails with ErrBusy while anybody else writes.
func (r *Repository) aloneWithWriters(ctx context.Context, own uint64) error {
	for _, kind := range []claimKind{claimWriter, claimPrune} {
		live, err := r.liveClaims(ctx, own, kind)
		if err != nil {
			return err
		}
		if len(live) > 0 {
			return fmt.Errorf("%w: a %s on %s is at work; try again when it has finished", ErrBusy, live[0].Kind, live[0].Owner.Host)
		}
	}
	return nil
}

// neededSegments marks the segments that any point needs.
func (r *Repository) neededSegments(ctx context.Context) (map[uint64]struct{}, error) {
	var unreadable error
	recs, err := r.pointRecords(ctx, func(id string, err error) {
		unreadable = fmt.Errorf("what point %s needs is not known: %w; forget it, or put it back from a copy", id, err)
	})
	if err = errors.Join(err, unreadable); err != nil {
		return nil, err
	}
	needed := make(map[uint64]struct{})
	nodes := newAddrSet()
	visit := func(n blockmap.Node) error {
		needed[n.Addr.Segment()] = struct{}{}
		for _, a := range n.Entries {
			needed[a.Segment()] = struct{}{}
		}
		return n.Err
	}
	for _, rec := range recs {
		for _, a := range rec.configBlocks() {
			needed[a.Segment()] = struct{}{}
		}
		for i, d := range rec.Disks {
			if err := r.maps.Visit(ctx, d.tree(r.blockSize), nodes.add, visit); err != nil {
				return nil, fmt.Errorf("what disk %d of point %s needs is not known: %w; verify the repository", i, rec.ID, damaged(err))
			}
		}
	}
	return needed, nil
}

// removeUnneeded condemns and removes. The order is: index, then segments, then
// the list of the condemned; ending anywhere between costs nothing but time.
func (r *Repository) removeUnneeded(ctx context.Context, needed map[uint64]struct{}, opts PruneOptions) (*PruneReport, error) {
	since, err := r.condemned(ctx)
	if err != nil {
		return nil, err
	}
	var (
		report PruneReport
		now    = r.clock().Unix()
		still  = make(map[uint64]int64)
		dead   []string
		gone   = make(map[uint64]struct{})
	)
	for info, err := range r.backend.List(ctx, "segments/") {
		if err != nil {
			return nil, fmt.Errorf("list the segments: %w", err)
		}
		n, _, err := segment.ParseName(info.Name)
		if _, ok := needed[n]; ok || err != nil {
			continue
		}
		first, ok := since[n]
		if !ok || first > now {
			first = now
		}
		if opts.Grace < 0 || now-first >= int64(opts.Grace/time.Second) {
			dead = append(dead, info.Name)
			gone[n] = struct{}{}
			report.Removed++
			report.RemovedBytes += info.Size
			continue
		}
		still[n] = first
		report.Condemned++
		report.CondemnedBytes += info.Size
	}
	if opts.DryRun {
		return &report, nil
	}
	if err := r.removeDead(ctx, dead, gone); err != nil {
		return nil, err
	}
	if err := r.removeOldVoids(ctx); err != nil {
		return nil, err
	}
	return &report, r.putCondemned(ctx, still)
}

func (r *Repository) removeDead(ctx context.Context, dead []string, gone map[uint64]struct{}) error {
	if len(dead) == 0 {
		return nil
	}
	index, err := dedupe.Open(ctx, r.backend, r.keys, dedupe.Options{Logger: r.log, Now: r.clock})
	if err != nil {
		return err
	}
	err = index.Compact(ctx, func(a segment.Addr) bool {
		_, ok := gone[a.Segment()]
		return !ok
	})
	if err = errors.Join(err, index.Close()); err != nil {
		return err
	}
	for _, name := range dead {
		if err := r.backend.Remove(ctx, name); err != nil {
			return err
		}
	}
	for n := range gone {
		r.segments.Forget(n)
	}
	return nil
}

// condemned reads since when segments are of no use. A list that is damaged is
// begun anew: everything gets its whole grace again.
func (r *Repository) condemned(ctx context.Context) (map[uint64]int64, error) {
	data, err := r.getSealed(ctx, condemnedName, maxCondemnedBytes)
	var rec condemnedRecord
	if err == nil {
		err = decodeStrict(data, &rec)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case errors.Is(err, ErrDamaged):
		r.log.Error("the list of condemned segments is damaged: begun anew", "error", err)
		rec = condemnedRecord{}
	case err != nil:
		return nil, err
	}
	since := make(map[uint64]int64)
	for i, n := range rec.Segments {
		if i < len(rec.Since) {
			since[n] = rec.Since[i]
		}
	}
	return since, nil
}

func (r *Repository) putCondemned(ctx context.Context, since map[uint64]int64) error {
	if len(since) == 0 {
		return r.backend.Remove(ctx, condemnedName)
	}
	rec := condemnedRecord{Format: recordFormat}
	for n := range since {
		rec.Segments = append(rec.Segments, n)
	}
	slices.Sort(rec.Segments)
	for _, n := range rec.Segments {
		rec.Since = append(rec.Since, since[n])
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return r.putSealed(ctx, condemnedName, data, backend.Replace)
}

// removeOldVoids removes the voids of writers that are long gone.
func (r *Repository) removeOldVoids(ctx context.Context) error {
	ids, err := r.pointIDs(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if r.points.get(id) != nil {
			continue // a point
		}
		rec, err := r.readPoint(ctx, id)
		if err != nil || !rec.Void || r.clock().Sub(rec.Time) < voidLife {
			continue
		}
		if err := r.backend.Remove(ctx, pointName(id)); err != nil {
			return err
		}
	}
	return nil
}

// yieldToPrune fails with ErrBusy while a prune is running.
func (r *Repository) yieldToPrune(ctx context.Context, own uint64) error {
	live, err := r.liveClaims(ctx, own, claimPrune)
	if err != nil {
		return err
	}
	if len(live) > 0 {
		return fmt.Errorf("%w: a prune is running on %s; try again when it has finished", ErrBusy, live[0].Owner.Host)
	}
	return nil
}

// liveClaims returns the claims of a kind, other than own, whose owner is not
// known to be dead. own was written a moment ago.
func (r *Repository) liveClaims(ctx context.Context, own uint64, kind claimKind) ([]claimRecord, error) {
	claims, err := r.listClaims(ctx)
	if err != nil {
		return nil, err
	}
	var now time.Time
	for _, l := range claims {
		if l.number == own {
			now = l.modified
		}
	}
	var live []claimRecord
	for _, l := range claims {
		if l.number == own {
			continue
		}
		rec, err := r.getClaim(ctx, l.number)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrDamaged) && now.Sub(l.modified) > DefaultLease:
			continue // a living owner would have mended it
		case errors.Is(err, ErrDamaged):
			return nil, fmt.Errorf("%w: %w; its owner mends it if it is alive: try again in %v", ErrBusy, err, DefaultLease)
		case err != nil:
			return nil, err
		}
		if rec.Kind == kind && r.standing(rec, l.modified, now) == standingAlive {
			live = append(live, rec)
		}
	}
	return live, nil
}
