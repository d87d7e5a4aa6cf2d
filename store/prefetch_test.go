package store

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
)

// openOver opens the repository through a wrapper of its backend.
func (w *world) openOver(t testing.TB, wrap func(backend.Backend) backend.Backend, change func(*Options)) *Repository {
	t.Helper()
	me := actor{w.actors, "prefetch"}
	opts := w.options(me)
	if change != nil {
		change(&opts)
	}
	r, err := Open(t.Context(), wrap(w.backend(t, me)), testPassword, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// far is a repository far away, with nothing in memory.
func (w *world) far(t testing.TB, delay time.Duration) (*Repository, *backendtest.Slow) {
	t.Helper()
	var slow *backendtest.Slow
	r := w.openOver(t, func(b backend.Backend) backend.Backend {
		slow = backendtest.NewSlow(b, delay)
		return slow
	}, func(o *Options) { o.CacheBytes = 64 << 20 })
	return r, slow
}

// bootReads is where a machine reads its disk when it boots: runs all over it.
func bootReads(seed uint64, size int64) []disk.Extent {
	rng := rand.New(rand.NewPCG(seed, 9))
	var out []disk.Extent
	for range 40 {
		off := rng.Int64N(size-1<<20) &^ 4095
		for range 1 + rng.IntN(8) {
			out = append(out, disk.Extent{Offset: off, Length: 4096 << rng.IntN(6)})
			off += out[len(out)-1].Length
		}
	}
	return out
}

func replayReads(t testing.TB, img disk.Image, reads []disk.Extent, want disk.Image) {
	t.Helper()
	got, exp := make([]byte, 1<<20), make([]byte, 1<<20)
	for _, e := range reads {
		n := min(e.Length, img.Size()-e.Offset)
		if _, err := img.ReadAt(got[:n], e.Offset); err != nil {
			t.Fatal(err)
		}
		if want == nil {
			continue
		}
		if _, err := want.ReadAt(exp[:n], e.Offset); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:n], exp[:n]) {
			t.Fatalf("%d bytes at %d are wrong", n, e.Offset)
		}
	}
}

// recordBoot has a machine boot from p and returns what it touched.
func recordBoot(t testing.TB, r *Repository, p *Point, reads []disk.Extent) *Trace {
	t.Helper()
	img, err := r.OpenDisk(t.Context(), p, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	rec := r.NewTraceRecorder(p)
	rec.Record()
	replayReads(t, rec.Image(img, 2000), reads, nil)
	return rec.Stop()
}

// TestPrefetchCarriesForward: the trace of one point, replayed on a later one
// with other content in other places, brings exactly what a boot reads there into
// memory, with a few large requests.
func TestPrefetchCarriesForward(t *testing.T) {
	w, r := newRepo(t)
	src := disktest.Random(5, 48<<20, 0.8)
	p1 := backup(t, r, "vm", nil, src, nil)
	reads := bootReads(1, src.Size())
	trace := recordBoot(t, r, p1, reads)
	changed := scribble(2, src, 60)
	p2 := backup(t, r, "vm", p1, src, changed)

	far, slow := w.far(t, 0)
	img, err := far.OpenDisk(t.Context(), p2, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	slow.Stats()
	stats, err := far.Prefetch(t.Context(), p2, trace, PrefetchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if stats.Blocks < 100 || stats.Ready != 0 || stats.Failed != 0 || stats.Decoded != int64(stats.Blocks)*testBlock {
		t.Errorf("%+v", stats)
	}
	if stats.Requests > 45 { // the reads are 40 runs
		t.Errorf("%d requests for %d blocks: they are not joined", stats.Requests, stats.Blocks)
	}
	for _, e := range reads {
		if got := make([]byte, min(e.Length, src.Size()-e.Offset)); !img.ReadCached(got, e.Offset) {
			t.Fatalf("%d bytes at %d are not in memory", len(got), e.Offset)
		}
	}
	replayReads(t, img, reads, src)
	again, err := far.Prefetch(t.Context(), p2, trace, PrefetchOptions{})
	if err != nil || again.Ready != stats.Blocks || again.Requests != 0 {
		t.Errorf("replayed again: %+v, %v", again, err)
	}
}

func TestPrefetchOfOtherDisks(t *testing.T) {
	_, r := newRepo(t)
	src := randomDisk(1, 10*testBlock)
	p := backup(t, r, "vm", nil, src, nil)
	// A disk that is gone, blocks beyond the end of one that shrank.
	trace := recording(touchedBlock{1, 0}, touchedBlock{2000, 1 << 30}, touchedBlock{2000, 9}, touchedBlock{2000, 10})
	stats, err := r.Prefetch(t.Context(), p, trace, PrefetchOptions{})
	if err != nil || stats.Blocks > 1 {
		t.Errorf("%+v, %v", stats, err)
	}
}

// TestPrefetchIsBounded: no more goes to memory than it is allowed, and nothing
// is read that there is no room for.
func TestPrefetchIsBounded(t *testing.T) {
	w, r := newRepo(t)
	src := disktest.Random(5, 24<<20, 1)
	p := backup(t, r, "vm", nil, src, nil)
	trace := recordBoot(t, r, p, []disk.Extent{{Offset: 0, Length: 1 << 20}, {Offset: 1 << 20, Length: 1 << 20}})
	for i := range int64(22) {
		trace = trace.merged(nil)
		trace.takes[0] = append(trace.takes[0], traceRun{block: (2 + i) * 16, count: 16})
	}
	far, _ := w.far(t, 0)
	const room = 3 << 20
	stats, err := far.Prefetch(t.Context(), p, trace, PrefetchOptions{MemoryBytes: room})
	if err != nil {
		t.Fatal(err)
	}
	if used := int64(far.cache.Stats().Used) * 16 << 10; stats.Decoded > room || used > room {
		t.Errorf("%d bytes in memory, at most %d are allowed: %+v", used, room, stats)
	}
	if stats.Bytes > 6<<20 {
		t.Errorf("%d bytes were read for %d bytes of room", stats.Bytes, room)
	}
}

// TestPrefetchForgivesDamage: a replay goes around what cannot be read, and the
// reader hears of it when it asks.
func TestPrefetchForgivesDamage(t *testing.T) {
	_, r := newRepo(t)
	src := disktest.Random(5, 32<<20, 1)
	p := backup(t, r, "vm", nil, src, nil)
	reads := bootReads(1, src.Size())
	trace := recordBoot(t, r, p, reads)
	m := backendtest.NewMemory()
	copyObjects(t, m, r.backend)
	segments := largeSegments(t, m)
	rng := rand.New(rand.NewPCG(3, 3))
	for range 20 {
		m.Flip(segments[rng.IntN(len(segments))], 8*(200_000+rng.IntN(800_000)))
	}
	hurt, err := Open(t.Context(), m, testPassword, Options{CacheBytes: 64 << 20, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer hurt.Close()
	stats, err := hurt.Prefetch(t.Context(), p, trace, PrefetchOptions{})
	if err != nil || stats.Blocks < 100 {
		t.Fatalf("%+v, %v", stats, err)
	}
	img, err := hurt.OpenDisk(t.Context(), p, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	for _, e := range reads {
		got, want := make([]byte, e.Length), make([]byte, e.Length)
		if _, err := img.ReadAt(got, e.Offset); err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			continue
		}
		if _, err := src.ReadAt(want, e.Offset); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("wrong bytes at %d (%v)", e.Offset, err)
		}
	}
	// All segments gone: it gives up, and says why.
	for _, name := range objects(t, m, "segments/") {
		if err := m.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	gone, err := Open(t.Context(), m, testPassword, Options{Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	if _, err := gone.Prefetch(t.Context(), p, trace, PrefetchOptions{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("without any segment: %v", err)
	}
}

func largeSegments(t testing.TB, b backend.Backend) []string {
	t.Helper()
	var names []string
	for info, err := range b.List(t.Context(), "segments/") {
		if err != nil {
			t.Fatal(err)
		}
		if info.Size > 1_000_000 {
			names = append(names, info.Name)
		}
	}
	return names
}

func copyObjects(t testing.TB, to, from backend.Backend) {
	t.Helper()
	for _, name := range objects(t, from, "") {
		data, err := getObject(t.Context(), from, name, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		if err := putObject(t.Context(), to, name, data, backend.Exclusive); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPrefetchEndsWhenTold: with requests that are never answered.
func TestPrefetchEndsWhenTold(t *testing.T) {
	w, r := newRepo(t)
	src := disktest.Random(5, 32<<20, 1)
	p := backup(t, r, "vm", nil, src, nil)
	trace := &Trace{blockSize: testBlock, keys: []int{2000}, takes: [][]traceRun{{{block: 0, count: 400}}}}
	far, s := w.stuck(t)
	defer close(s.free)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := far.Prefetch(ctx, p, trace, PrefetchOptions{})
		ended <- err
	}()
	<-s.asked
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
}

// stuck never answers reads of more than a block until it is let go.
type stuck struct {
	backend.Backend
	asked chan struct{} // gets one for each
	free  chan struct{}
}

func (s *stuck) Open(ctx context.Context, name string) (backend.Object, error) {
	obj, err := s.Backend.Open(ctx, name)
	return stuckObject{obj, s}, err
}

func (w *world) stuck(t testing.TB) (*Repository, *stuck) {
	s := &stuck{asked: make(chan struct{}, 10*prefetchParallel), free: make(chan struct{})}
	r := w.openOver(t, func(b backend.Backend) backend.Backend {
		s.Backend = b
		return s
	}, nil)
	return r, s
}

type stuckObject struct {
	backend.Object
	s *stuck
}

func (o stuckObject) ReadAt(p []byte, off int64) (int, error) {
	if len(p) > 2*testBlock {
		o.s.asked <- struct{}{}
		<-o.s.free
	}
	return o.Object.ReadAt(p, off)
}

// TestRealReadsComeFirst: a read waits for no request of a replay, not even if
// that is for the same block and is never answered.
func TestRealReadsComeFirst(t *testing.T) {
	w, r := newRepo(t)
	src := disktest.Random(5, 32<<20, 1)
	p := backup(t, r, "vm", nil, src, nil)
	far, s := w.stuck(t)
	img, err := far.OpenDisk(t.Context(), p, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	trace := &Trace{blockSize: testBlock, keys: []int{2000}, takes: [][]traceRun{{{block: 0, count: 400}}}}
	ended := make(chan error, 1)
	go func() {
		_, err := far.Prefetch(t.Context(), p, trace, PrefetchOptions{})
		ended <- err
	}()
	for range 4 {
		<-s.asked // the requests of the first window, at least
	}
	got, want := make([]byte, 4096), make([]byte, 4096)
	for _, block := range []int64{0, 5, 31, 300, 499} {
		if _, err := img.ReadAt(got, block*testBlock); err != nil {
			t.Fatal(err)
		}
		if _, err := src.ReadAt(want, block*testBlock); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("block %d: wrong bytes (%v)", block, err)
		}
	}
	close(s.free)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestPrefetchGate: a quarter while somebody waits, all otherwise, and whoever
// is cancelled leaves the queue.
func TestPrefetchGate(t *testing.T) {
	var mu sync.Mutex
	waiting := true
	g := newPrefetchGate(8, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return waiting
	})
	for range 2 {
		if err := g.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	refused := make(chan error)
	go func() { refused <- g.enter(ctx) }()
	cancel()
	if err := <-refused; !errors.Is(err, context.Canceled) {
		t.Fatalf("a third got in while somebody waits: %v", err)
	}
	in := make(chan error)
	go func() {
		for range 7 {
			in <- g.enter(context.Background())
		}
	}()
	mu.Lock()
	waiting = false
	mu.Unlock()
	g.leave()
	for range 7 {
		if err := <-in; err != nil {
			t.Fatal(err)
		}
	}
	if g.inside != 8 {
		t.Errorf("%d inside", g.inside)
	}
}
