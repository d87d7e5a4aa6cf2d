package framecache

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// content is what the tests store under a key: it tells its key in every word.
func content(addr uint64, frame, n int) []byte {
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], addr*31+uint64(frame)+uint64(i))
	}
	return b
}

func length(addr uint64, frame int) int {
	if addr%5 == 0 {
		return 8 * (1 + int(addr+uint64(frame))%(SlotSize/8))
	}
	return SlotSize
}

func newCache(t testing.TB, size int64) *Cache {
	t.Helper()
	c, err := New(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// TestAgainstMap: a hit returns what was put, whatever was asked before; with
// room for everything, everything hits.
func TestAgainstMap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		slots := rapid.SampledFrom([]int64{0, 1, 2, 7, 200, 5000}).Draw(rt, "slots")
		c, err := New(slots * SlotSize)
		if err != nil {
			rt.Fatal(err)
		}
		defer c.Close()
		keys := rapid.Uint64Range(1, 400).Draw(rt, "keys")
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		stored := map[[2]uint64]bool{}
		dst := make([]byte, SlotSize)
		for range 500 {
			addr, frame := r.Uint64N(keys)<<16|1, int(r.Uint64N(4))
			n := length(addr, frame)
			off := r.IntN(n)
			part := dst[:r.IntN(n-off+1)]
			if r.IntN(500) == 0 {
				c.Drop()
				clear(stored)
			}
			switch hit := c.Get(addr, frame, part, off); {
			case hit && !stored[[2]uint64{addr, uint64(frame)}]:
				rt.Fatalf("hit on what is not there")
			case hit && !bytes.Equal(part, content(addr, frame, n)[off:off+len(part)]):
				rt.Fatalf("wrong content")
			case !hit && stored[[2]uint64{addr, uint64(frame)}] && slots == 5000:
				rt.Fatalf("miss with room for all")
			}
			if c.Get(addr, frame, dst[:n-off], off+1) {
				rt.Fatalf("read beyond the end of a frame")
			}
			if r.IntN(2) == 0 {
				c.Put(addr, frame, content(addr, frame, n))
				stored[[2]uint64{addr, uint64(frame)}] = true
			}
		}
		if s := c.Stats(); s.Used > s.Slots || s.Slots != int(max(slots, 1)) && slots < 128 {
			rt.Fatalf("%+v", s)
		}
	})
}

func TestRefusesWhatDoesNotFit(t *testing.T) {
	c := newCache(t, 1<<20)
	c.Put(1, 0, make([]byte, SlotSize+1))
	c.Put(1, 0, nil)
	c.Put(1, -1, make([]byte, 10))
	c.Put(1, maxFrame+1, make([]byte, 10))
	if s := c.Stats(); s.Used != 0 {
		t.Errorf("%+v", s)
	}
	c.Put(1, maxFrame, []byte("x"))
	if one := make([]byte, 1); !c.Get(1, maxFrame, one, 0) || one[0] != 'x' || c.Get(1, maxFrame, one, -1) {
		t.Error("a frame of one byte")
	}
}

// TestRaces has readers check every word while writers reuse the slots under
// them and the cache is dropped again and again.
func TestRaces(t *testing.T) {
	c := newCache(t, 100*SlotSize)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			dst := make([]byte, SlotSize)
			for range 6000 {
				addr, frame := r.Uint64N(150)<<16, r.IntN(2)
				n := length(addr, frame)
				if !c.Get(addr, frame, dst[:n], 0) {
					c.Put(addr, frame, content(addr, frame, n))
				} else if !bytes.Equal(dst[:n], content(addr, frame, n)) {
					t.Error("wrong content")
					return
				}
				if r.IntN(1000) == 0 {
					c.Drop()
				}
			}
		})
	}
	wg.Wait()
	// No slot was lost: each that is given out next can be read.
	dst := make([]byte, SlotSize)
	for i := range uint64(1000) {
		c.Put(1<<50+i, 0, content(1<<50+i, 0, SlotSize))
		if !c.Get(1<<50+i, 0, dst, 0) {
			t.Fatalf("frame %d cannot be read: %+v", i, c.Stats())
		}
	}
}

// TestScanLeavesWorkingSet: a set that is read again and again stays while ten
// times the cache is read through once, in 4 KiB steps.
func TestScanLeavesWorkingSet(t *testing.T) {
	const slots = 2048
	c := newCache(t, slots*SlotSize)
	dst := make([]byte, 4096)
	frame := make([]byte, SlotSize)
	read := func(addr uint64) (missed bool) {
		for off := 0; off < SlotSize; off += len(dst) {
			if !c.Get(addr, 0, dst, off) {
				missed = true
				c.Put(addr, 0, frame)
			}
		}
		return missed
	}
	const working = slots / 2
	r := rand.New(rand.NewPCG(1, 2))
	for range 10 * working {
		read(1<<40 + r.Uint64N(working))
	}
	scan, misses := uint64(0), 0
	for range 10 * slots {
		scan++
		read(scan)
		if scan%2 == 0 && read(1<<40+r.Uint64N(working)) {
			misses++
		}
	}
	if rate := float64(misses) / (5 * slots); rate > 0.05 {
		t.Errorf("the scan cost the working set %.0f %% of its hits", 100*rate)
	}
}

// TestNewWorkingSetTakesOver: what is no longer asked for gives way.
func TestNewWorkingSetTakesOver(t *testing.T) {
	const slots = 2048
	c := newCache(t, slots*SlotSize)
	dst, frame := make([]byte, 4096), make([]byte, SlotSize)
	r := rand.New(rand.NewPCG(1, 2))
	for set := range uint64(3) {
		misses := 0
		for i := range 20 * slots {
			addr := set<<40 + r.Uint64N(slots*3/4)
			if !c.Get(addr, 0, dst, 0) {
				c.Put(addr, 0, frame)
				if i > 15*slots {
					misses++
				}
			}
		}
		if rate := float64(misses) / (5 * slots); rate > 0.05 {
			t.Errorf("working set %d still misses %.0f %%", set, 100*rate)
		}
	}
}

func TestDropGivesMemoryBack(t *testing.T) {
	c := newCache(t, 32<<20)
	for i := range uint64(1000) {
		c.Put(i, 0, content(i, 0, SlotSize))
	}
	c.Drop()
	if s := c.Stats(); s.Used != 0 || !bytes.Equal(c.arena, make([]byte, len(c.arena))) {
		t.Errorf("%+v", s)
	}
	c.Put(3, 0, []byte("again"))
	if got := make([]byte, 5); !c.Get(3, 0, got, 0) || string(got) != "again" {
		t.Error("of no use after Drop")
	}
}

// TestPinRules checks the rules of reading without locks one by one; the races
// that they are for are too short to be met by chance.
func TestPinRules(t *testing.T) {
	c := newCache(t, SlotSize)
	c.Put(1, 0, []byte("one"))
	s, got := &c.shards[0], make([]byte, 3)
	pins := &s.slots[0].pins
	if s.copyOut(0, 2, 0, got, 0) || s.copyOut(0, 1, 1, got, 0) || pins.Load() != 0 {
		t.Error("a slot was read under another's key")
	}
	pins.Store(locked)
	if c.Get(1, 0, got, 0) || pins.Load() != locked {
		t.Error("a slot was read while it is changed")
	}
	pins.Store(1)
	c.Put(2, 0, []byte("two"))
	if !c.Get(1, 0, got, 0) || string(got) != "one" || c.Get(2, 0, got, 0) || pins.Load() != 1 {
		t.Error("a slot was reused under a reader")
	}
	pins.Store(0)
	c.Put(2, 0, []byte("two"))
	if c.Get(1, 0, got, 0) || !c.Get(2, 0, got, 0) || string(got) != "two" {
		t.Error("a slot was not reused")
	}
}
