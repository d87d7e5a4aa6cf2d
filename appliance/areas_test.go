package appliance

import (
	"bytes"
	"io"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
)

const areaSize = 300

func drawAreas(t *rapid.T, name string) ([]disk.Extent, areas, [areaSize]bool) {
	raw := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) disk.Extent {
		return disk.Extent{Offset: rapid.Int64Range(-10, areaSize+10).Draw(t, "offset"), Length: rapid.Int64Range(0, 60).Draw(t, "length")}
	}), 0, 8).Draw(t, name)
	var bits [areaSize]bool
	for _, e := range raw {
		for i := max(e.Offset, 0); i < min(e.End(), areaSize); i++ {
			bits[i] = true
		}
	}
	return raw, areasOf(raw, areaSize), bits
}

// wantAreas checks shape and content.
func wantAreas(t *rapid.T, what string, got areas, want func(i int) bool) {
	var bits [areaSize]bool
	last := int64(-1)
	for _, e := range got {
		if e.Length <= 0 || e.Offset <= last && last >= 0 || e.Offset < 0 || e.End() > areaSize {
			t.Fatalf("%s: %v is out of shape", what, got)
		}
		for i := e.Offset; i < e.End(); i++ {
			bits[i] = true
		}
		last = e.End()
	}
	for i, b := range bits {
		if b != want(i) {
			t.Fatalf("%s: byte %d is in it: %t", what, i, b)
		}
	}
}

func TestAreasAreSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, a, abits := drawAreas(t, "a")
		_, b, bbits := drawAreas(t, "b")
		wantAreas(t, "a", a, func(i int) bool { return abits[i] })
		wantAreas(t, "union", a.union(b), func(i int) bool { return abits[i] || bbits[i] })
		wantAreas(t, "without", a.without(b), func(i int) bool { return abits[i] && !bbits[i] })
		wantAreas(t, "differing", a.differing(b), func(i int) bool { return abits[i] != bbits[i] })
		wantAreas(t, "outside", a.outside(areaSize), func(i int) bool { return !abits[i] })
		wantAreas(t, "widened", a.widened(16, areaSize), func(i int) bool {
			for j := i / 16 * 16; j < min(i/16*16+16, areaSize); j++ {
				if abits[j] {
					return true
				}
			}
			return false
		})
		if n := a.outside(areaSize).bytes() + a.bytes(); n != areaSize {
			t.Fatalf("%d bytes in all", n)
		}
	})
	if got := areasOf([]disk.Extent{{Offset: 100, Length: 1<<63 - 1}}, areaSize); len(got) != 1 || got[0].End() != areaSize {
		t.Errorf("a length that runs over: %v", got)
	}
}

// TestMaskedDropsNothingElse: outside of its holes a masked disk is the disk, and
// its map and its bytes agree.
func TestMaskedDropsNothingElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, holes, in := drawAreas(t, "holes")
		content := bytes.Repeat([]byte{1}, areaSize)
		for i := range content {
			content[i] += byte(i)
		}
		want := bytes.Clone(content)
		for i := range want {
			if in[i] {
				want[i] = 0
			}
		}
		m := &masked{Image: disktest.FromBytes(content), holes: holes, zero: true}
		off := rapid.Int64Range(0, areaSize+5).Draw(t, "off")
		p := make([]byte, rapid.IntRange(0, areaSize+5).Draw(t, "n"))
		n, err := m.ReadAt(p, off)
		from := min(off, areaSize)
		if rest := want[from:min(from+int64(len(p)), areaSize)]; !bytes.Equal(p[:n], rest) {
			t.Fatalf("read %d bytes at %d: %v, want %v", len(p), off, p[:n], rest)
		}
		if n < len(p) && err != io.EOF || n == len(p) && err != nil && err != io.EOF {
			t.Fatalf("%d of %d: %v", n, len(p), err)
		}
		at := int64(0)
		for e, err := range m.Extents(t.Context(), disk.Whole(m)) {
			if err != nil || e.Offset != at || e.Length <= 0 {
				t.Fatalf("%v, %v at %d", e, err, at)
			}
			for ; at < e.End(); at++ {
				if in[at] && !e.Hole || e.Hole && want[at] != 0 {
					t.Fatalf("byte %d: hole %t, in a hole of ours %t, is %d", at, e.Hole, in[at], want[at])
				}
			}
		}
		if at != areaSize {
			t.Fatalf("the map ends at %d", at)
		}
	})
}
