package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"lifeboat/store/backend"
)

// Forgetting. To forget a point is to put up its tombstone, forgotten/<ID of the
// point>. From then on the point is not listed, not found and nobody's parent,
// but its object and its blocks stay: for those who have it open, and for the one
// who regrets. Only a prune removes points, once the tombstone has stood for the
// grace period (by the backend's clock) and nobody holds the point. Until then
// Unforget brings it back; it excludes prunes while it does, so that no prune
// acts on a tombstone that is gone. See prune.go for the whole argument.
const (
	forgottenPrefix   = "forgotten/"
	maxTombstoneBytes = 4 << 10
)

// tombstoneRecord is a tombstone as it is stored. That it exists is what counts,
// also when it is damaged; what is in it is for people.
type tombstoneRecord struct {
	Format int       `json:"format"`
	ID     string    `json:"id"`
	Time   time.Time `json:"time"`
	Host   string    `json:"host,omitempty"`
}

func tombstoneName(id string) string { return forgottenPrefix + id }

// ForgottenPoint is a point that Unforget can bring back.
type ForgottenPoint struct {
	ID string `json:"id"`
	// Time is when it was forgotten, by the backend's clock.
	Time time.Time `json:"time"`
	// Point is what it was; nil when its object cannot be read.
	Point *Point `json:"point,omitempty"`
}

// Forget takes restore points off the list. A prune removes them later; see
// Unforget. All are looked at before any is forgotten: ErrNotFound, *ProtectedError
// (pinned, immutable or append-only), ErrHeld (a session is made of it; another
// reader's hold is no hindrance). It may fail in the middle, and be repeated for
// those that are left.
func (r *Repository) Forget(ctx context.Context, ids ...string) error {
	for _, id := range ids {
		if _, err := r.pointRecord(ctx, id); err != nil && !errors.Is(err, ErrDamaged) {
			return err
		}
	}
	if err := r.forgettable(ctx, ids); err != nil {
		return err
	}
	for _, id := range ids {
		if err := r.putTombstone(ctx, id); err != nil {
			return fmt.Errorf("forget point %s: %w", id, err)
		}
		r.points.drop(id)
	}
	// Whoever pinned or began to hold one of them meanwhile looks for its
	// tombstone after that, as we look for theirs now: at least one gives way.
	if err := r.forgettable(ctx, ids); err != nil {
		return errors.Join(err, r.takeBack(context.WithoutCancel(ctx), ids))
	}
	return nil
}

// takeBack removes tombstones that should not have been put up. Like Unforget it
// keeps prunes away: one that is running may have seen them, and goes by them.
// Then they stay, and whoever pinned or held a point sees them and gives way.
func (r *Repository) takeBack(ctx context.Context, ids []string) error {
	inner, done, err := r.keepPrunesAway(ctx)
	if err != nil {
		return fmt.Errorf("%s: forgotten all the same, `lifeboat unforget` brings back what is left: %w", strings.Join(ids, ", "), err)
	}
	for _, id := range ids {
		err = errors.Join(err, r.backend.Remove(inner, tombstoneName(id)))
	}
	return errors.Join(err, done())
}

// forgettable says why one of the points must not be forgotten.
func (r *Repository) forgettable(ctx context.Context, ids []string) error {
	protected, err := r.checkRemovable(ctx, ids)
	if err != nil {
		return fmt.Errorf("forget: %w", err)
	}
	held, err := r.sessionHolds(ctx)
	if err != nil {
		return fmt.Errorf("forget: %w", err)
	}
	for _, id := range ids {
		if why := protected[id]; why != nil {
			return fmt.Errorf("forget point %s: %w", id, why)
		}
		if h, ok := held[id]; ok {
			return fmt.Errorf("forget point %s: %w", id, &HeldError{Point: id, Hold: h})
		}
	}
	return nil
}

func (r *Repository) putTombstone(ctx context.Context, id string) error {
	host, _ := os.Hostname() // for people
	rec := tombstoneRecord{Format: recordFormat, ID: id, Time: r.clock().UTC().Truncate(time.Second), Host: host}
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	err = r.putSealed(ctx, tombstoneName(id), data, backend.Exclusive)
	if errors.Is(err, fs.ErrExist) {
		return nil // somebody else was faster
	}
	if errors.Is(err, backend.ErrUncertain) {
		if there, err2 := r.isForgotten(ctx, id); err2 == nil && there {
			return nil
		}
	}
	return err
}

// Unforget brings a forgotten point back as it was. ErrNotFound: it was not
// forgotten, or a prune has removed it. ErrBusy: a prune is running.
func (r *Repository) Unforget(ctx context.Context, id string) error {
	if !validID(id) {
		return fmt.Errorf("unforget: %w: %.40q is not the ID of a restore point (16 hexadecimal digits)", ErrReference, id)
	}
	inner, done, err := r.keepPrunesAway(ctx)
	if err == nil {
		err = errors.Join(r.removeTombstone(inner, id), done())
	}
	if err != nil {
		return fmt.Errorf("unforget: %w", err)
	}
	return nil
}

// removeTombstone brings a point back while no prune runs.
func (r *Repository) removeTombstone(ctx context.Context, id string) error {
	there, err := r.isForgotten(ctx, id)
	if err != nil {
		return err
	}
	rec, err := r.readPoint(ctx, id)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && (rec.Void || !there):
		return fmt.Errorf("a forgotten restore point %s: %w", id, ErrNotFound)
	case err != nil && !errors.Is(err, ErrDamaged):
		return err
	}
	return r.backend.Remove(ctx, tombstoneName(id))
}

// Forgotten lists the points that were forgotten and are still there, oldest
// tombstone first.
func (r *Repository) Forgotten(ctx context.Context) ([]ForgottenPoint, error) {
	stones, err := r.tombstones(ctx)
	if err != nil {
		return nil, err
	}
	out := []ForgottenPoint{}
	for _, s := range stones {
		f := ForgottenPoint{ID: s.id, Time: s.modified.UTC()}
		rec, err := r.readPoint(ctx, s.id)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // a prune took it, and not its tombstone yet
		case err == nil:
			f.Point = rec.public()
		case !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion):
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

// tombstone is a tombstone in a listing.
type tombstone struct {
	id       string
	modified time.Time // by the backend's clock
}

// tombstones lists all of them, oldest first.
func (r *Repository) tombstones(ctx context.Context) ([]tombstone, error) {
	var out []tombstone
	for info, err := range r.backend.List(ctx, forgottenPrefix) {
		if err != nil {
			return nil, fmt.Errorf("list the forgotten points: %w", err)
		}
		if id := strings.TrimPrefix(info.Name, forgottenPrefix); validID(id) {
			out = append(out, tombstone{id, info.Modified})
		}
	}
	sortByTime(out, func(t tombstone) (time.Time, string) { return t.modified, t.id })
	return out, nil
}

// forgottenIDs is the points that have a tombstone.
func (r *Repository) forgottenIDs(ctx context.Context) (map[string]struct{}, error) {
	stones, err := r.tombstones(ctx)
	if err != nil {
		return nil, err
	}
	ids := make(map[string]struct{}, len(stones))
	for _, s := range stones {
		ids[s.id] = struct{}{}
	}
	return ids, nil
}

// isForgotten reports whether a point has a tombstone.
func (r *Repository) isForgotten(ctx context.Context, id string) (bool, error) {
	obj, err := r.backend.Open(ctx, tombstoneName(id))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("see whether point %s was forgotten: %w", id, err)
	}
	return true, obj.Close()
}
