package store

import (
	"context"
	"errors"
	"testing"

	"lifeboat/disk/disktest"
	"lifeboat/internal/vfs/crashfs"
)

// prunable is a repository with something for each step of a prune: points to
// remove, segments of no use, and one of which little is in use.
type prunable struct {
	w     *world
	keep  *Point
	want  *disktest.Memory
	begin int // calls that changed the disk before the prune
}

func newPrunable(t *testing.T, fs *crashfs.FS) *prunable {
	t.Helper()
	p := &prunable{w: newWorld(fs), want: disktest.NewMemory(1 << 20)}
	me := actor{p.w.actors, "maker"}
	if err := Init(t.Context(), p.w.backend(t, me), testPassword, cheap); err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), p.w.backend(t, me), testPassword, p.w.options(me))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	big := disktest.Random(1, 1<<20, 1)
	gone := backup(t, r, "gone", nil, big, nil)
	part := make([]byte, 3*testBlock)
	if _, err := big.ReadAt(part, 5*testBlock); err != nil {
		t.Fatal(err)
	}
	p.want.WriteAt(part, 0)
	p.keep = backup(t, r, "keep", nil, p.want, nil)
	other := backup(t, r, "other", nil, disktest.Random(2, 600_000, 1), nil)
	mustForget(t, r, gone.ID, other.ID)
	p.begin = fs.Points()
	return p
}

func (p *prunable) prune(ctx context.Context, t *testing.T, name string) (*PruneReport, error) {
	me := actor{p.w.actors, name}
	r, err := Open(ctx, p.w.backend(t, me), testPassword, p.w.options(me))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.Prune(ctx, PruneOptions{Grace: -1})
}

// TestPruneLosesPower stops the machine at the calls that change the disk, all
// through a prune. Whatever there is then reads as its source, and the next prune
// leaves what one that was not interrupted leaves.
func TestPruneLosesPower(t *testing.T) {
	whole := crashfs.New(1, crashfs.Options{})
	p := newPrunable(t, whole)
	report, err := p.prune(t.Context(), t, "victim")
	if err != nil || report.Removed == 0 || report.Compacted == 0 || report.PointsRemoved != 2 {
		t.Fatalf("%+v %v", report, err)
	}
	first, last := p.begin+1, whole.Points()
	left := p.bytes(t)
	runs := crashRuns(t, 20)
	for i := range runs {
		n := first + i%(last-first+1)
		if runs < last-first+1 {
			n = first + i*(last-first+1)/runs
		}
		if crashPrune(t, n, uint64(i), left); t.Failed() {
			t.Fatalf("stopped at point %d of %d to %d with seed %d", n, first, last, i)
		}
	}
}

func (p *prunable) bytes(t *testing.T) int64 {
	t.Helper()
	r := p.w.open(t)
	defer r.Close()
	return segmentBytes(t, r)
}

func crashPrune(t *testing.T, n int, seed uint64, left int64) {
	t.Helper()
	fs := crashfs.New(seed, crashfs.Options{})
	p := newPrunable(t, fs)
	fs.StopAtPoint(n)
	if _, err := p.prune(t.Context(), t, "victim"); err != nil && !errors.Is(err, crashfs.ErrPowerLoss) {
		t.Errorf("the machine said %v", err)
	}
	p.w = newWorld(fs.Crash(seed))
	p.w.actors.kill("victim")
	r := p.w.open(t)
	defer r.Close()
	wantDisk(t, r, p.keep, 0, p.want)
	wantSound(t, r)
	if _, err := p.prune(t.Context(), t, "next"); err != nil {
		t.Errorf("the next prune: %v", err)
	}
	again := p.w.open(t)
	defer again.Close()
	wantDisk(t, again, p.keep, 0, p.want)
	if report := wantSound(t, again); len(report.Leftovers) > 0 {
		t.Errorf("left over: %v", report.Leftovers)
	}
	if names := objects(t, again.backend, forgottenPrefix); len(names) > 0 {
		t.Errorf("left over: %v", names)
	}
	if got := segmentBytes(t, again); got != left {
		t.Errorf("%d bytes are left, not %d", got, left)
	}
}
