package disktest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"lifeboat/disk"
)

// RunImage is the conformance suite of disk.Image and of the reading abilities
// that the image has. open is called for each test and returns an image whose
// content is that of want.
func RunImage(t *testing.T, want disk.Image, open func(t *testing.T) disk.Image) {
	t.Helper()
	tests := []struct {
		name string
		run  func(t *testing.T, img, want disk.Image)
	}{
		{"Content", testContent},
		{"Edges", testEdges},
		{"Concurrent", testConcurrent},
		{"Extents", testExtents},
		{"Used", testUsed},
		{"Closed", testClosed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			img := open(t)
			defer img.Close()
			test.run(t, img, want)
		})
	}
}

// chunk is the unit in which whole disks are compared.
const chunk = 1 << 20

// Equal fails the test unless got reads as want does wherever either says that
// there is data, and both have the same size.
func Equal(t testing.TB, got, want disk.Image) {
	t.Helper()
	if got.Size() != want.Size() {
		t.Fatalf("size is %d, want %d", got.Size(), want.Size())
	}
	compareData(t, got, want, want)
	compareData(t, got, want, got)
}

// compareData compares got with want where mapped says that there is data.
func compareData(t testing.TB, got, want, mapped disk.Image) {
	t.Helper()
	a, b := make([]byte, chunk), make([]byte, chunk)
	for ext, err := range disk.Extents(context.Background(), mapped, disk.Whole(mapped)) {
		if err != nil {
			t.Fatalf("extents: %v", err)
		}
		if ext.Hole {
			continue
		}
		for off := ext.Offset; off < ext.End(); off += chunk {
			n := min(chunk, ext.End()-off)
			readFull(t, got, a[:n], off)
			readFull(t, want, b[:n], off)
			if !bytes.Equal(a[:n], b[:n]) {
				t.Fatalf("content differs at byte %d", off+int64(firstDifference(a[:n], b[:n])))
			}
		}
	}
}

func readFull(t testing.TB, img disk.Image, p []byte, off int64) {
	t.Helper()
	n, err := img.ReadAt(p, off)
	if n != len(p) || (err != nil && !errors.Is(err, io.EOF)) {
		t.Fatalf("ReadAt(%d bytes at %d of %d) = %d, %v", len(p), off, img.Size(), n, err)
	}
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

func testContent(t *testing.T, img, want disk.Image) { Equal(t, img, want) }

func testEdges(t *testing.T, img, want disk.Image) {
	size := img.Size()
	buf := make([]byte, 4096)
	if n, err := img.ReadAt(buf, size); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read at the end = %d, %v; want 0, io.EOF", n, err)
	}
	if n, err := img.ReadAt(buf, size+1<<20); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read beyond the end = %d, %v; want 0, io.EOF", n, err)
	}
	if n, err := img.ReadAt(buf, -1); n != 0 || err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read at -1 = %d, %v; want 0 and an error", n, err)
	}
	if n, err := img.ReadAt(nil, 0); n != 0 || (err != nil && !errors.Is(err, io.EOF)) {
		t.Errorf("read of nothing = %d, %v", n, err)
	}
	if size == 0 {
		return
	}
	tail := min(size, 1000)
	n, err := img.ReadAt(buf, size-tail)
	if int64(n) != tail || err != io.EOF {
		t.Errorf("read across the end = %d, %v; want %d, io.EOF", n, err, tail)
	}
	ref := make([]byte, tail)
	readFull(t, want, ref, size-tail)
	if !bytes.Equal(buf[:tail], ref) {
		t.Error("the last bytes differ")
	}
	if c, ok := img.(disk.CachedReader); ok && c.ReadCached(buf, size-tail+1) && tail < 4096 {
		t.Error("ReadCached across the end reports true")
	}
}

func testConcurrent(t *testing.T, img, want disk.Image) {
	if img.Size() == 0 {
		return
	}
	var wg sync.WaitGroup
	for seed := range uint64(6) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 7))
			for range 20 {
				compareRandom(t, rng, img, want)
			}
		})
	}
	wg.Wait()
}

func compareRandom(t *testing.T, rng *rand.Rand, img, want disk.Image) {
	n := min(1+rng.Int64N(1+rng.Int64N(200_000)), img.Size())
	off := rng.Int64N(img.Size() - n + 1)
	a, b := make([]byte, n), make([]byte, n)
	cached, _ := img.(disk.CachedReader)
	if cached == nil || !cached.ReadCached(a, off) {
		if got, err := img.ReadAt(a, off); int64(got) != n || (err != nil && !errors.Is(err, io.EOF)) {
			t.Errorf("ReadAt(%d bytes at %d) = %d, %v", n, off, got, err)
			return
		}
	}
	if got, err := want.ReadAt(b, off); int64(got) != n || (err != nil && !errors.Is(err, io.EOF)) {
		t.Errorf("reference: ReadAt(%d bytes at %d) = %d, %v", n, off, got, err)
		return
	}
	if !bytes.Equal(a, b) {
		t.Errorf("content differs at byte %d", off+int64(firstDifference(a, b)))
	}
}

func testExtents(t *testing.T, img, _ disk.Image) {
	size := img.Size()
	CheckExtents(t, img, disk.Whole(img))
	CheckExtents(t, img, disk.Extent{Offset: -10, Length: size + 20})
	CheckExtents(t, img, disk.Extent{Offset: size, Length: 10})
	CheckExtents(t, img, disk.Extent{Offset: size / 2, Length: 0})
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		if size > 0 {
			CheckExtents(t, img, disk.Extent{Offset: rng.Int64N(size), Length: 1 + rng.Int64N(size)})
		}
	}
	testExtentsCancel(t, img)
}

func testExtentsCancel(t *testing.T, img disk.Image) {
	m, ok := img.(disk.Mapper)
	if !ok || img.Size() == 0 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var last error
	for _, err := range m.Extents(ctx, disk.Whole(img)) {
		if last != nil {
			t.Fatal("the sequence goes on after an error")
		}
		last = err
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("extents with a cancelled context end with %v, want context.Canceled", last)
	}
}

// zeroProbe bounds how much of one hole CheckExtents reads.
const zeroProbe = 4 * chunk

// CheckExtents fails the test unless the extents of img inside within keep the
// contract of disk.Mapper, and its holes read as zeros (long ones are sampled
// at both ends).
func CheckExtents(t testing.TB, img disk.Image, within disk.Extent) {
	t.Helper()
	at, end := max(within.Offset, 0), min(within.End(), img.Size())
	for ext, err := range disk.Extents(context.Background(), img, within) {
		if err != nil {
			t.Fatalf("extents of %+v: %v", within, err)
		}
		if ext.Length <= 0 || ext.Offset != at || ext.End() > end {
			t.Fatalf("extents of %+v: %+v where the next has to start at %d and end by %d", within, ext, at, end)
		}
		at = ext.End()
		if ext.Hole {
			checkZero(t, img, ext.Offset, min(ext.Length, zeroProbe))
			checkZero(t, img, max(ext.Offset, ext.End()-zeroProbe), min(ext.Length, zeroProbe))
		}
	}
	if at < end {
		t.Fatalf("extents of %+v end at %d", within, at)
	}
}

func checkZero(t testing.TB, img disk.Image, off, length int64) {
	t.Helper()
	buf := make([]byte, min(length, chunk))
	for length > 0 {
		n := min(length, chunk)
		readFull(t, img, buf[:n], off)
		if !allZero(buf[:n]) {
			t.Fatalf("a hole at %d holds data", off)
		}
		off, length = off+n, length-n
	}
}

func testUsed(t *testing.T, img, _ disk.Image) {
	u, ok := img.(disk.Usage)
	if !ok {
		return
	}
	const slack = 4 << 20 // rounding to the disk's own block
	if used := u.Used(); used < 0 || used > img.Size()+slack {
		t.Errorf("Used is %d on a disk of %d", used, img.Size())
	}
}

func testClosed(t *testing.T, img, _ disk.Image) {
	if img.Size() == 0 {
		return
	}
	if err := img.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	buf := make([]byte, 1)
	if _, err := img.ReadAt(buf, 0); err == nil {
		t.Error("ReadAt after Close succeeds")
	}
}
