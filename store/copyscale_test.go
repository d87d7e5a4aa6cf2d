package store

import (
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
)

// TestScaleOfDiffAndCopy: comparing two points and copying the second one costs
// what differs, on a disk of 62 TiB as on one of 10 GiB.
func TestScaleOfDiffAndCopy(t *testing.T) {
	const areas = 16
	run := func(size int64) (diff, copied cost) {
		c, r := scaleRepo(t)
		_, to := scaleRepo(t)
		src := disktest.NewMemory(size)
		step := size / areas / testBlock * testBlock
		for i := range int64(4 * areas) {
			src.WriteAt(scaleBlock(uint64(i)), i*(step/4/testBlock*testBlock))
		}
		first := backup(t, r, "vm", nil, src, nil)
		if _, err := r.CopyTo(t.Context(), to, CopyOptions{}); err != nil {
			t.Fatal(err)
		}
		var changed []disk.Extent
		for i := range int64(areas) {
			src.WriteAt(scaleBlock(uint64(1000+i)), i*step)
			changed = append(changed, disk.Extent{Offset: i * step, Length: testBlock})
		}
		second := backup(t, r, "vm", first, src, changed)

		r = scaleOpen(t, c) // with nothing in memory
		before, found := c.cost(), int64(0)
		for e, err := range r.Diff(t.Context(), first, 0, second, 0) {
			if err != nil {
				t.Fatal(err)
			}
			found += e.Length
		}
		if diff = c.cost().minus(before); found != areas*testBlock {
			t.Errorf("%d GiB: %d bytes differ, want %d", size>>30, found, areas*testBlock)
		}

		r = scaleOpen(t, c)
		before = c.cost()
		report, err := r.CopyTo(t.Context(), to, CopyOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if p := report.Copied[0]; p.ReadBytes != areas*testBlock || p.NewBytes != areas*testBlock {
			t.Errorf("%d GiB: copied with %d bytes read and %d new, of %d that differ", size>>30, p.ReadBytes, p.NewBytes, areas*testBlock)
		}
		return diff, c.cost().minus(before)
	}
	smallDiff, smallCopy := run(smallScale)
	hugeDiff, hugeCopy := run(hugeScale)
	t.Logf("diff: 10 GiB %+v, 62 TiB %+v", smallDiff, hugeDiff)
	t.Logf("copy: 10 GiB %+v, 62 TiB %+v", smallCopy, hugeCopy)
	// Two levels more in two trees, of which each area has nodes of its own.
	if limit := smallDiff.requests + 2*2*2*areas; hugeDiff.requests > limit {
		t.Errorf("comparing 62 TiB asks %d times, 10 GiB %d times: more than %d", hugeDiff.requests, smallDiff.requests, limit)
	}
	if limit := smallCopy.requests + 4*2*2*areas; hugeCopy.requests > limit {
		t.Errorf("copying from 62 TiB asks %d times, from 10 GiB %d times: more than %d", hugeCopy.requests, smallCopy.requests, limit)
	}
}
