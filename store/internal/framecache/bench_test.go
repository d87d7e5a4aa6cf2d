package framecache

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// cpuTime adds the processor time per operation to a benchmark's results: it
// says more than wall time on a machine that others use too.
func cpuTime(b *testing.B) func() {
	now := func() int64 {
		var r unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return r.Utime.Nano() + r.Stime.Nano()
	}
	b.ResetTimer()
	start := now()
	return func() {
		b.ReportMetric(float64(now()-start)/float64(b.N), "cpu-ns/op")
	}
}

const benchFrames = 200 << 20 / SlotSize

// BenchmarkGet reads 4 KiB at random from a cache of 200 MiB in use; compare
// with BenchmarkPread, the page cache's way of doing the same. Each is run by
// one goroutine and by one per processor (-cpu 1,2).
func BenchmarkGet(b *testing.B) {
	c := newCache(b, 256<<20)
	frame := make([]byte, SlotSize)
	for i := range uint64(benchFrames) {
		c.Put(i<<16, 0, frame)
	}
	b.SetBytes(4096)
	defer cpuTime(b)()
	b.RunParallel(func(pb *testing.PB) {
		dst := make([]byte, 4096)
		r := rand.New(rand.NewPCG(rand.Uint64(), 0))
		misses := 0
		for pb.Next() {
			n := r.Uint64()
			if !c.Get(n%benchFrames<<16, 0, dst, int(n>>62)*4096) {
				misses++
			}
		}
		if misses > b.N/20 {
			b.Errorf("%d misses of %d", misses, b.N)
		}
	})
}

func BenchmarkPread(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "file"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	frame := make([]byte, SlotSize)
	for range benchFrames {
		if _, err := f.Write(frame); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(4096)
	defer cpuTime(b)()
	b.RunParallel(func(pb *testing.PB) {
		dst := make([]byte, 4096)
		r := rand.New(rand.NewPCG(rand.Uint64(), 0))
		for pb.Next() {
			n := r.Uint64()
			if _, err := f.ReadAt(dst, int64(n%benchFrames)*SlotSize+int64(n>>62)*4096); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkPut is what a miss adds: 16 KiB copied, one frame evicted.
func BenchmarkPut(b *testing.B) {
	c := newCache(b, 64<<20)
	frame := make([]byte, SlotSize)
	for i := range uint64(64 << 20 / SlotSize) {
		c.Put(i<<16|1, 0, frame)
	}
	b.SetBytes(SlotSize)
	defer cpuTime(b)()
	for i := range b.N {
		c.Put(uint64(i)<<16, 0, frame)
	}
}
