package appliance

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"lifeboat/disk"
)

// Limits bound what backups ask of hosts, datastores and the repository, all
// that run in this process taken together. The zero value is good.
type Limits struct {
	// VMs is how many VMs have a snapshot of ours at once; 0 means 4.
	VMs int
	// PerHost is how many disks of VMs on one ESXi host are open at once. A host
	// has 48 MB of buffers for all who read disks through it; 0 means 7.
	PerHost int
	// PerDatastore is how many disks on one datastore are read at once; 0 means 4.
	PerDatastore int
	// Repository is how many disks are written to the repository at once; 0
	// means 8.
	Repository int
	// Bandwidth bounds what is read, in bytes per second; 0 means no limit.
	Bandwidth int64
	// MaxLatency is how long a read of a datastore may take. While reads take
	// longer, fewer are under way at once. It is the time that our own reads of up
	// to 1 MiB take, the way to the datastore included, and not one of vSphere's
	// performance counters: it is there for every transport and costs no calls.
	// 0 means 250 ms, less than 0 no limit.
	MaxLatency time.Duration
}

func (l Limits) withDefaults() Limits {
	for _, field := range []struct {
		value *int
		def   int
	}{{&l.VMs, 4}, {&l.PerHost, 7}, {&l.PerDatastore, 4}, {&l.Repository, 8}} {
		if *field.value <= 0 {
			*field.value = field.def
		}
	}
	if l.MaxLatency == 0 {
		l.MaxLatency = 250 * time.Millisecond
	}
	return l
}

// throttle is the limits at work.
//
// Order in which slots are taken: host, datastores by name, repository. Whoever
// has slots further down never waits for one further up, so that nobody waits in
// a circle.
type throttle struct {
	limits     Limits
	bandwidth  *bandwidth
	repository *semaphore.Weighted

	mu         sync.Mutex
	hosts      map[string]*semaphore.Weighted
	datastores map[string]*semaphore.Weighted
	pacers     map[string]*pacer
}

func newThrottle(l Limits) *throttle {
	l = l.withDefaults()
	return &throttle{
		limits: l, bandwidth: newBandwidth(l.Bandwidth), repository: semaphore.NewWeighted(int64(l.Repository)),
		hosts: map[string]*semaphore.Weighted{}, datastores: map[string]*semaphore.Weighted{}, pacers: map[string]*pacer{},
	}
}

// named returns the entry of a map, made at first use.
func named[T any](mu *sync.Mutex, m map[string]T, name string, fresh func() T) T {
	mu.Lock()
	defer mu.Unlock()
	v, ok := m[name]
	if !ok {
		v = fresh()
		m[name] = v
	}
	return v
}

// batches divides disks, given by their datastores, into groups of which each
// fits into the limits: indices into the argument.
func (t *throttle) batches(datastores []string) [][]int {
	var (
		out   [][]int
		group []int
		on    = map[string]int{}
		most  = min(t.limits.PerHost, t.limits.Repository)
	)
	for i, ds := range datastores {
		if len(group) == most || on[ds] == t.limits.PerDatastore {
			out = append(out, group)
			group, on = nil, map[string]int{}
		}
		group = append(group, i)
		on[ds]++
	}
	if group != nil {
		out = append(out, group)
	}
	return out
}

// acquire waits for slots for one batch of disks, given by their datastores.
// release gives them back, and may be called again.
func (t *throttle) acquire(ctx context.Context, host string, datastores []string) (release func(), err error) {
	var held []func()
	release = sync.OnceFunc(func() {
		for _, free := range slices.Backward(held) {
			free()
		}
	})
	take := func(s *semaphore.Weighted, n int) {
		if err != nil {
			return
		}
		if err = s.Acquire(ctx, int64(n)); err == nil {
			held = append(held, func() { s.Release(int64(n)) })
		}
	}
	on := map[string]int{}
	for _, ds := range datastores {
		on[ds]++
	}
	take(named(&t.mu, t.hosts, host, func() *semaphore.Weighted { return semaphore.NewWeighted(int64(t.limits.PerHost)) }), len(datastores))
	for _, ds := range slices.Sorted(maps.Keys(on)) {
		take(named(&t.mu, t.datastores, ds, func() *semaphore.Weighted { return semaphore.NewWeighted(int64(t.limits.PerDatastore)) }), on[ds])
	}
	take(t.repository, len(datastores))
	if err != nil {
		release()
		return nil, context.Cause(ctx)
	}
	return release, nil
}

// pacer returns the one of a datastore, or nil where latency has no limit.
func (t *throttle) pacer(datastore string) *pacer {
	if t.limits.MaxLatency < 0 {
		return nil
	}
	return named(&t.mu, t.pacers, datastore, func() *pacer { return newPacer(t.limits.MaxLatency) })
}

// bandwidth keeps a rate over all who move bytes. It is a vddk.Limiter.
type bandwidth struct {
	rate float64 // bytes per second; 0: none

	mu   sync.Mutex
	next time.Time // when the bytes that were let through will have passed
}

// bandwidthBurst is how far the rate may be run ahead of after a pause.
const bandwidthBurst = 200 * time.Millisecond

func newBandwidth(rate int64) *bandwidth { return &bandwidth{rate: float64(max(rate, 0))} }

// Wait returns when bytes more may be moved, or with the context's error.
func (b *bandwidth) Wait(ctx context.Context, bytes int64) error {
	if b == nil || b.rate == 0 {
		return ctx.Err()
	}
	now := time.Now()
	b.mu.Lock()
	if earliest := now.Add(-bandwidthBurst); b.next.Before(earliest) {
		b.next = earliest
	}
	b.next = b.next.Add(time.Duration(float64(bytes) / b.rate * float64(time.Second)))
	wait := b.next.Sub(now)
	b.mu.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// pacer keeps the reads of one datastore from making it slow for its VMs. It
// lets a window of reads be under way at once. A read that took longer than the
// limit halves the window, at most once in the time that the reads of a window
// take, so that one cause has one effect; a window of reads that were fast enough
// widens it by one.
type pacer struct {
	limit time.Duration

	mu     sync.Mutex
	window float64 // 1 to maxWindow
	under  int     // reads under way
	halved time.Time
	free   chan struct{} // closed when a read ends; nil while nobody waits
}

const maxWindow = 64

func newPacer(limit time.Duration) *pacer { return &pacer{limit: limit, window: maxWindow} }

// enter waits until one more read may begin.
func (p *pacer) enter(ctx context.Context) error {
	for {
		p.mu.Lock()
		if p.under < int(p.window) {
			p.under++
			p.mu.Unlock()
			return nil
		}
		if p.free == nil {
			p.free = make(chan struct{})
		}
		free := p.free
		p.mu.Unlock()
		select {
		case <-free:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// leave tells how long a read took.
func (p *pacer) leave(began time.Time) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	switch took := now.Sub(began); {
	case took <= p.limit:
		p.window = min(p.window+1/p.window, maxWindow)
	case began.After(p.halved): // it began after the window was narrowed, and was slow all the same
		p.window, p.halved = max(p.window/2, 1), now
	}
	p.under--
	if p.free != nil {
		close(p.free)
		p.free = nil
	}
}

// width is how many reads may be under way now.
func (p *pacer) width() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int(p.window)
}

// paced is a disk whose reads keep to a pacer.
type paced struct {
	disk.Image
	ctx   context.Context
	pacer *pacer
}

// ReadAt implements io.ReaderAt.
func (d *paced) ReadAt(p []byte, off int64) (int, error) {
	if err := d.pacer.enter(d.ctx); err != nil {
		return 0, err
	}
	defer d.pacer.leave(time.Now())
	return d.Image.ReadAt(p, off)
}
