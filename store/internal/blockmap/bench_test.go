package blockmap

import (
	"context"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/store/internal/segment"
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
	b.ReportAllocs()
	b.ResetTimer()
	start := now()
	return func() { b.ReportMetric(float64(now()-start)/float64(b.N), "cpu-ns/op") }
}

// benchTree is the map of a disk of blocks blocks, as a first full backup of it
// makes it: sequential but for a block in 50 that was there before.
func benchTree(b *testing.B, mem *memory, blocks int64) Tree {
	bl, err := NewBuilder(nil, Tree{}, blocks*blockSize, blockSize, mem)
	if err != nil {
		b.Fatal(err)
	}
	setAll(b, bl, blocks)
	t, err := bl.Finish(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return t
}

func setAll(b *testing.B, bl *Builder, blocks int64) {
	r := rand.New(rand.NewPCG(1, 1))
	slot, number := 0, uint64(1000)
	for i := range blocks {
		addr := segment.MakeAddr(number, slot)
		if r.IntN(50) == 0 {
			addr = segment.MakeAddr(1+r.Uint64N(900), r.IntN(2500))
		} else if slot++; slot == 2500 {
			slot, number = 0, number+1
		}
		if err := bl.Set(context.Background(), i, addr); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLookupCached is the read path's: random blocks of 4 GiB.
func BenchmarkLookupCached(b *testing.B) {
	mem := newMemory()
	const blocks = 64 * Fanout
	m, err := NewReader(mem, ReaderOptions{}).Open(benchTree(b, mem, blocks))
	if err != nil {
		b.Fatal(err)
	}
	for i := int64(0); i < blocks; i += Fanout {
		if _, err := m.Lookup(b.Context(), i); err != nil {
			b.Fatal(err)
		}
	}
	defer cpuTime(b)()
	b.RunParallel(func(pb *testing.PB) {
		block := int64(0)
		for pb.Next() {
			block = (block*5 + 12345) & (blocks - 1)
			if _, ok := m.LookupCached(block); !ok {
				b.Error("not cached")
				return
			}
		}
	})
}

// BenchmarkLookupCold decodes a leaf, as the first read of 64 MiB of disk does.
func BenchmarkLookupCold(b *testing.B) {
	mem := newMemory()
	t := benchTree(b, mem, 64*Fanout)
	r := NewReader(mem, ReaderOptions{CacheBytes: 1})
	defer cpuTime(b)()
	for i := range b.N {
		if _, err := r.Lookup(b.Context(), t, int64(i%64)*Fanout); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBuild is the time per block of a full backup's map, and the bytes
// per block, before compression.
func BenchmarkBuild(b *testing.B) {
	mem := newMemory()
	bl, err := NewBuilder(nil, Tree{}, max(int64(b.N), 1)*blockSize, blockSize, mem)
	if err != nil {
		b.Fatal(err)
	}
	stop := cpuTime(b)
	setAll(b, bl, int64(b.N))
	if _, err := bl.Finish(b.Context()); err != nil {
		b.Fatal(err)
	}
	stop()
	total := 0
	for _, n := range mem.nodes {
		total += len(n)
	}
	b.ReportMetric(float64(total)/float64(b.N), "B/block")
}

// BenchmarkWalk is the time per block of going through a map.
func BenchmarkWalk(b *testing.B) {
	mem := newMemory()
	const blocks = 64 * Fanout
	t := benchTree(b, mem, blocks)
	r := NewReader(mem, ReaderOptions{})
	defer cpuTime(b)()
	for done := 0; done < b.N; done += blocks {
		for _, err := range r.Walk(b.Context(), t, 0, blocks) {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
}
