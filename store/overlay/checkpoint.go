package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// frozenLog is what a checkpoint moves to the data files: the log as it was at
// one moment. Nothing in it changes.
type frozenLog struct {
	index *index
	state *pageMap
	files []*logFile
	file  uint64 // number that every later log file exceeds or equals
	next  uint64 // first record that is not part of it
}

// ckptState tells writers and the background how checkpoints fare. Under
// Overlay.mu.
type ckptState struct {
	busy   bool
	tries  uint64 // attempts that have ended
	err    error  // of the last attempt
	failed time.Time
}

// batchBytes is how much a checkpoint reads and writes at a time, and
// ckptSyncBytes how much it writes between syncs, so that commits which share
// the device are not held up for long.
const (
	batchBytes    = 1 << 20
	ckptSyncBytes = 32 << 20
)

// wantCheckpoint starts a checkpoint in the background, unless the last has just
// failed. Caller holds mu.
func (o *Overlay) wantCheckpoint() {
	if !o.ckpt.busy && (o.ckpt.err == nil || time.Since(o.ckpt.failed) > retryAfter) {
		ring(o.wakers.checkpoint)
	}
}

// waitCheckpoint waits until the log has room again. It fails with the error of
// an attempt that began after the call. Caller holds mu, which is released
// meanwhile.
func (o *Overlay) waitCheckpoint() error {
	c := &o.ckpt
	enough := c.tries + 1
	if c.busy {
		enough++
	}
	for o.frozen != nil && o.logged >= o.logBytes {
		if err := o.usable(); err != nil {
			return err
		}
		if c.tries >= enough && c.err != nil {
			return fmt.Errorf("overlay %s: the log is full and cannot be checkpointed: %w", o.dir, c.err)
		}
		if !c.busy {
			ring(o.wakers.checkpoint)
		}
		o.change.Wait()
	}
	return nil
}

// backgroundCheckpoint checkpoints if there is reason to.
func (o *Overlay) backgroundCheckpoint(ctx context.Context) {
	o.ckptMu.Lock()
	defer o.ckptMu.Unlock()
	o.mu.RLock()
	due := o.failed == nil && (o.frozen != nil || o.logged >= o.logBytes)
	o.mu.RUnlock()
	if !due || ctx.Err() != nil {
		return
	}
	if err := o.checkpoint(ctx); err != nil && ctx.Err() == nil {
		o.log.Warn("checkpoint failed; the log is kept", slog.Any("error", err))
	}
}

// Checkpoint moves what the log holds to its place in the data files and empties
// the log. It makes durable all that was written before. When it fails, nothing
// is lost: the log stays.
func (o *Overlay) Checkpoint(ctx context.Context) error {
	o.mu.RLock()
	err := o.usable()
	o.mu.RUnlock()
	if err != nil {
		return err
	}
	return o.checkpointAll(ctx)
}

func (o *Overlay) checkpointAll(ctx context.Context) error {
	o.ckptMu.Lock()
	defer o.ckptMu.Unlock()
	o.mu.RLock()
	left := o.frozen != nil // of an attempt that failed, or of the last process
	o.mu.RUnlock()
	if left {
		if err := o.checkpoint(ctx); err != nil {
			return err
		}
	}
	return o.checkpoint(ctx)
}

// checkpoint does one attempt. Caller holds ckptMu.
func (o *Overlay) checkpoint(ctx context.Context) error {
	o.mu.Lock()
	o.ckpt.busy = true
	o.mu.Unlock()
	err := o.attempt(ctx)
	if errors.Is(err, syscall.ENOSPC) && o.dropSpares() {
		err = o.attempt(ctx)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	c := &o.ckpt
	c.busy, c.err = false, err
	c.tries++
	if err != nil {
		c.failed = time.Now()
	} else {
		o.stats.checkpoints++
	}
	o.change.Broadcast()
	return err
}

// attempt is the checkpoint itself. Its order is what makes it crash-safe:
//
//  1. The log is rotated and what it holds is made durable. From here on, replay
//     from the previous checkpoint rewrites every page that step 2 touches, so
//     that these may be torn.
//  2. The pages are written to the data files, and these are synced.
//  3. The checkpoint file is put in place, durably and at once. Until then the
//     previous one counts, with the log; from then on this one, without.
//  4. The frozen part of the log is forgotten; its files are used again.
//
// Reads that were planned before step 1 end before step 2, since they may still
// take an older version of a page from a data file; and those planned before
// step 4 end before the log files they read are overwritten.
func (o *Overlay) attempt(ctx context.Context) error {
	fz, slot := o.freeze()
	if fz == nil {
		return nil
	}
	o.gate.drain(slot)
	if err := o.flush(); err != nil {
		return err
	}
	if err := o.movePages(ctx, fz); err != nil {
		return err
	}
	if err := o.writeCheckpointFile(fz); err != nil {
		return fmt.Errorf("overlay %s: checkpoint file: %w", o.dir, err)
	}
	o.thaw(fz)
	return nil
}

// freeze rotates the log, unless an earlier attempt did and failed. It returns
// nil if the log is empty.
func (o *Overlay) freeze() (*frozenLog, uint32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.frozen != nil {
		return o.frozen, o.gate.flip()
	}
	o.seal()
	if o.logged == 0 {
		return nil, 0
	}
	fz := &frozenLog{index: o.active, state: o.state.snapshot(), next: o.nextRec}
	for _, f := range o.files {
		fz.files = append(fz.files, f)
		fz.file = max(fz.file, f.seq+1)
	}
	o.frozen, o.active, o.logged, o.cur = fz, newIndex(), 0, nil
	return fz, o.gate.flip()
}

// movePages writes the frozen pages to the data files, in the order of the disk,
// gives back the space of those that are zeros now, and syncs.
func (o *Overlay) movePages(ctx context.Context, fz *frozenLog) error {
	list := fz.index.entries()
	list = slices.DeleteFunc(list, func(s slot) bool { return fz.state.get(int64(s.key-1)) != holdsData })
	slices.SortFunc(list, func(a, b slot) int {
		if a.key < b.key {
			return -1
		}
		return 1
	})
	o.mu.RLock()
	moved := o.moved
	o.mu.RUnlock()
	for page, count := range zeroed(fz.state, moved) {
		if err := o.data.punch(page, count); err != nil {
			o.log.Debug("cannot give space back", slog.Any("error", err))
		}
	}
	buf := make([]byte, batchBytes)
	unsynced := 0
	for len(list) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := batch(list)
		if err := o.movePagesAt(fz, list[:n], buf[:n*pageSize]); err != nil {
			return fmt.Errorf("overlay %s: checkpoint: %w", o.dir, err)
		}
		list = list[n:]
		if unsynced += n * pageSize; unsynced >= ckptSyncBytes {
			unsynced = 0
			if err := o.syncData(); err != nil {
				return err
			}
		}
	}
	return o.syncData()
}

// zeroed yields what held data in moved and holds zeros in now.
func zeroed(now, moved *pageMap) func(func(page, count int64) bool) {
	return func(yield func(page, count int64) bool) { now.dataTurnedZero(moved, yield) }
}

// syncData syncs the data files. A failure other than a full disk means that the
// device loses data: the overlay takes no more.
func (o *Overlay) syncData() error {
	err := o.data.sync()
	if err == nil || errors.Is(err, syscall.ENOSPC) {
		return err
	}
	return o.fail(fmt.Errorf("sync of the data files: %w", err))
}

// batch is how many entries from the start of list are neighbours on the disk,
// in one data file, and fit the buffer.
func batch(list []slot) int {
	n := 1
	for n < len(list) && n < batchBytes/pageSize &&
		list[n].key == list[0].key+uint64(n) && (list[n].key-1)%dataFilePages != 0 {
		n++
	}
	return n
}

func (o *Overlay) movePagesAt(fz *frozenLog, list []slot, buf []byte) error {
	for i := 0; i < len(list); {
		n := 1
		for i+n < len(list) && list[i+n].pos == list[i].pos+position(n) {
			n++
		}
		f := fz.fileAt(list[i].pos)
		p := buf[i*pageSize : (i+n)*pageSize]
		if got, err := f.f.ReadAt(p, int64(list[i].pos.page())*pageSize); got < len(p) {
			return fmt.Errorf("reading log file %s: %w", f.name, unexpected(err))
		}
		i += n
	}
	return o.data.write(buf, int64(list[0].key-1))
}

func (fz *frozenLog) fileAt(p position) *logFile {
	i := slices.IndexFunc(fz.files, func(f *logFile) bool { return f.seq == p.file() })
	return fz.files[i]
}

func (o *Overlay) writeCheckpointFile(fz *frozenLog) error {
	h := checkpointHeader{overlay: o.meta.key(), number: o.number + 1, file: fz.file, record: fz.next}
	err := writeAtomic(o.fs, o.dir, numbered(checkpointPrefix, h.number), func(w io.Writer) error {
		return writeCheckpoint(w, h, fz.state)
	})
	if err != nil {
		return err
	}
	o.number = h.number
	if h.number > 1 {
		// Opening removes it too; a failure costs nothing but its space.
		if err := o.fs.Remove(filepath.Join(o.dir, numbered(checkpointPrefix, h.number-1))); err != nil {
			o.log.Debug("cannot remove the previous checkpoint", slog.Any("error", err))
		}
	}
	return nil
}

// thaw forgets the frozen part of the log, which the data files have now.
func (o *Overlay) thaw(fz *frozenLog) {
	o.mu.Lock()
	for _, f := range fz.files {
		delete(o.files, f.seq)
	}
	o.frozen, o.moved = nil, fz.state
	slot := o.gate.flip()
	o.mu.Unlock()

	// Whoever writes out may be about to sync the last file once more, though it
	// is durable: none of these is touched after this.
	o.writeMu.Lock()
	if slices.Contains(fz.files, o.lastFile) {
		o.lastFile = nil
	}
	o.writeMu.Unlock()
	o.gate.drain(slot)
	o.retire(fz.files)
}
