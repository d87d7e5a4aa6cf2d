package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
)

func TestRoundTrip(t *testing.T) {
	w, r := newRepo(t)
	for i, size := range []int64{0, 1, 511, testBlock, testBlock + 1, 3 << 20, 3<<20 + 12345} {
		src := randomDisk(uint64(i), size)
		p := backup(t, r, fmt.Sprint("vm", i), nil, src, nil)
		wantDisk(t, r, p, 0, src)
		other := w.open(t) // nothing in memory
		wantDisk(t, other, p, 0, src)
		if got := p.Disks[0]; got.Size != size || got.Key != 2000 || got.Label != "Hard disk 1" {
			t.Errorf("disk is %+v", got)
		}
		other.Close()
	}
	wantSound(t, r)
	if left, err := w.fs.ReadDir("/repo/tmp"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestImageConformance(t *testing.T) {
	_, r := newRepo(t)
	src := randomDisk(3, 5<<20+4096)
	p := backup(t, r, "vm", nil, src, nil)
	disktest.RunImage(t, src, func(t *testing.T) disk.Image {
		img, err := r.OpenDisk(t.Context(), p, 0)
		if err != nil {
			t.Fatal(err)
		}
		return img
	})
}

// TestIncremental compares a chain of points made in every way with their
// sources.
func TestIncremental(t *testing.T) {
	for _, mode := range []string{"full", "compared", "changed", "mapless"} {
		t.Run(mode, func(t *testing.T) {
			_, r := newRepo(t)
			src := randomDisk(5, 5<<20+777)
			var points []*Point
			var want []*disktest.Memory
			var parent *Point
			for i := range 5 {
				changed := scribble(uint64(i), src, 3)
				var img disk.Image = src
				switch mode {
				case "full":
					parent = nil
				case "compared":
					changed = nil
				case "mapless":
					img, changed = disktest.ImageOnly(src), nil
				}
				parent = backup(t, r, "vm", parent, img, changed)
				points, want = append(points, parent), append(want, src.Clone())
			}
			for i, p := range points {
				wantDisk(t, r, p, 0, want[i])
			}
			wantSound(t, r)
		})
	}
}

func TestIncrementalCost(t *testing.T) {
	_, r := newRepo(t)
	src := disktest.NewMemory(1 << 40)
	for i := range int64(64) {
		src.WriteAt(contents(t, disktest.Random(uint64(i), testBlock, 1)), i<<33)
	}
	first := backup(t, r, "vm", nil, src, nil)
	if first.NewBytes != 64*testBlock || first.ReadBytes != 64*testBlock {
		t.Errorf("the full read %d and stored %d bytes", first.ReadBytes, first.NewBytes)
	}
	same := backup(t, r, "vm", first, src, nil)
	if same.NewBytes != 0 || same.StoredBytes != 0 || same.ReadBytes != 64*testBlock {
		t.Errorf("the same again: %+v", same)
	}
	if a, b := first.rec.Disks[0].Root, same.rec.Disks[0].Root; a != b {
		t.Errorf("unchanged disks have maps %v and %v", a, b)
	}
	src.WriteAt([]byte("x"), 5<<33+100)
	third := backup(t, r, "vm", same, src, []disk.Extent{{Offset: 5<<33 + 100, Length: 1}})
	if third.ReadBytes != testBlock || third.NewBytes != testBlock {
		t.Errorf("one block changed: read %d, new %d", third.ReadBytes, third.NewBytes)
	}
	wantDisk(t, r, third, 0, src)
}

func TestDedupe(t *testing.T) {
	w, r := newRepo(t)
	src := randomDisk(1, 4<<20)
	first := backup(t, r, "a", nil, src, nil)
	again := w.open(t)
	defer again.Close()
	second := backup(t, again, "b", nil, src, nil)
	if second.NewBytes != 0 || first.NewBytes == 0 {
		t.Errorf("first stored %d bytes, the same disk of another VM %d", first.NewBytes, second.NewBytes)
	}
	wantDisk(t, again, second, 0, src)

	// Within one disk.
	twice := disktest.NewMemory(8 << 20)
	twice.WriteAt(contents(t, disktest.Random(9, 4<<20, 1)), 0)
	twice.WriteAt(contents(t, disktest.Random(9, 4<<20, 1)), 4<<20)
	p := backup(t, r, "c", nil, twice, nil)
	if p.NewBytes != 4<<20 {
		t.Errorf("a disk of two equal halves of 4 MiB stored %d bytes", p.NewBytes)
	}
	wantDisk(t, r, p, 0, twice)
}

// TestLostSegment: blocks whose segment was lost are stored again.
func TestLostSegment(t *testing.T) {
	w, r := newRepo(t)
	src := randomDisk(1, 4<<20)
	p := backup(t, r, "a", nil, src, nil)
	for _, name := range objects(t, r.backend, "segments/") {
		r.backend.Remove(t.Context(), name)
	}
	fresh := w.open(t)
	defer fresh.Close()
	q := backup(t, fresh, "a", nil, src, nil)
	if q.NewBytes != p.NewBytes {
		t.Errorf("stored %d bytes, want %d", q.NewBytes, p.NewBytes)
	}
	wantDisk(t, fresh, q, 0, src)
}

func TestResize(t *testing.T) {
	_, r := newRepo(t)
	big := disktest.Random(1, 90<<20, 0.04)
	cut := func(size int64) *disktest.Memory { return disktest.FromBytes(contents(t, big)[:size]) }
	var parent *Point
	var points []*Point
	sizes := []int64{5 << 20, 80<<20 + 5, 1 << 20, 70 << 20, 70<<20 + 1}
	for _, size := range sizes {
		// An empty list of changes must not be believed after a change of size.
		parent = backup(t, r, "vm", parent, cut(size), []disk.Extent{})
		points = append(points, parent)
	}
	for i, p := range points {
		wantDisk(t, r, p, 0, cut(sizes[i]))
	}
	wantSound(t, r)
}

func TestChangedList(t *testing.T) {
	_, r := newRepo(t)
	src := randomDisk(1, 10<<20)
	first := backup(t, r, "vm", nil, src, nil)
	good := scribble(3, src, 20)
	good = append(good, good[3], disk.Extent{Offset: 0, Length: 0}, disk.Extent{Offset: src.Size(), Length: 0}, disk.Extent{Offset: src.Size() - 1, Length: 1})
	slices.Reverse(good)
	second := backup(t, r, "vm", first, src, good)
	wantDisk(t, r, second, 0, src)

	for _, bad := range []disk.Extent{
		{Offset: -1, Length: 5}, {Offset: 0, Length: -1}, {Offset: src.Size(), Length: 1}, {Offset: 5, Length: 1<<63 - 1}, {Offset: src.Size() - 5, Length: 6},
	} {
		for _, parent := range []*Point{nil, first} {
			_, err := tryBackup(t.Context(), r, "vm", parent, src, []disk.Extent{bad})
			if !errors.Is(err, ErrChangedList) {
				t.Errorf("%+v: %v", bad, err)
			}
		}
	}
}

// TestDamagedLastPoint: when the VM's last point cannot be read, what changed
// since that one is not taken for what changed since the one before.
func TestDamagedLastPoint(t *testing.T) {
	w, r := newRepo(t)
	src := randomDisk(1, 4<<20)
	first := backup(t, r, "vm", nil, src, nil)
	last := backup(t, r, "vm", first, src, scribble(1, src, 3))
	flip(t, w.fs, pointName(last.ID), 60, 1)
	fresh := w.open(t)
	defer fresh.Close()
	parent, err := fresh.Latest(t.Context(), "vm")
	if err != nil || parent.ID != first.ID {
		t.Fatal(parent, err)
	}
	changed := scribble(2, src, 1) // since last, as the caller believes
	p := backup(t, fresh, "vm", parent, src, changed)
	wantDisk(t, fresh, p, 0, src)
}

// hollow fails the test when its holes are read.
type hollow struct {
	*disktest.Memory
	t *testing.T
}

func (h hollow) ReadAt(p []byte, off int64) (int, error) {
	for e, err := range h.Extents(context.Background(), disk.Extent{Offset: off &^ (testBlock - 1), Length: int64(len(p))}) {
		if err != nil || e.Hole && e.Length >= 2*testBlock {
			h.t.Errorf("read of a hole at %d+%d (%v)", e.Offset, e.Length, err)
		}
	}
	return h.Memory.ReadAt(p, off)
}

func TestHolesAreNotRead(t *testing.T) {
	_, r := newRepo(t)
	src := disktest.NewMemory(1 << 42)
	for _, off := range []int64{0, 1<<30 + 5, 1<<41 - 1, 1<<42 - 4096} {
		src.WriteAt([]byte("data here"), off)
	}
	p := backup(t, r, "vm", nil, hollow{src, t}, nil)
	wantDisk(t, r, p, 0, src)
	src.Zero(1<<30, 1<<20)
	q := backup(t, r, "vm", p, hollow{src, t}, nil)
	wantDisk(t, r, q, 0, src)
	if q.Disks[0].Used >= p.Disks[0].Used {
		t.Errorf("used %d, then %d bytes", p.Disks[0].Used, q.Disks[0].Used)
	}
}

func TestSeveralDisksAndPoints(t *testing.T) {
	_, r := newRepo(t)
	in, err := r.NewIngest(t.Context(), IngestOptions{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var group sync.WaitGroup
	points := make([]*Point, 3)
	src := func(vm, n int) *disktest.Memory { return randomDisk(uint64(10*vm+n), int64(n+1)<<20+int64(vm)) }
	for vm := range points {
		group.Go(func() {
			w, err := in.Begin(PointSpec{VM: fmt.Sprint("vm", vm), Config: map[string][]byte{"vm.vmx": []byte("x"), "vm.nvram": make([]byte, 70_000)}})
			if err != nil {
				t.Error(err)
				return
			}
			defer w.Abort()
			var disks sync.WaitGroup
			for n := range 6 {
				disks.Go(func() {
					var last Progress
					var busy atomic.Bool
					err := w.AddDisk(t.Context(), DiskSpec{Key: 10 - n, Label: fmt.Sprint(n)}, src(vm, n), nil, func(p Progress) {
						if busy.Swap(true) {
							t.Error("progress is told from two goroutines")
						}
						last = p
						busy.Store(false)
					})
					if err != nil || last.Done != last.Total || last.Read != last.Total {
						t.Error(err, last)
					}
				})
			}
			disks.Wait()
			if points[vm], err = w.Commit(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	for vm, p := range points {
		if len(p.Disks) != 6 || !slices.IsSortedFunc(p.Disks, func(a, b Disk) int { return a.Key - b.Key }) {
			t.Fatalf("disks: %+v", p.Disks)
		}
		for i := range p.Disks {
			wantDisk(t, r, p, i, src(vm, 5-i))
		}
		got, err := r.Config(t.Context(), p, "vm.nvram")
		if err != nil {
			t.Fatal(err)
		}
		sameBytes(t, "nvram", got, make([]byte, 70_000))
		if _, err := r.Config(t.Context(), p, "vm.log"); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
	}
	wantSound(t, r)
}

// TestManySegments goes through several segments and claims.
func TestManySegments(t *testing.T) {
	_, r := newRepo(t)
	in, err := r.NewIngest(t.Context(), IngestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var points []*Point
	for i := range 5 {
		in.app.mu.Lock()
		in.app.next = max(in.app.next, in.app.last-1+uint64(i)%3) // 2, 1 or no numbers left
		in.app.mu.Unlock()
		w, err := in.Begin(PointSpec{VM: "vm"})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.AddDisk(t.Context(), DiskSpec{Key: 1}, randomDisk(uint64(i), 2<<20), nil, nil); err != nil {
			t.Fatal(err)
		}
		p, err := w.Commit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		points = append(points, p)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if got := objects(t, r.backend, claimPrefix); len(got) != 1 {
		t.Errorf("claims left: %v", got)
	}
	for i, p := range points {
		wantDisk(t, r, p, 0, randomDisk(uint64(i), 2<<20))
	}
	wantSound(t, r)
}
