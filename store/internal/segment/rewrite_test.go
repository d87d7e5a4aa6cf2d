package segment

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// TestRewriteKeepsAddresses drops random slots generation after generation:
// what is left reads as before, under the same addresses.
func TestRewriteKeepsAddresses(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		blobs := make([]blob, rapid.IntRange(2, 600).Draw(rt, "blobs"))
		for i := range blobs {
			blobs[i] = mixed(r, Data, 1+r.IntN(100))
		}
		m := newMemory()
		addrs, info := write(t, m, 3, WriterOptions{}, blobs)
		live := map[int]bool{}
		for i := range blobs {
			live[i] = true
		}
		for gen := uint32(1); gen <= 2; gen++ {
			for i := range live {
				if r.IntN(3) == 0 && len(live) > 1 {
					delete(live, i)
				}
			}
			next, err := Rewrite(t.Context(), m, testKeys{}, info.Name, func(s int) bool { return live[s] }, WriterOptions{})
			if err != nil || next.Generation != gen || next.Number != 3 {
				rt.Fatalf("%+v, %v", next, err)
			}
			if err := m.Remove(t.Context(), info.Name); err != nil {
				rt.Fatal(err)
			}
			info = next
		}
		if d := verify(t, m, info.Name); d != nil {
			rt.Fatal(d[0])
		}
		rd := newTestReader(t, m, ReaderOptions{})
		for i := range blobs {
			if live[i] {
				if !readsRight(t, rd, addrs[i], blobs[i]) {
					rt.Fatalf("slot %d was lost", i)
				}
			} else if _, err := rd.ReadFrame(t.Context(), addrs[i], 0, make([]byte, FrameSize)); !errors.Is(err, ErrRemoved) {
				rt.Fatalf("dropped slot: %v", err)
			}
		}
		seen := 0
		for s, err := range Scan(t.Context(), m, testKeys{}, info.Name) {
			if err != nil || !live[s.Addr.Slot()] {
				rt.Fatalf("scan: %+v %v", s, err)
			}
			seen++
		}
		if seen != len(live) {
			rt.Fatalf("scan saw %d of %d", seen, len(live))
		}
	})
}

// TestReaderFollowsCompaction reads while generations come and go under it.
func TestReaderFollowsCompaction(t *testing.T) {
	m := newMemory()
	r := rand.New(rand.NewPCG(1, 1))
	blobs := make([]blob, 300)
	for i := range blobs {
		blobs[i] = mixed(r, Data, 1+r.IntN(20000))
	}
	addrs, info := write(t, m, 3, WriterOptions{}, blobs)
	rd := newTestReader(t, m, ReaderOptions{})
	done := make(chan struct{})
	var wg sync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 2))
			for {
				select {
				case <-done:
					return
				default:
				}
				i := 100 + rnd.IntN(200)
				if !readsRight(t, rd, addrs[i], blobs[i]) {
					t.Error("a live blob was lost")
					return
				}
			}
		})
	}
	for gen := range 8 {
		next, err := Rewrite(t.Context(), m, testKeys{}, info.Name, func(s int) bool { return s >= 10*gen }, WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		_ = m.Remove(t.Context(), info.Name)
		info = next
	}
	close(done)
	wg.Wait()
}

func TestRewriteRefuses(t *testing.T) {
	m, _, _, info := sample(t, 300)
	all := func(int) bool { return true }
	if _, err := Rewrite(t.Context(), m, testKeys{}, info.Name, func(int) bool { return false }, WriterOptions{}); !errors.Is(err, ErrNothingLive) {
		t.Errorf("nothing live: %v", err)
	}
	if _, err := Rewrite(t.Context(), m, testKeys{}, Name(77, 0), all, WriterOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no object: %v", err)
	}
	if _, err := Rewrite(t.Context(), m, testKeys{}, info.Name, all, WriterOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := Rewrite(t.Context(), m, testKeys{}, info.Name, all, WriterOptions{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second rewrite: %v", err)
	}
	b, _ := m.get(info.Name)
	lay, _ := parseTrailer(testKeys{}, b[len(b)-trailerSize:])
	off, _ := lay.page(identities, 0)
	b[off] ^= 1
	_ = m.Remove(t.Context(), Name(info.Number, 1))
	if _, err := Rewrite(t.Context(), m, testKeys{}, info.Name, all, WriterOptions{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("damaged table: %v", err)
	}
	if _, ok := m.get(Name(info.Number, 1)); ok {
		t.Error("a rewrite that failed left an object")
	}
}

// TestRewriteCarriesDamageAlong: copying a frame neither hides nor spreads what
// is wrong with it.
func TestRewriteCarriesDamageAlong(t *testing.T) {
	m := newMemory()
	blobs := []blob{{Data, []byte("first")}, {Data, []byte("other")}}
	addrs, info := write(t, m, 1, WriterOptions{}, blobs)
	b, _ := m.get(info.Name)
	b[headerSize] ^= 1
	next, err := Rewrite(t.Context(), m, testKeys{}, info.Name, func(int) bool { return true }, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_ = m.Remove(t.Context(), info.Name)
	rd := newTestReader(t, m, ReaderOptions{})
	if readsRight(t, rd, addrs[0], blobs[0]) || !readsRight(t, rd, addrs[1], blobs[1]) {
		t.Error("damage moved")
	}
	if all := verify(t, m, next.Name); len(all) != 1 || all[0].Addr != addrs[0] {
		t.Error(all)
	}
}
