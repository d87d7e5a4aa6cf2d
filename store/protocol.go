package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"lifeboat/store/backend"
)

// What a writer does so that prunes can work beside it; prune.go has the reasons.
//
//   - It respects the list of the condemned that it read after it had its claim,
//     and says in the claim which version that is (respect).
//   - Before it takes blocks over from a parent, the parent is in its claim, and
//     then it looks whether the parent was forgotten, and is still there (enter).
//   - Its claim says from which claim on its unfinished points have segments.
//
// The list is read again when a point begins. What was respected once is
// respected for good, so a version is seen when all points have ended that began
// before it was read.

// pointHolds is what an unfinished point keeps from prunes.
type pointHolds struct {
	parent string // ID, or ""
	seen   uint64 // sequence of the list of the condemned when it began
	from   uint64 // claim when it began
	over   bool   // it is committed: it keeps what it needs by itself
}

// respect reads the list of the condemned, if it changed, and says so in the
// claim. in.app.mu is held, or the ingest is not in use yet.
func (in *Ingest) respect(ctx context.Context) error {
	var info backend.Info
	for i, err := range in.r.backend.List(ctx, condemnedName) {
		if err != nil {
			return fmt.Errorf("look for the list of the condemned: %w", err)
		}
		if i.Name == condemnedName {
			info = i
		}
	}
	if set := in.index.condemned.Load(); set == nil || info != in.listed {
		list, err := in.r.readCondemned(ctx)
		if err == nil && list.damaged {
			err = in.nobodyPrunes(ctx)
		}
		if err != nil {
			return err
		}
		in.index.condemned.Store(set.with(list))
		in.listed = info
	}
	return in.declare(ctx)
}

// nobodyPrunes fails with ErrBusy while a prune is running. It may be removing
// what is on the list, which we cannot read. One that comes later begins the list
// anew, and waits until we have seen it.
func (in *Ingest) nobodyPrunes(ctx context.Context) error {
	live, err := in.r.liveClaims(ctx, in.claim.record().Number, claimPrune)
	if err == nil && len(live) > 0 {
		err = fmt.Errorf("%w: a prune is running on %s, and its list of the condemned is damaged; try again when it has finished", ErrBusy, live[0].Owner.Host)
	}
	return err
}

// declare brings the claim up to date, if it is not.
func (in *Ingest) declare(ctx context.Context) error {
	was := in.claim.record()
	now := was
	in.describe(&now)
	if now.Seen == was.Seen && now.From == was.From && slices.Equal(now.Parents, was.Parents) {
		return nil
	}
	return in.claim.update(ctx, in.describe)
}

// lostClaim fails with ErrFenced if the claim is lost, and then ends the ingest.
func (in *Ingest) lostClaim(ctx context.Context) error {
	err := in.claim.lost(ctx)
	if errors.Is(err, ErrFenced) {
		in.cancel(err)
		return err
	}
	return nil
}

// describe enters in a claim what the unfinished points keep.
func (in *Ingest) describe(c *claimRecord) {
	in.mu.Lock()
	defer in.mu.Unlock()
	c.Parents, c.From, c.Seen = nil, 0, 0
	c.Seen = in.index.condemned.Load().sequence
	for w := range in.active {
		if w.holds.over {
			continue
		}
		c.Seen = min(c.Seen, w.holds.seen)
		if from := w.holds.from; from < c.Number && (c.From == 0 || from < c.From) {
			c.From = from
		}
		if w.holds.parent != "" {
			c.Parents = append(c.Parents, w.holds.parent)
		}
	}
	slices.Sort(c.Parents)
	c.Parents = slices.Compact(c.Parents)
}

// enter takes up a point. On error the point is to be aborted.
func (in *Ingest) enter(w *PointWriter) error {
	err := in.admit(w)
	if err != nil && in.ctx.Err() != nil {
		return context.Cause(in.ctx)
	}
	return err
}

func (in *Ingest) admit(w *PointWriter) error {
	in.app.mu.Lock()
	defer in.app.mu.Unlock()
	if err := in.respect(in.ctx); err != nil {
		return err
	}
	if err := in.activate(w); err != nil {
		return err
	}
	if w.holds.parent == "" {
		return nil
	}
	if err := in.declare(in.ctx); err != nil {
		return err
	}
	parent, err := in.r.pointRecord(in.ctx, w.holds.parent)
	if err != nil {
		return fmt.Errorf("its parent: %w", err)
	}
	w.parent, w.rec.Parent = parent, parent.ID
	return nil
}

func (in *Ingest) activate(w *PointWriter) error {
	seen, from := in.index.condemned.Load().sequence, in.claim.record().Number
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.closed:
		return fmt.Errorf("the ingest is %w", ErrClosed)
	case len(in.active) >= maxParents:
		return errors.New("too many points are being made at the same time")
	}
	w.holds.seen, w.holds.from = seen, from
	in.active[w] = struct{}{}
	return nil
}

// letGo says that a point is there and keeps what it needs by itself.
func (in *Ingest) letGo(w *PointWriter) {
	in.mu.Lock()
	defer in.mu.Unlock()
	w.holds.over = true
}
