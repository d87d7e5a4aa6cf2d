package store

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/segment"
)

// TestAddrBits compares the set with a map.
func TestAddrBits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set, want := newAddrBits(), map[segment.Addr]bool{}
		number := rapid.SampledFrom([]uint64{1, 2, 64, 65, 1 << 40})
		slot := rapid.OneOf(rapid.IntRange(0, 200), rapid.IntRange(2000, 2100), rapid.IntRange(0, segment.MaxSlots-1))
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			n, s := number.Draw(t, "number"), slot.Draw(t, "slot")
			a := segment.MakeAddr(n, s)
			if rapid.Bool().Draw(t, "run") {
				count := rapid.IntRange(1, min(1024, segment.MaxSlots-s)).Draw(t, "count")
				set.make(n).setRun(s, count)
				for i := range count {
					want[a+segment.Addr(i)] = true
				}
				continue
			}
			if got := set.add(a); got == want[a] {
				t.Fatalf("add %v: new is %v", a, got)
			}
			want[a] = true
		}
		total := 0
		for n, b := range set.all() {
			count, span := b.count()
			total += count
			if count > 0 && !want[segment.MakeAddr(n, span-1)] {
				t.Fatalf("segment %x ends at %d", n, span)
			}
			for w, v := range b.words() {
				for ; v != 0; v &= v - 1 {
					if a := segment.MakeAddr(n, w*64+bits.TrailingZeros64(v)); !want[a] || !set.has(a) {
						t.Fatalf("%v is in the set", a)
					}
				}
			}
		}
		if total != len(want) {
			t.Fatalf("%d addresses, not %d", total, len(want))
		}
	})
}

// TestAddrBitsMemory: what a tenth of a TB of blocks takes, as segments of them
// that cannot be compressed, and that can be by half.
func TestAddrBitsMemory(t *testing.T) {
	for slots, segments := range map[int]uint64{1023: 1640, 2046: 820, 4092: 410} {
		set := newAddrBits()
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for n := range segments {
			set.make(256+n).setRun(0, slots)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		perTB := 10 * int64(after.HeapAlloc-before.HeapAlloc)
		if t.Logf("%d slots a segment: %d bytes for each TB", slots, perTB); perTB > 6<<20 {
			t.Errorf("%d slots a segment: %d bytes for each TB", slots, perTB)
		}
		runtime.KeepAlive(set)
	}
}

// nodeMemory keeps nodes for trees that exist in memory only.
type nodeMemory struct {
	nodes [][]byte // by slot, segments of 60,000 from number 1<<20 on
}

const nodesPerSegment = 60_000

func (m *nodeMemory) WriteNode(_ context.Context, node []byte) (segment.Addr, error) {
	n := len(m.nodes)
	m.nodes = append(m.nodes, append([]byte(nil), node...))
	return segment.MakeAddr(1<<20+uint64(n/nodesPerSegment), n%nodesPerSegment), nil
}

func (m *nodeMemory) ReadFrame(_ context.Context, a segment.Addr, _ int, dst []byte) (int, error) {
	n := int(a.Segment()-1<<20)*nodesPerSegment + a.Slot()
	if n < 0 || n >= len(m.nodes) {
		return 0, errors.New("no such node")
	}
	return copy(dst, m.nodes[n]), nil
}

// TestMark compares what is marked with what a walk finds.
func TestMark(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mem := new(nodeMemory)
		r := blockmap.NewReader(mem, blockmap.ReaderOptions{})
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		var trees []blockmap.Tree
		var parent blockmap.Tree
		for range rapid.IntRange(1, 4).Draw(t, "trees") {
			const size = 3000 * DefaultBlockSize
			b, err := blockmap.NewBuilder(r, parent, size, DefaultBlockSize, mem)
			if err != nil {
				t.Fatal(err)
			}
			for block := int64(0); block < 3000; block += 1 + rng.Int64N(700) {
				first := segment.MakeAddr(1+rng.Uint64N(5), rng.IntN(3000))
				for i := range min(1+rng.Int64N(300), 3000-block) {
					if err := b.Set(t.Context(), block, first+segment.Addr(i)); err != nil {
						t.Fatal(err)
					}
					block++
				}
			}
			tree, err := b.Finish(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			trees, parent = append(trees, tree), tree
		}
		set, want := newAddrBits(), newAddrSet()
		err := r.Mark(t.Context(), trees, blockmap.MarkOptions{Workers: 3, New: func() blockmap.Marker { return &bitsMarker{set: set} }})
		if err != nil {
			t.Fatal(err)
		}
		for _, tree := range trees {
			err := r.Visit(t.Context(), tree, want.add, func(n blockmap.Node) error {
				for _, a := range n.Entries {
					if a.Stored() && n.Level == 0 {
						want.add(a)
					}
				}
				return n.Err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, number := range want.numbers() {
			for slot := range want.slots(number) {
				if !set.has(segment.MakeAddr(number, slot)) {
					t.Fatalf("%x:%d is missing", number, slot)
				}
			}
		}
		total := 0
		for _, b := range set.all() {
			n, _ := b.count()
			total += n
		}
		if int64(total) != want.count {
			t.Fatalf("%d addresses are marked, not %d", total, want.count)
		}
	})
}

// TestMarkNamesWhatItCannotRead: a node that is gone ends it and is blamed on its
// point.
func TestMarkNamesWhatItCannotRead(t *testing.T) {
	_, r := newRepo(t)
	p := backup(t, r, "vm", nil, randomDisk(1, 1<<20), nil)
	rec := *p.rec
	rec.Disks = append([]diskRecord{}, rec.Disks...)
	rec.Disks[0].Root = textAddr(segment.MakeAddr(77, 0))
	err := r.mark(t.Context(), []*pointRecord{p.rec, &rec}, newAddrBits(), markOptions{})
	if !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
}

// BenchmarkMark marks the blocks of a disk of 1 TiB in trees that are in memory:
// as one full backup makes them, and as they are where one block in so many lies
// elsewhere, because it was there before or has changed since. The rate is per
// core: of the processor time that it took, in one goroutine.
func BenchmarkMark(b *testing.B) {
	for _, every := range []int64{0, 200, 50, 10} {
		name := "sequential"
		if every > 0 {
			name = fmt.Sprintf("1in%d", every)
		}
		b.Run(name, func(b *testing.B) {
			mem := new(nodeMemory)
			blocks := int64(1 << 24) // 1 TiB
			bl, err := blockmap.NewBuilder(nil, blockmap.Tree{}, blocks*DefaultBlockSize, DefaultBlockSize, mem)
			if err != nil {
				b.Fatal(err)
			}
			rng := rand.New(rand.NewPCG(1, 1))
			for i := range blocks {
				a := segment.MakeAddr(1000+uint64(i/1500), int(i%1500))
				if every > 0 && rng.Int64N(every) == 0 {
					a = segment.MakeAddr(1+rng.Uint64N(900), rng.IntN(1500))
				}
				if err := bl.Set(b.Context(), i, a); err != nil {
					b.Fatal(err)
				}
			}
			tree, err := bl.Finish(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			r := blockmap.NewReader(mem, blockmap.ReaderOptions{})
			cpu := func() int64 {
				var u unix.Rusage
				if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
					b.Fatal(err)
				}
				return u.Utime.Nano() + u.Stime.Nano()
			}
			start := cpu()
			for b.Loop() {
				set := newAddrBits()
				err := r.Mark(b.Context(), []blockmap.Tree{tree}, blockmap.MarkOptions{New: func() blockmap.Marker { return &bitsMarker{set: set} }})
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(blocks)*float64(b.N)/float64(cpu()-start)*1e3, "Mrefs/s/core")
		})
	}
}
