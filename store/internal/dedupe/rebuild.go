package dedupe

import (
	"context"
	"fmt"
	"iter"
	"slices"
)

// rebuildRun is how many entries Rebuild sorts in memory at a time: 24 MB.
const rebuildRun = 1 << 20

// Rebuild makes the index anew from entries, in any order: what a scan of all
// segments yields. The runs that were there before are removed at the end,
// damaged or not; those that others publish meanwhile stay. It may be
// interrupted at any moment.
func (x *Index) Rebuild(ctx context.Context, entries iter.Seq2[Entry, error]) error {
	if err := x.rebuild(ctx, entries, rebuildRun); err != nil {
		return fmt.Errorf("rebuild dedupe index: %w", err)
	}
	return nil
}

func (x *Index) rebuild(ctx context.Context, entries iter.Seq2[Entry, error], size int) error {
	var before []string
	for info, err := range x.b.List(ctx, Prefix) {
		if err != nil {
			return err
		}
		before = append(before, info.Name)
	}
	// The old runs must not get into the new ones.
	pickNew := func(runs []*run, merges int) []*run {
		return pick(slices.DeleteFunc(runs, func(r *run) bool { return slices.Contains(before, r.id.object()) }), merges)
	}
	batch := make([]Entry, 0, size)
	flush := func() error {
		err := x.Publish(ctx, batch)
		batch = batch[:0]
		if err == nil {
			err = x.merge(ctx, pickNew, nil)
		}
		return err
	}
	for e, err := range entries {
		if err != nil {
			return err
		}
		if batch = append(batch, e); len(batch) < size {
			continue
		}
		if err := flush(); err != nil {
			return err
		}
	}
	if err := flush(); err != nil {
		return err
	}
	return x.drop(ctx, before)
}

// drop removes objects and the runs in them.
func (x *Index) drop(ctx context.Context, objects []string) error {
	x.publish.Lock()
	defer x.publish.Unlock()
	x.replaceRuns(slices.DeleteFunc(slices.Clone(*x.runs.Load()), func(r *run) bool {
		return slices.Contains(objects, r.id.object())
	}))
	for _, name := range objects {
		if err := x.b.Remove(ctx, name); err != nil {
			return err
		}
	}
	return nil
}
