package segment

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew; only with a new format version")

// countingReader gives the bytes 1, 2, 3, … as salts.
type countingReader byte

func (r *countingReader) Read(p []byte) (int, error) {
	for i := range p {
		*r++
		p[i] = byte(*r)
	}
	return len(p), nil
}

// goldenBlobs has a frame of each sort: compressed, raw, zeros, short.
func goldenBlobs() []blob {
	noise := make([]byte, FrameSize)
	state := uint32(1)
	for i := range noise {
		state = state*1664525 + 1013904223
		noise[i] = byte(state >> 24)
	}
	text := bytes.Repeat([]byte("Lifeboat "), 2*FrameSize/9+1)[:2*FrameSize]
	return []blob{
		{Data, append(append(bytes.Clone(text), make([]byte, FrameSize)...), noise[:200]...)},
		{MapNode, []byte("a node")},
		{Data, make([]byte, 4*FrameSize)},
		{Data, noise[:900]},
	}
}

// TestGolden pins the format: today's writer makes these very bytes, and
// today's reader reads what version 1 wrote. Compressed bytes may change with
// the zstd library: then, and only then, the first half may be updated; the
// files named v1 stay as they are for good.
func TestGolden(t *testing.T) {
	m := newMemory()
	blobs := goldenBlobs()
	addrs, info := write(t, m, 0x0102030405, WriterOptions{Rand: new(countingReader)}, blobs)
	rewritten, err := Rewrite(t.Context(), m, testKeys{}, info.Name, func(s int) bool { return s != 1 }, WriterOptions{Rand: new(countingReader)})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{info.Name, rewritten.Name} {
		file := filepath.Join("testdata", fmt.Sprintf("v1-%s.segment", filepath.Base(name)))
		got, _ := m.get(name)
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
			t.Errorf("%s: the writer's bytes have changed (at %d)", file, differsAt(got, want))
		}
		m.put(name, want)
		if d := verify(t, m, name); d != nil {
			t.Errorf("%s: %v", file, d[0])
		}
		rd := newTestReader(t, m, ReaderOptions{})
		for i := range blobs {
			if name == rewritten.Name && i == 1 {
				continue
			}
			if !readsRight(t, rd, addrs[i], blobs[i]) {
				t.Errorf("%s: slot %d cannot be read", file, i)
			}
		}
		_ = m.Remove(t.Context(), info.Name) // the next round finds the next generation
	}
}

func differsAt(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// TestIdentityIsPinned: identities are in every repository and must never
// change.
func TestIdentityIsPinned(t *testing.T) {
	h := NewHasher(testKeys{})
	if got := h.Identity(Data, []byte("block")).String(); got != "1b5cd6c6b1d65522884338dc5e69e9b5" {
		t.Error(got)
	}
	if got := h.Identity(MapNode, make([]byte, 70000)).String(); got != "1d2799cbb0da2504274c9843185e35e7" {
		t.Error(got)
	}
}

// TestShortSalt: no segment without a whole salt.
func TestShortSalt(t *testing.T) {
	for n := range 2 * saltSize {
		_, err := NewWriter(t.Context(), newMemory(), testKeys{}, 1, WriterOptions{Rand: io.LimitReader(new(countingReader), int64(n))})
		if err == nil {
			t.Fatalf("a salt of %d bytes was taken", n)
		}
	}
}
