package store

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/store/backend"
)

// watched counts what is read from segments, and can hold reads back.
type watched struct {
	backend.Backend
	reads, bytes atomic.Int64
	gate         atomic.Pointer[chan struct{}]
	held         chan struct{} // gets a value when a read is held back
}

type watchedObject struct {
	backend.Object
	w *watched
}

func (w *watched) Open(ctx context.Context, name string) (backend.Object, error) {
	o, err := w.Backend.Open(ctx, name)
	if err == nil && strings.HasPrefix(name, "segments/") {
		o = watchedObject{o, w}
	}
	return o, err
}

func (o watchedObject) ReadAt(p []byte, off int64) (int, error) {
	o.w.reads.Add(1)
	o.w.bytes.Add(int64(len(p)))
	if gate := o.w.gate.Load(); gate != nil {
		o.w.held <- struct{}{}
		<-*gate
	}
	return o.Object.ReadAt(p, off)
}

// watchedImage is a disk of incompressible data of a repository that is
// watched, with the map and the tables in memory and no frame.
func watchedImage(t *testing.T, size int64) (*watched, *Image, *disktest.Memory) {
	t.Helper()
	w, r := newRepo(t)
	src := disktest.Random(1, size, 1)
	p := backup(t, r, "vm", nil, src, nil)
	me := actor{w.actors, "reader"}
	b := &watched{Backend: w.backend(t, me), held: make(chan struct{}, 100)}
	opts := w.options(me)
	opts.CacheBytes = 64 << 20
	again, err := Open(t.Context(), b, testPassword, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.Close() })
	img, err := again.OpenDisk(t.Context(), p, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	if _, err := img.ReadAt(make([]byte, 1), size-1); err != nil {
		t.Fatal(err)
	}
	b.reads.Store(0)
	b.bytes.Store(0)
	return b, img, src
}

func TestMissesAreFetchedOnce(t *testing.T) {
	b, img, src := watchedImage(t, 4<<20)
	gate := make(chan struct{})
	b.gate.Store(&gate)
	var group sync.WaitGroup
	for i := range 32 {
		group.Go(func() {
			p, want := make([]byte, 4096), make([]byte, 4096)
			off := int64(i%4) * 4096 // one frame
			src.ReadAt(want, off)
			if _, err := img.ReadAt(p, off); err != nil || string(p) != string(want) {
				t.Error("read", err)
			}
		})
	}
	close(gate)
	group.Wait()
	if n := b.reads.Load(); n != 1 {
		t.Errorf("32 reads of one frame took %d reads of the segment", n)
	}
}

func TestReadAmplification(t *testing.T) {
	b, img, _ := watchedImage(t, 16<<20)
	rng := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 4096)
	for range 100 {
		if _, err := img.ReadAt(p, rng.Int64N(16<<20/4096)*4096); err != nil {
			t.Fatal(err)
		}
	}
	if reads, bytes := b.reads.Load(), b.bytes.Load(); reads > 100 || bytes > 100*(16<<10+100) {
		t.Errorf("100 random reads of 4 KiB took %d reads of %d bytes", reads, bytes)
	}
	// A whole block is one read.
	b.reads.Store(0)
	if _, err := img.ReadAt(make([]byte, testBlock), 100*testBlock); err != nil || b.reads.Load() > 1 {
		t.Errorf("a block took %d reads (%v)", b.reads.Load(), err)
	}
}

func TestReadCachedDoesNotAllocate(t *testing.T) {
	b, img, src := watchedImage(t, 4<<20)
	contents(t, img)
	n := b.reads.Load()
	p, want := make([]byte, 4096), make([]byte, 4096)
	misses := 0
	allocs := testing.AllocsPerRun(100, func() {
		if !img.ReadCached(p, 5*4096) {
			misses++
		}
	})
	if src.ReadAt(want, 5*4096); allocs != 0 || misses != 0 || string(p) != string(want) {
		t.Errorf("%v allocations, %d misses", allocs, misses)
	}
	if b.reads.Load() != n {
		t.Error("a cached read went to the segment")
	}
	for _, off := range []int64{-1, img.Size(), img.Size() - 4095} {
		if img.ReadCached(p, off) {
			t.Errorf("a read at %d was served", off)
		}
	}
}

func TestImageEnds(t *testing.T) {
	b, img, _ := watchedImage(t, 4<<20)
	gate := make(chan struct{})
	b.gate.Store(&gate)
	failed := make(chan error)
	go func() {
		_, err := img.ReadAt(make([]byte, 2*testBlock), 0)
		failed <- err
	}()
	<-b.held
	waiting := make(chan error)
	go func() {
		_, err := img.ReadAt(make([]byte, 2*testBlock), 0)
		waiting <- err
	}()
	if err := img.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, ErrClosed) {
		t.Errorf("a read that waited for another: %v", err)
	}
	close(gate)
	if err := <-failed; !errors.Is(err, ErrClosed) {
		t.Errorf("a read in flight: %v", err)
	}
	if _, err := img.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("a read after Close: %v", err)
	}
	if img.ReadCached(make([]byte, 1), img.Size()-1) {
		t.Error("a cached read after Close")
	}
}

func TestImageContext(t *testing.T) {
	_, r := newRepo(t)
	p := backup(t, r, "vm", nil, disktest.Random(1, 1<<20, 1), nil)
	ctx, cancel := context.WithCancel(t.Context())
	img, err := r.OpenDisk(ctx, p, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	cancel()
	if _, err := img.ReadAt(make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := img.ReadAt(make([]byte, 10), -1); !errors.Is(err, disk.ErrOutOfRange) {
		t.Error(err)
	}
	if n, err := img.ReadAt(make([]byte, 10), img.Size()); n != 0 || !errors.Is(err, io.EOF) {
		t.Error(n, err)
	}
	for _, n := range []int{-1, 1} {
		if _, err := r.OpenDisk(t.Context(), p, n); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
	}
}
