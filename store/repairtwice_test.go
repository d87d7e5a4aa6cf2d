package store

import (
	"testing"
)

// TestRepairLater: who repairs without a copy first, and gets hold of one later,
// is no worse off, not even where a segment's tables and the index were lost and
// with them all that was known of what the segment held.
func TestRepairLater(t *testing.T) {
	for i := 0; repairLater(t, i); i++ {
	}
}

// repairLater loses the segment with that index, and reports whether there is
// one.
func repairLater(t *testing.T, index int) bool {
	s := newSample(t)
	r := s.w.open(t)
	defer r.Close()
	from := copied(t, r, r.BlockSize())
	segments := objects(t, r.backend, "segments/")
	if index >= len(segments) {
		return false
	}
	name := segments[index]
	for _, gone := range append(objects(t, r.backend, indexPrefix), name) {
		if err := s.w.fs.Remove("/repo/" + gone); err != nil {
			t.Fatal(err)
		}
	}
	again := s.reopened(t, r)
	defer again.Close()
	done, after := repaired(t, again, RepairOptions{})
	if done.Lost == 0 || after.OK() {
		t.Fatalf("%s: nothing was lost: %+v", name, done)
	}
	done, after = repaired(t, again, RepairOptions{From: from})
	if done.Restored == 0 || !after.OK() {
		t.Fatalf("%s: %+v; left: %+v", name, done, after.Damages)
	}
	for i, hurt := range s.hurtBy(t, name+" removed") {
		if hurt {
			t.Errorf("%s: point %d is still hurt", name, i)
		}
	}
	return true
}
