package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"testing"
	"time"

	"lifeboat/disk/disktest"
	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
)

const day = 24 * time.Hour

// fakeHost is a host whose clocks a test sets.
type fakeHost struct {
	boot   string
	uptime time.Duration
	wall   time.Time
}

func (h *fakeHost) Boot() string          { return h.boot }
func (h *fakeHost) Uptime() time.Duration { return h.uptime }
func (h *fakeHost) Wall() time.Time       { return h.wall }

// pass lets time go by.
func (h *fakeHost) pass(d time.Duration) {
	h.uptime += d
	h.wall = h.wall.Add(d)
}

// reboot starts the host anew; it was off for no time.
func (h *fakeHost) reboot() {
	h.boot = randomHex(8)
	h.uptime = time.Minute
}

var epoch = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// shifted is a backend whose clock differs from the host's.
type shifted struct {
	*backendtest.Memory
	by time.Duration
}

func (s shifted) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		for info, err := range s.Memory.List(ctx, prefix) {
			info.Modified = info.Modified.Add(s.by)
			if !yield(info, err) {
				return
			}
		}
	}
}

// lockedRepo is a repository with a window, and one point made in it.
func lockedRepo(t testing.TB, window time.Duration) (*backendtest.Memory, *Repository, *fakeHost, *Point) {
	t.Helper()
	b := backendtest.NewMemory()
	if err := Init(t.Context(), b, testPassword, cheap); err != nil {
		t.Fatal(err)
	}
	host := &fakeHost{boot: randomHex(8), uptime: time.Hour, wall: epoch}
	r := openAs(t, shifted{b, time.Until(epoch)}, host)
	if err := r.SetWindow(t.Context(), window); err != nil {
		t.Fatal(err)
	}
	return b, r, host, backup(t, r, "web1", nil, disktest.Random(1, 1<<20, 0.5), nil)
}

// openAs opens a repository on a host.
func openAs(t testing.TB, b backend.Backend, host hostClock) *Repository {
	t.Helper()
	r, err := Open(t.Context(), b, testPassword, Options{CacheBytes: 1 << 20, Logger: quiet(), Clock: host.Wall})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	r.host = host
	return r
}

// wantProtected fails unless the point cannot be forgotten for that reason.
func wantProtected(t testing.TB, r *Repository, id string, kind error) *ProtectedError {
	t.Helper()
	err := r.Forget(t.Context(), id)
	var why *ProtectedError
	if !errors.As(err, &why) || !errors.Is(err, kind) || !errors.Is(err, ErrProtected) || why.Point != id {
		t.Fatalf("forget: %v, want %v", err, kind)
	}
	if _, err := r.Point(t.Context(), id); err != nil {
		t.Fatalf("after a forget that was refused: %v", err)
	}
	return why
}

func wantForgotten(t testing.TB, r *Repository, id string) {
	t.Helper()
	if err := r.Forget(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Point(t.Context(), id); !errors.Is(err, ErrNotFound) {
		t.Fatalf("after a forget the point is there: %v", err)
	}
}

func TestImmutabilityWindow(t *testing.T) {
	_, r, host, p := lockedRepo(t, 14*day)
	why := wantProtected(t, r, p.ID, ErrImmutable)
	if want := epoch.Add(14 * day); !why.Until.Equal(want) {
		t.Errorf("immutable until %v, want %v", why.Until, want)
	}
	host.pass(14*day - time.Second)
	wantProtected(t, r, p.ID, ErrImmutable)
	host.pass(time.Second)
	wantForgotten(t, r, p.ID)
}

// A shorter window is for points that are made later.
func TestWindowIsInThePoint(t *testing.T) {
	b, r, host, p := lockedRepo(t, 14*day)
	if err := r.SetWindow(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	wantProtected(t, r, p.ID, ErrImmutable)
	later := backup(t, r, "web1", p, disktest.Random(2, 1<<20, 0.5), nil)
	if err := b.Remove(t.Context(), immutabilityName); err != nil {
		t.Fatal(err)
	}
	wantProtected(t, r, p.ID, ErrImmutable)
	wantForgotten(t, r, later.ID)
	prots, err := r.Protections(t.Context(), []*Point{p, later})
	if err != nil || len(prots) != 1 || !prots[p.ID].LockedUntil.Equal(host.wall.Add(14*day)) {
		t.Errorf("protections %v, %v", prots, err)
	}
}

func TestWindowBounds(t *testing.T) {
	_, r, _, _ := lockedRepo(t, time.Hour)
	for _, window := range []time.Duration{-1, maxWindow + 1} {
		if err := r.SetWindow(t.Context(), window); err == nil {
			t.Errorf("a window of %v is taken", window)
		}
	}
	if im, err := r.Immutability(t.Context()); err != nil || im.Window != time.Hour || im.AppendOnly {
		t.Errorf("%+v, %v", im, err)
	}
}

func TestPins(t *testing.T) {
	b, r, host, p := lockedRepo(t, 0)
	ctx := t.Context()
	if err := r.Pin(ctx, p.ID, "before the migration"); err != nil {
		t.Fatal(err)
	}
	host.pass(1000 * day)
	if why := wantProtected(t, r, p.ID, ErrPinned); why.Pin.Note != "before the migration" || !why.Pin.Time.Equal(epoch) {
		t.Errorf("pin %+v", why.Pin)
	}
	if err := r.Pin(ctx, p.ID, "for the auditor"); err != nil {
		t.Fatal(err)
	}
	pins, err := r.Pins(ctx)
	if err != nil || len(pins) != 1 || pins[0].Point != p.ID || pins[0].Note != "for the auditor" {
		t.Errorf("pins %+v, %v", pins, err)
	}
	if b.Flip(pinName(p.ID), 400); !errors.Is(r.Forget(ctx, p.ID), ErrPinned) {
		t.Error("a damaged pin does not pin")
	}
	if err := r.Unpin(ctx, p.ID); err != nil {
		t.Fatal(err)
	}
	if err := r.Unpin(ctx, p.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("unpin what is not pinned: %v", err)
	}
	wantForgotten(t, r, p.ID)
	if err := r.Pin(ctx, p.ID, ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("pin what is gone: %v", err)
	}
	if err := r.Pin(ctx, "../../x", ""); !errors.Is(err, ErrReference) {
		t.Errorf("pin what is no point: %v", err)
	}
	if names := objects(t, b, pinPrefix); len(names) != 0 {
		t.Errorf("left: %v", names)
	}
}

func TestAppendOnly(t *testing.T) {
	_, r, host, p := lockedRepo(t, 0)
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(r.SetWindow(ctx, 5*day))
	must(r.Pin(ctx, p.ID, ""))
	must(r.SetAppendOnly(ctx, true))
	if err := r.Unpin(ctx, p.ID); !errors.Is(err, ErrAppendOnly) {
		t.Errorf("unpin: %v", err)
	}
	if err := r.SetWindow(ctx, 4*day); !errors.Is(err, ErrAppendOnly) {
		t.Errorf("a shorter window: %v", err)
	}
	must(r.SetWindow(ctx, 6*day))

	// The wish to end it can be taken back, and is heard after the window only.
	must(r.SetAppendOnly(ctx, false))
	host.pass(5 * day)
	must(r.SetAppendOnly(ctx, true))
	must(r.SetAppendOnly(ctx, false))
	ends := host.wall.Add(6 * day)
	host.pass(6*day - time.Second)
	must(r.SetAppendOnly(ctx, false)) // asked again, it ends no later
	im, err := r.Immutability(ctx)
	if err != nil || !im.AppendOnly || !im.AppendOnlyEnds.Equal(ends) {
		t.Errorf("%+v, %v; want the end at %v", im, err, ends)
	}
	if err := r.Unpin(ctx, p.ID); !errors.Is(err, ErrAppendOnly) {
		t.Errorf("unpin: %v", err)
	}
	host.pass(time.Second)
	must(r.Unpin(ctx, p.ID))
	wantForgotten(t, r, p.ID)
	if im, err := r.Immutability(ctx); err != nil || im.AppendOnly {
		t.Errorf("%+v, %v", im, err)
	}
}

// In append-only mode a point without a window or pin stays, too.
func TestAppendOnlyKeepsAll(t *testing.T) {
	_, r, host, p := lockedRepo(t, 0)
	if err := r.SetAppendOnly(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	host.pass(1000 * day)
	wantProtected(t, r, p.ID, ErrAppendOnly)
	if err := r.SetAppendOnly(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	host.pass(AppendOnlyDelay - time.Second)
	if why := wantProtected(t, r, p.ID, ErrAppendOnly); !why.Until.Equal(host.wall.Add(time.Second)) {
		t.Errorf("until %v", why.Until)
	}
	host.pass(time.Second)
	wantForgotten(t, r, p.ID)
}

// Damage protects: while it is not known what was promised, nothing goes.
func TestDamagedProtection(t *testing.T) {
	b, r, host, p := lockedRepo(t, 14*day)
	ctx := t.Context()
	second := backup(t, r, "web2", nil, disktest.Random(3, 1<<20, 0.5), nil)
	b.Flip(pointName(second.ID), 500)
	if err := r.Forget(ctx, second.ID); !errors.Is(err, ErrImmutable) {
		t.Errorf("forget a damaged point within the window: %v", err)
	}
	b.Flip(immutabilityName, 500)
	if err := r.Forget(ctx, p.ID); !errors.Is(err, ErrDamaged) {
		t.Errorf("forget with a damaged setting: %v", err)
	}
	if err := r.Unpin(ctx, p.ID); err == nil {
		t.Error("unpinned with a damaged setting")
	}
	// A backup goes on, as immutable as the others.
	third := backup(t, r, "web1", p, disktest.Random(4, 1<<20, 0.5), nil)
	if err := r.SetWindow(ctx, 0); err == nil { // begun anew as in append-only mode, with no window
		err = r.SetWindow(ctx, day)
		if err != nil {
			t.Error(err)
		}
	} else {
		t.Errorf("set it anew: %v", err)
	}
	wantProtected(t, r, third.ID, ErrImmutable)
	host.pass(15 * day)
	wantProtected(t, r, third.ID, ErrAppendOnly)
}

// Who has stolen a password can't lock the others out at once, whatever order
// the commands are in.
func TestKeysOfImmutablePoints(t *testing.T) {
	b, r, host, _ := lockedRepo(t, 14*day)
	ctx := t.Context()
	keys, err := r.Keys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	owner := keys[0].ID
	if _, err := r.AddPassword(ctx, []byte("thief"), ""); err != nil {
		t.Fatal(err)
	}
	if err := r.SetWindow(ctx, 0); err != nil {
		t.Fatal(err)
	}
	refused := func(what string, err error) {
		t.Helper()
		var wait *KeyProtectedError
		if !errors.As(err, &wait) || !errors.Is(err, ErrProtected) || wait.Key != owner {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("remove", r.RemoveKey(ctx, owner))
	host.wall = host.wall.Add(300 * day)
	refused("remove with another clock", r.RemoveKey(ctx, owner))
	refused("change the password", r.ChangePassword(ctx, []byte("thief 2")))
	if im, err := r.Immutability(ctx); err != nil || len(im.KeyRemovals) != 1 || !im.KeyRemovals[0].From.Equal(host.wall.Add(14*day)) {
		t.Errorf("%+v, %v", im, err)
	}
	host.pass(13 * day)
	if err := r.KeepKey(ctx, owner); err != nil { // seen in time
		t.Fatal(err)
	}
	if err := r.KeepKey(ctx, owner); !errors.Is(err, ErrNotFound) {
		t.Errorf("kept twice: %v", err)
	}
	refused("remove again", r.RemoveKey(ctx, owner))
	openAs(t, b, host) // with the owner's password
	host.pass(day)
	if err := r.RemoveKey(ctx, owner); err != nil {
		t.Errorf("when no point is immutable any more: %v", err)
	}
	if _, err := Open(ctx, b, testPassword, Options{Logger: quiet()}); !errors.Is(err, ErrWrongPassword) {
		t.Errorf("open with a key that was removed: %v", err)
	}
}

func TestInitOverARepository(t *testing.T) {
	b, _, _, _ := lockedRepo(t, day)
	if err := Init(t.Context(), b, []byte("thief"), cheap); !errors.Is(err, ErrExists) {
		t.Errorf("init over it: %v", err)
	}
}

func FuzzRetentionRecords(f *testing.F) {
	const id = "0123456789abcdef"
	f.Add(fmt.Appendf(nil, `{"format":1,"boot":%q,"uptime_ms":1,"wall_ms":2,"time_ms":3}`, id))
	f.Add([]byte(`{"format":1,"window_seconds":86400,"append_only":true,"append_only_ends":5}`))
	f.Add(fmt.Appendf(nil, `{"format":1,"id":%q,"note":"n","time":"2026-11-21T12:00:00Z"}`, id))
	f.Add([]byte(`{"format":1,"policies":[{"vm":"*","policy":{"keep_daily":7,"keep_within":"2d"}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := decodeClock(bytes.Clone(data), id); err == nil {
			l := clockLedger{clockEntry{clockRecord: c}}
			host := &fakeHost{boot: "other", wall: epoch}
			if now := l.now(host, epoch, 0); now < c.Time || now > c.Time+clockCredit.Milliseconds() {
				t.Fatalf("%+v makes it %d", c, now)
			}
		}
		if s, err := decodeImmutability(bytes.Clone(data)); err == nil && (s.window() < 0 || s.window() > maxWindow) {
			t.Fatalf("a window of %v", s.window())
		}
		if pin, err := decodePin(bytes.Clone(data), id); err == nil && pin.Point != id {
			t.Fatalf("%+v", pin)
		}
		if ps, err := decodePolicies(bytes.Clone(data)); err == nil && ps.check() != nil {
			t.Fatalf("%+v", ps)
		}
	})
}
