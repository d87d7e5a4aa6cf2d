package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat/store/backend"
	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/keyring"
	"lifeboat/store/internal/segment"
)

// Object lock. Where the storage can lock objects by itself (S3), all that an
// immutable point needs is locked there for as long as the point is immutable:
// then not even the owner of the bucket removes it. After the commit of such a
// point its object, the header, the keys, and all segments that it refers to are
// locked for the window and a quarter more.
//
// Most of those segments are old. To extend all their locks at each backup would
// cost a request for every segment of the VM; so settings/object-locks
// remembers how long
// all that a point needs is locked at least. The next point of the VM needs what
// its parent does, and what differs from it: as long as the parent's locks last
// for the window of the new point, only what differs is locked, and only once in
// a quarter of the window everything. locks/points is a note: lost, or written
// by two at the same time, it costs requests.
//
// Times here are by the server's clock, as the locks are.
const (
	locksName     = settingsPrefix + "object-locks"
	maxLocksBytes = 8 << 20
	lockRequests  = 32 // at the same time
)

// objectLocks is what a process knows of locks.
type objectLocks struct {
	mu    sync.Mutex
	asked bool
	none  error                // why there are none
	until map[uint64]time.Time // segments that were locked here
}

// locksRecord is settings/object-locks: points, and the Unix time until which all that
// they need is locked.
type locksRecord struct {
	Format int              `json:"format"`
	Points map[string]int64 `json:"points"`
}

// ObjectLock says why the storage itself does not keep immutable points from
// being removed; nil means that it does (S3 object lock).
func (r *Repository) ObjectLock(ctx context.Context) error {
	r.locks.mu.Lock()
	defer r.locks.mu.Unlock()
	if r.locks.asked {
		return r.locks.none
	}
	l, ok := backend.As[backend.Locker](r.backend)
	if !ok {
		r.locks.asked, r.locks.none = true, errors.New("this storage cannot lock objects")
		return r.locks.none
	}
	err := l.LockSupport(ctx)
	if ctx.Err() == nil {
		r.locks.asked, r.locks.none = true, err
	}
	return err
}

// canLock reports whether the storage can lock objects.
func (r *Repository) canLock(ctx context.Context) bool { return r.ObjectLock(ctx) == nil }

// lockObjects locks what a point needs that was just committed.
func (r *Repository) lockObjects(ctx context.Context, rec *pointRecord) error {
	if rec.LockSeconds == 0 || !r.canLock(ctx) {
		return nil
	}
	locker, _ := backend.As[backend.Locker](r.backend)
	made, err := r.modified(ctx, pointName(rec.ID))
	if err != nil {
		return err
	}
	window := time.Duration(rec.LockSeconds) * time.Second
	job := lockJob{r: r, locker: locker, need: made.Add(window), target: made.Add(window + window/4)}
	if err := job.lockNames(ctx, rec.ID); err != nil {
		return err
	}
	notes, err := r.lockNotes(ctx)
	if err != nil {
		return err
	}
	base, parent := time.Time{}, (*pointRecord)(nil)
	if until := time.Unix(notes.Points[rec.Parent], 0); rec.Parent != "" && !until.Before(job.need) {
		if parent, err = r.readPoint(ctx, rec.Parent); err == nil && !parent.Void {
			base = until
		}
	}
	segments, err := r.segmentsOf(ctx, rec, base, parent)
	if err != nil {
		return err
	}
	least, err := job.lockSegments(ctx, segments)
	if err != nil {
		return err
	}
	if !base.IsZero() && base.Before(least) {
		least = base
	}
	notes.Points[rec.ID] = least.Unix()
	return r.putLockNotes(ctx, notes, made)
}

// modified is when an object was written, by the backend's clock.
func (r *Repository) modified(ctx context.Context, name string) (time.Time, error) {
	for info, err := range r.backend.List(ctx, name) {
		if err != nil {
			return time.Time{}, err
		}
		if info.Name == name {
			return info.Modified, nil
		}
	}
	return time.Time{}, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

// segmentsOf is the segments that a point refers to; with a base, beyond those
// of its parent.
func (r *Repository) segmentsOf(ctx context.Context, rec *pointRecord, base time.Time, parent *pointRecord) (map[uint64]struct{}, error) {
	needed := make(map[uint64]struct{})
	add := func(a segment.Addr) {
		if a.Stored() {
			needed[a.Segment()] = struct{}{}
		}
	}
	for _, a := range rec.configBlocks() {
		add(a)
	}
	visit := func(n blockmap.Node) error {
		add(n.Addr)
		for _, a := range n.Entries {
			add(a)
		}
		return n.Err
	}
	nodes := newAddrSet()
	for _, d := range rec.Disks {
		var err error
		tree := d.tree(r.blockSize)
		if was, ok := parent.diskOf(d.Key); ok && !base.IsZero() {
			err = r.maps.VisitNew(ctx, was.tree(r.blockSize), tree, visit)
		} else {
			err = r.maps.Visit(ctx, tree, nodes.add, visit)
		}
		if err != nil {
			return nil, fmt.Errorf("what disk %d of point %s needs is not known: %w", d.Key, rec.ID, damaged(err))
		}
	}
	return needed, nil
}

// diskOf finds a disk by its key.
func (rec *pointRecord) diskOf(key int) (diskRecord, bool) {
	if rec == nil {
		return diskRecord{}, false
	}
	for _, d := range rec.Disks {
		if d.Key == key {
			return d, true
		}
	}
	return diskRecord{}, false
}

// lockJob locks the objects of one point.
type lockJob struct {
	r            *Repository
	locker       backend.Locker
	need, target time.Time
}

// lockNames locks what every point needs besides segments.
func (j lockJob) lockNames(ctx context.Context, id string) error {
	for _, name := range []string{pointName(id), keyring.HeaderName} {
		if err := j.locker.Lock(ctx, name, j.need); err != nil {
			return err
		}
	}
	return j.lockKeys(ctx)
}

// lockSegments locks segments, and says until when all of them are locked at
// least.
func (j lockJob) lockSegments(ctx context.Context, segments map[uint64]struct{}) (time.Time, error) {
	least, known := j.target, &j.r.locks
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(lockRequests)
	enough := j.need.Add(j.target.Sub(j.need) / 2)
	for n := range segments {
		known.mu.Lock()
		until := known.until[n]
		known.mu.Unlock()
		if !until.Before(enough) {
			if until.Before(least) {
				least = until
			}
			continue
		}
		group.Go(func() error {
			if err := j.lockSegment(ctx, n); err != nil {
				return fmt.Errorf("segment %x: %w", n, err)
			}
			known.mu.Lock()
			defer known.mu.Unlock()
			if known.until == nil {
				known.until = make(map[uint64]time.Time)
			}
			known.until[n] = j.target
			return nil
		})
	}
	return least, group.Wait()
}

// lockSegment locks a segment: generation 0 is what it nearly always is.
func (j lockJob) lockSegment(ctx context.Context, n uint64) error {
	name := segment.Name(n, 0)
	err := j.locker.Lock(ctx, name, j.target)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	found := false
	for info, err := range j.r.backend.List(ctx, strings.TrimSuffix(name, "0")) {
		if err != nil {
			return err
		}
		if err := j.locker.Lock(ctx, info.Name, j.target); err != nil {
			return err
		}
		found = true
	}
	if !found {
		return err
	}
	return nil
}

func (r *Repository) lockNotes(ctx context.Context) (locksRecord, error) {
	data, err := r.getSealed(ctx, locksName, maxLocksBytes)
	rec := locksRecord{}
	if err == nil {
		err = decodeStrict(data, &rec)
	}
	switch {
	case errors.Is(err, ErrDamaged):
		r.log.Warn("the note of object locks is damaged: begun anew", "error", err)
		rec = locksRecord{}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return rec, err
	}
	if rec.Points == nil {
		rec.Points = make(map[string]int64)
	}
	return rec, nil
}

// putLockNotes writes the note, without points whose locks have ended.
func (r *Repository) putLockNotes(ctx context.Context, rec locksRecord, now time.Time) error {
	for id, until := range rec.Points {
		if until <= now.Unix() {
			delete(rec.Points, id)
		}
	}
	rec.Format = recordFormat
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	if len(data) > maxLocksBytes {
		data = fmt.Appendf(nil, `{"format":%d}`, recordFormat) // begun anew
	}
	return r.putSealed(ctx, locksName, data, backend.Replace)
}

// refusedByLock reports whether an object could not be removed because the
// storage keeps it.
func (r *Repository) refusedByLock(ctx context.Context, err error) bool {
	return errors.Is(err, fs.ErrPermission) && r.ObjectLock(ctx) == nil
}

// objectLocked reports whether the storage refuses to remove an object now; at
// is a moment ago by its clock. An object that is locked is not worth compacting:
// its space would not be free.
func (r *Repository) objectLocked(ctx context.Context, name string, at time.Time) (bool, error) {
	until, err := r.lockedUntil(ctx, name)
	return until.After(at), err
}

// lockedUntil is how long the storage keeps an object; the zero time where it
// does not.
func (r *Repository) lockedUntil(ctx context.Context, name string) (time.Time, error) {
	if !r.canLock(ctx) {
		return time.Time{}, nil
	}
	locker, _ := backend.As[backend.Locker](r.backend)
	until, err := locker.LockedUntil(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil
	}
	return until, err
}

// inheritLock locks the next generation of a segment for as long as the one
// before: before that is removed.
func (r *Repository) inheritLock(ctx context.Context, from, to string) error {
	until, err := r.lockedUntil(ctx, from)
	if err != nil || until.IsZero() {
		return err
	}
	locker, _ := backend.As[backend.Locker](r.backend)
	return locker.Lock(ctx, to, until)
}
