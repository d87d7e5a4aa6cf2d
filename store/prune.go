package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Prune gives back the space of what no restore point needs, beside running
// backups and readers. It waits for nobody, and nobody waits for it: prunes
// exclude only each other.
//
// # What must not happen
//
// A prune removes objects of points and segments, and slots of segments (by
// writing a segment anew without them). It must never remove what is needed by
//
//   - a point that is there and not to be removed: live, or forgotten only lately
//   - a reader that holds a point
//   - a writer that is alive, in any point that it will ever commit
//
// # What others do
//
//	reader   its hold is put up → each of its points has no tombstone → is there
//	writer   its claim is put up → it reads the list of the condemned → it says in
//	         the claim which version (seen), and from then on takes no address on
//	         the list from the dedupe index
//	         a point with a parent: the parent is in the claim → it has no
//	         tombstone → it is there → blocks are taken over from it
//	         commit: the point's object → the claim no longer names the parent
//	forget   puts up a tombstone; Unforget takes it down, and excludes prunes
//
// # What a prune does
//
//	 1  its claim is put up; dead writers are swept
//	 2  T = the tombstones
//	 3  C = the open claims and the holds
//	 4  L = the objects of points
//	 5  X = what of L is to go: in T for the grace, and no parent, not pending and
//	    not held in C, not pinned and not immutable
//	 6  mark what L less X needs
//	 7  condemn what is not marked, but for segments that an open claim may still
//	    be adding to, and for those younger than the grace: whole segments, and
//	    slots of segments with little left in them. The list is written
//	 8  C' = the open claims, again; L' = the objects of points, again; mark what is
//	    new, and strike from the list what became needed
//	 9  remove the points in X, before anything of theirs, then their tombstones
//	10  remove what is on the list and settled: all writers in C' have seen the
//	    version in which it first was, and have been seen to since settleTime
//	11  write the list without what is gone
//
// # Why that is right
//
// An address A that is removed in 10 was on the list in C' and is needed by no
// point in L' (less X). Who could need it later? A point that is committed after
// L' was read. Its writer W took A from the index or from a parent.
//
//   - From the index: if W is in C' it has seen the version with A, so that the
//     point, which began before W said so, is committed (and then in L', since L'
//     was read later), or began after it and could not take A. If W is not in C',
//     it is gone, with all its points in L', or it came later and read the list
//     later: either A is on it, or A is gone already, and a look at the segment
//     says so, which W takes (blobIndex).
//   - From a parent P: by the same argument P, or the point it had A from in turn,
//     is in L' or has A from the index. In L' it needs A, unless it is in X. But no
//     P in X is anybody's parent: it had a tombstone when T was read. A writer that
//     named it in its claim before C was read keeps it out of X; one that did so
//     later found the tombstone and let it be, or, since 9 removes the point before
//     the tombstone, found neither.
//
// Readers: a hold in C keeps its points out of X. A hold that came later found that
// all in X were forgotten or gone. What the points of a hold need is marked, for as
// long as they are there.
//
// Segments that a writer adds to are in the range of its open claim, or of a claim
// higher than all in C, and left alone in 7. So are those of the earlier claims of
// an ingest whose points are not finished (claimRecord.From): nobody else needs
// them yet. What is in closed claims is needed by points in L, or nobody's but the
// index's, and the list sees to that.
//
// A listing may be older than it should be (NFS keeps attributes for a minute). A
// point or claim that was missed in C' or L' for that is seen by the next prune,
// and settleTime keeps that one from being sooner; a prune without grace does
// without.
//
// A point is removed only by a prune, and only after its tombstone has stood since
// before C and L were read. So one that was there when a writer or reader looked at
// it is there when L is read.
//
// # Crashes
//
// Ending anywhere is harmless. After 7 the list says more than was done: nobody
// takes those addresses, and the next prune goes on or strikes them. After part of
// 9, points are gone that had been forgotten for long, and their blocks are on no
// list yet or on one; the tombstones without points go with the next prune. In 10
// each removal stands for itself: a segment that is gone is named by the index at
// most, and of a segment with two generations both read the same where anybody
// needs them; the older one goes with the next prune. A prune that was taken for
// dead and wakes up finds its claim gone before it removes the next object; the
// one request that was on its way meanwhile is of its time.
//
// What cannot be read (a point, a node of a map) ends the prune, since what it
// needs is not known.

// DefaultGrace is how long a forgotten point stays, and what no point needs.
const DefaultGrace = 72 * time.Hour

const (
	// settleTime is how long after all writers were found to have seen the list
	// anything on it is removed, at least.
	settleTime = time.Hour
	// voidLife is how long the void that fenced a writer stays.
	voidLife = 30 * 24 * time.Hour
	// defaultMaxCompact bounds what one prune copies to compact segments, bytes.
	defaultMaxCompact = 64 << 30
	// compactBelow is the share of a segment's bytes that must be in use, in
	// percent, for it to stay as it is.
	compactBelow = 70
	// minCompact is what compacting a segment must give back, in bytes.
	minCompact = 16 << 10
)

// PruneOptions says what to remove. The zero value is good.
type PruneOptions struct {
	// Grace is how long a point must have been forgotten, and a segment must have
	// been there, to be removed; 0 means DefaultGrace, and a negative one that all
	// goes at once that no reader holds and no writer may need.
	Grace time.Duration
	// MaxCompact bounds what is copied to write segments anew without what nobody
	// needs, in bytes; 0 means 64 GiB, a negative one that none is.
	MaxCompact int64
	// DryRun only reports. It writes nothing but a claim.
	DryRun bool
	// Progress, if not nil, hears of it now and then, from one goroutine at a time.
	Progress func(PruneProgress)
}

// PruneProgress is how far a prune has come.
type PruneProgress struct {
	Step  string // what it does, for people
	Done  int64
	Total int64 // 0: not known
}

// PruneReport is what a prune did. Bytes are of storage.
type PruneReport struct {
	Removed        int   `json:"removed"` // segments
	RemovedBytes   int64 `json:"removed_bytes"`
	Condemned      int   `json:"condemned"` // segments of no use that stay for now; see Pending
	CondemnedBytes int64 `json:"condemned_bytes"`
	Compacted      int   `json:"compacted"` // segments written anew
	CompactedBytes int64 `json:"compacted_bytes"`
	PointsRemoved  int   `json:"points_removed"` // that had been forgotten
	FreedBytes     int64 `json:"freed_bytes"`    // by all of it
	// Pending says what will be free when.
	Pending []PrunePending `json:"pending"`
}

// PrunePending is space that a later prune gives back.
type PrunePending struct {
	// When a prune can do so at the earliest; the zero time where that is not
	// known. By the backend's clock.
	When time.Time `json:"when,omitzero"`
	// Bytes of storage, about.
	Bytes int64 `json:"bytes"`
	// Points are the IDs of the forgotten points that it belongs to, if any.
	Points []string `json:"points,omitempty"`
	Why    string   `json:"why"`
}

// Prune removes what no restore point needs; what is said above is how, and why
// nobody who is at work is hurt by it. ErrBusy: another prune is running.
func (r *Repository) Prune(ctx context.Context, opts PruneOptions) (*PruneReport, error) {
	opts.Grace = cmp.Or(opts.Grace, DefaultGrace)
	opts.MaxCompact = cmp.Or(opts.MaxCompact, defaultMaxCompact)
	p := &pruner{r: r, opts: opts, report: &PruneReport{Pending: []PrunePending{}}}
	if err := p.run(ctx); err != nil {
		return nil, fmt.Errorf("prune: %w", err)
	}
	return p.report, nil
}

// pruner is a prune under way.
type pruner struct {
	r      *Repository
	opts   PruneOptions
	report *PruneReport
	claim  *claim

	crew   *crew // C, and then C'
	points pruneePoints
	needed *addrBits // by the points that stay

	list     *condemnedRecord
	changed  bool // the list differs from what is stored
	segments pruneeSegments

	checking sync.Mutex
	checked  time.Time // when our claim was last found to be ours
}

func (p *pruner) run(ctx context.Context) (err error) {
	c, err := p.r.takeClaim(ctx, claimPrune)
	if err != nil {
		return err
	}
	p.claim = c
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
	if err := p.r.sweep(ctx, c.rec.Number); err != nil {
		return err
	}
	if err := p.alone(ctx); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{p.look, p.mark, p.condemn, p.lookAgain, p.act} {
		if err := step(ctx); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return err
		}
	}
	return nil
}

// alone fails with ErrBusy while another prune is running.
func (p *pruner) alone(ctx context.Context) error {
	live, err := p.r.liveClaims(ctx, p.claim.rec.Number, claimPrune)
	if err != nil {
		return err
	}
	if len(live) > 0 {
		return fmt.Errorf("%w: a prune is running on %s; try again when it has finished", ErrBusy, live[0].Owner.Host)
	}
	return nil
}

// settle is for how long everybody must have seen the list.
func (p *pruner) settle() time.Duration {
	if p.opts.Grace < 0 {
		return 0
	}
	return settleTime
}

// old reports whether something that was made then has had its grace.
func (p *pruner) old(made time.Time) bool {
	return p.opts.Grace < 0 || p.crew.now.Sub(made) >= p.opts.Grace
}

func (p *pruner) tell(step string, done, total int64) {
	if p.opts.Progress != nil {
		p.opts.Progress(PruneProgress{Step: step, Done: done, Total: total})
	}
}
