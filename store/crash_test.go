package store

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/internal/vfs/crashfs"
	"lifeboat/store/internal/keyring"
)

// crashRuns is how many crashes a test simulates: LIFEBOAT_CRASH_RUNS, or few.
func crashRuns(t *testing.T, few int) int {
	t.Helper()
	s := os.Getenv("LIFEBOAT_CRASH_RUNS")
	if s == "" {
		return few
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("LIFEBOAT_CRASH_RUNS: %v", err)
	}
	return n
}

// history is what a machine was told to have happened before it lost power.
type history struct {
	inited    bool
	points    []*Point           // acknowledged
	want      []*disktest.Memory // their content
	maybe     []*disktest.Memory // content of points whose commit was not acknowledged
	changing  bool               // the password was being changed
	changed   bool
	forgotten map[string]bool // acknowledged; the one under way has value false
}

var secondPassword = []byte("battery staple")

// live runs through the life of a repository on w until something fails.
func live(ctx context.Context, t *testing.T, w *world, h *history) error {
	h.forgotten = make(map[string]bool)
	me := actor{w.actors, "victim"}
	b := w.backend(t, me)
	if err := Init(ctx, b, testPassword, cheap); err != nil {
		return err
	}
	h.inited = true
	r, err := Open(ctx, b, testPassword, w.options(me))
	if err != nil {
		return err
	}
	defer r.Close()
	r.kdf = keyring.CheapKDF()
	src := disktest.Random(1, 300_000, 0.7)
	var parent *Point
	for i := range 4 {
		if parent, err = liveBackup(ctx, r, h, parent, src, i == 2); err != nil {
			return err
		}
		scribble(uint64(i), src, 1)
	}
	h.changing = true
	if err := r.ChangePassword(ctx, secondPassword); err != nil {
		return err
	}
	h.changed = true
	h.forgotten[h.points[0].ID] = false
	if err := r.Forget(ctx, h.points[0].ID); err != nil {
		return err
	}
	h.forgotten[h.points[0].ID] = true
	for _, grace := range []time.Duration{DefaultGrace, -1} {
		if _, err := r.Prune(ctx, PruneOptions{Grace: grace}); err != nil {
			return err
		}
	}
	_, err = liveBackup(ctx, r, h, parent, src, false)
	return err
}

// liveBackup makes a point, or begins one and aborts it first.
func liveBackup(ctx context.Context, r *Repository, h *history, parent *Point, src *disktest.Memory, abortFirst bool) (p *Point, err error) {
	in, err := r.NewIngest(ctx, IngestOptions{Workers: 1, Readers: 1, commits: 1})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	for abort := abortFirst; ; abort = false {
		w, err := in.Begin(PointSpec{VM: "vm", Parent: parent, Config: map[string][]byte{"vm.vmx": []byte("config")}})
		if err != nil {
			return nil, err
		}
		content := src.Clone()
		if abort {
			content.WriteAt([]byte("aborted"), 70_000)
		}
		if err := w.AddDisk(ctx, DiskSpec{Key: 1}, content, nil, nil); err != nil {
			w.Abort()
			return nil, err
		}
		if abort {
			w.Abort()
			continue
		}
		h.maybe = append(h.maybe, content)
		if p, err = w.Commit(ctx); err != nil {
			return nil, err
		}
		h.points, h.want = append(h.points, p), append(h.want, content)
		return p, nil
	}
}

// TestPowerLoss stops the machine at calls that change the disk, in every step
// from init to a changed password. The repository is never unreadable; what was
// acknowledged is there and reads as its source; what was not is there whole or
// not at all; and the next backup sweeps what is left.
func TestPowerLoss(t *testing.T) {
	whole := crashfs.New(1, crashfs.Options{})
	if err := live(t.Context(), t, newWorld(whole), new(history)); err != nil {
		t.Fatal(err)
	}
	points := whole.Points()
	runs := crashRuns(t, 60)
	for i := range runs {
		// All points once before any a second time.
		n, seed := 1+(i*points/max(runs, points)+i*(points/2|1))%points, uint64(i)
		if runs < points {
			n = 1 + i*points/runs
		}
		crashAt(t, n, seed)
		if t.Failed() {
			t.Fatalf("stopped at point %d of %d with seed %d", n, points, seed)
		}
	}
}

func crashAt(t *testing.T, n int, seed uint64) {
	t.Helper()
	fs := crashfs.New(seed, crashfs.Options{})
	fs.StopAtPoint(n)
	h := new(history)
	err := live(t.Context(), t, newWorld(fs), h)
	if err == nil && fs.Stopped() {
		err = crashfs.ErrPowerLoss // in a clean-up whose error does not matter
	}
	if err != nil && !errors.Is(err, crashfs.ErrPowerLoss) {
		t.Errorf("the machine said %v", err)
	}
	after := newWorld(fs.Crash(seed))
	after.actors.kill("victim")
	checkCrashed(t, after, h)
}

func checkCrashed(t *testing.T, w *world, h *history) {
	t.Helper()
	r := openCrashed(t, w, h)
	if r == nil {
		return
	}
	defer r.Close()
	wantHistory(t, r, h)
	wantSound(t, r)
	again := disktest.Random(77, 200_000, 1)
	p := backup(t, r, "after", nil, again, nil)
	wantDisk(t, r, p, 0, again)
	wantHistory(t, r, h)
	if report := wantSound(t, r); len(report.Leftovers) > 0 {
		t.Errorf("left over after the next backup: %v", report.Leftovers)
	}
	if left, err := w.fs.ReadDir("/repo/tmp"); err != nil || len(left) > 0 {
		t.Errorf("unfinished objects after the next backup: %v %v", left, err)
	}
}

// openCrashed opens what is left with the password that must do, or makes sure
// that there is nothing.
func openCrashed(t *testing.T, w *world, h *history) *Repository {
	t.Helper()
	me := actor{w.actors, "survivor"}
	b := w.backend(t, me)
	open := func(password []byte) (*Repository, error) { return Open(t.Context(), b, password, w.options(me)) }
	first, err1 := open(testPassword)
	second, err2 := open(secondPassword)
	switch {
	case h.changed && first != nil:
		t.Error("the old password still opens the repository")
	case h.changed && second == nil, !h.changing && h.inited && first == nil, h.changing && first == nil && second == nil:
		t.Errorf("does not open: %v; %v", err1, err2)
	case !h.inited && first == nil:
		if !errors.Is(err1, ErrNotRepository) {
			t.Errorf("half a repository: %v", err1)
		}
		if err := Init(t.Context(), b, testPassword, cheap); err != nil {
			t.Errorf("init again: %v", err)
		}
	}
	if first == nil {
		return second
	}
	if second != nil {
		second.Close()
	}
	return first
}

// wantHistory compares the points with what was acknowledged.
func wantHistory(t *testing.T, r *Repository, h *history) {
	t.Helper()
	points, err := r.Points(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	there := make(map[string]bool)
	extra := 0
	for _, p := range points {
		there[p.ID] = true
		if p.VM != "vm" {
			continue
		}
		want := contentOf(h, p.ID)
		if want == nil {
			// Committed, and nobody was told: the last that was tried.
			extra++
			want = h.maybe[len(h.maybe)-1]
		}
		if h.forgotten[p.ID] {
			t.Errorf("forgotten point %s is back", p.ID)
		}
		wantDisk(t, r, p, 0, want)
		if vmx, err := r.Config(t.Context(), p, "vm.vmx"); err != nil || string(vmx) != "config" {
			t.Errorf("configuration: %q %v", vmx, err)
		}
	}
	for _, p := range h.points {
		if _, forgetting := h.forgotten[p.ID]; !there[p.ID] && !forgetting {
			t.Errorf("point %s was acknowledged and is gone", p.ID)
		}
	}
	if extra > 1 || extra == 1 && len(h.maybe) == len(h.points) {
		t.Errorf("%d points that nobody made", extra)
	}
}

func contentOf(h *history, id string) disk.Image {
	for i, p := range h.points {
		if p.ID == id {
			return h.want[i]
		}
	}
	return nil
}

// TestFailingDisk makes single calls fail, anywhere, with the machine going on:
// an error is reported, or nothing was lost; and what was acknowledged stays.
func TestFailingDisk(t *testing.T) {
	whole := crashfs.New(1, crashfs.Options{})
	if err := live(t.Context(), t, newWorld(whole), new(history)); err != nil {
		t.Fatal(err)
	}
	points := whole.Points()
	runs := crashRuns(t, 30)
	broken := errors.New("input/output error")
	for i := range runs {
		rng := rand.New(rand.NewPCG(uint64(i), 5))
		after, times := rng.IntN(points), 1+rng.IntN(3)
		fs := crashfs.New(uint64(i), crashfs.Options{})
		remove := fs.Fail(crashfs.Rule{Op: crashfs.OpChanges, After: after, Times: times, Err: broken})
		h := new(history)
		err := live(t.Context(), t, newWorld(fs), h)
		remove()
		if err != nil && !errors.Is(err, broken) {
			t.Errorf("run %d: %v", i, err)
		}
		w := newWorld(fs)
		w.actors.kill("victim")
		checkCrashed(t, w, h)
		if t.Failed() {
			t.Fatalf("run %d: %d calls fail after %d of %d", i, times, after, points)
		}
	}
}
