package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lifeboat/disk/disktest"
	"lifeboat/store/backend"
	"lifeboat/store/internal/blockcache"
	"lifeboat/store/internal/segment"
)

// afar is a backend that counts what is asked of it for segments and points,
// and answers late.
type afar struct {
	backend.Backend
	delay time.Duration

	mu           sync.Mutex
	opens, reads int
	bytes        int64
	after        func(name string) // called after an open; may be nil
}

func (b *afar) Open(ctx context.Context, name string) (backend.Object, error) {
	o, err := b.Backend.Open(ctx, name)
	if err != nil || !strings.HasPrefix(name, "segments/") && !strings.HasPrefix(name, pointPrefix) {
		return o, err
	}
	b.mu.Lock()
	b.opens++
	after := b.after
	b.mu.Unlock()
	if after != nil {
		after(name)
	}
	return &afarObject{o, b}, nil
}

func (b *afar) took() (opens, reads int, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	opens, reads, bytes = b.opens, b.reads, b.bytes
	b.opens, b.reads, b.bytes = 0, 0, 0
	return opens, reads, bytes
}

type afarObject struct {
	backend.Object
	b *afar
}

func (o *afarObject) ReadAt(p []byte, off int64) (int, error) {
	o.b.mu.Lock()
	o.b.reads++
	o.b.bytes += int64(len(p))
	o.b.mu.Unlock()
	time.Sleep(o.b.delay) // what is tested is that it takes time
	return o.Object.ReadAt(p, off)
}

// openAfar opens a world's repository behind a counting backend.
func openAfar(t testing.TB, w *world, dir string) (*Repository, *afar) {
	t.Helper()
	me := actor{w.actors, fmt.Sprintf("actor-%d", w.n.Add(1))}
	far := &afar{Backend: w.backend(t, me)}
	opts := w.options(me)
	opts.CacheBytes, opts.Remote = 64<<20, true
	opts.DiskCache = DiskCache{Dir: dir, Bytes: 1 << 30}
	r, err := Open(t.Context(), far, testPassword, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, far
}

func openDisk(t testing.TB, r *Repository, p *Point) *Image {
	t.Helper()
	img, err := r.OpenDisk(t.Context(), p, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

// TestFromAfar: a scan makes few large requests, random reads ask for what they
// need, and what was read stays.
func TestFromAfar(t *testing.T) {
	w, near := newRepo(t)
	src := disktest.Random(1, 32<<20, 1) // does not compress
	p := backup(t, near, "vm", nil, src, nil)
	dir := t.TempDir()
	r, far := openAfar(t, w, dir)
	far.took()

	img := openDisk(t, r, p)
	for _, off := range []int64{5 << 20, 17<<20 + 4096, 11<<20 + 70_000} {
		if _, err := img.ReadAt(make([]byte, 4096), off); err != nil {
			t.Fatal(err)
		}
	}
	if opens, reads, bytes := far.took(); opens > 2 || reads > 8 || bytes > 12*64<<10 {
		t.Errorf("3 random reads: %d opens, %d requests, %d bytes", opens, reads, bytes)
	}
	buf := make([]byte, 64<<10)
	for off := int64(0); off < src.Size(); off += int64(len(buf)) {
		if _, err := img.ReadAt(buf, off); err != nil {
			t.Fatal(err)
		}
		img.ahead.running.Wait() // a reader in memory would overtake what is asked for ahead of it
	}
	opens, reads, bytes := far.took()
	t.Logf("a scan of 32 MiB: %d opens, %d requests, %d bytes, %+v", opens, reads, bytes, r.near.Stats())
	if opens > 2 || reads > 60 || bytes > src.Size()+4<<20 {
		t.Errorf("a scan of 32 MiB: %d opens, %d requests, %d bytes", opens, reads, bytes)
	}
	wantDisk(t, r, p, 0, src)
	img.Close()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}

	r, far = openAfar(t, w, dir)
	if _, err := r.Points(t.Context()); err != nil {
		t.Fatal(err)
	}
	far.took()
	wantDisk(t, r, p, 0, src)
	if opens, reads, bytes := far.took(); bytes > 4<<20 {
		t.Errorf("after a restart: %d opens, %d requests, %d bytes", opens, reads, bytes)
	}
	// What is on disk is not what is in the repository's plaintext.
	if s := r.near.Stats(); s.Corrupt != 0 {
		t.Errorf("%+v", s)
	}
}

// flipping gives one byte of each segment wrong while it is on.
type flipping struct {
	backend.Backend
	at int64
	on atomic.Bool
}

func (b *flipping) Open(ctx context.Context, name string) (backend.Object, error) {
	o, err := b.Backend.Open(ctx, name)
	if err != nil || !strings.HasPrefix(name, "segments/") {
		return o, err
	}
	return &flippingObject{o, b}, nil
}

type flippingObject struct {
	backend.Object
	b *flipping
}

func (o *flippingObject) ReadAt(p []byte, off int64) (int, error) {
	n, err := o.Object.ReadAt(p, off)
	if i := o.b.at - off; i >= 0 && i < int64(n) && o.b.on.Load() {
		p[i] ^= 1
	}
	return n, err
}

// move writes the next generation of a segment and removes the one before.
func move(t *testing.T, r *Repository, object string) {
	t.Helper()
	all := func(int) bool { return true }
	if _, err := segment.Rewrite(t.Context(), r.backend, r.keys, object, all, segment.WriterOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := r.backend.Remove(t.Context(), object); err != nil {
		t.Fatal(err)
	}
}

// TestPointsOnceRead cost no request but the listing, also in the next process.
func TestPointsOnceRead(t *testing.T) {
	w, near := newRepo(t)
	for i := range 20 {
		backup(t, near, fmt.Sprint("vm", i), nil, disktest.Random(uint64(i), 64<<10, 1), nil)
	}
	dir := t.TempDir()
	for _, first := range []bool{true, false} {
		r, far := openAfar(t, w, dir)
		points, err := r.Points(t.Context())
		if err != nil || len(points) != 20 {
			t.Fatal(len(points), err)
		}
		if opens, reads, _ := far.took(); first && opens != 20 || !first && opens+reads != 0 {
			t.Errorf("first %v: %d opens, %d requests", first, opens, reads)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// A point that is damaged near us and good where it is stored is good.
	blocks, err := filepath.Glob(filepath.Join(dir, "*", "blocks"))
	if err != nil || len(blocks) != 1 {
		t.Fatal(blocks, err)
	}
	data, err := os.ReadFile(blocks[0])
	if err != nil {
		t.Fatal(err)
	}
	for i := range data {
		data[i] ^= 1
	}
	if err := os.WriteFile(blocks[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	r, _ := openAfar(t, w, dir)
	if points, err := r.Points(t.Context()); err != nil || len(points) != 20 {
		t.Error(len(points), err)
	}
	if s := r.near.Stats(); s.Corrupt != 20 {
		t.Errorf("%d chunks found corrupt, want 20", s.Corrupt)
	}
}

// TestDamageNearbyIsNotBelieved: bytes that the backend gave wrong once are not
// kept as damage once the backend gives them right.
func TestDamageNearbyIsNotBelieved(t *testing.T) {
	w, near := newRepo(t)
	src := disktest.Random(1, 1<<20, 1)
	p := backup(t, near, "vm", nil, src, nil)
	r, far := openAfar(t, w, t.TempDir())
	wrong := &flipping{Backend: far.Backend, at: 150 << 10}
	far.Backend = wrong
	wrong.on.Store(true)
	img := openDisk(t, r, p)
	if _, err := img.ReadAt(make([]byte, 1<<20), 0); !errors.Is(err, ErrDamaged) {
		t.Fatalf("wrong bytes: %v", err)
	}
	wrong.on.Store(false)
	wantDisk(t, r, p, 0, src)
}

// TestReadsWhileItIsCompacted: an object that is replaced by its next generation
// is found again, whatever was open or cached of it.
func TestReadsWhileItIsCompacted(t *testing.T) {
	for _, cached := range []bool{false, true} {
		t.Run(fmt.Sprint("cached=", cached), func(t *testing.T) {
			w, near := newRepo(t)
			src := disktest.Random(1, 4<<20, 1)
			p := backup(t, near, "vm", nil, src, nil)
			r := near
			if cached {
				r, _ = openAfar(t, w, t.TempDir())
			}
			img := openDisk(t, r, p)
			if _, err := img.ReadAt(make([]byte, 4096), 0); err != nil {
				t.Fatal(err)
			}
			for _, name := range objects(t, near.backend, "segments/") {
				move(t, near, name)
			}
			disktest.Equal(t, img, src)
		})
	}
}

// BenchmarkAfar reads through 15 ms of latency in order, with nothing of it on
// local disk, and all.
func BenchmarkAfar(b *testing.B) {
	w, near := newRepo(b)
	p := backup(b, near, "vm", nil, benchDisk(benchSize), nil)
	for _, size := range []int{64 << 10, 1 << 20} {
		for _, where := range []string{"cold", "disk"} {
			b.Run(fmt.Sprintf("%dK/%s", size>>10, where), func(b *testing.B) {
				dir := b.TempDir()
				if where == "disk" {
					scanAfar(b, w, p, dir, size)
				}
				b.SetBytes(benchSize)
				var used time.Duration
				var stats blockcache.Stats
				for b.Loop() {
					if where == "cold" {
						dir = b.TempDir()
					}
					start := cpuTime()
					stats = scanAfar(b, w, p, dir, size)
					used += cpuTime() - start
				}
				perCore(b, benchSize, used)
				b.ReportMetric(float64(stats.Requests), "requests")
				b.ReportMetric(float64(stats.Wasted)/1e6, "MB-wasted")
			})
		}
	}
}

func scanAfar(b *testing.B, w *world, p *Point, dir string, size int) blockcache.Stats {
	b.Helper()
	r, far := openAfar(b, w, dir)
	defer r.Close()
	far.delay = 15 * time.Millisecond
	img := openDisk(b, r, p)
	defer img.Close()
	buf := make([]byte, size)
	for off := int64(0); off < benchSize; off += int64(size) {
		if _, err := img.ReadAt(buf, off); err != nil {
			b.Fatal(err)
		}
	}
	return r.near.Stats()
}
