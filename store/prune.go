package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// yieldToPrune fails with ErrBusy while a prune is running. Both the writer and
// the prune first put up their claim and then look for the other's, so that at
// least one of them sees the other, whatever the order.
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
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if rec.Kind == kind && r.standing(rec, l.modified, now) == standingAlive {
			live = append(live, rec)
		}
	}
	return live, nil
}
