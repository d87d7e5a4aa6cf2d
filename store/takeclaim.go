package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"time"

	"lifeboat/store/backend"
)

// takeClaim creates a claim with the next free number.
func (r *Repository) takeClaim(ctx context.Context, kind claimKind) (*claim, error) {
	return r.takeClaimWith(ctx, kind, func(*claimRecord) {})
}

// takeClaimWith is takeClaim of a claim that says more from its first moment on.
func (r *Repository) takeClaimWith(ctx context.Context, kind claimKind, more func(*claimRecord)) (*claim, error) {
	host, _ := os.Hostname() // only for people
	me := owner{Host: host, Process: r.proc.Self(), Nonce: randomHex(8)}
	if _, err := r.exclusiveBackend(ctx); err != nil {
		return nil, fmt.Errorf("take a claim: %w", err)
	}
	// A listing may be old (NFS); a number that was found taken exists all the same.
	taken := uint64(0)
	for try := 0; ; try++ {
		next, err := r.nextNumber(ctx)
		if err != nil {
			return nil, fmt.Errorf("take a claim: %w", err)
		}
		next = max(next, taken+1)
		if next > maxClaim {
			return nil, errors.New("take a claim: the repository's segment numbers are used up")
		}
		c := &claim{r: r, rec: claimRecord{Number: next, Kind: kind, Owner: me, Pending: newPointID(), LeaseMS: r.lease.Milliseconds()}}
		c.rec.Kept = c.rec.last() // until the number is known to be ours alone
		more(&c.rec)
		err = r.putClaim(ctx, c.rec, backend.Exclusive)
		if errors.Is(err, backend.ErrUncertain) {
			if now, err2 := r.getClaim(ctx, next); err2 == nil && now.Owner == me {
				err = nil
			}
		}
		if errors.Is(err, fs.ErrExist) {
			taken = next
			continue // somebody else was faster; each time somebody gets one
		}
		if err != nil {
			return nil, fmt.Errorf("take a claim: %w", err)
		}
		ours, err := c.secure(ctx)
		if err != nil {
			return nil, fmt.Errorf("take a claim: %w", errors.Join(err, c.close(context.WithoutCancel(ctx))))
		}
		if !ours {
			taken = next
			if err := giveWay(ctx, try); err != nil {
				return nil, fmt.Errorf("take a claim: %w", err)
			}
			continue
		}
		if err := r.checkAlone(ctx, c); err != nil {
			return nil, errors.Join(err, c.close(context.WithoutCancel(ctx)))
		}
		return c, nil
	}
}

// secure makes sure that the number of a claim that was just created was never
// anybody else's. It may have been if we were asleep since we listed the claims:
// the claim of that number is removed as soon as there is a higher one, which
// stays. Then the number is given back, and until we know, the claim says that
// all segments of its range are kept, so that no sweep takes them for ours.
func (c *claim) secure(ctx context.Context) (ours bool, err error) {
	claims, err := c.r.listClaims(ctx)
	if err != nil {
		return false, err
	}
	if len(claims) > 0 && claims[len(claims)-1].number > c.rec.Number {
		return false, c.r.backend.Remove(ctx, claimName(c.rec.Number))
	}
	if c.rec.Kind != claimWriter {
		return true, nil // it writes no segments
	}
	return true, c.update(ctx, func(rec *claimRecord) { rec.Kept = 0 })
}

// giveWay waits for a moment, at random, so that two that take claims do not keep
// overtaking each other.
func giveWay(ctx context.Context, try int) error {
	wait := time.NewTimer(rand.N(time.Millisecond << min(try, 10)))
	defer wait.Stop()
	select {
	case <-wait.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// nextNumber is one more than the highest claim in a listing.
func (r *Repository) nextNumber(ctx context.Context) (uint64, error) {
	claims, err := r.listClaims(ctx)
	if err != nil {
		return 0, err
	}
	if len(claims) == 0 {
		return 1, r.claimsLost(ctx)
	}
	return claims[len(claims)-1].number + 1, nil
}
