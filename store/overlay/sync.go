package overlay

import (
	"fmt"
	"log/slog"
)

// syncQueue holds who waits for a sync. Under Overlay.mu.
type syncQueue struct {
	waiting []func(error) // for the next round
	running []func(error) // for the round under way
	covers  uint64        // the last record that the round under way makes durable
	spare   []func(error) // the backing of a slice, to be used again
	pages   int64         // counters.pages when the last round began
	usual   int64         // pages of log that a round covers: a moving average
}

// SyncAsync implements disk.AsyncSyncer.
func (o *Overlay) SyncAsync(done func(error)) {
	o.mu.Lock()
	err := o.usable()
	if err == nil && o.enqueue(done) {
		o.mu.Unlock()
		return
	}
	o.mu.Unlock()
	done(err)
}

// enqueue has done called when everything written so far is durable, or reports
// false if it is already. Caller holds mu.
func (o *Overlay) enqueue(done func(error)) bool {
	target := o.lastRecord()
	s := &o.syncs
	switch {
	case target <= o.durable.Load():
		return false
	case target <= s.covers:
		s.running = append(s.running, done)
	default:
		s.waiting = append(s.waiting, done)
		if len(s.waiting) == 1 {
			ring(o.wakers.sync)
		}
	}
	return true
}

// lastRecord is the number of the last record that holds something. Caller
// holds mu.
func (o *Overlay) lastRecord() uint64 {
	if o.open != nil && len(o.open.runs) > 0 {
		return o.open.seq
	}
	return o.nextRec - 1
}

// Sync implements disk.Device.
func (o *Overlay) Sync() error {
	done := make(chan error, 1)
	o.SyncAsync(func(err error) { done <- err })
	return <-done
}

// flush is Sync for the overlay's own use: also while it is being closed.
func (o *Overlay) flush() error {
	done := make(chan error, 1)
	o.mu.Lock()
	err, queued := o.failed, false
	if err == nil {
		queued = o.enqueue(func(err error) { done <- err })
	}
	o.mu.Unlock()
	if !queued {
		return err
	}
	return <-done
}

// runSyncs is the sync stage: round after round while anyone waits. While a
// round writes and syncs, the next group fills.
func (o *Overlay) runSyncs() {
	for {
		o.mu.Lock()
		s := &o.syncs
		if len(s.waiting) == 0 {
			o.mu.Unlock()
			return
		}
		o.seal()
		target := o.nextRec - 1
		s.running, s.waiting, s.spare = s.waiting, s.spare[:0], nil
		s.covers = target
		s.usual += (o.stats.pages - s.pages - s.usual) / 4
		s.pages = o.stats.pages
		o.mu.Unlock()

		err := o.makeDurable(target)

		o.mu.Lock()
		waiters := s.running
		s.running, s.covers = nil, 0
		o.stats.syncs++
		o.mu.Unlock()
		for i, done := range waiters {
			done(err)
			waiters[i] = nil
		}
		o.mu.Lock()
		s.spare = waiters[:0]
		o.mu.Unlock()
	}
}

// makeDurable makes every record up to target durable. The records before the
// last file's are so already: writeOut never goes on to another file before.
func (o *Overlay) makeDurable(target uint64) error {
	f, seq, end, err := o.writeOut(target)
	if err != nil || f == nil || o.durable.Load() >= target {
		return err
	}
	if err := f.f.Sync(); err != nil {
		return o.fail(fmt.Errorf("sync of log file %s: %w", f.name, err))
	}
	o.setDurable(seq, end)
	return nil
}

// setDurable notes that the records up to seq are durable, which end at end.
func (o *Overlay) setDurable(seq uint64, end position) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.durable.Load() < seq {
		o.durable.Store(seq)
		o.durableEnd = end
	}
}

// FlushAsync implements disk.AsyncFlusher: what was written is in the log file
// then, in the system's memory, where the death of this process leaves it and
// the next Open finds it.
func (o *Overlay) FlushAsync(done func(error)) {
	o.mu.Lock()
	err := o.usable()
	if err != nil || len(o.queue) == 0 && (o.open == nil || len(o.open.runs) == 0) {
		o.mu.Unlock()
		done(err)
		return
	}
	o.flushes = append(o.flushes, done)
	o.mu.Unlock()
	ring(o.wakers.write)
}

// runFlushes writes out what is sealed, and all there is while anyone waits for
// it, without making it durable: it also frees buffers, and leaves less to do
// for the next sync.
func (o *Overlay) runFlushes() {
	for {
		o.mu.Lock()
		waiters := o.flushes
		o.flushes = nil
		if len(waiters) > 0 {
			o.seal()
		}
		target := o.nextRec - 1
		o.mu.Unlock()
		_, _, _, err := o.writeOut(target)
		if err != nil {
			o.log.Debug("writing ahead failed", slog.Any("error", err))
		}
		for _, done := range waiters {
			done(err)
		}
		if len(waiters) == 0 {
			return
		}
	}
}

// endFlushes answers who still waits when the overlay's goroutines have ended,
// with the outcome of the last sync.
func (o *Overlay) endFlushes(err error) {
	o.mu.Lock()
	waiters := o.flushes
	o.flushes = nil
	o.mu.Unlock()
	for _, done := range waiters {
		done(err)
	}
}

// writeOut writes the sealed groups up to target to the log, in order, and
// returns the last record that was written, by now or before: its file, number
// and end. Before the
// first record goes to a file, everything in the file before it is durable: so
// a log file that has a valid record proves that the ones before it are whole.
func (o *Overlay) writeOut(target uint64) (*logFile, uint64, position, error) {
	o.writeMu.Lock()
	defer o.writeMu.Unlock()
	for {
		g, err := o.nextToWrite(target)
		if g == nil || err != nil {
			return o.lastFile, o.lastSeq, o.lastEnd, err
		}
		if last := o.lastFile; last != nil && last != g.file && o.durable.Load() < g.seq-1 {
			if err := last.f.Sync(); err != nil {
				return nil, 0, 0, o.fail(fmt.Errorf("sync of log file %s: %w", last.name, err))
			}
			o.setDurable(o.lastSeq, o.lastEnd)
		}
		record := g.record(o.meta.key(), o.durable.Load())
		if _, err := g.file.f.WriteAt(record, int64(g.at)*pageSize); err != nil {
			return nil, 0, 0, o.fail(fmt.Errorf("write of log file %s: %w", g.file.name, err))
		}
		o.lastFile, o.lastSeq, o.lastEnd = g.file, g.seq, g.end()
		o.mu.Lock()
		o.queue = append(o.queue[:0], o.queue[1:]...)
		o.stats.records++
		o.release(g)
		o.mu.Unlock()
	}
}

func (o *Overlay) nextToWrite(target uint64) (*group, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.failed != nil {
		return nil, o.failed
	}
	if len(o.queue) == 0 || o.queue[0].seq > target {
		return nil, nil
	}
	return o.queue[0], nil
}
