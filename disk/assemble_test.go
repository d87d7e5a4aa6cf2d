package disk_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
)

// TestAssemble runs the conformance suite over a disk that is put together from
// two others and zeros, with cuts that are aligned to nothing.
func TestAssemble(t *testing.T) {
	a, b := disktest.Random(1, 300_000, 0.6), disktest.Random(2, 200_000, 0.6)
	pieces := []disk.Piece{
		{Offset: 0, Length: 70_001, From: a, At: 12_345},
		{Offset: 70_001, Length: 50_000},
		{Offset: 120_001, Length: 150_000, From: b, At: 50_000},
		{Offset: 270_001, Length: 1, From: disktest.ImageOnly(a), At: 299_999},
		{Offset: 270_002, Length: 200_000, From: a, At: 1},
	}
	const size = 470_001 // one less than there is
	want := make([]byte, size+1)
	for _, p := range pieces {
		if p.From != nil {
			if _, err := p.From.ReadAt(want[p.Offset:p.Offset+p.Length], p.At); err != nil {
				t.Fatal(err)
			}
		}
	}
	disktest.RunImage(t, disktest.FromBytes(want[:size]), func(t *testing.T) disk.Image {
		return disk.Assemble(t.Context(), size, func(off int64) (disk.Piece, error) {
			i := slices.IndexFunc(pieces, func(p disk.Piece) bool { return off < p.Offset+p.Length })
			return pieces[i], nil
		})
	})
}

// TestSectionIsAnySlice: whatever is asked for, a section is the part of it that
// exists.
func TestSectionIsAnySlice(t *testing.T) {
	whole := disktest.Random(3, 50_000, 0.5)
	content := make([]byte, whole.Size())
	if _, err := whole.ReadAt(content, 0); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		off, n := rapid.Int64Range(-10, 60_000).Draw(t, "off"), rapid.Int64Range(-10, 60_000).Draw(t, "n")
		from := max(0, min(off, whole.Size()))
		want := content[from : from+max(0, min(n, whole.Size()-from))]
		img := disk.Section(context.Background(), whole, off, n)
		defer img.Close()
		got := make([]byte, img.Size())
		if n, err := img.ReadAt(got, 0); n != len(got) {
			t.Fatalf("read %d bytes of %d: %v", n, len(got), err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%d bytes differ from the %d that are there", len(got), len(want))
		}
	})
}

// TestBadPieces: a layout that is wrong is an error, never other bytes.
func TestBadPieces(t *testing.T) {
	src := disktest.Random(4, 10_000, 1)
	broken := errors.New("broken")
	for name, piece := range map[string]func(int64) (disk.Piece, error){
		"error":           func(int64) (disk.Piece, error) { return disk.Piece{}, broken },
		"behind":          func(off int64) (disk.Piece, error) { return disk.Piece{Offset: 0, Length: off, From: src}, nil },
		"ahead":           func(off int64) (disk.Piece, error) { return disk.Piece{Offset: off + 1, Length: 10, From: src}, nil },
		"empty":           func(off int64) (disk.Piece, error) { return disk.Piece{Offset: off, From: src}, nil },
		"negative length": func(off int64) (disk.Piece, error) { return disk.Piece{Offset: off, Length: -5, From: src}, nil },
		"outside": func(off int64) (disk.Piece, error) {
			return disk.Piece{Offset: off, Length: 10_000, From: src, At: 1}, nil
		},
		"before the start": func(off int64) (disk.Piece, error) {
			return disk.Piece{Offset: off, Length: 10, From: src, At: -1}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			img := disk.Assemble(t.Context(), 20_000, piece)
			defer img.Close()
			if n, err := img.ReadAt(make([]byte, 100), 50); n != 0 || err == nil {
				t.Errorf("read: %d, %v; want an error", n, err)
			}
			for _, err := range disk.Extents(t.Context(), img, disk.Whole(img)) {
				if err == nil {
					t.Error("extents of a broken layout")
				}
				break
			}
		})
	}
}
