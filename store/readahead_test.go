package store

import (
	"iter"
	"math/rand/v2"
	"testing"
)

// aheadOf plays reads and adds up what is decoded and fetched ahead of them.
func aheadOf(t *testing.T, far int64, reads iter.Seq2[int64, int]) (decoded, fetched int64, windows int) {
	t.Helper()
	var a readahead
	a.init(4<<20, far)
	var decodedTo, fetchedTo int64
	add := func(s span, covered, sum *int64) {
		if s == (span{}) {
			return
		}
		if s.from < *covered {
			t.Errorf("[%d, %d) was read ahead before, up to %d", s.from, s.to, *covered)
		}
		*covered = s.to
		*sum += s.to - s.from
	}
	for off, n := range reads {
		decode, fetch := a.note(off, n)
		if decode == (span{}) && fetch == (span{}) {
			continue
		}
		add(decode, &decodedTo, &decoded)
		add(fetch, &fetchedTo, &fetched)
		windows++
		a.running.Done()
	}
	return decoded, fetched, windows
}

func inOrder(size int64, n int) iter.Seq2[int64, int] {
	return func(yield func(int64, int) bool) {
		for off := int64(0); off < size; off += int64(n) {
			if !yield(off, n) {
				return
			}
		}
	}
}

// TestReadAheadDecision: what is read ahead for which reads.
func TestReadAheadDecision(t *testing.T) {
	const size = 1 << 40
	rng := rand.New(rand.NewPCG(1, 2))
	decoded, fetched, _ := aheadOf(t, farMax, func(yield func(int64, int) bool) {
		for range 10_000 {
			if !yield(rng.Int64N(size/4096)*4096, 4096) {
				return
			}
		}
	})
	if decoded+fetched != 0 {
		t.Errorf("%d and %d bytes read ahead of random reads", decoded, fetched)
	}
	for _, n := range []int{4096, 65536} {
		decoded, fetched, windows := aheadOf(t, 0, inOrder(256<<20, n))
		if decoded < 250<<20 || decoded > 262<<20 || windows > 200 || fetched != 0 {
			t.Errorf("reads of %d bytes: %d bytes decoded ahead in %d windows, %d fetched", n, decoded, windows, fetched)
		}
	}
	shuffled, _, _ := aheadOf(t, 0, func(yield func(int64, int) bool) {
		for off := int64(0); off < 64<<20; off += 4 << 16 {
			for _, i := range []int64{1, 0, 3, 2} { // as several requests in flight arrive
				if !yield(off+i<<16, 1<<16) {
					return
				}
			}
		}
	})
	if shuffled < 56<<20 {
		t.Errorf("%d of 64 MiB read ahead of requests out of order", shuffled)
	}
}

// TestReadAheadFromAfar: the window of what is fetched grows to its limit and no
// further, also for large reads, which are not decoded ahead.
func TestReadAheadFromAfar(t *testing.T) {
	for _, n := range []int{65536, 1 << 20} {
		decoded, fetched, _ := aheadOf(t, farMax, inOrder(256<<20, n))
		if fetched < 250<<20 || fetched > 256<<20+farMax {
			t.Errorf("reads of %d bytes: %d of 256 MiB fetched ahead", n, fetched)
		}
		if large := n >= directMin; large != (decoded == 0) {
			t.Errorf("reads of %d bytes: %d bytes decoded ahead", n, decoded)
		}
	}
	if decoded, fetched, _ := aheadOf(t, 0, inOrder(256<<20, 1<<20)); decoded+fetched != 0 {
		t.Errorf("%d and %d bytes read ahead of large reads of a backend that is close", decoded, fetched)
	}
}
