package disk_test

import (
	"bytes"
	"errors"
	"io"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/disk"
)

// TestScratch: it is a disk that can be written, and the one below is not.
func TestScratch(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.IntRange(1, 40_000).Draw(rt, "size")
		below := make([]byte, size)
		for i := range below {
			below[i] = byte(i * 7)
		}
		want := append(bytes.Clone(below), make([]byte, (512-size%512)%512)...)
		s := disk.NewScratch(disk.Bytes(t.Context(), bytes.Clone(below)), 1<<20)
		if s.Size() != int64(len(want)) {
			rt.Fatalf("%d bytes make a disk of %d", size, s.Size())
		}
		for range rapid.IntRange(0, 10).Draw(rt, "writes") {
			off := rapid.IntRange(0, len(want)-1).Draw(rt, "offset")
			p := rapid.SliceOfN(rapid.Byte(), 1, min(len(want)-off, 9000)).Draw(rt, "data")
			if n, err := s.WriteAt(p, int64(off)); n != len(p) || err != nil {
				rt.Fatalf("write: %d, %v", n, err)
			}
			copy(want[off:], p)
		}
		off := rapid.IntRange(0, len(want)).Draw(rt, "offset")
		got := make([]byte, rapid.IntRange(0, len(want)+10).Draw(rt, "length"))
		n, err := s.ReadAt(got, int64(off))
		rest := want[off:min(len(want), off+len(got))]
		if !bytes.Equal(got[:n], rest) || (n < len(got)) != errors.Is(err, io.EOF) {
			rt.Fatalf("read %d at %d: %d, %v, or others than were written", len(got), off, n, err)
		}
	})
}

func TestScratchFull(t *testing.T) {
	s := disk.NewScratch(disk.Bytes(t.Context(), make([]byte, 1<<20)), 8192)
	if _, err := s.WriteAt(make([]byte, 8192), 0); err != nil || s.Full() {
		t.Errorf("what fits: %v", err)
	}
	if _, err := s.WriteAt(make([]byte, 4096), 16384); !errors.Is(err, syscall.ENOSPC) || !s.Full() {
		t.Errorf("too much: %v", err)
	}
	if _, err := s.WriteAt([]byte{1}, 100); err != nil {
		t.Errorf("a page that is there: %v", err)
	}
	if _, err := s.WriteAt(make([]byte, 10), 1<<20-5); !errors.Is(err, disk.ErrOutOfRange) {
		t.Errorf("beyond the end: %v", err)
	}
}
