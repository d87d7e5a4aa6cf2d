package store

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"lifeboat/disk/disktest"
)

// pointAt makes a point without disks.
func pointAt(t testing.TB, in *Ingest, vm, vmid string, at time.Time) *Point {
	t.Helper()
	w, err := in.Begin(PointSpec{VM: vm, VMID: vmid, Time: at})
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestResolvePoint(t *testing.T) {
	_, r := newRepo(t)
	in, err := r.NewIngest(t.Context(), IngestOptions{Tool: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	at := func(s string) time.Time {
		got, err := time.ParseInLocation("2006-01-02T15:04:05", s, time.Local)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	a1 := pointAt(t, in, "web", "", at("2026-11-20T09:00:00"))
	a2 := pointAt(t, in, "web", "", at("2026-11-21T10:00:00").Add(700*time.Millisecond))
	a3 := pointAt(t, in, "web", "", at("2026-11-21T10:00:30"))
	b1 := pointAt(t, in, "db@home", "id-1", at("2026-11-21T10:00:00"))
	c1 := pointAt(t, in, "twin", "id-2", at("2026-11-21T10:00:00"))
	c2 := pointAt(t, in, "twin", "id-3", at("2026-11-22T10:00:00"))

	for ref, want := range map[string]*Point{
		a1.ID: a1, a2.ID: a2, strings.ToUpper(a1.ID[:15]): a1,
		"web@latest": a3, "web@2026-11-21T10:00": a2, "web@2026-11-21T10:00:29": a2, "web@2026-11-21T10:00:30": a3,
		"web@2026-11-21T09:59": a1, "web@2026-11-20": a1, "web@2026-11-21": a3, "web@2036-01-01": a3,
		"web@" + at("2026-11-20T09:00:00").UTC().Format(time.RFC3339):                                      a1,
		"web@" + at("2026-11-20T09:00:00").In(time.FixedZone("", 5*3600)).Format("2006-01-02T15:04Z07:00"): a1,
		"db@home@latest": b1, "id-2@latest": c1, "id-3@latest": c2, "twin@2026-11-21T12:00": c1,
	} {
		got, err := r.ResolvePoint(t.Context(), ref)
		if err != nil || got.ID != want.ID {
			t.Errorf("%s: %v %v, want %s", ref, got, err, want.ID)
		}
	}
	for ref, want := range map[string]error{
		"": ErrNotFound, "web": ErrReference, "nosuch": ErrNotFound, "nosuch@latest": ErrNotFound, "web@yesterday": ErrReference, "web@": ErrReference,
		"web@2026-11-20T08:59": ErrNotFound, "0000000000000000": ErrNotFound, "fedcba98765": ErrNotFound, "twin@latest": ErrAmbiguous, "../../x": ErrNotFound,
	} {
		p, err := r.ResolvePoint(t.Context(), ref)
		if !errors.Is(err, want) {
			t.Errorf("%q: %v %v, want %v", ref, p, err, want)
		}
	}
	_, err = r.ResolvePoint(t.Context(), "twin@latest")
	if !strings.Contains(err.Error(), c1.ID) || !strings.Contains(err.Error(), c2.ID) {
		t.Errorf("the message does not name the candidates: %v", err)
	}
	if _, err := r.ResolvePoint(t.Context(), "nosuch@latest"); !strings.Contains(err.Error(), "db@home") {
		t.Errorf("the message does not name the VMs: %v", err)
	}
	points, err := r.Points(t.Context())
	if err != nil || len(points) != 6 || points[0].ID != a1.ID || points[5].ID != c2.ID {
		t.Errorf("points: %v %v", points, err)
	}
	if points[0].Tool != "test" || !a2.Time.Equal(at("2026-11-21T10:00:00").Add(700*time.Millisecond)) {
		t.Errorf("%+v %v", points[0], a2.Time)
	}
}

func TestAmbiguousPrefix(t *testing.T) {
	_, r := newRepo(t)
	in, err := r.NewIngest(t.Context(), IngestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	first := make(map[byte]*Point)
	for i := range 17 { // two of them begin alike
		p := pointAt(t, in, fmt.Sprint("vm", i), "", time.Time{})
		if q := first[p.ID[0]]; q != nil {
			_, err := r.ResolvePoint(t.Context(), p.ID[:1])
			if !errors.Is(err, ErrAmbiguous) || !strings.Contains(err.Error(), p.ID) || !strings.Contains(err.Error(), q.ID) {
				t.Errorf("%v", err)
			}
			return
		}
		first[p.ID[0]] = p
		if got, err := r.ResolvePoint(t.Context(), p.ID[:1]); err != nil || got.ID != p.ID {
			t.Errorf("%v %v", got, err)
		}
	}
	t.Error("17 points with 17 first digits")
}

func TestForget(t *testing.T) {
	w, r := newRepo(t)
	src := randomDisk(1, 1<<20)
	a := backup(t, r, "vm", nil, src, nil)
	b := backup(t, r, "vm", a, src, nil)
	other := w.open(t)
	defer other.Close()
	if points, err := other.Points(t.Context()); err != nil || len(points) != 2 {
		t.Fatal(points, err)
	}
	if err := r.Forget(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	for _, repo := range []*Repository{r, other} {
		if _, err := repo.Point(t.Context(), a.ID); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		if points, err := repo.Points(t.Context()); err != nil || len(points) != 1 || points[0].ID != b.ID {
			t.Error(points, err)
		}
	}
	if err := r.Forget(t.Context(), a.ID); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, err := tryBackup(t.Context(), r, "vm", a, src, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("backup on a forgotten parent: %v", err)
	}
	wantDisk(t, r, b, 0, src)
}

func TestDiff(t *testing.T) {
	_, r := newRepo(t)
	src := disktest.NewMemory(20 << 20)
	src.WriteAt(make([]byte, 1), 0)
	src.WriteAt(contents(t, disktest.Random(1, 10<<20, 1)), 5<<20)
	a := backup(t, r, "vm", nil, src, nil)
	old := src.Clone()
	src.WriteAt([]byte{1}, 0)
	src.Zero(6<<20, 3*testBlock)
	src.WriteAt([]byte{1}, 6<<20+3*testBlock)
	src.WriteAt([]byte{1}, 20<<20-1)
	b := backup(t, r, "vm", a, src, nil)
	covered := make([]bool, 20<<20/testBlock)
	holes := 0
	last := int64(-1)
	for e, err := range r.Diff(t.Context(), a, 0, b, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Offset < last {
			t.Errorf("%+v after %d", e, last)
		}
		last = e.End()
		if e.Hole {
			holes += int(e.Length / testBlock)
		}
		for i := e.Offset / testBlock; i < (e.End()+testBlock-1)/testBlock; i++ {
			covered[i] = true
		}
	}
	x, y := contents(t, old), contents(t, src)
	for i := range covered {
		from, to := i*testBlock, (i+1)*testBlock
		if (string(x[from:to]) != string(y[from:to])) != covered[i] {
			t.Errorf("block %d: told as different: %v", i, covered[i])
		}
	}
	if holes != 3 {
		t.Errorf("%d blocks told as holes, want 3", holes)
	}
	for e, err := range r.Diff(t.Context(), a, 0, a, 0) {
		t.Errorf("a point differs from itself: %v %v", e, err)
	}
}
