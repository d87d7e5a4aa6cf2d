package store

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"math"
	"slices"

	"lifeboat/disk"
)

// blockRun is a run of blocks of a disk that is being added.
type blockRun struct {
	first, count int64
	hole         bool // all zeros, by the source's own map
}

func (b blockRun) end() int64 { return b.first + b.count }

// changedRuns turns a caller's list of changed areas into ascending, disjoint
// runs of blocks of a disk of size bytes.
func changedRuns(changed []disk.Extent, size int64, shift uint) ([]blockRun, error) {
	runs := make([]blockRun, 0, len(changed))
	for i, e := range changed {
		if e.Offset < 0 || e.Length < 0 || e.Length > math.MaxInt64-e.Offset || e.End() > size {
			return nil, fmt.Errorf("%w: area %d (offset %d, length %d) does not lie inside the disk of %d bytes; was the list made for another disk?",
				ErrChangedList, i, e.Offset, e.Length, size)
		}
		if e.Length > 0 {
			first := e.Offset >> shift
			runs = append(runs, blockRun{first: first, count: (e.End()-1)>>shift + 1 - first})
		}
	}
	slices.SortFunc(runs, func(a, b blockRun) int { return cmp.Compare(a.first, b.first) })
	merged := runs[:0]
	for _, r := range runs {
		if n := len(merged); n > 0 && r.first <= merged[n-1].end() {
			merged[n-1].count = max(merged[n-1].end(), r.end()) - merged[n-1].first
			continue
		}
		merged = append(merged, r)
	}
	return merged, nil
}

// plan cuts regions of src into runs of data and of holes, ascending. A block is
// a hole when every byte of it is in a hole by src's own map; whatever the map
// leaves out counts as data.
func plan(ctx context.Context, src disk.Image, regions []blockRun, shift uint) iter.Seq2[blockRun, error] {
	return func(yield func(blockRun, error) bool) {
		for _, region := range regions {
			if !planRegion(ctx, src, region, shift, yield) {
				return
			}
		}
	}
}

func planRegion(ctx context.Context, src disk.Image, region blockRun, shift uint, yield func(blockRun, error) bool) bool {
	next := region.first // first block that was not yielded yet
	emit := func(end int64, hole bool) bool {
		if end <= next {
			return true
		}
		run := blockRun{first: next, count: end - next, hole: hole}
		next = end
		return yield(run, nil)
	}
	for from, to := range holes(ctx, src, region, shift) {
		if to.err != nil {
			yield(blockRun{}, fmt.Errorf("ask the source what is stored: %w", to.err))
			return false
		}
		if from < next {
			from = next
		}
		if from < to.block && (!emit(from, false) || !emit(to.block, true)) {
			return false
		}
	}
	return emit(region.end(), false)
}

// holeEnd is the block after a run of holes, or an error.
type holeEnd struct {
	block int64
	err   error
}

// holes yields the runs of whole blocks in region that the source's map calls
// holes.
func holes(ctx context.Context, src disk.Image, region blockRun, shift uint) iter.Seq2[int64, holeEnd] {
	return func(yield func(int64, holeEnd) bool) {
		size, unit := src.Size(), int64(1)<<shift
		within := disk.Extent{Offset: region.first << shift, Length: min(region.end()<<shift, size) - region.first<<shift}
		var start, end int64 = 0, -1 // bytes of the hole in hand
		flush := func() bool {
			if end < 0 {
				return true
			}
			first, last := (start+unit-1)>>shift, end>>shift
			if end == size {
				last = (end + unit - 1) >> shift
			}
			return first >= last || yield(first, holeEnd{block: last})
		}
		for e, err := range disk.Extents(ctx, src, within) {
			switch {
			case err != nil:
				yield(0, holeEnd{err: err})
				return
			case e.Hole && e.Offset == end:
				end = e.End()
			case e.Hole:
				if !flush() {
					return
				}
				start, end = e.Offset, e.End()
			}
		}
		flush()
	}
}
