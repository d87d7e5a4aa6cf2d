package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"lifeboat/store/internal/segment"
)

// lane keeps apart what is read apart: blocks of disks, and nodes of block maps.
type lane int

const (
	laneData lane = iota
	laneMeta
	lanes
)

// maxPending is the number of new blobs after which a checkpoint publishes them
// to the dedupe index: what bounds the memory of a backup of any length.
const maxPending = 1 << 19

// segmentCommits is how many full segments may be waiting for the disk.
const segmentCommits = 2

// appender writes new blobs to segments of the ingest's claim, in the order in
// which they are given to it, and remembers where they are until they are in
// the dedupe index.
//
// Lock order: mu, then pendingMu. Neither is held by the goroutines that commit
// full segments.
type appender struct {
	r *Repository

	mu      sync.Mutex
	open    [lanes]*segment.Writer
	next    uint64   // number of the next segment
	last    uint64   // of the claim
	written []uint64 // segments since the last checkpoint, committed or about to be
	err     error    // sticky until drop
	fatal   error    // sticky for good

	commits sync.WaitGroup
	slots   chan struct{}
	failed  struct { // by the goroutines that commit
		sync.Mutex
		err error
	}

	pendingMu sync.RWMutex
	pending   map[segment.Identity]segment.Addr
}

func newAppender(r *Repository, c claimRecord, commits int) *appender {
	return &appender{
		r: r, next: c.first(), last: c.last(), slots: make(chan struct{}, commits),
		pending: make(map[segment.Identity]segment.Addr),
	}
}

// find looks a blob up among those that are not in the index yet.
func (a *appender) find(id segment.Identity) (segment.Addr, bool) {
	a.pendingMu.RLock()
	defer a.pendingMu.RUnlock()
	addr, ok := a.pending[id]
	return addr, ok
}

// errRangeFull asks the caller of append for another claim.
var errRangeFull = errors.New("the claim's segment numbers are used up")

// append writes a blob, unless an equal one was written meanwhile, and reports
// whether it did. a.mu is held.
func (a *appender) append(ctx context.Context, l lane, p *segment.Packed) (addr segment.Addr, fresh bool, err error) {
	if err := cmp.Or(a.fatal, a.err); err != nil {
		return 0, false, err
	}
	if addr, ok := a.find(p.ID); ok {
		return addr, false, nil
	}
	w := a.open[l]
	if w == nil {
		if w, err = a.start(ctx, l); err != nil {
			return 0, false, err
		}
	}
	if addr, err = w.Append(p); err != nil {
		return 0, false, a.fail(err)
	}
	a.pendingMu.Lock()
	a.pending[p.ID] = addr
	a.pendingMu.Unlock()
	if w.Full() {
		err = a.rotate(ctx, l)
	}
	return addr, true, err
}

// start opens the next segment.
func (a *appender) start(ctx context.Context, l lane) (*segment.Writer, error) {
	if a.next > a.last {
		return nil, errRangeFull
	}
	w, err := segment.NewWriter(ctx, a.r.backend, a.r.keys, a.next, segment.WriterOptions{FramesPerSlot: a.r.blockSize / segment.FrameSize})
	if err != nil {
		return nil, a.fail(err)
	}
	a.written = append(a.written, a.next)
	a.next++
	a.open[l] = w
	return w, nil
}

// rotate hands the lane's segment to a goroutine that commits it. It waits when
// too many are under way. a.mu is held.
func (a *appender) rotate(ctx context.Context, l lane) error {
	w := a.open[l]
	if w == nil {
		return nil
	}
	select {
	case a.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	a.open[l] = nil
	a.commits.Go(func() {
		defer func() { <-a.slots }()
		if _, err := w.Commit(ctx); err != nil {
			w.Abort()
			a.failed.Lock()
			defer a.failed.Unlock()
			a.failed.err = errors.Join(a.failed.err, err)
		}
	})
	return nil
}

// flush commits all segments and returns the number of the last one ever
// started. a.mu is held.
func (a *appender) flush(ctx context.Context) (through uint64, err error) {
	if err := cmp.Or(a.fatal, a.err); err != nil {
		return 0, err
	}
	for l := range lanes {
		if err := a.rotate(ctx, l); err != nil {
			return 0, err
		}
	}
	a.commits.Wait()
	a.failed.Lock()
	defer a.failed.Unlock()
	if a.failed.err != nil {
		return 0, a.fail(a.failed.err)
	}
	return a.next - 1, nil
}

// fail makes an error stick: after a segment could not be written, addresses
// given out point to nothing.
func (a *appender) fail(err error) error {
	if a.err == nil {
		if errors.Is(err, syscall.ENOSPC) {
			err = fmt.Errorf("%w (make room, or forget points and prune, then run the backup again; nothing that was there is lost)", err)
		}
		a.err = fmt.Errorf("write to the repository: %w", err)
	}
	return a.err
}

// drop removes everything since the last checkpoint. a.mu is held.
func (a *appender) drop(ctx context.Context) error {
	for l := range lanes {
		if w := a.open[l]; w != nil {
			w.Abort()
			a.open[l] = nil
		}
	}
	a.commits.Wait()
	a.forgetPending()
	var errs []error
	for _, n := range a.written {
		if err := a.r.backend.Remove(ctx, segment.Name(n, 0)); err != nil {
			errs = append(errs, err)
		}
		a.r.segments.Forget(n)
	}
	a.written = nil
	a.err, a.failed.err = nil, nil
	return errors.Join(errs...)
}

// abandon makes the appender unusable, and leaves what it wrote alone.
func (a *appender) abandon(err error) {
	a.written, a.fatal = nil, err
}

func (a *appender) forgetPending() {
	a.pendingMu.Lock()
	defer a.pendingMu.Unlock()
	clear(a.pending)
}
