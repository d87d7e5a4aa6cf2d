package blockmap

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"lifeboat/store/internal/segment"
)

var update = flag.Bool("update", false, "write the golden files anew; only with a new format version")

func goldenNodes() map[string]*node {
	mixed, full, upper := &node{}, &node{used: Fanout}, &node{level: 2, used: 5_000_000}
	for i := range full.entries {
		full.entries[i] = segment.MakeAddr(0x1234, i)
	}
	copy(mixed.entries[10:], []segment.Addr{
		segment.Unreadable, segment.Unreadable, segment.MakeAddr(7, 9), segment.MakeAddr(7, 10), segment.Hole,
		segment.MakeAddr(7, 11), segment.MakeAddr(3, 3), segment.MakeAddr(3, 3), segment.MakeAddr(3, 3), segment.MakeAddr(segment.MaxNumber, segment.MaxSlots-1),
	})
	mixed.used = mixed.entries.count()
	for _, i := range []int{0, 1, 2, 500, 1023} {
		upper.entries[i] = segment.MakeAddr(uint64(100+i), 1000-i/2)
	}
	return map[string]*node{"mixed": mixed, "full": full, "upper": upper}
}

// TestGolden pins the encoding of nodes: identities, and with them dedupe,
// depend on every byte.
func TestGolden(t *testing.T) {
	for name, n := range goldenNodes() {
		file := filepath.Join("testdata", "v1-"+name+".node")
		got := appendNode(nil, n)
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: encoded as %x, not %x", name, got, want)
		}
		var back node
		if err := decodeNode(&back, want, n.level); err != nil || back != *n {
			t.Errorf("%s does not decode to what it was: %v", name, err)
		}
	}
}
