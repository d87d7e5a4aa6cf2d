package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// crew is who was at work in the repository at one moment: what a prune has to
// respect.
type crew struct {
	now     time.Time // by the backend's clock
	highest uint64    // of all claims
	claims  []openClaim
	holds   []HoldInfo // that count
	ended   []HoldInfo // that do not
	unknown string     // what could not be read; nothing may be removed as long as it is there
}

// openClaim is a claim that has an owner, or may have one.
type openClaim struct {
	claimRecord
	damaged bool
}

// crewTries is how often the claims are listed anew because a writer came.
const crewTries = 100

// crewNow looks who is at work. c is a claim of our own.
//
// A writer that needs more segment numbers takes another claim, with all that it
// needs in it, before it closes the one that it had. So that it is not missed
// between the two, the claims are listed again after they were read: if none came,
// then no owner of a claim that was gone by the time it was read has another.
func (r *Repository) crewNow(ctx context.Context, c *claim) (*crew, error) {
	for range crewTries {
		// This moves our claim's modification time to now.
		if err := c.update(ctx, func(*claimRecord) {}); err != nil {
			return nil, err
		}
		w, err := r.readCrew(ctx, c.record().Number)
		if err != nil {
			return nil, err
		}
		again, err := r.listClaims(ctx)
		if err != nil {
			return nil, err
		}
		if len(again) > 0 && again[len(again)-1].number == w.highest {
			return w, nil
		}
	}
	return nil, fmt.Errorf("%w: writers come and go all the time; try again", ErrBusy)
}

func (r *Repository) readCrew(ctx context.Context, own uint64) (*crew, error) {
	claims, err := r.listClaims(ctx)
	if err != nil {
		return nil, err
	}
	w := new(crew)
	for _, l := range claims {
		if l.number == own {
			w.now = l.modified
		}
		w.highest = max(w.highest, l.number)
	}
	if w.now.IsZero() {
		return nil, fmt.Errorf("claim %x is not in the list of claims: %w", own, ErrFenced)
	}
	for _, l := range claims {
		if l.number == own {
			continue
		}
		rec, err := r.getClaim(ctx, l.number)
		switch {
		case errors.Is(err, fs.ErrNotExist) || err == nil && rec.Closed:
			continue
		case errors.Is(err, ErrDamaged):
			w.claims = append(w.claims, openClaim{claimRecord{Number: l.number, From: l.number}, true})
			if w.now.Sub(l.modified) <= maxLease {
				w.unknown = fmt.Sprintf("claim %x is damaged; its owner mends it if it is alive", l.number)
			}
		case err != nil:
			return nil, err
		default:
			w.claims = append(w.claims, openClaim{rec, false})
		}
	}
	return w, r.readCrewHolds(ctx, w)
}

func (r *Repository) readCrewHolds(ctx context.Context, w *crew) error {
	holds, err := r.Holds(ctx)
	if err != nil {
		return err
	}
	for _, h := range holds {
		if h.ended(w.now, r.proc) {
			w.ended = append(w.ended, h)
			continue
		}
		w.holds = append(w.holds, h)
		if h.Damaged {
			w.unknown = fmt.Sprintf("hold %s is damaged, so that it is not known which points it is on", h.ID)
		}
	}
	return nil
}

// keepers says of points who needs their objects.
func (w *crew) keepers() map[string]string {
	why := make(map[string]string)
	for _, h := range w.holds {
		for _, id := range h.Points {
			why[id] = fmt.Sprintf("in use by %s on %s", h.purpose(), h.Host)
		}
	}
	for _, c := range w.claims {
		for _, id := range c.Parents {
			why[id] = fmt.Sprintf("a backup on %s builds on it", c.Owner.Host)
		}
		if c.Pending != "" {
			why[c.Pending] = "the backup that makes it is not finished"
		}
	}
	return why
}

func (h HoldInfo) purpose() string {
	if h.Purpose == "" {
		return "a reader"
	}
	return h.Purpose
}

// working reports whether a segment is, or may be, one that a writer has just
// made: in the range of an open claim or of an earlier one of the same owner, or
// of a claim that came later.
func (w *crew) working(number uint64) bool {
	claim := number / rangeSize
	if claim > w.highest {
		return true
	}
	for _, c := range w.claims {
		from := c.From
		if from == 0 {
			from = c.Number
		}
		if claim >= from && claim <= c.Number {
			return true
		}
	}
	return false
}

// unseen returns a writer that may not have seen a version of the list of the
// condemned, or nil.
func (w *crew) unseen(sequence uint64) *openClaim {
	for i, c := range w.claims {
		if c.damaged && w.unknown == "" {
			continue // long dead
		}
		if c.damaged || c.Kind == claimWriter && c.Seen < sequence {
			return &w.claims[i]
		}
	}
	return nil
}

// seen is the highest sequence that any writer has seen.
func (w *crew) seen() uint64 {
	var most uint64
	for _, c := range w.claims {
		most = max(most, c.Seen)
	}
	return most
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
