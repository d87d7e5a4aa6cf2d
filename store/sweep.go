package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"lifeboat/store/backend"
	"lifeboat/store/internal/segment"
)

// sweep settles the claims of dead writers; see claim.go for the protocol. own
// is a claim of ours that was written a moment ago: its modification time is
// what time it is by the backend's clock. A claim that can't be settled is
// logged and left for the next time.
func (r *Repository) sweep(ctx context.Context, own uint64) error {
	if s, ok := r.backend.(sweeper); ok {
		if _, err := s.Sweep(ctx); err != nil {
			r.log.Warn("could not remove unfinished objects; the next backup tries again", "error", err)
		}
	}
	claims, err := r.listClaims(ctx)
	if err != nil {
		return err
	}
	var now time.Time
	for _, l := range claims {
		if l.number == own {
			now = l.modified
		}
	}
	for _, l := range claims {
		if l.number == own {
			continue
		}
		highest := l.number == claims[len(claims)-1].number
		err := r.settle(ctx, l, now, highest)
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("sweep claim %x: %w", l.number, context.Cause(ctx))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.log.Warn("could not sweep a claim; the next backup tries again", "claim", l.number, "error", err)
		}
	}
	return nil
}

// sweeper is a backend that keeps unfinished objects somewhere.
type sweeper interface {
	Sweep(ctx context.Context) (removed int, err error)
}

// standing is what is known of a claim's owner.
type standing int

const (
	standingClosed standing = iota
	standingAlive
	standingExpired // the lease ran out
	standingGone    // the process is certainly not running
)

// standing judges the owner of a claim; now is by the backend's clock.
func (r *Repository) standing(rec claimRecord, modified, now time.Time) standing {
	switch {
	case rec.Closed:
		return standingClosed
	case r.proc.Dead(rec.Owner.Process):
		return standingGone
	case now.Sub(modified) > rec.lease():
		return standingExpired
	}
	return standingAlive
}

// settle removes what the owner of a claim left, if it is dead, and the claim.
func (r *Repository) settle(ctx context.Context, l listedClaim, now time.Time, highest bool) error {
	rec, err := r.getClaim(ctx, l.number)
	if errors.Is(err, ErrDamaged) && !highest && now.Sub(l.modified) > maxLease {
		return r.backend.Remove(ctx, claimName(l.number))
	}
	if err != nil {
		return err
	}
	switch r.standing(rec, l.modified, now) {
	case standingAlive:
		return nil
	case standingClosed:
		if highest {
			return nil
		}
		return r.backend.Remove(ctx, claimName(l.number))
	case standingExpired:
		if rec, err = r.fence(ctx, rec); err != nil || rec.Closed {
			return err
		}
	}
	kept, err := r.keptOf(ctx, rec)
	if err != nil {
		return err
	}
	// Only while the claim is open does its pending point stay (prune.go): if
	// somebody else has settled it, that there is no point says nothing.
	if now, err := r.getClaim(ctx, rec.Number); err != nil || now.Closed {
		return err
	}
	if err := r.removeSegments(ctx, rec, kept); err != nil {
		return err
	}
	r.log.Info("swept what an unfinished backup left", "claim", rec.Number, "host", rec.Owner.Host, "process", rec.Owner.Process)
	return r.dropClaim(ctx, rec, kept, highest)
}

// fence makes it impossible for the owner of a claim to commit anything any more,
// and returns the claim as it was then. If its pending point exists already, that
// stays.
func (r *Repository) fence(ctx context.Context, rec claimRecord) (claimRecord, error) {
	if err := r.putVoid(ctx, rec.Owner.Nonce, rec.Number); err != nil {
		return rec, err
	}
	rec, err := r.getClaim(ctx, rec.Number)
	if err != nil || rec.Closed {
		return rec, err
	}
	return rec, r.putVoid(ctx, rec.Pending, rec.Number)
}

// putVoid creates a void, unless there is a point or a void of that ID.
func (r *Repository) putVoid(ctx context.Context, id string, claim uint64) error {
	if id == "" {
		return nil
	}
	void := pointRecord{Format: recordFormat, ID: id, Void: true, Claim: claim, Time: r.clock().UTC().Truncate(time.Second)}
	data, err := json.Marshal(void)
	if err != nil {
		return err
	}
	err = r.putSealed(ctx, pointName(id), data, backend.Exclusive)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// keptOf is the last segment of a dead owner's range that must stay.
func (r *Repository) keptOf(ctx context.Context, rec claimRecord) (uint64, error) {
	if rec.Pending == "" {
		return rec.Kept, nil
	}
	point, err := r.readPoint(ctx, rec.Pending)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return rec.Kept, nil
	case errors.Is(err, ErrDamaged):
		// Which segments it needs can't be known: all stay.
		r.log.Error("a restore point is damaged; verify the repository", "point", rec.Pending, "error", err)
		return rec.last(), nil
	case err != nil:
		return 0, err
	case point.Void:
		return rec.Kept, nil
	}
	if point.Through < rec.first() {
		return rec.Kept, nil // the point needs nothing of this range
	}
	return max(rec.Kept, min(point.Through, rec.last())), nil
}

// removeSegments removes the segments of a claim's range above kept. A new
// segment is of generation 0, and only what is kept is ever compacted.
func (r *Repository) removeSegments(ctx context.Context, rec claimRecord, kept uint64) error {
	for n := max(rec.first(), kept+1); n <= rec.last(); n++ {
		if err := r.backend.Remove(ctx, segment.Name(n, 0)); err != nil {
			return err
		}
		r.segments.Forget(n)
	}
	return nil
}

// dropClaim ends a claim: the highest stays as a closed one, so that its number
// is not given out again.
func (r *Repository) dropClaim(ctx context.Context, rec claimRecord, kept uint64, highest bool) error {
	if !highest {
		return r.backend.Remove(ctx, claimName(rec.Number))
	}
	closed := claimRecord{Number: rec.Number, Kind: rec.Kind, Closed: true, Kept: kept, LeaseMS: rec.LeaseMS}
	return r.putClaim(ctx, closed, backend.Replace)
}

// Sweep removes what writers left that died before they had finished. A new
// ingest does so by itself.
func (r *Repository) Sweep(ctx context.Context) error {
	c, err := r.takeClaim(ctx, claimWriter)
	if err != nil {
		return err
	}
	err = r.sweep(ctx, c.rec.Number)
	return errors.Join(err, c.close(context.WithoutCancel(ctx)))
}

// close ends a claim whose unkept segments have been removed.
func (c *claim) close(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.Closed {
		return nil
	}
	if err := c.check(ctx); err != nil {
		if errors.Is(err, ErrFenced) {
			c.rec.Closed = true // settled by somebody else
			return nil
		}
		return err
	}
	claims, err := c.r.listClaims(ctx)
	if err != nil {
		return err
	}
	highest := len(claims) == 0 || claims[len(claims)-1].number <= c.rec.Number
	if err := c.r.dropClaim(ctx, c.rec, c.rec.Kept, highest); err != nil {
		return fmt.Errorf("close claim %x: %w", c.rec.Number, err)
	}
	c.rec.Closed = true
	return nil
}
