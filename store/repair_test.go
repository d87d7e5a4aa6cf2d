package store

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"lifeboat/disk"
	"lifeboat/internal/vfs"
	"lifeboat/store/internal/segment"
)

// harm damages objects at random and returns what it did.
func harm(t testing.TB, fsys vfs.FS, rng *rand.Rand, names []string) string {
	t.Helper()
	var done []string
	for range 1 + rng.IntN(3) {
		name := names[rng.IntN(len(names))]
		f, err := fsys.OpenFile("/repo/"+name, os.O_RDWR, 0)
		if err != nil {
			continue // removed before
		}
		size, err := f.Size()
		if err != nil {
			t.Fatal(err)
		}
		switch what := rng.IntN(8); {
		case what == 0:
			if err := fsys.Remove("/repo/" + name); err != nil {
				t.Fatal(err)
			}
			done = append(done, name+" removed")
		case what == 1:
			at := rng.Int64N(size + 1)
			if err := f.Truncate(at); err != nil {
				t.Fatal(err)
			}
			done = append(done, fmt.Sprintf("%s cut at %d of %d", name, at, size))
		case size > 0:
			off := rng.Int64N(size)
			if rng.IntN(3) == 0 { // a trailer or a table
				off = size - 1 - rng.Int64N(min(size, 400))
			}
			flip(t, fsys, name, off, 1<<rng.IntN(8))
			done = append(done, fmt.Sprintf("%s flipped at %d of %d", name, off, size))
		}
		f.Close()
	}
	return strings.Join(done, ", ")
}

// repaired verifies, repairs and verifies again.
func repaired(t testing.TB, r *Repository, opts RepairOptions) (*RepairReport, *Report) {
	t.Helper()
	before, err := r.Verify(t.Context(), VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	done, err := r.Repair(t.Context(), before, opts)
	if err != nil {
		t.Fatalf("%v\n%+v", err, before.Damages)
	}
	after, err := r.Verify(t.Context(), VerifyOptions{After: before})
	if err != nil {
		t.Fatal(err)
	}
	return done, after
}

// unknownVersion is what flips in the version of both trailers look like: not
// damage, but the work of a newer Lifeboat.
func unknownVersion(d Damage) bool {
	return strings.Contains(d.Problem, "unknown segment format version")
}

// copied copies a repository's points to a new one.
func copied(t testing.TB, r *Repository, blockSize int) *Repository {
	t.Helper()
	_, to := newRepoOf(t, blockSize)
	report, err := r.CopyTo(t.Context(), to, CopyOptions{})
	if err != nil || len(report.Failed) > 0 {
		t.Fatal(err, report)
	}
	return to
}

// TestRepairFromCopy: whatever happens to segments, points, index and header,
// with a copy everything is as it was.
func TestRepairFromCopy(t *testing.T) {
	for seed := range uint64(crashRuns(t, 12)) {
		s := newSample(t)
		r := s.w.open(t)
		from := copied(t, r, 64<<10<<(seed%2))
		names := append(objects(t, r.backend, "segments/"), objects(t, r.backend, pointPrefix)...)
		if seed%5 == 4 {
			names = append(names, objects(t, r.backend, indexPrefix)...)
			names = append(names, "lifeboat.json")
		}
		what := harm(t, s.w.fs, rand.New(rand.NewPCG(seed, 1)), names)
		again := s.reopened(t, r)
		done, after := repaired(t, again, RepairOptions{From: from})
		lostPoint := false
		for _, p := range s.points {
			_, err := again.Point(t.Context(), p.ID)
			lostPoint = lostPoint || err != nil
		}
		after.Damages = slices.DeleteFunc(after.Damages, unknownVersion)
		if !after.OK() && !strings.Contains(what, "points/") {
			t.Errorf("seed %d: %s: %+v is left: %+v", seed, what, done, after.Damages)
		}
		again.Close()
		r.Close()
		if !lostPoint {
			for i, hurt := range s.hurtBy(t, what) {
				if hurt {
					t.Errorf("seed %d: %s: point %d is still hurt: %+v", seed, what, i, done)
				}
			}
		} else if !strings.Contains(what, "removed") {
			t.Errorf("seed %d: %s: a point is lost: %+v", seed, what, done)
		}
		if t.Failed() {
			return
		}
	}
}

// TestRepairAlone: without a copy what is lost is marked, nothing else is lost by
// it, and a backup of the same disk with Heal puts it back.
func TestRepairAlone(t *testing.T) {
	for seed := range uint64(crashRuns(t, 12)) {
		s := newSample(t)
		r := s.w.open(t)
		// One segment: a node of a map and the blocks that it leads to at once can't
		// be put back, as nothing says that the new ones are those.
		segments := objects(t, r.backend, "segments/")
		rng := rand.New(rand.NewPCG(seed, 2))
		what := harm(t, s.w.fs, rng, segments[rng.IntN(len(segments)):][:1])
		first := s.reopened(t, r)
		before := s.damage(t, first)
		first.Close()
		again := s.reopened(t, r)
		done, after := repaired(t, again, RepairOptions{})
		if slices.ContainsFunc(after.Damages, unknownVersion) {
			continue
		}
		for _, d := range after.Damages {
			if !d.Lost {
				t.Errorf("seed %d: %s: repaired %+v, and yet %+v", seed, what, done, d)
			}
		}
		again.Close()
		again = s.reopened(t, r)
		if now := s.damage(t, again); now > before {
			t.Errorf("seed %d: %s: %d frames could not be read, after the repair %d", seed, what, before, now)
		}
		// The newest point's disk is backed up once more: with a list of changes
		// that says that nothing changed, and as a whole.
		for i, changed := range [][]disk.Extent{{}, nil} {
			parent := s.points[len(s.points)-1]
			p, err := s.again(t, again, parent, s.want[len(s.want)-1], changed)
			if err != nil {
				t.Fatalf("seed %d: %s: backup %d: %v", seed, what, i, err)
			}
			wantDisk(t, again, p, 0, s.want[len(s.want)-1])
		}
		for _, src := range s.want {
			if _, err := s.again(t, again, nil, src, nil); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := again.Heal(t.Context()); err != nil {
			t.Fatal(err)
		}
		again.Close()
		again = s.reopened(t, r)
		if now := s.damage(t, again); now > 0 && len(done.LostPoints) == 0 {
			report, _ := again.Verify(t.Context(), VerifyOptions{})
			t.Errorf("seed %d: %s: %d frames cannot be read after everything was stored again: %+v\n%+v", seed, what, now, done, report.Damages)
		}
		again.Close()
		r.Close()
		if t.Failed() {
			return
		}
	}
}

// again backs up the sample's disk.
func (s *sample) again(t testing.TB, r *Repository, parent *Point, src disk.Image, changed []disk.Extent) (*Point, error) {
	t.Helper()
	in, err := r.NewIngest(t.Context(), IngestOptions{})
	if err != nil {
		return nil, err
	}
	defer in.Close()
	w, err := in.Begin(PointSpec{VM: "vm", Parent: parent, Config: map[string][]byte{"vm.vmx": s.vmx}})
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	if err := w.AddDisk(t.Context(), DiskSpec{Key: 1, Label: "d"}, src, changed, nil); err != nil {
		return nil, err
	}
	return w.Commit(t.Context())
}

// damage counts the frames of the sample's disks that cannot be read; those that
// can must be right.
func (s *sample) damage(t testing.TB, r *Repository) (frames int) {
	t.Helper()
	for i, p := range s.points {
		p, err := r.Point(t.Context(), p.ID)
		if err != nil {
			t.Fatal(err)
		}
		img, err := r.OpenDisk(t.Context(), p, 0)
		if err != nil {
			t.Fatal(err)
		}
		got, want := make([]byte, segment.FrameSize), make([]byte, segment.FrameSize)
		for off := int64(0); off < img.Size(); off += segment.FrameSize {
			n, err := img.ReadAt(got[:min(segment.FrameSize, img.Size()-off)], off)
			s.want[i].ReadAt(want, off)
			if string(got[:n]) != string(want[:n]) {
				t.Fatalf("wrong bytes at %d", off)
			}
			if err != nil {
				frames++
			}
		}
		img.Close()
	}
	return frames
}
