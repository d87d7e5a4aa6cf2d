package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"lifeboat/store/backend"
)

// One writer at a time, where the backend cannot tell two apart.
//
// Everything in claim.go rests on Exclusive: of two who create the same claim,
// one wins. An S3 server that ignores If-None-Match lets both win, they write
// segments of the same numbers, and one destroys what the other stored. There,
// whoever takes a claim makes sure that nobody else has a living one: it writes
// its claim, waits until one that another wrote at the same moment has landed
// too, and reads both its own claim and the list of all.
//
//   - Two that took different numbers each see the other's claim: at least the
//     later one gives up, and perhaps both.
//   - Two that took the same number: the one whose claim was overwritten finds
//     the other's and gives up.
//
// This is weaker than Exclusive: who is stalled for longer than aloneSettle in
// the middle of its PUT is not seen. So it refuses what is likely, and the
// warning at init says what is needed.

// ErrNotExclusive: another process writes to the repository, and its storage
// cannot keep two writers apart. It matches ErrBusy.
var ErrNotExclusive = fmt.Errorf("%w: this storage cannot keep two writers apart: it ignores If-None-Match", ErrBusy)

// aloneSettle is how long a claim that another wrote at the same moment is
// waited for, and at most a twentieth of a lease.
const aloneSettle = 2 * time.Second

// exclusiveProbe is what is known of Exclusive.
type exclusiveProbe struct {
	sync.Mutex
	known, holds bool
}

// exclusiveBackend reports whether Exclusive holds for this repository's
// backend. A backend that does not say otherwise keeps it.
func (r *Repository) exclusiveBackend(ctx context.Context) (bool, error) {
	p, ok := backend.As[backend.Prober](r.backend)
	if !ok {
		return true, nil
	}
	r.exclusive.Lock()
	defer r.exclusive.Unlock()
	if r.exclusive.known {
		return r.exclusive.holds, nil
	}
	holds, err := p.ProbeExclusive(ctx)
	if err != nil {
		return false, err
	}
	r.exclusive.known, r.exclusive.holds = true, holds
	return holds, nil
}

// checkAlone fails with ErrNotExclusive if somebody else writes although the
// backend cannot keep the two apart. c is a claim that was just written.
func (r *Repository) checkAlone(ctx context.Context, c *claim) error {
	if holds, err := r.exclusiveBackend(ctx); err != nil || holds {
		return err
	}
	settled := time.NewTimer(min(aloneSettle, r.lease/20))
	defer settled.Stop()
	select {
	case <-settled.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := c.check(ctx); errors.Is(err, ErrFenced) {
		return fmt.Errorf("%w, and another process began to write at the same time; try again, one at a time", ErrNotExclusive)
	} else if err != nil {
		return err
	}
	for _, kind := range []claimKind{claimWriter, claimPrune} {
		live, err := r.liveClaims(ctx, c.rec.Number, kind)
		if err != nil {
			return err
		}
		for _, other := range live {
			if other.Owner.Process != c.rec.Owner.Process {
				return fmt.Errorf("%w, and a %s is running on %s (claim %x); wait until it has finished, or for %v after it was killed, "+
					"or use storage with conditional writes", ErrNotExclusive, activity(kind), other.Owner.Host, other.Number, other.lease())
			}
		}
	}
	return nil
}

func activity(kind claimKind) string {
	if kind == claimPrune {
		return "prune"
	}
	return "backup"
}
