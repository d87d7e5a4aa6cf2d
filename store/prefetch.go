package store

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/segment"
)

// Replaying a trace. The blocks are taken in the order in which they were
// touched, in windows that grow. The blocks of a window are looked up in the
// point's maps, found in their segments, joined where they stand close together,
// and read with a few large requests at the same time: on storage that is far
// away the time goes into the number of requests, not into bytes. While one
// window is being read the next is planned.
//
// Whoever reads for real comes first. A real read waits for no request of a
// replay, unless a cache below joins the two. While one waits for something that
// is not in memory, a replay keeps to a quarter of its requests. Requests that
// take long get smaller, so that what is in flight, and ahead of a real read on
// the line, is what the line carries in prefetchPace. And what it decodes it
// decodes on half of the processors.
//
// The sealed bytes come through the backend, and stay in the cache on local
// disk if there is one. The decoded blocks go to the cache in memory, up to half
// of it: more would push out what is in use.
const (
	firstWindow = 32   // blocks
	lastWindow  = 2048 // blocks
	// prefetchGap is the largest hole in a request, in bytes: at 1 Gbit/s it
	// costs 2 ms, a request of its own costs ten and more.
	prefetchGap = 256 << 10
	// A request of the first window has at most firstRequest bytes; later ones,
	// as long as they are quick, up to mostRequest, else down to leastRequest.
	leastRequest = 128 << 10
	firstRequest = 512 << 10
	mostRequest  = 2 << 20
	// prefetchPace is how long a request may take.
	prefetchPace = 100 * time.Millisecond
	// prefetchParallel is how many requests are made at the same time.
	prefetchParallel = 16
	// prefetchTries is how many requests may fail before a replay gives up.
	prefetchTries = 16
)

// PrefetchOptions says how a trace is replayed. The zero value is good.
type PrefetchOptions struct {
	// Parallel is how many requests are made at the same time; 0 means 16.
	Parallel int
	// MemoryBytes bounds the decoded blocks put into the cache in memory; 0
	// means half of that cache.
	MemoryBytes int64
	// Waiting tells whether somebody waits for a real read; nil means never.
	Waiting func() bool
}

// PrefetchStats is what a replay did.
type PrefetchStats struct {
	Blocks   int           // in the trace that are stored in this point
	Ready    int           // of Blocks, in memory already
	Requests int           // to the backend (or its cache on local disk)
	Bytes    int64         // read by them
	Decoded  int64         // bytes of blocks put into memory
	Failed   int           // requests that failed
	Duration time.Duration // from the first to the last
}

// Prefetch reads the blocks that a trace names, as they are in point p, before
// somebody asks for them. It reports what it did even with an error; an error
// costs nobody anything but time.
func (r *Repository) Prefetch(ctx context.Context, p *Point, t *Trace, opts PrefetchOptions) (PrefetchStats, error) {
	start := time.Now()
	rec, err := r.recordOf(ctx, p)
	if err != nil {
		return PrefetchStats{}, err
	}
	f := newPrefetcher(r, rec, t, opts)
	err = f.run(ctx)
	f.stats.Duration = time.Since(start)
	if err != nil {
		err = fmt.Errorf("prefetch of point %s: %w", p.ID, damaged(err))
	}
	return f.stats, err
}

// prefetcher is one replay.
type prefetcher struct {
	r     *Repository
	trace *Trace
	trees []*blockmap.Tree // by the trace's disks; nil: the point does not have it
	gate  *prefetchGate
	cores chan struct{} // one for each goroutine that may decode
	seen  map[segment.Addr]struct{}
	rooms sync.Pool // *[]byte

	room int64 // bytes of decoded blocks that memory may still take; the planner's

	mu      sync.Mutex // guards what follows
	slowest time.Duration
	stats   PrefetchStats
}

func newPrefetcher(r *Repository, rec *pointRecord, t *Trace, opts PrefetchOptions) *prefetcher {
	if opts.Parallel <= 0 {
		opts.Parallel = prefetchParallel
	}
	if opts.MemoryBytes <= 0 {
		opts.MemoryBytes = r.CacheBytes() / 2
	}
	f := &prefetcher{
		r: r, trace: t, gate: newPrefetchGate(opts.Parallel, opts.Waiting),
		cores: make(chan struct{}, max(runtime.GOMAXPROCS(0)/2, 1)),
		seen:  make(map[segment.Addr]struct{}), room: opts.MemoryBytes,
	}
	f.rooms.New = func() any { return new([]byte) }
	for _, key := range t.keys {
		var tree *blockmap.Tree
		if i := slices.IndexFunc(rec.Disks, func(d diskRecord) bool { return d.Key == key }); i >= 0 {
			t := rec.Disks[i].tree(r.blockSize)
			tree = &t
		}
		f.trees = append(f.trees, tree)
	}
	return f
}

// run plans window after window and has the requests made.
func (f *prefetcher) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	err := f.windows(ctx, func(window []tracedBlock, largest int64) error {
		requests, err := f.plan(ctx, window, largest)
		if err != nil {
			return err
		}
		for _, q := range requests {
			if err := f.gate.enter(ctx); err != nil {
				return err
			}
			group.Go(func() error {
				defer f.gate.leave()
				return f.fetch(ctx, q)
			})
		}
		return nil
	})
	// What the requests say is why the planning was broken off.
	if err2 := group.Wait(); err2 != nil {
		return err2
	}
	return err
}

// tracedBlock is a block of one of the trace's disks.
type tracedBlock struct {
	tree  *blockmap.Tree
	block int64
}

var errEnough = errors.New("enough")

// windows cuts the trace into windows.
func (f *prefetcher) windows(ctx context.Context, do func(window []tracedBlock, largest int64) error) error {
	limit, largest := firstWindow, int64(firstRequest)
	window := make([]tracedBlock, 0, limit)
	flush := func() error {
		if len(window) == 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		err := do(window, largest)
		limit, largest = min(limit*4, lastWindow), f.pace(largest)
		window = window[:0]
		return err
	}
	for b := range f.trace.all(f.trees) {
		window = append(window, b)
		if len(window) < limit {
			continue
		}
		if err := flush(); errors.Is(err, errEnough) {
			return nil
		} else if err != nil {
			return err
		}
	}
	if err := flush(); !errors.Is(err, errEnough) {
		return err
	}
	return nil
}

// pace is the size of the largest requests to come, by how long the last ones
// took.
func (f *prefetcher) pace(largest int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	slowest := f.slowest
	f.slowest = 0
	if slowest > prefetchPace {
		return max(largest/2, leastRequest)
	}
	return min(largest*2, mostRequest)
}

// all yields the blocks of the trace that the trees have.
func (t *Trace) all(trees []*blockmap.Tree) func(yield func(tracedBlock) bool) {
	return func(yield func(tracedBlock) bool) {
		for _, take := range t.takes {
			for _, run := range take {
				tree := trees[run.disk]
				if tree == nil {
					continue
				}
				for block := run.block; block < min(run.block+run.count, tree.Blocks()); block++ {
					if !yield(tracedBlock{tree, block}) {
						return
					}
				}
			}
		}
	}
}

// fetch makes one request and puts its blocks into memory if there is room.
func (f *prefetcher) fetch(ctx context.Context, q prefetchRequest) error {
	room := f.rooms.Get().(*[]byte)
	begin := time.Now()
	batch, err := f.r.segments.Fetch(ctx, q.spans, *room)
	if err != nil {
		return f.judge(ctx, err) // room may still be in use
	}
	*room = batch.Room()
	defer f.rooms.Put(room)
	f.note(int64(len(*room)), time.Since(begin))
	if !q.memory {
		return nil
	}
	select {
	case f.cores <- struct{}{}:
		defer func() { <-f.cores }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return f.decode(ctx, batch)
}

func (f *prefetcher) decode(ctx context.Context, batch *segment.Batch) error {
	block := f.r.fetch.blocks.Get().(*[]byte)
	defer f.r.fetch.blocks.Put(block)
	for i := range batch.Len() {
		n, err := batch.Open(i, *block)
		if err != nil {
			if err := f.judge(ctx, err); err != nil {
				return err
			}
			continue
		}
		f.r.fetch.put(batch.Addr(i), (*block)[:n])
		f.decoded(n)
		runtime.Gosched()
	}
	return nil
}

// note counts a request that was answered.
func (f *prefetcher) note(bytes int64, took time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stats.Requests++
	f.stats.Bytes += bytes
	f.slowest = max(f.slowest, took)
}

func (f *prefetcher) decoded(bytes int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stats.Decoded += int64(bytes)
}

// judge forgives errors, but not too many: whoever needs the block will meet
// them again and tell.
func (f *prefetcher) judge(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stats.Failed++; f.stats.Failed > prefetchTries {
		return err
	}
	return nil
}

// inMemory reports whether a block is in the cache in memory, and most likely
// whole.
func (f *fetcher) inMemory(addr segment.Addr) bool {
	return f.cache.Get(uint64(addr), 0, nil, 0) && f.cache.Get(uint64(addr), f.blockSize/segment.FrameSize-1, nil, 0)
}

// CacheBytes is the size of the cache of decoded blocks in memory.
func (r *Repository) CacheBytes() int64 { return int64(r.cache.Stats().Slots) * segment.FrameSize }

// keepsOnDisk reports whether what is read stays on local disk.
func (r *Repository) keepsOnDisk() bool { return r.near != nil && r.near.OnDisk() }
