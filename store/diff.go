package store

import (
	"context"
	"fmt"
	"iter"

	"lifeboat/disk"
	"lifeboat/store/internal/blockmap"
)

// Diff yields the areas in which disk number diskB of b differs from disk number
// diskA of a, in whole blocks, ascending, clipped to the larger disk; Hole says
// that the area is a hole in b (or beyond its end). It costs what differs, not
// what is there.
func (r *Repository) Diff(ctx context.Context, a *Point, diskA int, b *Point, diskB int) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		treeA, err := r.treeOf(ctx, a, diskA)
		if err != nil {
			yield(disk.Extent{}, err)
			return
		}
		treeB, err := r.treeOf(ctx, b, diskB)
		if err != nil {
			yield(disk.Extent{}, err)
			return
		}
		size := max(treeA.Size, treeB.Size)
		for rng, err := range r.maps.Diff(ctx, treeA, treeB) {
			if err != nil {
				yield(disk.Extent{}, fmt.Errorf("compare points %s and %s: %w", a.ID, b.ID, damaged(err)))
				return
			}
			if !r.splitHoles(ctx, treeB, rng, size, yield) {
				return
			}
		}
	}
}

func (r *Repository) treeOf(ctx context.Context, p *Point, n int) (blockmap.Tree, error) {
	rec, err := r.recordOf(ctx, p)
	if err != nil {
		return blockmap.Tree{}, err
	}
	if n < 0 || n >= len(rec.Disks) {
		return blockmap.Tree{}, fmt.Errorf("disk %d of point %s: %w; it has %d", n, rec.ID, ErrNotFound, len(rec.Disks))
	}
	return rec.Disks[n].tree(r.blockSize), nil
}

// splitHoles yields a range as data and holes of tree. It reports whether to go
// on.
func (r *Repository) splitHoles(ctx context.Context, tree blockmap.Tree, rng blockmap.Range, size int64, yield func(disk.Extent, error) bool) bool {
	emit := func(from, to int64, hole bool) bool {
		start, end := from<<r.shift, min(to<<r.shift, size)
		return start >= end || yield(disk.Extent{Offset: start, Length: end - start, Hole: hole}, nil)
	}
	at, end := rng.Block, rng.Block+rng.Count
	dataEnd := at
	for run, err := range r.maps.Walk(ctx, tree, at, min(end, blocksOf(tree.Size, r.blockSize))) {
		if err != nil {
			yield(disk.Extent{}, damaged(err))
			return false
		}
		if run.Block == dataEnd { // goes on where the last one ended
			dataEnd += run.Count
			continue
		}
		if !emit(at, dataEnd, false) || !emit(dataEnd, run.Block, true) {
			return false
		}
		at, dataEnd = run.Block, run.Block+run.Count
	}
	return emit(at, dataEnd, false) && emit(dataEnd, end, true)
}
