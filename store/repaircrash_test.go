package store

import (
	"errors"
	"math/rand/v2"
	"testing"

	"lifeboat/disk"
	"lifeboat/internal/vfs/crashfs"
	"lifeboat/store/backend"
	"lifeboat/store/internal/segment"
)

// TestRepairPowerLoss stops the machine in the middle of repairs, from a copy and
// alone. Whatever could be read before can be read afterwards, and repairing once
// more ends what was begun.
func TestRepairPowerLoss(t *testing.T) {
	for seed := range uint64(crashRuns(t, 16)) {
		s := newSample(t)
		r := s.w.open(t)
		from := copied(t, r, 0)
		opts := RepairOptions{From: from}
		if seed%2 == 1 {
			opts.From = nil
		}
		rng := rand.New(rand.NewPCG(seed, 4))
		what := harm(t, s.w.fs, rng, objects(t, r.backend, "segments/"))
		before := s.damage(t, s.reopened(t, r))
		report, err := s.reopened(t, r).Verify(t.Context(), VerifyOptions{})
		if err != nil {
			t.Fatal(err)
		}
		fs := s.w.fs.(*crashfs.FS)
		fs.StopAtPoint(fs.Points() + 1 + rng.IntN(60))
		if _, err := s.reopened(t, r).Repair(t.Context(), reportOf(s.reopened(t, r), report), opts); err != nil && !errors.Is(err, crashfs.ErrPowerLoss) {
			t.Fatalf("seed %d: %s: %v", seed, what, err)
		}
		s.w.actors.kill("verifier")
		stopped := fs.Stopped()
		s.w.fs = fs.Crash(seed)
		after := s.survivor(t, r)
		if now := s.damage(t, after); now > before {
			t.Errorf("seed %d: %s: stopped: %t: %d frames could not be read before the repair, %d after the crash", seed, what, stopped, before, now)
		}
		_, final := repaired(t, s.survivor(t, r), RepairOptions{From: from})
		if !final.OK() || s.damage(t, s.survivor(t, r)) > 0 {
			t.Errorf("seed %d: %s: repaired again, and yet %+v", seed, what, final.Damages)
		}
		if t.Failed() {
			return
		}
	}
}

// survivor opens the repository as a process on the machine after the crash.
func (s *sample) survivor(t testing.TB, r *Repository) *Repository {
	t.Helper()
	me := actor{s.w.actors, "survivor"}
	again, err := newRepository(s.w.backend(t, me), r.ring, s.w.options(me))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.Close() })
	return again
}

// reportOf is a report as if r had verified.
func reportOf(r *Repository, report *Report) *Report {
	report.found.r = r
	return report
}

// TestRepairKeepsPrunesAway: while a prune is at work nothing is repaired, and
// the other way round.
func TestRepairKeepsPrunesAway(t *testing.T) {
	s := newSample(t)
	r := s.w.open(t)
	defer r.Close()
	flip(t, s.w.fs, segment.Name(s.points[2].rec.Claim*rangeSize, 0), 100, 1)
	other := s.w.open(t)
	defer other.Close()
	report, err := other.Verify(t.Context(), VerifyOptions{})
	if err != nil || report.OK() {
		t.Fatal(report, err)
	}
	_, done, err := r.keepPrunesAway(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Repair(t.Context(), report, RepairOptions{}); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	if _, err := other.Prune(t.Context(), PruneOptions{}); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	if err := done(); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Repair(t.Context(), report, RepairOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := r.Repair(t.Context(), &Report{Damages: make([]Damage, 1)}, RepairOptions{}); err == nil {
		t.Error("a report of nothing was repaired")
	}
}

// TestLostBlocksAreStoredAgain: a list of changes does not name what was lost in
// the point before, and still it is read; dedupe does not count on it.
func TestLostBlocksAreStoredAgain(t *testing.T) {
	s := newSample(t)
	r := s.w.open(t)
	defer r.Close()
	flip(t, s.w.fs, segment.Name(s.points[2].rec.Claim*rangeSize, 0), 100, 1)
	again := s.reopened(t, r)
	done, _ := repaired(t, again, RepairOptions{})
	again.Close()
	if done.Lost != 1 || done.Segments != 1 {
		t.Fatalf("%+v", done)
	}
	again = s.reopened(t, r)
	defer again.Close()
	p, err := s.again(t, again, s.points[2], s.want[2], []disk.Extent{})
	if err != nil || p.NewBytes == 0 || p.NewBytes > 2*testBlock || p.ReadBytes > 2*testBlock {
		t.Fatalf("%+v %v", p, err)
	}
	wantDisk(t, again, p, 0, s.want[2])
	if n, err := again.Heal(t.Context()); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := again.Heal(t.Context()); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if left := objects(t, r.backend, "repair/"); len(left) > 0 {
		t.Error(left)
	}
	last := s.reopened(t, r)
	defer last.Close()
	wantSound(t, last)
	wantDisk(t, last, s.points[2], 0, s.want[2])
	// Nothing is left to store again.
	if p, err = s.again(t, last, p, s.want[2], []disk.Extent{}); err != nil || p.ReadBytes != 0 {
		t.Errorf("%+v %v", p, err)
	}
}

// TestDamagedEnvelopes: every byte of the small objects counts, and those that
// can be done without are removed by a repair.
func TestDamagedEnvelopes(t *testing.T) {
	s := newSample(t)
	r := s.w.open(t)
	defer r.Close()
	for _, prefix := range envelopePrefixes() {
		name := prefix + "00112233445566ff"
		switch prefix {
		case "prune/":
			name = condemnedName
		case "repair/":
			name = lostName
		}
		if err := r.putSealed(t.Context(), name, []byte(`{"format":1}`), backend.Replace); err != nil {
			t.Fatal(err)
		}
		for _, off := range []int64{0, 5, 20, 45, 60} {
			flip(t, s.w.fs, name, off, 2)
			again := s.reopened(t, r)
			report, err := again.Verify(t.Context(), VerifyOptions{Level: VerifyStructure})
			if err != nil || len(report.Damages) != 1 || report.Damages[0].Object != name {
				t.Errorf("%s at %d: %+v %v", name, off, report, err)
			}
			if off != 60 {
				flip(t, s.w.fs, name, off, 2)
				again.Close()
				continue
			}
			done, err := again.Repair(t.Context(), report, RepairOptions{})
			if err != nil || len(done.Renewed)+len(done.Left) != 1 {
				t.Errorf("%s: %+v %v", name, done, err)
			}
			again.Close()
		}
		if err := r.backend.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
}
