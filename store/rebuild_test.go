package store

import (
	"errors"
	"strings"
	"testing"

	"lifeboat/store/backend"
)

// TestRebuildFromPointsSegmentsAndAKey: everything else is removed, and comes
// back.
func TestRebuildFromPointsSegmentsAndAKey(t *testing.T) {
	w, r := newRepo(t)
	content := randomDisk(1, 6<<20)
	first := backup(t, r, "web", nil, content, nil)
	firstContent := contents(t, content)
	scribble(2, content, 3)
	second := backup(t, r, "web", first, content, nil)
	if _, err := r.AddPassword(t.Context(), []byte("another"), ""); err != nil {
		t.Fatal(err)
	}
	segmentsBefore := objects(t, r.backend, "segments/")
	b := r.backend
	keys := objects(t, b, "keys/")
	for _, name := range objects(t, b, "") {
		switch {
		case strings.HasPrefix(name, "segments/"), strings.HasPrefix(name, "points/"), name == keys[0], name == keys[1]:
			continue
		}
		if err := b.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	// One key is enough; which one it is does not matter to who has a password.
	if err := RestoreHeader(t.Context(), b, testPassword); err != nil {
		t.Fatal(err)
	}
	r = w.open(t)
	defer r.Close()
	if _, err := r.NewIngest(t.Context(), IngestOptions{}); !errors.Is(err, ErrClaimsLost) {
		t.Fatalf("a writer in a repository without claims: %v", err)
	}
	var last, total int64
	report, err := r.Rebuild(t.Context(), RebuildOptions{Progress: func(d, n int64) { last, total = d, n }})
	if err != nil {
		t.Fatal(err)
	}
	if report.Points != 2 || !report.ClaimRestored || report.Segments != int64(len(segmentsBefore)) || report.Blobs == 0 || last != total || total != report.Segments {
		t.Errorf("report %+v, progress %d of %d", report, last, total)
	}
	wantSound(t, r)
	sameBytes(t, "the first point", contents(t, mustOpenDisk(t, r, first)), firstContent)
	wantDisk(t, r, second, 0, content)

	// What is stored is known, and no number is given out twice.
	again := backup(t, r, "copy", nil, content, nil)
	if again.NewBytes != 0 {
		t.Errorf("%d bytes were stored again", again.NewBytes)
	}
	scribble(3, content, 2)
	backup(t, r, "web", second, content, nil)
	seen := map[string]bool{}
	for _, name := range segmentsBefore {
		seen[name] = true
	}
	for _, rec := range mustRecords(t, r) {
		if rec.VM == "copy" && rec.Claim <= report.Claim {
			t.Errorf("claim %x was given out again; the highest was %x", rec.Claim, report.Claim)
		}
	}
	for _, name := range objects(t, b, "segments/") {
		delete(seen, name)
	}
	if len(seen) > 0 {
		t.Errorf("segments are gone: %v", seen)
	}
	wantSound(t, r)

	report, err = r.Rebuild(t.Context(), RebuildOptions{})
	if err != nil || report.ClaimRestored || report.Points != 4 {
		t.Errorf("again: %+v, %v", report, err)
	}
}

func mustOpenDisk(t *testing.T, r *Repository, p *Point) *Image {
	t.Helper()
	img, err := r.OpenDisk(t.Context(), p, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

func mustRecords(t *testing.T, r *Repository) []*pointRecord {
	t.Helper()
	recs, err := r.pointRecords(t.Context(), func(id string, err error) { t.Errorf("%s: %v", id, err) })
	if err != nil {
		t.Fatal(err)
	}
	return recs
}

// TestRebuildWithHighestClaimLost: also where some claims are left.
func TestRebuildWithHighestClaimLost(t *testing.T) {
	_, r := newRepo(t)
	for i := range 3 {
		backup(t, r, "web", nil, randomDisk(uint64(i), 1<<20), nil)
	}
	claims := objects(t, r.backend, "claims/")
	highest, ok := parseClaimName(claims[len(claims)-1])
	if !ok {
		t.Fatal(claims)
	}
	if err := r.backend.Remove(t.Context(), claimName(highest)); err != nil {
		t.Fatal(err)
	}
	if err := r.putClaim(t.Context(), claimRecord{Number: 1, Kind: claimWriter, Closed: true, LeaseMS: 1000}, backend.Replace); err != nil {
		t.Fatal(err)
	}
	report, err := r.Rebuild(t.Context(), RebuildOptions{})
	if err != nil || !report.ClaimRestored || report.Claim <= highest {
		t.Fatalf("%+v, %v; the highest was %x", report, err, highest)
	}
	next, err := r.NewIngest(t.Context(), IngestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if n := next.claim.record().Number; n <= highest {
		t.Errorf("claim %x was given out twice", n)
	}
}
