package blockmap

import (
	"maps"
	"testing"

	"lifeboat/store/internal/segment"
)

// collector is a Marker that remembers.
type collector map[segment.Addr]bool

func (c collector) Node(a segment.Addr) bool {
	was := c[a]
	c[a] = true
	return !was
}

func (c collector) Blocks(first segment.Addr, count int) {
	for i := range count {
		c[first+segment.Addr(i)] = true
	}
}

// FuzzMarkLeaf: marking takes what decoding takes, refuses what it refuses, and
// finds the same addresses.
func FuzzMarkLeaf(f *testing.F) {
	for _, n := range []*node{{}, {used: 3}, {used: 2}} {
		for i := range n.used {
			n.entries[5*i] = segment.MakeAddr(7, int(i)*int(n.used))
		}
		f.Add(appendNode(nil, n))
	}
	f.Add(appendNode(nil, &node{used: 1, entries: entries{segment.Unreadable}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var n node
		err := decodeNode(&n, b, 0)
		got := collector{}
		if err2 := markLeaf(got, b); (err == nil) != (err2 == nil) {
			t.Fatalf("decoding says %v, marking %v", err, err2)
		}
		if err != nil {
			return
		}
		want := collector{}
		for _, a := range n.entries {
			if a.Stored() {
				want[a] = true
			}
		}
		if !maps.Equal(got, want) {
			t.Fatalf("marked %v, not %v", got, want)
		}
	})
}
