package store

import (
	"errors"
	"testing"
	"time"

	"lifeboat/disk/disktest"
)

func TestPrune(t *testing.T) {
	w, r := newRepo(t)
	now := time.Unix(1_800_000_000, 0)
	r.clock = func() time.Time { return now }
	shared := disktest.Random(1, 2<<20, 1)
	a := backup(t, r, "a", nil, shared, nil)
	other := disktest.Random(2, 3<<20, 1)
	b := backup(t, r, "b", nil, other, nil)
	c := backup(t, r, "c", nil, shared, nil) // lives of a's blocks
	size := func() int64 {
		s, err := r.Stat(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s.SegmentBytes
	}
	prune := func(opts PruneOptions) *PruneReport {
		t.Helper()
		report, err := r.Prune(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		return report
	}
	full := size()
	if got := prune(PruneOptions{Grace: -1}); got.Removed != 0 || size() != full {
		t.Errorf("pruned what is needed: %+v", got)
	}
	for _, p := range []*Point{a, b} {
		if err := r.Forget(t.Context(), p.ID); err != nil {
			t.Fatal(err)
		}
	}
	if got := prune(PruneOptions{}); got.Removed != 0 || got.Condemned == 0 || size() != full {
		t.Errorf("first: %+v", got)
	}
	now = now.Add(DefaultGrace - time.Second)
	if got := prune(PruneOptions{}); got.Removed != 0 || got.Condemned == 0 {
		t.Errorf("before the grace is over: %+v", got)
	}
	// What is condemned can still be used again, and then stays.
	wantSound(t, r)
	again := w.open(t)
	back := backup(t, again, "b", nil, other, nil)
	if back.NewBytes != 0 {
		t.Errorf("%d bytes were stored again", back.NewBytes)
	}
	now = now.Add(2 * time.Second)
	if got := prune(PruneOptions{}); got.RemovedBytes > 5<<10 || got.Condemned != 0 {
		t.Errorf("pruned what is needed again: %+v", got)
	}
	wantDisk(t, again, back, 0, other)
	if err := r.Forget(t.Context(), back.ID); err != nil {
		t.Fatal(err)
	}
	if got := prune(PruneOptions{DryRun: true, Grace: -1}); got.RemovedBytes < full/2 || size() < full/2 {
		t.Errorf("dry run: %+v", got)
	}
	if got := prune(PruneOptions{Grace: -1}); got.RemovedBytes < full/2 || size() > full/2 {
		t.Errorf("pruned %+v, %d bytes are left of %d", got, size(), full)
	}
	again.Close()
	again = w.open(t)
	defer again.Close()
	wantDisk(t, again, c, 0, shared)
	if p := backup(t, again, "b", nil, other, nil); p.NewBytes != b.NewBytes {
		t.Errorf("%d of %d bytes were stored again", p.NewBytes, b.NewBytes)
	} else {
		wantDisk(t, again, p, 0, other)
	}
	wantSound(t, again)
}

func TestPruneGivesWay(t *testing.T) {
	w, r := newRepo(t)
	_, in, _ := abandoned(t, w)
	if _, err := r.Prune(t.Context(), PruneOptions{}); !errors.Is(err, ErrBusy) {
		t.Fatalf("beside a writer: %v", err)
	}
	w.actors.kill(in.claim.record().Owner.Process)
	if _, err := r.Prune(t.Context(), PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	c, err := w.open(t).takeClaim(t.Context(), claimPrune)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.NewIngest(t.Context(), IngestOptions{}); !errors.Is(err, ErrBusy) {
		t.Fatalf("a writer beside a prune: %v", err)
	}
	if err := c.close(t.Context()); err != nil {
		t.Fatal(err)
	}
	backup(t, r, "vm", nil, randomDisk(1, 1<<20), nil)
}

// TestPruneStopsAtDamage: a point that cannot be read may need anything.
func TestPruneStopsAtDamage(t *testing.T) {
	w, r := newRepo(t)
	p := backup(t, r, "vm", nil, randomDisk(1, 1<<20), nil)
	backup(t, r, "vm", nil, randomDisk(2, 1<<20), nil)
	flip(t, w.fs, pointName(p.ID), 60, 1)
	fresh := w.open(t)
	defer fresh.Close()
	if _, err := fresh.Prune(t.Context(), PruneOptions{Grace: -1}); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	if err := fresh.Forget(t.Context(), p.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := fresh.Prune(t.Context(), PruneOptions{Grace: -1}); err != nil || got.Removed == 0 {
		t.Fatal(got, err)
	}
}
