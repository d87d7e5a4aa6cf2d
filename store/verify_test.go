package store

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/internal/vfs"
	"lifeboat/store/internal/keyring"
	"lifeboat/store/internal/segment"
)

// flip changes a byte of an object's file.
func flip(t testing.TB, fsys vfs.FS, name string, off int64, mask byte) {
	t.Helper()
	f, err := fsys.OpenFile("/repo/"+name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= mask
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// sample is a repository with every kind of object, and what its points hold.
type sample struct {
	w      *world
	points []*Point
	want   []*disktest.Memory
	vmx    []byte
}

func newSample(t testing.TB) *sample {
	t.Helper()
	w, r := newRepo(t)
	s := &sample{w: w, vmx: bytes.Repeat([]byte("config "), 300)}
	src := disktest.Random(1, 700_000, 0.7)
	var parent *Point
	for i := range 3 {
		in, err := r.NewIngest(t.Context(), IngestOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pw, err := in.Begin(PointSpec{VM: "vm", Parent: parent, Config: map[string][]byte{"vm.vmx": s.vmx}})
		if err != nil {
			t.Fatal(err)
		}
		if err := pw.AddDisk(t.Context(), DiskSpec{Key: 1, Label: "d"}, src, nil, nil); err != nil {
			t.Fatal(err)
		}
		if parent, err = pw.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		s.points, s.want = append(s.points, parent), append(s.want, src.Clone())
		scribble(uint64(i), src, 1)
	}
	return s
}

// hurtBy reads all that the points hold in a new process. It fails the test
// when anything is read that is not what was written, and returns for each point
// whether anything could not be read.
func (s *sample) hurtBy(t testing.TB, what string) []bool {
	t.Helper()
	hurt := make([]bool, len(s.points))
	r, err := s.w.tryOpen(t)
	if err != nil {
		for i := range hurt {
			hurt[i] = true
		}
		return hurt
	}
	defer r.Close()
	for i, p := range s.points {
		p, err := r.Point(t.Context(), p.ID)
		if err != nil {
			hurt[i] = true
			continue
		}
		if vmx, err := r.Config(t.Context(), p, "vm.vmx"); err != nil {
			hurt[i] = true
		} else if !bytes.Equal(vmx, s.vmx) {
			t.Fatalf("%s: wrong bytes in a configuration file", what)
		}
		img, err := r.OpenDisk(t.Context(), p, 0)
		if err != nil {
			hurt[i] = true
			continue
		}
		hurt[i] = !s.readsRight(t, what, img, s.want[i]) || hurt[i]
		img.Close()
	}
	return hurt
}

func (s *sample) readsRight(t testing.TB, what string, img, want disk.Image) bool {
	t.Helper()
	ok := true
	got, exp := make([]byte, segment.FrameSize), make([]byte, segment.FrameSize)
	for off := int64(0); off < want.Size(); off += int64(len(got)) {
		n, err := img.ReadAt(got[:min(int64(len(got)), want.Size()-off)], off)
		want.ReadAt(exp, off)
		if !bytes.Equal(got[:n], exp[:n]) {
			t.Fatalf("%s: wrong bytes at %d", what, off)
		}
		if err != nil {
			ok = false
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("%s: read at %d: %v", what, off, err)
			}
		}
	}
	return ok
}

// TestFlippedBits flips bits in every object: a verification names the object,
// lists every point that can't be read whole any more, and nothing reads wrong.
func TestFlippedBits(t *testing.T) {
	s := newSample(t)
	r := s.w.open(t)
	defer r.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	for info, err := range r.backend.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		// Small objects byte for byte when there is time.
		places := int64(12)
		if crashRuns(t, 0) > 0 {
			places = 2000
		}
		step := max(1, info.Size/places)
		for off := rng.Int64N(step); off < info.Size; off += step {
			mask := byte(1) << rng.IntN(8)
			flip(t, s.w.fs, info.Name, off, mask)
			s.checkFlip(t, r, info.Name, off)
			flip(t, s.w.fs, info.Name, off, mask)
			if t.Failed() {
				return
			}
		}
	}
	wantSound(t, r)
}

// checkFlip verifies with a repository that was opened before the damage, but
// has read nothing, as its header and key may be what is damaged.
func (s *sample) checkFlip(t *testing.T, opened *Repository, name string, off int64) {
	t.Helper()
	r := s.reopened(t, opened)
	defer r.Close()
	report, err := r.Verify(t.Context(), VerifyOptions{})
	if err != nil {
		t.Fatalf("%s at %d: %v", name, off, err)
	}
	named := false
	told := make(map[string]bool)
	for _, d := range report.Damages {
		if d.Object != name {
			t.Errorf("%s at %d: damage is put down to %s: %s", name, off, d.Object, d.Problem)
		}
		named = named || d.Object == name
		if strings.HasPrefix(name, "segments/") && (d.Offset > off || d.Length > 0 && d.Offset+d.Length <= off) {
			t.Errorf("%s at %d: damage is put at %d+%d: %s", name, off, d.Offset, d.Length, d.Problem)
		}
		for _, h := range d.Hurts {
			told[h.Point] = true
		}
	}
	if !named {
		t.Errorf("%s at %d: not found", name, off)
	}
	if strings.HasPrefix(name, "keys/") || name == "lifeboat.json" {
		return // hurts everybody
	}
	for i, hurt := range s.hurtBy(t, name) {
		if id := s.points[i].ID; hurt != told[id] {
			t.Errorf("%s at %d: point %s is hurt: %v, and reported as hurt: %v\n%+v", name, off, id, hurt, told[id], report.Damages)
		}
	}
}

// reopened is another process with the keys of an open repository.
func (s *sample) reopened(t testing.TB, r *Repository) *Repository {
	t.Helper()
	me := actor{s.w.actors, "verifier"}
	again, err := newRepository(s.w.backend(t, me), r.ring, s.w.options(me))
	if err != nil {
		t.Fatal(err)
	}
	return again
}

// TestLostObjects removes each object.
func TestLostObjects(t *testing.T) {
	s := newSample(t)
	r := s.w.open(t)
	defer r.Close()
	for _, name := range objects(t, r.backend, "") {
		if strings.HasPrefix(name, claimPrefix) || strings.HasPrefix(name, indexPrefix) {
			continue // may be lost: nothing is
		}
		content, err := getObject(t.Context(), r.backend, name, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.backend.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		again := s.reopened(t, r)
		report, err := again.Verify(t.Context(), VerifyOptions{})
		again.Close()
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(name, "segments/") {
			if report.OK() || !strings.HasPrefix(name, report.Damages[0].Object) && name != report.Damages[0].Object {
				t.Errorf("%s lost: %+v", name, report.Damages)
			}
			if n := len(report.Damages); n > 3 {
				t.Errorf("%s lost: %d damages for one object", name, n)
			}
		}
		s.hurtBy(t, name)
		if err := putObject(t.Context(), r.backend, name, content, 0); err != nil {
			t.Fatal(err)
		}
	}
	wantSound(t, r)
}

func TestVerifyPoints(t *testing.T) {
	s := newSample(t)
	r := s.w.open(t)
	defer r.Close()
	for i := range s.points {
		report, err := r.Verify(t.Context(), VerifyOptions{Points: s.points[i : i+1]})
		if err != nil || !report.OK() || report.Points != 1 || report.Bytes == 0 {
			t.Errorf("%+v %v", report, err)
		}
	}
	// Damage in what only the last point has.
	last := segment.Name(s.points[2].rec.Claim*rangeSize, 0) // data comes first: its configuration is not new
	flip(t, s.w.fs, last, 1000, 1)
	for i, want := range []bool{true, true, false} {
		again := s.reopened(t, r)
		var told VerifyProgress
		report, err := again.Verify(t.Context(), VerifyOptions{Points: s.points[i : i+1], Progress: func(p VerifyProgress) { told = p }})
		again.Close()
		if err != nil || report.OK() != want {
			t.Errorf("point %d: %+v %v", i, report, err)
		}
		if told.Done != told.Total || told.Damages != len(report.Damages) {
			t.Errorf("progress %+v", told)
		}
		if !want {
			h := report.Damages[0].Hurts
			if len(h) == 0 || h[0].Point != s.points[2].ID || h[0].Length == 0 {
				t.Errorf("hurts %+v", h)
			}
		}
	}
}

func TestVerifyNamesUnexpected(t *testing.T) {
	s := newSample(t)
	r := s.w.open(t)
	defer r.Close()
	odd := []string{"notes.txt", "points/readme", "segments/00/zz", "claims/x"}
	for _, name := range odd {
		if err := putObject(t.Context(), r.backend, name, []byte("?"), 0); err != nil {
			t.Fatal(err)
		}
	}
	report, err := r.Verify(t.Context(), VerifyOptions{})
	if err != nil || !report.OK() || len(report.Unexpected) != len(odd) {
		t.Errorf("%+v %v", report, err)
	}
	if points, err := r.Points(t.Context()); err != nil || len(points) != 3 {
		t.Error(points, err)
	}
	if err := r.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestOpenErrors(t *testing.T) {
	w, r := newRepo(t)
	me := actor{w.actors, "x"}
	if _, err := Open(t.Context(), w.backend(t, me), []byte("wrong"), w.options(me)); !errors.Is(err, ErrWrongPassword) {
		t.Error(err)
	}
	if err := Init(t.Context(), w.backend(t, me), testPassword, cheap); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	empty := newWorld(w.fs)
	r.kdf = keyring.CheapKDF()
	if err := r.ChangePassword(t.Context(), []byte("new")); err != nil {
		t.Fatal(err)
	}
	if _, err := empty.tryOpen(t); !errors.Is(err, ErrWrongPassword) {
		t.Error(err)
	}
	again, err := Open(t.Context(), w.backend(t, me), []byte("new"), w.options(me))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.ID() != r.ID() || again.BlockSize() != testBlock {
		t.Error(again.ID(), r.ID())
	}
	if err := r.backend.Remove(t.Context(), "lifeboat.json"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), w.backend(t, me), []byte("new"), w.options(me)); !errors.Is(err, ErrNotRepository) || !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := RestoreHeader(t.Context(), w.backend(t, me), []byte("new")); err != nil {
		t.Fatal(err)
	}
}

// TestReportIsBounded: a repository that is nothing but damage does not take
// all memory.
func TestReportIsBounded(t *testing.T) {
	_, r := newRepo(t)
	v := &verification{r: r, report: &Report{}, bad: make(map[uint64]*badSegment), hurtPoints: make(map[string]struct{})}
	for i := range maxDamages + 100 {
		v.damaged(300, &segment.DamageError{Object: "x", Part: segment.PartFrame, Addr: segment.MakeAddr(300, i), Page: -1, Err: errors.New("?")})
		v.hurt(v.badAt(segment.MakeAddr(300, i)), Hurt{Point: "p", Offset: int64(i), Length: 1})
		v.hurt([]int{0}, Hurt{Point: "p", Offset: int64(2 * i), Length: 1})
	}
	if n := len(v.report.Damages); n != maxDamages || v.report.MoreDamages != 100 {
		t.Errorf("%d damages are listed, %d more", n, v.report.MoreDamages)
	}
	if d := v.report.Damages[0]; len(d.Hurts) != maxHurts || d.MoreHurts == 0 {
		t.Errorf("%d hurts are listed, %d more", len(d.Hurts), d.MoreHurts)
	}
}
