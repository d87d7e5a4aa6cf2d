package store

import (
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
)

// TestLargeReads: whatever the offset and length, they read as small ones do.
func TestLargeReads(t *testing.T) {
	_, r := newRepo(t)
	src := randomDisk(3, 9<<20+12_345)
	twin := disktest.NewMemory(9<<20 + 12_345) // blocks that occur several times
	for off := int64(0); off < 8<<20; off += 1 << 20 {
		twin.WriteAt(contents(t, disktest.Random(uint64(off>>21), 1<<20, 1)), off)
	}
	for _, disk := range []disk.Image{src, twin} {
		p := backup(t, r, "vm", nil, disk, nil)
		img := openDisk(t, r, p)
		want := contents(t, disk)
		rapid.Check(t, func(t *rapid.T) {
			off := rapid.Int64Range(0, img.Size()).Draw(t, "off")
			n := rapid.IntRange(1, 6<<20).Draw(t, "n")
			if rapid.Bool().Draw(t, "whole blocks") {
				off, n = off&^(testBlock-1), n&^(testBlock-1)+testBlock
			}
			if rapid.IntRange(0, 3).Draw(t, "drop") == 0 {
				r.cache.Drop()
			}
			got := make([]byte, n)
			m, err := img.ReadAt(got, off)
			left := min(int64(n), img.Size()-off)
			if int64(m) != left || (m < n) != errors.Is(err, io.EOF) || string(got[:m]) != string(want[off:off+left]) {
				t.Fatalf("%d bytes, %v, or they differ", m, err)
			}
		})
	}
}

// TestLargeReadOfDamage gives what is good before it, and names it.
func TestLargeReadOfDamage(t *testing.T) {
	w, r := newRepo(t)
	src := disktest.Random(1, 4<<20, 1)
	p := backup(t, r, "vm", nil, src, nil)
	r.Close()
	me := actor{w.actors, "reader"}
	wrong := &flipping{Backend: w.backend(t, me), at: 600 << 10}
	r, err := Open(t.Context(), wrong, testPassword, w.options(me))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	img := openDisk(t, r, p)
	if _, err := img.ReadAt(make([]byte, 1), 0); err != nil { // the tables
		t.Fatal(err)
	}
	wrong.on.Store(true)
	got := make([]byte, src.Size())
	n, err := img.ReadAt(got, 0)
	if !errors.Is(err, ErrDamaged) || n%testBlock != 0 || n == 0 || n >= len(got) {
		t.Errorf("%d bytes, %v", n, err)
	}
	sameBytes(t, "what is before the damage", got[:n], contents(t, src)[:n])
}

// TestWhatIsAskedForSurvivesAScan: large reads of much more than the cache do not
// push out what is in use.
func TestWhatIsAskedForSurvivesAScan(t *testing.T) {
	w, r := newRepo(t)
	src := disktest.Random(1, 24<<20, 1)
	p := backup(t, r, "vm", nil, src, nil)
	r.Close()
	r = w.open(t) // with a cache of 8 MiB
	defer r.Close()
	img := openDisk(t, r, p)
	hot := make([]byte, 16<<10)
	rng := rand.New(rand.NewPCG(1, 1))
	for range 2000 { // 1 MiB of them
		if _, err := img.ReadAt(hot, rng.Int64N(64)*16<<10); err != nil {
			t.Fatal(err)
		}
	}
	big := make([]byte, 1<<20)
	for off := int64(1 << 20); off < src.Size(); off += int64(len(big)) {
		if _, err := img.ReadAt(big, off); err != nil {
			t.Fatal(err)
		}
	}
	missing := 0
	for i := range int64(64) {
		if !img.ReadCached(hot, i*16<<10) {
			missing++
		}
	}
	if missing > 6 {
		t.Errorf("%d of 64 hot frames are gone after a scan", missing)
	}
}
