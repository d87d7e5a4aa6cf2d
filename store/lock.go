package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// What keeps a point from being removed, whoever asks and with whatever
// password: its pin, its immutability window, append-only mode.
//
// A point that is made while the repository has a window carries that window,
// and the moment by the repository's clock from which it counts (clockledger.go).
// So no setting that is changed later, removed or damaged shortens it. Forget
// asks before it marks a point, a prune asks again before it removes one, and
// there is no third way in this program to remove a point.
var (
	// ErrProtected: a restore point cannot be removed now. A *ProtectedError
	// says why, and until when. It matches ErrPinned, ErrImmutable or
	// ErrAppendOnly, too.
	ErrProtected = errors.New("protected")
	// ErrPinned: a person pinned it.
	ErrPinned = errors.New("pinned")
	// ErrImmutable: its immutability window is not over.
	ErrImmutable = errors.New("immutable")
	// ErrAppendOnly: the repository is in append-only mode.
	ErrAppendOnly = errors.New("the repository is append-only")
)

// ProtectedError says why a point cannot be removed.
type ProtectedError struct {
	Point string
	// Pin is set where it is pinned.
	Pin *Pin
	// Until is when the last of what else protects it ends, by this host's
	// clock; the zero time where that is not known, or nothing does.
	Until time.Time
	// Kind is ErrPinned, ErrImmutable or ErrAppendOnly.
	Kind error
}

// Error says what to do.
func (e *ProtectedError) Error() string {
	switch {
	case errors.Is(e.Kind, ErrPinned):
		text := fmt.Sprintf("restore point %s is pinned since %s", e.Point, e.Pin.Time.Local().Format(time.DateTime))
		if e.Pin.Host != "" {
			text += " by " + e.Pin.Host
		}
		if e.Pin.Note != "" {
			text += fmt.Sprintf(" (%s)", e.Pin.Note)
		}
		return text + "; `lifeboat unpin` lets it go"
	case errors.Is(e.Kind, ErrImmutable):
		return fmt.Sprintf("restore point %s is immutable until %s: nobody can remove it before", e.Point, e.Until.Local().Format(time.DateTime))
	}
	text := fmt.Sprintf("restore point %s: %v", e.Point, e.Kind)
	if e.Until.IsZero() {
		return text + "; `lifeboat immutable append-only off` asks for its end"
	}
	return text + " until " + e.Until.Local().Format(time.DateTime)
}

// Is makes the error match ErrProtected and its kind.
func (e *ProtectedError) Is(target error) bool { return target == ErrProtected || target == e.Kind }

// Protection is what keeps a point.
type Protection struct {
	// Pin is set where the point is pinned.
	Pin *Pin `json:"pin,omitempty"`
	// LockedUntil is when its immutability ends, by this host's clock; the zero
	// time where it has none or that is over.
	LockedUntil time.Time `json:"locked_until,omitzero"`
}

// Protections returns what keeps points, by their IDs; those that nothing keeps
// are left out. Append-only mode, which keeps them all, Immutability tells.
func (r *Repository) Protections(ctx context.Context, points []*Point) (map[string]Protection, error) {
	pins, err := r.pins(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[string]Protection)
	var now *repoTime
	for _, p := range points {
		var prot Protection
		if pin, ok := pins[p.ID]; ok {
			prot.Pin = &pin
		}
		rec, err := r.recordOf(ctx, p)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if rec.LockSeconds > 0 && now == nil {
			t, err := r.repositoryTime(ctx)
			if err != nil {
				return nil, err
			}
			now = &t
		}
		if rec.LockSeconds > 0 && rec.lockEnd() > now.at {
			prot.LockedUntil = now.wallAt(rec.lockEnd())
		}
		if prot != (Protection{}) {
			out[p.ID] = prot
		}
	}
	return out, nil
}

// lockEnd is when the point's immutability ends, by the repository's clock.
func (rec *pointRecord) lockEnd() int64 {
	from := rec.LockFrom
	if from == 0 {
		from = rec.Time.UnixMilli()
	}
	return from + rec.LockSeconds*1000
}

// stampLock gives a point that is about to be committed its immutability.
func (r *Repository) stampLock(ctx context.Context, rec *pointRecord) error {
	s, err := r.readImmutability(ctx)
	if errors.Is(err, ErrDamaged) {
		// A backup must not fail, nor be less protected, because a setting is
		// damaged.
		r.log.Error("the immutability setting is damaged: the longest window of all points stands in; set it anew", "error", err)
		s.WindowSeconds, err = r.longestWindow(ctx)
	}
	if err != nil {
		return err
	}
	rec.LockSeconds, rec.LockFrom = s.WindowSeconds, 0
	if s.WindowSeconds == 0 {
		return nil
	}
	now, err := r.observeTime(ctx)
	rec.LockFrom = now.at
	return err
}

// longestWindow is that of all points that can be read, in seconds.
func (r *Repository) longestWindow(ctx context.Context) (int64, error) {
	recs, err := r.pointRecords(ctx, func(string, error) {})
	var longest int64
	for _, rec := range recs {
		longest = max(longest, rec.LockSeconds)
	}
	return longest, err
}

// checkRemovable says of each point why it must not be removed now, if that is
// so: a *ProtectedError. Its own error means that it is not known, and then
// nothing must be removed. A point without an object is protected by nothing
// but its pin.
func (r *Repository) checkRemovable(ctx context.Context, ids []string) (map[string]error, error) {
	return r.protected(ctx, ids, r.observeTime)
}

// Protected says of each point, by its ID, why Forget would refuse to remove it
// now, if that is so: a *ProtectedError or *HeldError. It writes nothing.
func (r *Repository) Protected(ctx context.Context, ids []string) (map[string]error, error) {
	out, err := r.protected(ctx, ids, r.repositoryTime)
	if err != nil || len(ids) == 0 {
		return out, err
	}
	held, err := r.sessionHolds(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if h, ok := held[id]; ok && out[id] == nil {
			out[id] = &HeldError{Point: id, Hold: h}
		}
	}
	return out, nil
}

func (r *Repository) protected(ctx context.Context, ids []string, clock func(context.Context) (repoTime, error)) (map[string]error, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	g := guard{r: r, clock: clock}
	if err := g.load(ctx); err != nil {
		return nil, fmt.Errorf("see what must not be removed: %w", err)
	}
	out := make(map[string]error)
	for _, id := range ids {
		why, err := g.protects(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("see whether point %s may be removed: %w", id, err)
		}
		if why != nil {
			out[id] = why
		}
	}
	return out, nil
}

// checkAppendOnly fails with ErrAppendOnly while that mode is in force.
func (r *Repository) checkAppendOnly(ctx context.Context) error {
	g := guard{r: r, clock: r.observeTime}
	if err := g.load(ctx); err != nil {
		return err
	}
	if !g.appendOnly {
		return nil
	}
	if g.ends.IsZero() {
		return fmt.Errorf("%w; `lifeboat immutable append-only off` asks for its end", ErrAppendOnly)
	}
	return fmt.Errorf("%w until %s", ErrAppendOnly, g.ends.Local().Format(time.DateTime))
}

// guard judges points.
type guard struct {
	r          *Repository
	clock      func(context.Context) (repoTime, error)
	setting    immutabilityRecord
	appendOnly bool
	ends       time.Time // of append-only mode
	pins       map[string]Pin
	now        *repoTime // nil until it is needed
}

func (g *guard) load(ctx context.Context) (err error) {
	if g.setting, err = g.r.readImmutability(ctx); err != nil {
		return fmt.Errorf("%w; nothing is removed until `lifeboat immutable set` has set it anew", err)
	}
	if g.pins, err = g.r.pins(ctx); err != nil {
		return err
	}
	if !g.setting.AppendOnly {
		return nil
	}
	now, err := g.time(ctx)
	if err != nil {
		return err
	}
	g.appendOnly = g.setting.appendOnly(now.at)
	if g.setting.EndsAt != 0 {
		g.ends = now.wallAt(g.setting.EndsAt)
	}
	return nil
}

// time asks the repository's clock once.
func (g *guard) time(ctx context.Context) (repoTime, error) {
	if g.now == nil {
		now, err := g.clock(ctx)
		if err != nil {
			return now, err
		}
		g.now = &now
	}
	return *g.now, nil
}

// protects says why a point must stay: nil or a *ProtectedError.
func (g *guard) protects(ctx context.Context, id string) (why, err error) {
	if pin, ok := g.pins[id]; ok {
		return &ProtectedError{Point: id, Pin: &pin, Kind: ErrPinned}, nil
	}
	end, err := g.lockEnd(ctx, id)
	if err != nil {
		return nil, err
	}
	if end > 0 {
		now, err := g.time(ctx)
		if err != nil {
			return nil, err
		}
		if end > now.at {
			return &ProtectedError{Point: id, Until: now.wallAt(end), Kind: ErrImmutable}, nil
		}
		until, err := g.r.lockedUntil(ctx, pointName(id)) // by the storage's own clock
		if err != nil {
			return nil, err
		}
		if until.After(now.wall) {
			return &ProtectedError{Point: id, Until: until, Kind: ErrImmutable}, nil
		}
	}
	if g.appendOnly {
		return &ProtectedError{Point: id, Until: g.ends, Kind: ErrAppendOnly}, nil
	}
	return nil, nil
}

// lockEnd is when a point's immutability ends by the repository's clock, or 0.
// What a damaged point says is not known: it is taken to have the window of the
// setting, from when its object was written by the backend's clock, and neither
// the repository's clock nor the host's may say that it is not over.
func (g *guard) lockEnd(ctx context.Context, id string) (int64, error) {
	rec, err := g.r.points.get(id), error(nil)
	if rec == nil {
		rec, err = g.r.readPoint(ctx, id)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, nil
	case errors.Is(err, ErrDamaged):
		return g.damagedLockEnd(ctx, id)
	case err != nil:
		return 0, err
	case rec.Void || rec.LockSeconds == 0:
		return 0, nil
	}
	return rec.lockEnd(), nil
}

func (g *guard) damagedLockEnd(ctx context.Context, id string) (int64, error) {
	if g.setting.WindowSeconds == 0 {
		return 0, nil
	}
	for info, err := range g.r.backend.List(ctx, pointName(id)) {
		if err != nil {
			return 0, err
		}
		if info.Name != pointName(id) {
			continue
		}
		now, err := g.time(ctx)
		ahead := max(0, now.at-now.wall.UnixMilli())
		return info.Modified.UnixMilli() + g.setting.WindowSeconds*1000 + ahead, err
	}
	return 0, nil
}
