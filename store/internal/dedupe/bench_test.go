package dedupe

import (
	"context"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"lifeboat/internal/vfs"
	"lifeboat/store/backend"
	"lifeboat/store/internal/segment"
)

// benchEntries is how many entries the benchmarks' index has. The figures in
// the documentation are with LIFEBOAT_BENCH_ENTRIES=20000000.
func benchEntries(b *testing.B) uint64 {
	if n, err := strconv.ParseUint(os.Getenv("LIFEBOAT_BENCH_ENTRIES"), 10, 40); err == nil {
		return n
	}
	return 1_000_000
}

// benchIndex is an index on disk, published a million at a time and merged as
// a store does it.
func benchIndex(b *testing.B, n uint64) *Index {
	b.Helper()
	d, err := backend.NewDir(vfs.OS(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	x := openIndex(b, d)
	const batch = 1_000_000
	for from := uint64(0); from < n; from += batch {
		publish(b, x, entries(from, min(from+batch, n)))
		if err := x.Merge(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	return x
}

// cpuTime is what the process has used: the figure that other load on the
// machine does not change much.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkLookup(b *testing.B) {
	n := benchEntries(b)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	x := benchIndex(b, n)
	x.build = builder{}
	runtime.GC()
	runtime.ReadMemStats(&after)
	s := x.Stats()
	report := func(b *testing.B, cpu time.Duration) {
		b.ReportMetric(float64((cpuTime(b)-cpu).Nanoseconds())/float64(b.N), "cpu-ns/op")
		b.ReportMetric(float64(s.Memory)/float64(s.Entries), "B/entry")
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(s.Entries), "heap-B/entry")
		b.ReportMetric(float64(s.Runs), "runs")
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lookups/s")
	}
	ids := make([]segment.Identity, 1<<16)
	prepare := func(first uint64) {
		for i := range ids {
			ids[i] = identity(first + uint64(i)*0x9e3779b97f4a7c15%n)
		}
	}
	for _, c := range []struct {
		name  string
		first uint64
		found bool
	}{{"hit", 0, true}, {"miss", 1 << 50, false}} {
		b.Run(c.name, func(b *testing.B) {
			prepare(c.first)
			cpu := cpuTime(b)
			b.ResetTimer()
			for i := range b.N {
				if _, ok := x.Lookup(ids[i%len(ids)]); ok != c.found {
					b.Fatal("wrong answer")
				}
			}
			report(b, cpu)
		})
		b.Run(c.name+"-parallel", func(b *testing.B) {
			prepare(c.first)
			cpu := cpuTime(b)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					if _, ok := x.Lookup(ids[i%len(ids)]); ok != c.found {
						b.Error("wrong answer")
					}
				}
			})
			report(b, cpu)
		})
	}
}

func BenchmarkPublish(b *testing.B) {
	n := benchEntries(b) / 10
	list := entries(0, n)
	d, err := backend.NewDir(vfs.OS(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	x := openIndex(b, d)
	for b.Loop() {
		publish(b, x, append([]Entry(nil), list...))
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

func BenchmarkOpen(b *testing.B) {
	x := benchIndex(b, benchEntries(b))
	var once sync.Once
	for b.Loop() {
		y, err := Open(context.Background(), x.b, x.keys, Options{})
		if err != nil {
			b.Fatal(err)
		}
		once.Do(func() { b.ReportMetric(float64(y.Stats().Entries), "entries") })
		if err := y.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
