package store

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/disk/disktest"
)

// copyAll copies everything that is asked for and checks the copies against
// their sources.
func copyAll(t testing.TB, from, to *Repository, opts CopyOptions) *CopyReport {
	t.Helper()
	report, err := from.CopyTo(context.Background(), to, opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range append(report.Copied, report.Skipped...) {
		wantCopy(t, from, to, c)
	}
	return report
}

func wantCopy(t testing.TB, from, to *Repository, c Copied) {
	t.Helper()
	ctx := context.Background()
	p, err := from.Point(ctx, c.From)
	if err != nil {
		t.Fatal(err)
	}
	if !p.Time.Equal(c.Time) || p.VM != c.VM || p.VMID != c.VMID || p.Consistency != c.Consistency || len(p.Disks) != len(c.Disks) {
		t.Fatalf("the copy of %+v is %+v", p, c.Point)
	}
	for n := range p.Disks {
		img, err := from.OpenDisk(ctx, p, n)
		if err != nil {
			t.Fatal(err)
		}
		wantDisk(t, to, c.Point, n, img)
		img.Close()
	}
	for _, f := range p.Config {
		a, errA := from.Config(ctx, p, f.Name)
		b, errB := to.Config(ctx, c.Point, f.Name)
		if err := errors.Join(errA, errB); err != nil {
			t.Fatal(err)
		}
		sameBytes(t, f.Name, b, a)
	}
}

func TestCopyIsIncremental(t *testing.T) {
	for _, blockSize := range []int{0, 128 << 10} {
		_, src := newRepo(t)
		_, dst := newRepoOf(t, blockSize)
		disk1 := randomDisk(1, 12<<20)
		first := backup(t, src, "web", nil, disk1, nil)
		report := copyAll(t, src, dst, CopyOptions{Verify: true})
		if len(report.Copied) != 1 || *report.Copied[0].Origin != (Origin{src.ID(), first.ID}) {
			t.Fatalf("report %+v", report)
		}
		// Only what differs is read, and nothing twice.
		scribble(2, disk1, 3)
		second := backup(t, src, "web", first, disk1, nil)
		var diff int64
		for e, err := range src.Diff(t.Context(), first, 0, second, 0) {
			if err != nil {
				t.Fatal(err)
			}
			diff += e.Length + 2*int64(dst.BlockSize())
		}
		report = copyAll(t, src, dst, CopyOptions{Verify: true})
		if len(report.Copied) != 1 || len(report.Skipped) != 1 || report.Copied[0].Parent == "" || report.Copied[0].ReadBytes > diff {
			t.Fatalf("block size %d: %d bytes may differ, and the report is %+v", dst.BlockSize(), diff, report.Copied[0].Point)
		}
		if report = copyAll(t, src, dst, CopyOptions{}); len(report.Copied) != 0 || len(report.Skipped) != 2 {
			t.Fatalf("a third time: %+v", report)
		}
		// Back home there is nothing to do, and a third repository knows them.
		_, third := newRepo(t)
		copyAll(t, dst, third, CopyOptions{})
		if report = copyAll(t, third, src, CopyOptions{}); len(report.Skipped) != 2 {
			t.Fatalf("back home: %+v", report)
		}
		if report = copyAll(t, src, third, CopyOptions{}); len(report.Skipped) != 2 {
			t.Fatalf("from where it was made: %+v", report)
		}
		wantSound(t, dst)
		wantSound(t, third)
	}
}

// TestCopyKeepsCompression: what was compressed once is stored elsewhere in as
// many bytes; a recompression with other settings would show.
func TestCopyKeepsCompression(t *testing.T) {
	_, src := newRepo(t)
	_, dst := newRepo(t)
	p := backup(t, src, "web", nil, disktest.FromBytes([]byte(strings.Repeat("some text that repeats ", 300_000))), nil)
	report := copyAll(t, src, dst, CopyOptions{})
	if got := report.Copied[0].StoredBytes; got != p.StoredBytes {
		t.Errorf("stored %d bytes, the source took %d", got, p.StoredBytes)
	}
}

// TestCopyOfAnything: points in any order, with disks that come, go and grow,
// copied in any portions.
func TestCopyOfAnything(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		_, src := newRepo(t)
		_, dst := newRepoOf(t, rapid.SampledFrom([]int{0, 128 << 10}).Draw(rt, "block size"))
		disks := map[string]*disktest.Memory{}
		var all []*Point
		last := map[string]*Point{}
		for i := range rapid.IntRange(1, 4).Draw(rt, "steps") {
			vm := rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "vm")
			if d := disks[vm]; d == nil || rapid.IntRange(0, 5).Draw(rt, "new disk") == 0 {
				disks[vm] = randomDisk(uint64(i), rapid.Int64Range(1, 1<<20).Draw(rt, "size"))
			} else if d.Size() > 200_000 {
				scribble(uint64(i), d, 2)
			}
			p := backup(t, src, vm, last[vm], disks[vm], nil)
			last[vm] = p
			all = append(all, p)
			if rapid.Bool().Draw(rt, "copy now") {
				copyAll(t, src, dst, CopyOptions{Points: []*Point{rapid.SampledFrom(all).Draw(rt, "which")}})
			}
		}
		report := copyAll(t, src, dst, CopyOptions{Verify: true})
		if len(report.Copied)+len(report.Skipped) != len(all) || len(report.Failed) > 0 {
			rt.Fatalf("%d points: %+v", len(all), report)
		}
	})
}

// TestCopyGoesOnAfterDamage: a point that cannot be read is named, the others
// are copied.
func TestCopyGoesOnAfterDamage(t *testing.T) {
	w, src := newRepo(t)
	_, dst := newRepo(t)
	bad := backup(t, src, "bad", nil, randomDisk(5, 4<<20), nil)
	seg := src.backend
	for _, name := range objects(t, seg, "segments/") {
		if err := seg.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	src = w.open(t)
	defer src.Close()
	backup(t, src, "good", nil, randomDisk(6, 4<<20), nil)
	report, err := src.CopyTo(t.Context(), dst, CopyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Copied) != 1 || report.Copied[0].VM != "good" || len(report.Failed) != 1 || report.Failed[0].From != bad.ID {
		t.Fatalf("report %+v", report)
	}
	if !errors.Is(report.Failed[0].Err, ErrDamaged) && !errors.Is(report.Failed[0].Err, ErrNotFound) {
		t.Errorf("error %v", report.Failed[0].Err)
	}
}

// TestCopyResumes: what an interrupted copy has stored is not stored again.
func TestCopyResumes(t *testing.T) {
	_, src := newRepo(t)
	w, dst := newRepo(t)
	backup(t, src, "web", nil, disktest.Random(9, 40<<20, 1), nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	var seen atomic.Int64
	_, err := src.CopyTo(ctx, dst, CopyOptions{Progress: func(p CopyProgress) {
		if seen.Store(p.Stored); p.Stored > 0 {
			cancel(errInterrupt)
		}
	}})
	if !errors.Is(err, errInterrupt) {
		t.Fatalf("%v after %d bytes", err, seen.Load())
	}
	if points, err := dst.Points(t.Context()); err != nil || len(points) != 0 {
		t.Fatalf("an interrupted copy left the points %v, %v", points, err)
	}
	dst2 := w.open(t)
	defer dst2.Close()
	report := copyAll(t, src, dst2, CopyOptions{})
	if saved := report.Copied[0].ReadBytes - report.Copied[0].NewBytes; saved < seen.Load() {
		t.Errorf("%d bytes were stored before, %d of them found again", seen.Load(), saved)
	}
	wantSound(t, dst2)
}

var errInterrupt = errors.New("interrupted")

func TestCopyRefusesItself(t *testing.T) {
	w, r := newRepo(t)
	again := w.open(t)
	defer again.Close()
	if _, err := r.CopyTo(t.Context(), again, CopyOptions{}); !errors.Is(err, ErrSameRepository) {
		t.Errorf("error %v", err)
	}
}

// TestTranscoderServesReads: reads that are not of whole blocks are served too.
func TestTranscoderServesReads(t *testing.T) {
	_, r := newRepo(t)
	want := randomDisk(11, 3<<20+777)
	p := backup(t, r, "web", nil, want, nil)
	img, err := r.OpenDisk(t.Context(), p, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	src := newTranscoder(img)
	disktest.Equal(t, src, want)
	buf := make([]byte, 100)
	if n, err := src.ReadAt(buf, want.Size()-50); n != 50 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d bytes, %v", n, err)
	}
	for block := range blocksOf(want.Size(), r.blockSize) {
		_ = src.packed(block)
	}
	if len(src.kept) > 0 {
		t.Errorf("%d blocks are kept after all were given up", len(src.kept))
	}
}

func BenchmarkCopy(b *testing.B) {
	_, src := newRepo(b)
	content := benchDisk(64 << 20)
	backup(b, src, "web", nil, content, nil)
	b.SetBytes(content.Size())
	for b.Loop() {
		b.StopTimer()
		_, dst := newRepo(b)
		b.StartTimer()
		if _, err := src.CopyTo(b.Context(), dst, CopyOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
