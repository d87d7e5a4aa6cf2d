package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

const pointPrefix = "points/"

// pointReaders is how many point objects are read at the same time.
const pointReaders = 32

func pointName(id string) string { return pointPrefix + id }

// pointCache remembers decoded points. They are immutable, so that an entry is
// right for as long as the object exists, which a listing tells.
type pointCache struct {
	mu   sync.Mutex
	recs map[string]*pointRecord
}

func (c *pointCache) get(id string) *pointRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.recs[id]
}

func (c *pointCache) put(rec *pointRecord) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.recs == nil {
		c.recs = make(map[string]*pointRecord)
	}
	c.recs[rec.ID] = rec
}

// keep forgets all but the IDs in the sorted list.
func (c *pointCache) keep(ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.recs) <= len(ids) {
		return
	}
	for id := range c.recs {
		if _, ok := slices.BinarySearch(ids, id); !ok {
			delete(c.recs, id)
		}
	}
}

func (c *pointCache) drop(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.recs, id)
}

// readPoint reads a point's object, which may be a void.
func (r *Repository) readPoint(ctx context.Context, id string) (*pointRecord, error) {
	data, err := r.getSealed(ctx, pointName(id), maxPointBytes)
	if err != nil {
		return nil, err
	}
	rec, err := decodePoint(data, id, r.blockSize)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", pointName(id), err)
	}
	return rec, nil
}

// pointIDs lists the names of all point objects, sorted, voids among them.
func (r *Repository) pointIDs(ctx context.Context) ([]string, error) {
	var ids []string
	for info, err := range r.backend.List(ctx, pointPrefix) {
		if err != nil {
			return nil, fmt.Errorf("list the restore points: %w", err)
		}
		if id := strings.TrimPrefix(info.Name, pointPrefix); validID(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// pointRecords reads all points that can be read, in no order. For each that
// cannot, bad is called. The forgotten are left out.
func (r *Repository) pointRecords(ctx context.Context, bad func(id string, err error)) ([]*pointRecord, error) {
	// The tombstones first: a prune removes a point before its tombstone.
	forgotten, err := r.forgottenIDs(ctx)
	if err != nil {
		return nil, err
	}
	ids, err := r.pointIDs(ctx)
	if err != nil {
		return nil, err
	}
	r.points.keep(ids)
	ids = slices.DeleteFunc(ids, func(id string) bool {
		_, ok := forgotten[id]
		return ok
	})
	return r.readPoints(ctx, ids, bad)
}

// readPoints reads points that exist, and leaves out those that do not any more,
// and voids.
func (r *Repository) readPoints(ctx context.Context, ids []string, bad func(id string, err error)) ([]*pointRecord, error) {
	recs := make([]*pointRecord, len(ids))
	var mu sync.Mutex // bad, from one goroutine at a time
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(pointReaders)
	for i, id := range ids {
		if recs[i] = r.points.get(id); recs[i] != nil {
			continue
		}
		group.Go(func() error {
			rec, err := r.readListedPoint(ctx, id)
			switch {
			case err == nil && !rec.Void:
				recs[i] = rec
				r.points.put(rec)
			case err == nil, errors.Is(err, fs.ErrNotExist):
			case errors.Is(err, ErrDamaged), errors.Is(err, ErrVersion):
				mu.Lock()
				defer mu.Unlock()
				bad(id, err)
			default:
				return err
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(recs, func(rec *pointRecord) bool { return rec == nil }), nil
}

// Points returns all restore points, oldest first. Objects that are damaged are
// left out, logged, and named by Verify.
func (r *Repository) Points(ctx context.Context) ([]*Point, error) {
	recs, err := r.pointRecords(ctx, func(id string, err error) {
		r.log.Error("left out a restore point that cannot be read; verify the repository", "point", id, "error", err)
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(recs, func(a, b *pointRecord) int {
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.ID, b.ID))
	})
	points := make([]*Point, len(recs))
	for i, rec := range recs {
		points[i] = rec.public()
	}
	r.AddVerified(ctx, points...)
	return points, nil
}

// allPointsReadable reports whether no restore point is damaged.
func (r *Repository) allPointsReadable(ctx context.Context) (bool, error) {
	all := true
	_, err := r.pointRecords(ctx, func(id string, err error) {
		all = false
		r.log.Warn("a restore point cannot be read: the disk is compared whole", "point", id, "error", err)
	})
	return all, err
}

// Point returns the restore point with exactly that ID.
func (r *Repository) Point(ctx context.Context, id string) (*Point, error) {
	rec, err := r.pointRecord(ctx, id)
	if err != nil {
		return nil, err
	}
	return rec.public(), nil
}

// pointRecord reads the point from its object, each time, because it may be gone
// by now. It looks for the tombstone first: a prune removes the object before the
// tombstone, so that whoever finds no tombstone and then the point (as Hold and
// Begin do, after they have put up what keeps it) knows that no prune that is
// under way has decided to remove it.
func (r *Repository) pointRecord(ctx context.Context, id string) (*pointRecord, error) {
	if !validID(id) {
		return nil, fmt.Errorf("%w: %.40q is not the ID of a restore point (16 hexadecimal digits)", ErrReference, id)
	}
	forgotten, err := r.isForgotten(ctx, id)
	if err != nil {
		return nil, err
	}
	if forgotten {
		r.points.drop(id)
		return nil, fmt.Errorf("restore point %s was forgotten: %w", id, ErrNotFound)
	}
	rec, err := r.readPoint(ctx, id)
	if errors.Is(err, fs.ErrNotExist) || err == nil && rec.Void {
		r.points.drop(id)
		return nil, fmt.Errorf("restore point %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	r.points.put(rec)
	return rec, nil
}

// recordOf is the record behind a point that a caller gives us.
func (r *Repository) recordOf(ctx context.Context, p *Point) (*pointRecord, error) {
	if p.rec != nil {
		return p.rec, nil
	}
	return r.pointRecord(ctx, p.ID)
}
