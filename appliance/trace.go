package appliance

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"lifeboat/disk"
	"lifeboat/internal/vfs"
	"lifeboat/store"
	"lifeboat/store/backend"
)

// DefaultTraceWindow is how long a publish records what is read, from the first
// read on.
const DefaultTraceWindow = 5 * time.Minute

// traceSaveWithin bounds how long a trace may take to be written: the end of a
// publish does not wait longer for a thing that is only good for speed.
const traceSaveWithin = 10 * time.Second

// tracesAtOnce is how many traces are replayed at the same time, and
// traceRequests how many requests all of them make together.
const (
	tracesAtOnce  = 2
	traceRequests = 16
)

// bootTraces records what a published VM reads in its first minutes, and reads
// what it read the last time before it asks. All of it is best effort: what goes
// wrong is logged, and the VM boots as if there were no trace.
//
// A trace is kept with the VM in the repository; where that cannot be written,
// in the state directory, sealed all the same.
type bootTraces struct {
	repo       *store.Repository
	local      string // directory of the traces that the repository did not take
	window     time.Duration
	noPrefetch bool
	log        *slog.Logger
	recorders  []*store.TraceRecorder
}

func newBootTraces(st *State, repo *store.Repository, req PublishRequest, log *slog.Logger) *bootTraces {
	window := req.TraceWindow
	if window == 0 {
		window = DefaultTraceWindow
	}
	return &bootTraces{
		repo: repo, local: filepath.Join(st.dir, "traces", repo.ID()),
		window: window, noPrefetch: req.NoPrefetch, log: log,
	}
}

// image is an open disk of a point with the recorder in front. A nil receiver
// records nothing.
func (b *bootTraces) image(pt *store.Point, img *store.Image, key int) disk.Image {
	if b == nil {
		return img
	}
	if n := len(b.recorders); n == 0 || b.recorders[n-1].Point() != pt {
		b.recorders = append(b.recorders, b.repo.NewTraceRecorder(pt))
	}
	return b.recorders[len(b.recorders)-1].Image(img, key)
}

// start begins to replay and, if record says so, to record. The function that it
// returns ends both, and keeps what was recorded.
func (b *bootTraces) start(ctx context.Context, record bool) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	replays := make(chan struct{}, tracesAtOnce)
	for _, rec := range b.recorders {
		if record && b.window > 0 {
			rec.Record()
			running.Go(func() { b.watch(ctx, rec) })
		}
		if b.noPrefetch {
			continue
		}
		running.Go(func() {
			select {
			case replays <- struct{}{}:
				defer func() { <-replays }()
				b.replay(ctx, rec)
			case <-ctx.Done():
			}
		})
	}
	return func() {
		cancel()
		running.Wait()
	}
}

// watch keeps what was recorded when the window is over, or the publish.
func (b *bootTraces) watch(ctx context.Context, rec *store.TraceRecorder) {
	select {
	case <-rec.Started():
		timer := time.NewTimer(b.window)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
	trace := rec.Stop()
	if trace == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), traceSaveWithin)
	defer cancel()
	if err := b.save(ctx, rec.Point(), trace); err != nil {
		b.log.Warn("the boot trace could not be kept; the next boot of this VM is as slow as this one", "vm", rec.Point().VM, "err", err)
		return
	}
	b.log.Info("boot trace kept", "vm", rec.Point().VM, "bytes", trace.Bytes())
}

func (b *bootTraces) save(ctx context.Context, pt *store.Point, trace *store.Trace) error {
	local, err := b.openLocal()
	if err != nil {
		return err
	}
	defer local.Close()
	if err := b.repo.SaveTrace(ctx, nil, pt, trace); err != nil {
		b.log.Info("the repository did not take the boot trace; it is kept in the state directory", "vm", pt.VM, "err", err)
		return b.repo.SaveTrace(ctx, local, pt, trace)
	}
	return local.Remove(ctx, b.repo.TraceName(pt))
}

func (b *bootTraces) openLocal() (*backend.Dir, error) { return backend.NewDir(vfs.OS(), b.local) }

// replay reads what the last boots read: by the trace in the state directory,
// which is there only if it is the newest, and by the repository's.
func (b *bootTraces) replay(ctx context.Context, rec *store.TraceRecorder) {
	local, err := b.openLocal()
	if err != nil {
		b.log.Warn("boot traces in the state directory cannot be read", "err", err)
	} else {
		defer local.Close()
		b.replayFrom(ctx, local, rec)
	}
	b.replayFrom(ctx, nil, rec)
}

func (b *bootTraces) replayFrom(ctx context.Context, from backend.Backend, rec *store.TraceRecorder) {
	pt := rec.Point()
	trace, err := b.repo.Trace(ctx, from, pt)
	switch {
	case errors.Is(err, store.ErrNotFound) || ctx.Err() != nil:
		return
	case err != nil:
		b.log.Warn("a boot trace is of no use and is ignored; the next one takes its place", "vm", pt.VM, "err", err)
		return
	}
	stats, err := b.repo.Prefetch(ctx, pt, trace, store.PrefetchOptions{
		Parallel:    traceRequests / min(tracesAtOnce, len(b.recorders)),
		MemoryBytes: b.repo.CacheBytes() / 2 / int64(len(b.recorders)),
		Waiting:     b.waiting,
	})
	if err != nil && ctx.Err() == nil {
		b.log.Warn("reading ahead of the boot broke off", "vm", pt.VM, "err", err)
	}
	b.log.Info("read ahead of the boot", "vm", pt.VM, "blocks", stats.Blocks, "ready", stats.Ready, "requests", stats.Requests,
		"bytes", stats.Bytes, "decoded", stats.Decoded, "failed", stats.Failed, "took", stats.Duration)
}

// waiting reports whether any of the VMs waits for a read.
func (b *bootTraces) waiting() bool {
	return slices.ContainsFunc(b.recorders, (*store.TraceRecorder).Waiting)
}
