package store

import (
	"context"
	"fmt"
	"iter"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
)

// mapped is a disk with a map of its own, which may leave areas out.
type mapped struct {
	disk.Image
	runs []disk.Extent
}

func (m mapped) Extents(_ context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		for _, e := range m.runs {
			from, to := max(e.Offset, within.Offset), min(e.End(), within.End())
			if from < to && !yield(disk.Extent{Offset: from, Length: to - from, Hole: e.Hole}, nil) {
				return
			}
		}
	}
}

// TestPlan: the plan covers exactly the blocks that the changed areas touch, in
// order, and calls a hole only what the map calls one to the last byte.
func TestPlan(t *testing.T) {
	const shift, unit = 4, 16
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.Int64Range(0, 400).Draw(rt, "size")
		src := mapped{Image: disktest.NewMemory(size)}
		hole := make([]bool, size)
		for off := int64(0); off < size; {
			n := min(size-off, rapid.Int64Range(1, 70).Draw(rt, "run"))
			kind := rapid.IntRange(0, 2).Draw(rt, "kind")
			if kind < 2 { // 2: left out of the map
				src.runs = append(src.runs, disk.Extent{Offset: off, Length: n, Hole: kind == 0})
			}
			for i := off; i < off+n; i++ {
				hole[i] = kind == 0
			}
			off += n
		}
		var changed []disk.Extent
		touched := make([]bool, (size+unit-1)/unit)
		for range rapid.IntRange(0, 6).Draw(rt, "areas") {
			off := rapid.Int64Range(0, size).Draw(rt, "off")
			n := rapid.Int64Range(0, size-off).Draw(rt, "length")
			changed = append(changed, disk.Extent{Offset: off, Length: n})
			for i := off; i < off+n; i++ {
				touched[i/unit] = true
			}
		}
		regions, err := changedRuns(changed, size, shift)
		if err != nil {
			rt.Fatal(err)
		}
		planned := make([]bool, len(touched))
		last := int64(0)
		for run, err := range plan(t.Context(), src, regions, shift) {
			if err != nil {
				rt.Fatal(err)
			}
			if run.first < last || run.count <= 0 {
				rt.Fatalf("run %+v after block %d", run, last)
			}
			last = run.end()
			for b := run.first; b < run.end(); b++ {
				planned[b] = true
				all := true
				for i := b * unit; i < min((b+1)*unit, size); i++ {
					all = all && hole[i]
				}
				if run.hole != all {
					rt.Fatalf("block %d: planned as hole: %v, is one: %v", b, run.hole, all)
				}
			}
		}
		if fmt.Sprint(planned) != fmt.Sprint(touched) {
			rt.Fatalf("planned %v, touched %v", planned, touched)
		}
	})
}

// TestAgainstModel: a VM's life in random steps; every point keeps reading as
// its source did.
func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w, r := newRepoOf(t, rapid.SampledFrom([]int{64 << 10, 128 << 10, 256 << 10}).Draw(rt, "block size"))
		src := disktest.Random(rapid.Uint64().Draw(rt, "seed"), rapid.Int64Range(1, 1<<20).Draw(rt, "size"), 0.5)
		var points []*Point
		var want []*disktest.Memory
		var parent *Point
		var changed []disk.Extent // since parent
		for range rapid.IntRange(1, 8).Draw(rt, "steps") {
			switch rapid.IntRange(0, 5).Draw(rt, "step") {
			case 0:
				off := rapid.Int64Range(0, src.Size()-1).Draw(rt, "off")
				n := rapid.Int64Range(1, src.Size()-off).Draw(rt, "n")
				src.Zero(off, n)
				changed = append(changed, disk.Extent{Offset: off, Length: n})
			case 1:
				off := rapid.Int64Range(0, src.Size()-1).Draw(rt, "off")
				p := fmt.Appendf(nil, "%020d", off)[:min(20, src.Size()-off)]
				src.WriteAt(p, off)
				changed = append(changed, disk.Extent{Offset: off, Length: int64(len(p))})
			case 2:
				parent, changed = nil, nil
			case 3:
				if len(points) > 1 {
					if err := r.Forget(t.Context(), points[0].ID); err != nil {
						rt.Fatal(err)
					}
					if _, err := r.Prune(t.Context(), PruneOptions{Grace: -1}); err != nil {
						rt.Fatal(err)
					}
					if parent == points[0] {
						parent = nil
					}
					points, want = points[1:], want[1:]
				}
			default:
				list := changed
				if list == nil {
					list = []disk.Extent{}
				}
				if rapid.Bool().Draw(rt, "compare all") {
					list = nil
				}
				parent = backup(t, r, "vm", parent, src, list)
				points, want, changed = append(points, parent), append(want, src.Clone()), nil
			}
		}
		fresh := w.open(t)
		defer fresh.Close()
		for i, p := range points {
			wantDisk(t, fresh, p, 0, want[i])
		}
		if report := wantSound(t, fresh); report.Points != len(points) {
			rt.Fatalf("%d points, want %d", report.Points, len(points))
		}
		if t.Failed() {
			rt.FailNow()
		}
	})
}
