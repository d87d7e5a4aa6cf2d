package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"lifeboat/disk"
	"lifeboat/store/backend"
	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/segment"
)

// lostName is the object that lists the slots with frames that a repair marked
// as lost. Segments say so themselves; the list is for those who do not want to
// look at all of them: a backup that is told what changed reads the lost places
// besides, and Heal tries these. It may be lost, and name what is not there any
// more.
const (
	lostName     = "repair/lost"
	maxLostBytes = 256 << 20
)

// lostRecord is that object: segment numbers, ascending, and for each its slots
// as ascending pairs of first and last.
type lostRecord struct {
	Format   int        `json:"format"`
	Segments []uint64   `json:"segments"`
	Slots    [][]uint64 `json:"slots"`
}

// lostSlots reads the list. One that is damaged is as good as none.
func (r *Repository) lostSlots(ctx context.Context) (map[uint64][]int, error) {
	data, err := r.getSealed(ctx, lostName, maxLostBytes)
	var rec lostRecord
	if err == nil {
		if err = decodeStrict(data, &rec); err == nil {
			err = rec.check()
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return make(map[uint64][]int), nil
	case errors.Is(err, ErrDamaged):
		r.log.Error("the list of lost blocks is damaged; `lifeboat verify --repair` makes it anew", "error", err)
		return make(map[uint64][]int), nil
	case err != nil:
		return nil, err
	}
	lost := make(map[uint64][]int, len(rec.Segments))
	for i, number := range rec.Segments {
		for pair := range slices.Chunk(rec.Slots[i], 2) {
			for slot := pair[0]; slot <= pair[1]; slot++ {
				lost[number] = append(lost[number], int(slot))
			}
		}
	}
	return lost, nil
}

// check makes sure that the list cannot be unfolded to more than segments hold.
func (rec *lostRecord) check() error {
	if len(rec.Segments) != len(rec.Slots) || !slices.IsSorted(rec.Segments) {
		return fmt.Errorf("%w: its segments are in disorder", ErrDamaged)
	}
	for i, slots := range rec.Slots {
		ok := len(slots)%2 == 0 && slices.IsSorted(slots) && (len(slots) == 0 || slots[len(slots)-1] < segment.MaxSlots)
		if !ok || rec.Segments[i] > segment.MaxNumber || i > 0 && rec.Segments[i] == rec.Segments[i-1] {
			return fmt.Errorf("%w: the slots of segment %x", ErrDamaged, rec.Segments[i])
		}
		for j := 2; j < len(slots); j += 2 {
			if slots[j] == slots[j-1] {
				return fmt.Errorf("%w: the slots of segment %x overlap", ErrDamaged, rec.Segments[i])
			}
		}
	}
	return nil
}

// putLostSlots replaces the list. A prune's claim is held.
func (r *Repository) putLostSlots(ctx context.Context, lost map[uint64][]int) error {
	rec := lostRecord{Format: recordFormat}
	for _, number := range slices.Sorted(maps.Keys(lost)) {
		set := make(map[uint64]struct{}, len(lost[number]))
		for _, slot := range lost[number] {
			set[uint64(slot)] = struct{}{}
		}
		if len(set) > 0 {
			rec.Segments, rec.Slots = append(rec.Segments, number), append(rec.Slots, pairs(set, nil))
		}
	}
	if len(rec.Segments) == 0 {
		return r.backend.Remove(ctx, lostName)
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return r.putSealed(ctx, lostName, data, backend.Replace)
}

// withLost adds to the runs of changed blocks those that were lost in the parent:
// they are read and stored again, whether they changed or not.
func (d *diskPipe) withLost(parent blockmap.Tree, changed []disk.Extent, runs []blockRun) ([]blockRun, error) {
	marked, err := d.in.r.lostSlots(d.ctx)
	if err != nil || len(marked) == 0 {
		return runs, err
	}
	lost, shift, again := lostAddrs(marked), d.in.r.shift, slices.Clone(changed)
	for run, err := range d.in.r.maps.Walk(d.ctx, parent, 0, d.parentBlocks) {
		if err != nil {
			return nil, err
		}
		for i := range run.Count {
			if run.Addr == segment.Unreadable || lost.has(run.Addr+segment.Addr(i)) {
				off := (run.Block + i) << shift
				again = append(again, disk.Extent{Offset: off, Length: min(1<<shift, d.size-off)})
			}
		}
	}
	return changedRuns(again, d.size, shift)
}

// parentDamaged reports whether an error of adding a disk is down to the map of
// the disk in the parent.
func (w *PointWriter) parentDamaged(ctx context.Context, key int, err error) bool {
	t := w.parent.disk(key, w.in.r.blockSize)
	if !errors.Is(damaged(err), ErrDamaged) || t.BlockSize == 0 {
		return false
	}
	for _, err := range w.in.r.maps.Walk(ctx, t, 0, t.Blocks()) {
		if err != nil {
			return errors.Is(err, segment.ErrDamaged)
		}
	}
	return false
}

// disk is the map of the disk with a key, the zero Tree where there is none. The
// point may be nil.
func (rec *pointRecord) disk(key, blockSize int) blockmap.Tree {
	if rec != nil {
		for _, d := range rec.Disks {
			if d.Key == key {
				return d.tree(blockSize)
			}
		}
	}
	return blockmap.Tree{}
}

// Heal puts back what was marked as lost and whose content has been stored again
// since, under another address: so a backup of a disk heals its older points.
// It returns how many blocks it put back, and costs one small read where nothing
// is marked. ErrBusy: a prune or a repair is running.
func (r *Repository) Heal(ctx context.Context) (int, error) {
	lost, err := r.lostSlots(ctx)
	if err != nil || len(lost) == 0 {
		return 0, err
	}
	p := &repairer{r: r, report: &RepairReport{}}
	err = p.exclusively(ctx, false, func(ctx context.Context) error {
		for _, number := range slices.Sorted(maps.Keys(p.lost)) {
			if _, err := p.mend(ctx, &patient{number: number, marked: true}); err != nil {
				return err
			}
		}
		return r.putLostSlots(ctx, p.lost)
	})
	if err != nil {
		r.log.Warn("could not put back lost blocks that were stored again; the next backup tries", "error", err)
		return p.report.Restored, fmt.Errorf("heal: %w", err)
	}
	if p.report.Restored > 0 {
		r.log.Info("lost blocks were stored again, and are back for older restore points", "blocks", p.report.Restored)
	}
	return p.report.Restored, nil
}
