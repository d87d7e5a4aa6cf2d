package store

import (
	"math/rand/v2"
	"testing"
	"time"

	"lifeboat/disk/disktest"
)

// TestStatExact counts blocks by hand: two VMs with a block in common, and one
// that nothing needs any more.
func TestStatExact(t *testing.T) {
	_, r := newRepo(t)
	block := func(seed byte) []byte { // of noise, which is stored as it is
		b := make([]byte, testBlock)
		rand.NewChaCha8([32]byte{seed}).Read(b)
		return b
	}
	common, onlyA, onlyB, gone := block(1), block(2), block(3), block(4)
	diskA := disktest.NewMemory(16 * testBlock)
	diskA.WriteAt(common, 0)
	diskA.WriteAt(onlyA, 3*testBlock)
	diskB := disktest.NewMemory(8 * testBlock)
	diskB.WriteAt(common, 5*testBlock)
	diskB.WriteAt(onlyB, 0)
	first := backup(t, r, "a", nil, diskA, nil)
	second := backup(t, r, "a", first, diskA, nil)
	backup(t, r, "b", nil, diskB, nil)
	old := disktest.NewMemory(testBlock)
	old.WriteAt(gone, 0)
	if err := r.Forget(t.Context(), backup(t, r, "c", nil, old, nil).ID); err != nil {
		t.Fatal(err)
	}

	fast, err := r.Stat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if fast.Exact != nil || fast.Points != 3 || len(fast.VMs) != 2 || fast.UsedBytes != 6*testBlock || fast.VirtualBytes != 40*testBlock || fast.TotalBytes != fast.SegmentBytes+fast.IndexBytes+fast.OtherBytes {
		t.Errorf("%+v", fast)
	}
	a := fast.VMs[0]
	if a.VM != "a" || a.Points != 2 || a.UsedBytes != 2*testBlock || a.AllUsedBytes != 4*testBlock || !a.Newest.Equal(second.Time) || a.StoredBytes != first.StoredBytes+second.StoredBytes {
		t.Errorf("%+v", a)
	}
	points := 0
	for _, d := range fast.Days {
		points += d.Points
	}
	if points != 3 {
		t.Errorf("days %+v", fast.Days)
	}

	var done, total int64
	exact, err := r.StatExact(t.Context(), func(d, n int64) { done, total = d, n })
	if err != nil {
		t.Fatal(err)
	}
	x := exact.Exact
	nodes := x.UniqueBytes - 3*testBlock // the maps, of some bytes each
	if nodes <= 0 || nodes > 3*64 || x.Unread != 0 || done != total || total != int64(exact.Segments) {
		t.Errorf("%+v, %d bytes of nodes, %d of %d segments", x, nodes, done, total)
	}
	if x.ReclaimableBytes < testBlock || x.ReclaimableBytes > testBlock+1024 || x.NeededBytes < 3*testBlock || x.NeededBytes+x.ReclaimableBytes > exact.SegmentBytes {
		t.Errorf("%+v of %d", x, exact.SegmentBytes)
	}
	for _, vm := range exact.VMs {
		if e := vm.Exact; e.SharedBytes != testBlock || e.OwnBytes < testBlock || e.OwnBytes > testBlock+128 || e.SharedStored < testBlock {
			t.Errorf("%s: %+v", vm.VM, e)
		}
	}
}

func TestStatOfNothing(t *testing.T) {
	_, r := newRepo(t)
	s, err := r.StatExact(t.Context(), nil)
	if err != nil || s.Exact.UniqueBytes != 0 || s.Points != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestGrowth(t *testing.T) {
	start := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	v := &vmPoints{}
	for day := range 11 {
		v.recs = append(v.recs, &pointRecord{VM: "a", Time: start.AddDate(0, 0, day), StoredBytes: 1000})
	}
	if s := v.count(); s.GrowthPerDay != 1000 || s.StoredBytes != 11000 {
		t.Errorf("%+v", s)
	}
	v.recs = v.recs[:1]
	if s := v.count(); s.GrowthPerDay != 0 {
		t.Errorf("%+v", s)
	}
}
