package dedupe

import (
	"context"
	"errors"
	"os"
	"strconv"
	"syscall"
	"testing"

	"lifeboat/internal/vfs/crashfs"
	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
)

func crashBackend(t testing.TB, f *crashfs.FS) backend.Backend {
	t.Helper()
	d, err := backend.NewDir(f, "/repo")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// story publishes, merges and compacts until something fails, and returns how
// many entries have been acknowledged: those numbered below.
func story(ctx context.Context, b backend.Backend) (acknowledged uint64, err error) {
	x, err := Open(ctx, b, testKeys(), Options{Now: clock()})
	if err != nil {
		return 0, err
	}
	defer x.Close()
	const step = 150
	for range 6 {
		if err := x.Publish(ctx, entries(acknowledged, acknowledged+step)); err != nil {
			return acknowledged, err
		}
		acknowledged += step
		if err := x.Merge(ctx); err != nil {
			return acknowledged, err
		}
	}
	return acknowledged, x.Compact(ctx, nil)
}

// Power fails at every point of the story: no acknowledged entry is lost, none
// is wrong, nothing looks damaged, and the index goes on.
func TestPowerLoss(t *testing.T) {
	runs := 4
	if n, err := strconv.Atoi(os.Getenv("LIFEBOAT_CRASH_RUNS")); err == nil {
		runs = n
	}
	whole := crashfs.New(1, crashfs.Options{})
	want, err := story(t.Context(), crashBackend(t, whole))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d points, %d runs each", whole.Points(), runs)
	for point := 1; point <= whole.Points(); point++ {
		for seed := range uint64(runs) {
			f := crashfs.New(seed, crashfs.Options{})
			f.StopAtPoint(point)
			n, err := story(t.Context(), crashBackend(t, f))
			if !errors.Is(err, crashfs.ErrPowerLoss) {
				t.Fatalf("point %d: %v", point, err)
			}
			b := crashBackend(t, f.Crash(seed))
			wantNoDamage(t, b)
			x := openIndex(t, b)
			for i := range want {
				addr, ok := x.Lookup(identity(i))
				if !ok && i < n || ok && addr != address(i) {
					t.Fatalf("point %d, seed %d: entry %d of %d: %v, %v", point, seed, i, n, addr, ok)
				}
			}
			if err := x.Compact(t.Context(), nil); err != nil {
				t.Fatalf("point %d, seed %d: afterwards: %v", point, seed, err)
			}
			if names := backendtest.Names(t, b, ""); len(names) > 1 || n > 0 && len(names) != 1 {
				t.Fatalf("point %d, seed %d: objects %q are left", point, seed, names)
			}
			for i := range n {
				if addr, ok := x.Lookup(identity(i)); !ok || addr != address(i) {
					t.Fatalf("point %d, seed %d: afterwards, entry %d: %v, %v", point, seed, i, addr, ok)
				}
			}
		}
	}
}

// Every call fails once: the index stays right and works again afterwards.
func TestFailingCalls(t *testing.T) {
	boom := errors.New("boom")
	whole := crashfs.New(1, crashfs.Options{})
	want, err := story(t.Context(), crashBackend(t, whole))
	if err != nil {
		t.Fatal(err)
	}
	for after := range whole.Points() {
		f := crashfs.New(1, crashfs.Options{})
		f.Fail(crashfs.Rule{Op: crashfs.OpChanges, After: after, Times: 1, Err: boom})
		b := crashBackend(t, f)
		n, err := story(t.Context(), b)
		if err != nil && !errors.Is(err, boom) {
			t.Fatalf("after %d calls: %v", after, err)
		}
		x := openIndex(t, b)
		for i := range want {
			addr, ok := x.Lookup(identity(i))
			if !ok && i < n || ok && addr != address(i) {
				t.Fatalf("after %d calls: entry %d of %d: %v, %v", after, i, n, addr, ok)
			}
		}
		if err := x.Publish(t.Context(), entries(n, want)); err != nil {
			t.Fatalf("after %d calls: %v", after, err)
		}
		merge(t, x)
		wantAll(t, x, 0, want)
	}
}

func TestDiskFull(t *testing.T) {
	f := crashfs.New(1, crashfs.Options{Capacity: 200 << 10})
	b := crashBackend(t, f)
	x := openIndex(t, b)
	n := uint64(0)
	for {
		if err := x.Publish(t.Context(), entries(n, n+500)); errors.Is(err, syscall.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		n += 500
		if n > 10_000 {
			t.Fatal("the disk never gets full")
		}
	}
	wantAll(t, x, 0, n)
	if err := x.Merge(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Merge without room: %v, want ENOSPC", err)
	}
	wantAll(t, x, 0, n)
	f.SetCapacity(0)
	merge(t, x)
	wantAll(t, openIndex(t, b), 0, n)
	wantNoDamage(t, b)
}

// Reading fails although nothing is damaged: blocks count as unknown, and the
// merge leaves the run alone.
func TestReadErrors(t *testing.T) {
	f := crashfs.New(1, crashfs.Options{})
	b := crashBackend(t, f)
	x := openIndex(t, b)
	for n := range uint64(fanIn) {
		publish(t, x, entries(n*100, n*100+100))
	}
	remove := f.Fail(crashfs.Rule{Op: crashfs.OpRead, Err: syscall.EIO})
	if _, ok := x.Lookup(identity(0)); ok {
		t.Error("an entry was found without reading")
	}
	merge(t, x)
	if s := openIndex(t, b).Stats(); s.Runs != 0 {
		t.Errorf("%d runs could be opened without reading", s.Runs)
	}
	if d := verify(t, b); len(d) != fanIn {
		t.Errorf("Verify: %v", d)
	}
	remove()
	f.Fail(crashfs.Rule{Op: crashfs.OpRead, Err: syscall.EAGAIN, Times: 1})
	if _, err := Open(t.Context(), b, testKeys(), Options{}); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("a failure that may pass: %v", err)
	}
	wantAll(t, x, 0, 400)
	wantAll(t, openIndex(t, b), 0, 400)
	merge(t, x)
	wantAll(t, x, 0, 400)
}
