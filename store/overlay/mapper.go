package overlay

import (
	"context"
	"iter"

	"lifeboat/disk"
)

// stretch is a run of pages of one state, in bytes and clipped to the disk.
type stretch struct {
	disk.Extent
	state pageState
}

// stretches yields what makes up within, in order. Each step sees the overlay as
// it is then.
func (o *Overlay) stretches(ctx context.Context, within disk.Extent) iter.Seq2[stretch, error] {
	return func(yield func(stretch, error) bool) {
		pos, end := max(within.Offset, 0), o.size
		if within.Length < end-within.Offset {
			end = within.End()
		}
		for pos < end {
			if err := ctx.Err(); err != nil {
				yield(stretch{}, err)
				return
			}
			st, to, err := o.stateRun(pos, end)
			if err != nil {
				yield(stretch{}, err)
				return
			}
			if !yield(stretch{disk.Extent{Offset: pos, Length: to - pos}, st}, nil) {
				return
			}
			pos = to
		}
	}
}

// stateRun returns the state of the page at byte pos and where the run of it
// ends, which is not beyond end.
func (o *Overlay) stateRun(pos, end int64) (pageState, int64, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.closed {
		return 0, 0, o.errClosed()
	}
	page, last := pos/pageSize, (end+pageSize-1)/pageSize
	st, n := o.state.run(page, last)
	for steps := 0; page+n < last && steps < 4*nodeChunks; steps++ {
		next, more := o.state.run(page+n, last)
		if next != st {
			break
		}
		n += more
	}
	return st, min(end, (page+n)*pageSize), nil
}

// Extents implements disk.Mapper.
func (o *Overlay) Extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		for s, err := range o.stretches(ctx, within) {
			if err != nil || s.state != absent {
				s.Hole = s.state == holdsZeros
				if !yield(s.Extent, err) || err != nil {
					return
				}
				continue
			}
			for e, err := range disk.Extents(ctx, o.base, s.Extent) {
				if !yield(e, err) || err != nil {
					return
				}
			}
		}
	}
}

// Changed yields, in ascending order, the parts of within that the overlay
// holds, in whole pages (4 KiB, clipped to within): data, and as Hole what reads
// as zeros by the overlay's doing. All else is the base's. What changes while
// the sequence is being read may or may not be in it.
func (o *Overlay) Changed(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		for s, err := range o.stretches(ctx, within) {
			s.Hole = s.state == holdsZeros
			if err != nil || s.state != absent {
				if !yield(s.Extent, err) || err != nil {
					return
				}
			}
		}
	}
}

// Used implements disk.Usage: the pages that hold data, counted exactly, and of
// what the base uses a share: that of the disk's pages which are still the
// base's. The share is an estimate; it assumes that the overlay's pages fell on
// the base's data as often as elsewhere.
func (o *Overlay) Used() int64 {
	base := o.size
	if u, ok := o.base.(disk.Usage); ok {
		base = u.Used()
	}
	o.mu.RLock()
	data, zeros := o.state.data, o.state.zeros
	o.mu.RUnlock()
	if o.pages == 0 {
		return 0
	}
	rest := float64(o.pages-data-zeros) / float64(o.pages)
	return min(data*pageSize+int64(float64(base)*rest), o.pages*pageSize)
}

type counters struct{ writes, bytes, pages, records, syncs, checkpoints int64 }

// Stats is what an overlay holds and has done since it was opened.
type Stats struct {
	DataPages   int64 // pages (4 KiB) that hold data
	ZeroPages   int64 // pages that read as zeros by the overlay's doing
	LogBytes    int64 // log that no checkpoint has begun to take in, bytes
	LogFiles    int   // log files with something in them
	Writes      int64 // writes taken
	Bytes       int64 // bytes taken
	Records     int64 // records written to the log
	Syncs       int64 // rounds of the sync stage: Records and Writes per round tell how well commits group
	Checkpoints int64
	Failed      error // why the overlay takes no more writes; nil while it does
}

// Stats returns the figures of now.
func (o *Overlay) Stats() Stats {
	o.mu.RLock()
	defer o.mu.RUnlock()
	files := 0
	for _, f := range o.files {
		if f.used > 0 {
			files++
		}
	}
	return Stats{
		DataPages: o.state.data, ZeroPages: o.state.zeros,
		LogBytes: o.logged, LogFiles: files,
		Writes: o.stats.writes, Bytes: o.stats.bytes, Records: o.stats.records,
		Syncs: o.stats.syncs, Checkpoints: o.stats.checkpoints, Failed: o.failed,
	}
}
