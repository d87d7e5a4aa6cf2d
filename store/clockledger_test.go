package store

import (
	"context"
	"iter"
	"testing"
	"time"

	"pgregory.net/rapid"

	"lifeboat/disk/disktest"
	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
)

// clockTime is the time by the repository's clock.
func clockTime(t testing.TB, r *Repository) time.Time {
	t.Helper()
	now, err := r.observeTime(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return time.UnixMilli(now.at)
}

// Whatever a wall clock says, on one boot a window lasts as long as it should.
func TestWrongClockOnOneBoot(t *testing.T) {
	for _, wrong := range []time.Duration{10 * 365 * day, -10 * 365 * day, 15 * day, -15 * day} {
		t.Run(wrong.String(), func(t *testing.T) {
			b, r, host, p := lockedRepo(t, 14*day)
			host.wall = host.wall.Add(wrong)
			wantProtected(t, r, p.ID, ErrImmutable)
			r = openAs(t, b, host) // a new process does not believe it, either
			wantProtected(t, r, p.ID, ErrImmutable)
			host.pass(14*day - time.Second)
			why := wantProtected(t, r, p.ID, ErrImmutable)
			if want := host.wall.Add(time.Second); !why.Until.Equal(want) {
				t.Errorf("immutable until %v, want %v", why.Until, want)
			}
			host.pass(time.Second)
			wantForgotten(t, r, p.ID)
		})
	}
}

// A point that is made while the clock is wrong is as safe as any.
func TestMadeWithAWrongClock(t *testing.T) {
	for _, wrong := range []time.Duration{10 * 365 * day, -10 * 365 * day} {
		_, r, host, p := lockedRepo(t, 14*day)
		host.wall = host.wall.Add(wrong)
		second := backup(t, r, "web1", p, disktest.Random(2, 1<<20, 0.5), nil)
		host.wall = host.wall.Add(-wrong)
		host.pass(14*day - time.Second)
		wantProtected(t, r, second.ID, ErrImmutable)
		host.pass(time.Second)
		wantForgotten(t, r, second.ID)
	}
}

// After a restart the wall clock is believed a day, and not even that when it is
// absurd.
func TestWrongClockAfterARestart(t *testing.T) {
	for _, c := range []struct{ wrong, believed time.Duration }{
		{20 * day, day}, {5 * time.Hour, 5 * time.Hour}, {10 * 365 * day, 0}, {-20 * day, 0},
	} {
		_, r, host, p := lockedRepo(t, 14*day)
		before := clockTime(t, r)
		host.reboot()
		host.wall = host.wall.Add(c.wrong)
		if passed := clockTime(t, r).Sub(before); passed != c.believed {
			t.Errorf("clock off by %v after a restart: %v have passed, want %v", c.wrong, passed, c.believed)
		}
		for range 5 { // a clock that is wrong after each restart in the same way is believed once
			host.reboot()
			host.pass(time.Minute)
		}
		if passed := clockTime(t, r).Sub(before); passed > c.believed+5*time.Minute {
			t.Errorf("clock off by %v after restarts: %v have passed, want %v", c.wrong, passed, c.believed)
		}
		wantProtected(t, r, p.ID, ErrImmutable)
	}
}

// Without its ledger the clock goes on from the points, however often that is
// tried.
func TestClockWithoutLedger(t *testing.T) {
	b, r, host, p := lockedRepo(t, 14*day)
	host.wall = host.wall.Add(13 * day)
	for range 20 {
		for _, name := range objects(t, b, clockPrefix) {
			if err := b.Remove(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		host.reboot()
		wantProtected(t, r, p.ID, ErrImmutable)
	}
	if at := clockTime(t, r); at.After(epoch.Add(day + time.Minute)) {
		t.Errorf("the clock says %v", at)
	}
}

// A host that joins with a clock that is ahead or behind moves the time on once,
// by a day at most; taking turns, the hosts don't push each other.
func TestClockOfSeveralHosts(t *testing.T) {
	b, r, host, _ := lockedRepo(t, 14*day)
	other := &fakeHost{boot: randomHex(8), uptime: time.Hour, wall: epoch.Add(20 * time.Hour)}
	r2 := openAs(t, b, other)
	for range 50 {
		clockTime(t, r)
		clockTime(t, r2)
		host.pass(time.Hour)
		other.pass(time.Hour)
	}
	for _, r := range []*Repository{r, r2} {
		if at := clockTime(t, r); at.Before(epoch.Add(50*time.Hour)) || at.After(epoch.Add(70*time.Hour)) {
			t.Errorf("after 50 hours the clock says %v", at)
		}
	}
}

// serverBackend has the times of a server.
type serverBackend struct {
	*backendtest.Memory
	written map[string]time.Time
	now     *time.Time
}

func (s serverBackend) ServerClock() bool { return true }

func (s serverBackend) Create(ctx context.Context, name string, mode backend.Mode) (backend.Writer, error) {
	s.written[name] = *s.now
	return s.Memory.Create(ctx, name, mode)
}

func (s serverBackend) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		for info, err := range s.Memory.List(ctx, prefix) {
			info.Modified = s.written[info.Name]
			if !yield(info, err) {
				return
			}
		}
	}
}

// With the clock of a server, a time that nobody was there is counted.
func TestClockOfAServer(t *testing.T) {
	now := epoch
	b := serverBackend{backendtest.NewMemory(), map[string]time.Time{}, &now}
	if err := Init(t.Context(), b, testPassword, cheap); err != nil {
		t.Fatal(err)
	}
	host := &fakeHost{boot: randomHex(8), uptime: time.Hour, wall: epoch.Add(99 * day)}
	r := openAs(t, b, host)
	before := clockTime(t, r)
	now = now.Add(30 * day)
	host.reboot()
	host.wall = epoch // and the host's own clock is wrong
	if passed := clockTime(t, r).Sub(before); passed != 30*day {
		t.Errorf("%v have passed, want 30 days", passed)
	}
	now = now.Add(-30 * day)
	host.reboot()
	if passed := clockTime(t, r).Sub(before); passed != 30*day {
		t.Errorf("the server's clock was set back, and %v have passed", passed)
	}
}

// TestClockNeverRunsAhead: whatever hosts and clocks do, no more time passes by
// the repository's clock than has really passed, and a day for each boot; and on
// one boot no less.
func TestClockNeverRunsAhead(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := backendtest.NewMemory()
		if err := Init(t.Context(), b, testPassword, cheap); err != nil {
			rt.Fatal(err)
		}
		hosts := []*fakeHost{
			{boot: randomHex(8), uptime: time.Hour, wall: epoch},
			{boot: randomHex(8), uptime: 9 * time.Hour, wall: epoch.Add(7 * day)},
		}
		repos := []*Repository{openAs(t, b, hosts[0]), openAs(t, b, hosts[1])}
		start := clockTime(t, repos[0])
		elapsed, boots, last := time.Duration(0), 1, start // the second host is new
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			i := rapid.IntRange(0, 1).Draw(rt, "host")
			switch rapid.IntRange(0, 3).Draw(rt, "what") {
			case 0:
				d := time.Duration(rapid.IntRange(0, 100).Draw(rt, "hours")) * time.Hour
				elapsed += d
				hosts[0].pass(d)
				hosts[1].pass(d)
			case 1:
				hosts[i].wall = hosts[i].wall.Add(time.Duration(rapid.IntRange(-10_000, 10_000).Draw(rt, "wrong")) * time.Hour)
			case 2:
				hosts[i].reboot()
				boots++
			case 3:
				now := clockTime(t, repos[i])
				if now.Sub(start) > elapsed+time.Duration(boots)*clockCredit {
					rt.Fatalf("%v have passed in %v with %d boots", now.Sub(start), elapsed, boots)
				}
				if now.Before(last.Add(-clockRenew)) {
					rt.Fatalf("time went back from %v to %v", last, now)
				}
				last = now
			}
		}
	})
}

func TestOldClocksAreRemoved(t *testing.T) {
	b, r, host, _ := lockedRepo(t, 0)
	for range maxClocks {
		host.reboot()
		host.pass(time.Hour)
		clockTime(t, r)
	}
	if n := len(objects(t, b, clockPrefix)); n > maxClocks/2+1 {
		t.Errorf("%d entries in the ledger after %d boots", n, maxClocks)
	}
	before := clockTime(t, r)
	host.pass(clockLife)
	if passed := clockTime(t, r).Sub(before); passed != clockLife {
		t.Errorf("%v have passed, want %v", passed, clockLife)
	}
	if names := objects(t, b, clockPrefix); len(names) != 1 || names[0] != clockName(host.boot) {
		t.Errorf("left: %v", names)
	}
}

func TestBootToken(t *testing.T) {
	if a, b := bootToken(), bootToken(); a != b || !validID(a) {
		t.Errorf("this boot is %q and %q", a, b)
	}
	host := newHostClock(time.Now)
	a := host.Uptime()
	if b := host.Uptime(); a <= 0 || b < a {
		t.Errorf("uptime %v, then %v", a, b)
	}
	if host.Wall().IsZero() {
		t.Error("no time of day")
	}
}
