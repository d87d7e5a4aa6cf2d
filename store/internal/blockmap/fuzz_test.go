package blockmap

import (
	"bytes"
	"testing"

	"lifeboat/store/internal/segment"
)

// FuzzNode: whatever decodes is a node that encodes and decodes to itself; the
// rest is an error.
func FuzzNode(f *testing.F) {
	for _, fill := range []func(i int) segment.Addr{
		func(int) segment.Addr { return segment.Hole },
		func(i int) segment.Addr { return segment.MakeAddr(5, i) },
		func(i int) segment.Addr { return segment.MakeAddr(5, 9) },
		func(i int) segment.Addr { return segment.MakeAddr(uint64(1+i*i*977), i*7%999) },
		func(i int) segment.Addr { return []segment.Addr{0, 1, segment.MakeAddr(segment.MaxNumber, 1)}[i%3] },
	} {
		var n node
		for i := range n.entries {
			n.entries[i] = fill(i)
		}
		n.used = n.entries.count()
		f.Add(appendNode(nil, &n), 0)
	}
	f.Add([]byte{1, 2, 1, 5, 128, 128, 8}, 2)
	f.Fuzz(func(t *testing.T, b []byte, level int) {
		var n, again node
		if level < 0 || level >= MaxLevels || decodeNode(&n, b, level) != nil {
			return
		}
		for _, a := range n.entries {
			if a != segment.Hole && !a.Stored() && (level > 0 || a != segment.Unreadable) {
				t.Fatalf("address %v", a)
			}
		}
		enc := appendNode(nil, &n)
		if len(enc) > MaxNodeSize {
			t.Fatalf("encodes to %d bytes", len(enc))
		}
		if err := decodeNode(&again, enc, level); err != nil || again != n {
			t.Fatalf("does not survive encoding: %v", err)
		}
		if !bytes.Equal(enc, appendNode(nil, &again)) {
			t.Fatal("two encodings of one node")
		}
	})
}

// TestWorstNodeFitsAFrame: far apart addresses take the longest deltas.
func TestWorstNodeFitsAFrame(t *testing.T) {
	n := node{used: Fanout}
	for i := range n.entries {
		n.entries[i] = segment.MakeAddr(1+uint64(i%2)*(segment.MaxNumber-1), i%segment.MaxSlots)
	}
	if size := len(appendNode(nil, &n)); size > MaxNodeSize {
		t.Errorf("%d bytes", size)
	}
}
