package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"lifeboat/store/backend"
)

// Holds: how a reader keeps the points that it reads. A hold is the object
// holds/<random ID>; its owner replaces it now and then, and when it has not been
// replaced for the length of its lease (by the backend's clock), or its process
// is known to be gone, it counts no more. So no crash keeps a point for ever.
//
// A hold is put up first, and then the points are looked for: each must have no
// tombstone and be there, in this order. A prune reads the tombstones first and
// the holds then. So either the prune sees the hold, or the reader sees the
// tombstone that the prune goes by, or, if that is gone already, that the point is.
//
// A lasting hold is not bound to a process: it is a session's, whose changes are
// worth nothing without the point below them. It outlives its process by its
// lease.
const (
	holdPrefix    = "holds/"
	maxHoldBytes  = 1 << 20
	maxHoldPoints = 16384
	maxPurpose    = 1024 // bytes
	// maxHoldLease bounds the lease of a hold.
	maxHoldLease = 31 * 24 * time.Hour
)

// DefaultLastingLease is how long a lasting hold stays after it was last renewed.
const DefaultLastingLease = 7 * 24 * time.Hour

// ErrHeld: a lasting hold keeps a point. A *HeldError says whose it is.
var ErrHeld = errors.New("in use")

// HeldError says who needs a point.
type HeldError struct {
	Point string
	Hold  HoldInfo
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("restore point %s is %v: %s on host %s is made of it; end that first, or wait until %s", e.Point, ErrHeld,
		cmp.Or(e.Hold.Purpose, "a session"), e.Hold.Host, e.Hold.Until.Local().Format(time.DateTime))
}

// Is makes the error match ErrHeld.
func (e *HeldError) Is(target error) bool { return target == ErrHeld }

// HoldOptions says what kind of hold. The zero value is that of a process that
// reads.
type HoldOptions struct {
	// Purpose is for people, at most 1024 bytes: `session "web1"`.
	Purpose string
	// Lease is how long the hold counts after its last renewal; 0 means that of
	// the repository, or DefaultLastingLease for a lasting hold. At most 31 days.
	Lease time.Duration
	// Lasting lets the hold outlive the process, and Close.
	Lasting bool
	// ID is that of a lasting hold to take up again; "" makes a new one.
	ID string
}

// holdRecord is a hold as it is stored.
type holdRecord struct {
	Format  int      `json:"format"`
	Points  []string `json:"points"`
	Owner   owner    `json:"owner"`
	Purpose string   `json:"purpose,omitempty"`
	LeaseMS int64    `json:"lease_ms"`
	Lasting bool     `json:"lasting,omitempty"`
}

func (h holdRecord) lease() time.Duration { return time.Duration(h.LeaseMS) * time.Millisecond }

func holdName(id string) string { return holdPrefix + id }

func decodeHold(data []byte) (holdRecord, error) {
	var h holdRecord
	if err := decodeStrict(data, &h); err != nil {
		return h, err
	}
	bad := len(h.Points) > maxHoldPoints || h.LeaseMS <= 0 || h.LeaseMS > maxHoldLease.Milliseconds()
	for _, id := range h.Points {
		bad = bad || !validID(id)
	}
	if bad {
		return h, fmt.Errorf("%w: a hold on %d points, with a lease of %d ms", ErrDamaged, len(h.Points), h.LeaseMS)
	}
	return h, nil
}

// Hold keeps points from being removed by a prune, until it is closed or, if it
// is lasting, its lease has run out.
type Hold struct {
	r       *Repository
	id      string
	rec     holdRecord
	cancel  context.CancelFunc
	renewed sync.WaitGroup
	lost    chan struct{}

	mu  sync.Mutex
	err error // why it was lost
}

// Hold holds points, or fails with ErrNotFound where one is gone or forgotten. It
// starts a goroutine that renews the hold until ctx ends or Close is called. A
// repository that can't be written matches fs.ErrPermission or syscall.EROFS:
// what is read from it then is protected by nothing but the grace of prunes.
func (r *Repository) Hold(ctx context.Context, points []*Point, opts HoldOptions) (*Hold, error) {
	h, err := r.newHold(points, opts)
	if err != nil {
		return nil, fmt.Errorf("hold restore points: %w", err)
	}
	if err := h.put(ctx); err != nil {
		return nil, fmt.Errorf("hold restore points: %w", err)
	}
	if err := h.check(ctx); err != nil {
		return nil, errors.Join(err, h.Release(context.WithoutCancel(ctx)))
	}
	ctx, h.cancel = context.WithCancel(ctx)
	h.renewed.Go(func() { h.renew(ctx) })
	return h, nil
}

func (r *Repository) newHold(points []*Point, opts HoldOptions) (*Hold, error) {
	host, _ := os.Hostname() // for people
	h := &Hold{r: r, id: cmp.Or(opts.ID, randomHex(8)), lost: make(chan struct{}), cancel: func() {}}
	h.rec = holdRecord{
		Format: recordFormat, Owner: owner{Host: host, Process: r.proc.Self(), Nonce: randomHex(8)},
		Purpose: opts.Purpose, Lasting: opts.Lasting, LeaseMS: opts.Lease.Milliseconds(),
	}
	if opts.Lease <= 0 {
		h.rec.LeaseMS = r.lease.Milliseconds()
		if opts.Lasting {
			h.rec.LeaseMS = DefaultLastingLease.Milliseconds()
		}
	}
	for _, p := range points {
		h.rec.Points = append(h.rec.Points, p.ID)
	}
	slices.Sort(h.rec.Points)
	h.rec.Points = slices.Compact(h.rec.Points)
	switch {
	case !validID(h.id):
		return nil, fmt.Errorf("%w: %.40q is not the ID of a hold", ErrReference, opts.ID)
	case len(h.rec.Points) > maxHoldPoints:
		return nil, fmt.Errorf("%d restore points at once; at most %d", len(h.rec.Points), maxHoldPoints)
	case len(opts.Purpose) > maxPurpose || !utf8.ValidString(opts.Purpose):
		return nil, fmt.Errorf("the purpose is not UTF-8 of at most %d bytes", maxPurpose)
	case h.rec.lease() > maxHoldLease:
		return nil, fmt.Errorf("a lease of %v; at most %v", opts.Lease, maxHoldLease)
	}
	return h, nil
}

func (h *Hold) put(ctx context.Context) error {
	data, err := json.Marshal(h.rec)
	if err != nil {
		return err
	}
	return h.r.putSealed(ctx, holdName(h.id), data, backend.Replace)
}

// fewPoints is how many points are looked for one by one.
const fewPoints = 8

// check fails with ErrNotFound when a point is gone or forgotten. It is called
// after the hold is there.
func (h *Hold) check(ctx context.Context) error {
	if len(h.rec.Points) > fewPoints {
		return h.checkMany(ctx)
	}
	for _, id := range h.rec.Points {
		if _, err := h.r.pointRecord(ctx, id); err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
			return err
		}
	}
	return nil
}

// checkMany is check by two listings; for their order see pointRecord.
func (h *Hold) checkMany(ctx context.Context) error {
	forgotten, err := h.r.forgottenIDs(ctx)
	if err != nil {
		return err
	}
	ids, err := h.r.pointIDs(ctx)
	if err != nil {
		return err
	}
	for _, id := range h.rec.Points {
		_, gone := forgotten[id]
		if _, there := slices.BinarySearch(ids, id); gone || !there {
			return fmt.Errorf("restore point %s: %w", id, ErrNotFound)
		}
	}
	return nil
}

// ID names the hold, so that another process can take up a lasting one.
func (h *Hold) ID() string { return h.id }

// Lost is closed when the hold came to an end before its time: it could not be
// renewed, and a point was forgotten meanwhile. Err says more.
func (h *Hold) Lost() <-chan struct{} { return h.lost }

// Err says why the hold was lost; nil while it is not.
func (h *Hold) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// renew replaces the hold every fifth of its lease, or every hour. When it comes
// late (the process was suspended, the backend did not answer), prunes may have
// taken it for dead: then it looks for the points again, after the renewal.
func (h *Hold) renew(ctx context.Context) {
	tick := time.NewTicker(min(h.rec.lease()/5, time.Hour))
	defer tick.Stop()
	last := wallClock()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := wallClock()
		err := h.put(ctx)
		if late := now.Sub(last); err == nil && (late > h.rec.lease()/2 || late < 0) {
			err = h.check(ctx)
		}
		switch {
		case err == nil:
			last = now
		case errors.Is(err, ErrNotFound):
			h.lose(err)
			return
		case ctx.Err() == nil:
			h.r.log.Warn("could not renew a hold on restore points; trying again", "hold", h.id, "error", err)
		}
	}
}

// wallClock is the time of day, without the monotonic clock, which stands still
// while a machine sleeps.
func wallClock() time.Time { return time.Now().Round(0) }

func (h *Hold) lose(err error) {
	h.r.log.Error("a hold ran out, and a point that it was on was forgotten: reading it may fail", "hold", h.id, "purpose", h.rec.Purpose, "error", err)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err = err
	close(h.lost)
}

// Close ends the hold; a lasting one is renewed for the last time.
func (h *Hold) Close() error {
	h.cancel()
	h.renewed.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if !h.rec.Lasting {
		return h.Release(ctx)
	}
	if h.Err() != nil {
		return nil
	}
	return h.put(ctx)
}

// Release ends the hold, lasting or not.
func (h *Hold) Release(ctx context.Context) error {
	h.cancel()
	h.renewed.Wait()
	return h.r.ReleaseHold(ctx, h.id)
}

// ReleaseHold ends a lasting hold of another process. One that is gone is no
// error.
func (r *Repository) ReleaseHold(ctx context.Context, id string) error {
	if !validID(id) {
		return fmt.Errorf("%w: %.40q is not the ID of a hold", ErrReference, id)
	}
	if err := r.backend.Remove(ctx, holdName(id)); err != nil {
		return fmt.Errorf("release hold %s: %w", id, err)
	}
	return nil
}

// HoldInfo is a hold as people see it.
type HoldInfo struct {
	ID      string   `json:"id"`
	Points  []string `json:"points"` // IDs
	Purpose string   `json:"purpose,omitempty"`
	Host    string   `json:"host,omitempty"`
	Lasting bool     `json:"lasting,omitempty"`
	// Until is when it ends unless it is renewed, by the backend's clock.
	Until time.Time `json:"until"`
	// Damaged: its object cannot be read, so that nothing can be removed until
	// it has run out.
	Damaged bool `json:"damaged,omitempty"`

	process  string
	modified time.Time
}

// ended reports whether the hold counts no more at a time by the backend's clock.
func (h HoldInfo) ended(now time.Time, proc backend.Processes) bool {
	return now.After(h.Until) || !h.Lasting && h.process != "" && proc.Dead(h.process)
}

// Holds lists the holds, also those that have run out and were not removed yet.
func (r *Repository) Holds(ctx context.Context) ([]HoldInfo, error) {
	out := []HoldInfo{}
	for info, err := range r.backend.List(ctx, holdPrefix) {
		if err != nil {
			return nil, fmt.Errorf("list the holds: %w", err)
		}
		id := strings.TrimPrefix(info.Name, holdPrefix)
		if !validID(id) {
			continue
		}
		h, err := r.readHold(ctx, id, info.Modified)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}

// readHold reads a hold. What a damaged one is on is not known; it lasts as long
// as any may.
func (r *Repository) readHold(ctx context.Context, id string, modified time.Time) (HoldInfo, error) {
	h := HoldInfo{ID: id, modified: modified, Until: modified.Add(maxHoldLease).UTC(), Damaged: true}
	data, err := r.getSealed(ctx, holdName(id), maxHoldBytes)
	var rec holdRecord
	if err == nil {
		rec, err = decodeHold(data)
	}
	switch {
	case errors.Is(err, ErrDamaged):
		r.log.Error("a hold on restore points is damaged: none is removed until it has run out", "hold", id, "until", h.Until, "error", err)
		return h, nil
	case err != nil:
		return h, fmt.Errorf("%s: %w", holdName(id), err)
	}
	h.Damaged, h.Until = false, modified.Add(rec.lease()).UTC()
	h.Points, h.Purpose, h.Host, h.Lasting, h.process = rec.Points, rec.Purpose, rec.Owner.Host, rec.Lasting, rec.Owner.Process
	return h, nil
}

// sessionHolds is the lasting holds by the points that they are on. What time it
// is by the backend's clock is not asked: one that ran out counts until a prune
// removes it, or its own clock says so.
func (r *Repository) sessionHolds(ctx context.Context) (map[string]HoldInfo, error) {
	holds, err := r.Holds(ctx)
	if err != nil {
		return nil, err
	}
	held := make(map[string]HoldInfo)
	for _, h := range holds {
		if !h.Lasting || h.ended(wallClock(), r.proc) {
			continue
		}
		for _, id := range h.Points {
			held[id] = h
		}
	}
	return held, nil
}

// sortByTime sorts by time and then by name.
func sortByTime[T any](list []T, key func(T) (time.Time, string)) {
	slices.SortFunc(list, func(a, b T) int {
		ta, na := key(a)
		tb, nb := key(b)
		return cmp.Or(ta.Compare(tb), strings.Compare(na, nb))
	})
}
