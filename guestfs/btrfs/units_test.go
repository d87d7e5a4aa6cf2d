package btrfs

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestXXHash: the vectors of the specification's own sanity checks.
func TestXXHash(t *testing.T) {
	for in, want := range map[string]uint64{
		"":    0xef46db3751d8e999,
		"a":   0xd24ec4f1a98c6e5b,
		"abc": 0x44bc2cf5ad770999,
		"Nobody inspects the spammish repetition": 0xfbcea83c8a378bf1,
	} {
		if got := xxhash([]byte(in)); got != want {
			t.Errorf("%q: %#x, want %#x", in, got, want)
		}
	}
}

// TestChanges: keys are found as in a sorted list of all of them.
func TestChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, model := newChanges(), map[key]change{}
		draw := func() key {
			return key{rapid.Uint64Range(0, 3).Draw(t, "id"), rapid.Byte().Draw(t, "kind") % 3, rapid.Uint64Range(0, 400).Draw(t, "offset")}
		}
		for range rapid.IntRange(0, 1500).Draw(t, "changes") {
			k, ch := draw(), change{gone: rapid.Bool().Draw(t, "gone")}
			c.set(k, ch)
			model[k] = ch
		}
		sorted := slices.SortedFunc(maps.Keys(model), func(a, b key) int {
			switch {
			case a.less(b):
				return -1
			case b.less(a):
				return 1
			}
			return 0
		})
		for range 50 {
			k := draw()
			i := slices.IndexFunc(sorted, func(s key) bool { return !s.less(k) })
			if got, ok := c.ceil(k); ok != (i >= 0) || ok && got != sorted[i] {
				t.Fatalf("ceil(%v) is %v, %v", k, got, ok)
			}
			if i < 0 {
				i = len(sorted)
			}
			if i < len(sorted) && sorted[i] == k {
				i++
			}
			if got, ok := c.floor(k); ok != (i > 0) || ok && got != sorted[i-1] {
				t.Fatalf("floor(%v) is %v, %v", k, got, ok)
			}
		}
	})
}

// TestRAID: what stands on the devices of a striped chunk is read back at every
// address, wherever a read begins and ends.
func TestRAID(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := chunk{start: 1 << 20, stripe: 64 << 10, sub: 2}
		c.raid = rapid.SampledFrom([]uint64{0, dup, raid0, raid1, raid10, raid5, raid6, raid1c3}).Draw(t, "profile")
		n := map[uint64]int{0: 1, dup: 2, raid1: 2, raid1c3: 3}[c.raid]
		if n == 0 {
			n = 2 * rapid.IntRange(2, 4).Draw(t, "devices")
		}
		data := n
		switch c.raid {
		case dup, raid1, raid1c3:
			data = 1
		case raid10:
			data = n / 2
		case raid5:
			data = n - 1
		case raid6:
			data = n - 2
		}
		c.length = uint64(data) * 3 * c.stripe
		for i := range n {
			c.stripes = append(c.stripes, stripe{uint64(i), uint64(i) << 32})
		}
		seen := map[string]bool{}
		for at := c.start; at < c.start+c.length; {
			for mirror := range c.copies() {
				s, left := c.place(at, mirror)
				where := fmt.Sprint(s)
				if seen[where] || s.at-s.device<<32 >= 3*c.stripe || left == 0 || left > c.start+c.length-at {
					t.Fatalf("%d, copy %d, is at %v for %d", at, mirror, s, left)
				}
				seen[where] = true
			}
			_, left := c.place(at, 0)
			at += min(left, c.stripe)
		}
	})
}

// FuzzLZO: whatever is decoded, it does not crash, and does not write outside.
func FuzzLZO(f *testing.F) {
	f.Add([]byte("\x15abcd\x11\x00\x00"), 64)
	f.Add(append([]byte{18 + 17}, append(bytes.Repeat([]byte{'x'}, 18), "\x20\x00\x03\x00\x11\x00\x00"...)...), 4096)
	f.Fuzz(func(t *testing.T, in []byte, n int) {
		if n < 0 || n > 1<<16 {
			return
		}
		out := make([]byte, n, n+1)
		if err := lzo(out, in); err == nil && len(in) < 3 {
			t.Errorf("%x has no end", in)
		}
		_ = lzoSegments(out, in, 4096)
		_, _ = zstdFrame(in)
	})
}
