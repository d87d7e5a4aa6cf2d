package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
	"lifeboat/store/internal/segment"
)

// What these tests say about sizes is in docs/scale.md. Costs are counted in
// requests, bytes and memory, which are the same on every machine; none is a
// matter of the clock.

// scaled is a size of a test: small by default, full with LIFEBOAT_SCALE=full.
func scaled(small, full int) int {
	if os.Getenv("LIFEBOAT_SCALE") == "full" {
		return full
	}
	return small
}

// counted counts what a backend is asked for.
type counted struct {
	backend.Backend
	creates, opens, lists, reads, removes atomic.Int64
	written, read                         atomic.Int64
}

// cost is what an operation took of a backend.
type cost struct {
	requests, objects, written, read int64
}

func (c *counted) cost() cost {
	return cost{
		requests: c.creates.Load() + c.opens.Load() + c.lists.Load() + c.reads.Load() + c.removes.Load(),
		objects:  c.creates.Load(), written: c.written.Load(), read: c.read.Load(),
	}
}

func (c cost) minus(d cost) cost {
	return cost{c.requests - d.requests, c.objects - d.objects, c.written - d.written, c.read - d.read}
}

func (c *counted) Create(ctx context.Context, name string, mode backend.Mode) (backend.Writer, error) {
	c.creates.Add(1)
	w, err := c.Backend.Create(ctx, name, mode)
	return countedWriter{w, c}, err
}

type countedWriter struct {
	backend.Writer
	c *counted
}

func (w countedWriter) Write(p []byte) (int, error) {
	w.c.written.Add(int64(len(p)))
	return w.Writer.Write(p)
}

func (c *counted) Open(ctx context.Context, name string) (backend.Object, error) {
	c.opens.Add(1)
	o, err := c.Backend.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return countedObject{o, c}, nil
}

type countedObject struct {
	backend.Object
	c *counted
}

func (o countedObject) ReadAt(p []byte, off int64) (int, error) {
	o.c.reads.Add(1)
	o.c.read.Add(int64(len(p)))
	return o.Object.ReadAt(p, off)
}

func (c *counted) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	c.lists.Add(1)
	return c.Backend.List(ctx, prefix)
}

func (c *counted) Remove(ctx context.Context, name string) error {
	c.removes.Add(1)
	return c.Backend.Remove(ctx, name)
}

// scaleRepo is an empty repository in memory that counts.
func scaleRepo(t testing.TB) (*counted, *Repository) {
	t.Helper()
	c := &counted{Backend: backendtest.NewMemory()}
	if err := Init(t.Context(), c, testPassword, cheap); err != nil {
		t.Fatal(err)
	}
	return c, scaleOpen(t, c)
}

func scaleOpen(t testing.TB, c *counted) *Repository {
	t.Helper()
	r, err := Open(t.Context(), c, testPassword, Options{CacheBytes: 8 << 20, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// scaleBlock is a block that no other number makes and that can't be
// compressed.
func scaleBlock(n uint64) []byte {
	rng := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24), 1})
	p := make([]byte, testBlock)
	rng.Read(p)
	return p
}

const (
	hugeScale  = 62 << 40
	smallScale = 10 << 30
)

// TestScaleOfABackupIsItsChange: a backup of which the changed areas are known
// costs what has changed, whatever the size of the disk.
func TestScaleOfABackupIsItsChange(t *testing.T) {
	areas, area := scaled(32, 256), scaled(4, 64) // in blocks; full is 1 GiB and takes minutes
	second := func(size int64) (cost, int64) {
		c, r := scaleRepo(t)
		src := disktest.NewMemory(size)
		step := size / int64(areas) / testBlock * testBlock
		for i := range int64(areas) {
			src.WriteAt(scaleBlock(uint64(i)), i*step)
		}
		p := backup(t, r, "vm", nil, src, nil)
		var changed []disk.Extent
		for i := range int64(areas) {
			for k := range int64(area) {
				src.WriteAt(scaleBlock(uint64(1_000_000+i*int64(area)+k)), i*step+k*testBlock)
			}
			changed = append(changed, disk.Extent{Offset: i * step, Length: int64(area) * testBlock})
		}
		r = scaleOpen(t, c) // with nothing in memory
		before := c.cost()
		p = backup(t, r, "vm", p, src, changed)
		if want := int64(areas*area) * testBlock; p.ReadBytes != want || p.NewBytes != want {
			t.Errorf("%d GiB: read %d and found %d new of %d changed bytes", size>>30, p.ReadBytes, p.NewBytes, want)
		}
		return c.cost().minus(before), p.StoredBytes
	}
	small, _ := second(smallScale)
	huge, stored := second(hugeScale)
	t.Logf("10 GiB: %+v, 62 TiB: %+v", small, huge)
	// The huge disk's map has two levels more, so its second backup writes at
	// most that many nodes more for each area.
	if limit := small.written + small.written/5 + 2*int64(areas)*16<<10; huge.written > limit {
		t.Errorf("62 TiB writes %d bytes, 10 GiB %d: more than %d", huge.written, small.written, limit)
	}
	if float64(huge.written) > 1.2*float64(stored) {
		t.Errorf("%d bytes are written to store %d", huge.written, stored)
	}
	if huge.objects > small.objects+small.objects/5 {
		t.Errorf("62 TiB makes %d objects, 10 GiB %d", huge.objects, small.objects)
	}
	if limit := small.requests + 8*int64(areas); huge.requests > limit {
		t.Errorf("62 TiB asks %d times, 10 GiB %d times: more than %d", huge.requests, small.requests, limit)
	}
}

// TestScaleOfReadingAHugeDisk: opening a point and reading at both ends takes a
// handful of requests for 62 TiB, too.
func TestScaleOfReadingAHugeDisk(t *testing.T) {
	c, r := scaleRepo(t)
	src := disktest.NewMemory(hugeScale)
	for i := range int64(64) {
		src.WriteAt(scaleBlock(uint64(i)), hugeScale/64*i)
	}
	src.WriteAt(scaleBlock(99), hugeScale-testBlock)
	p := backup(t, r, "vm", nil, src, nil)

	r = scaleOpen(t, c)
	before := c.cost()
	p, err := r.Point(t.Context(), p.ID)
	if err != nil {
		t.Fatal(err)
	}
	img, err := r.OpenDisk(t.Context(), p, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	buf := make([]byte, 4096)
	for _, off := range []int64{0, hugeScale - 4096, hugeScale / 3} {
		if _, err := img.ReadAt(buf, off); err != nil {
			t.Fatal(err)
		}
	}
	took := c.cost().minus(before)
	t.Logf("%+v", took)
	// The point, two segments' trailers and tables, and for both ends a path of
	// nodes and a block.
	if took.requests > 40 || took.read > 1<<20 {
		t.Errorf("a read at both ends of 62 TiB takes %d requests and %d bytes", took.requests, took.read)
	}
}

// scalePoints puts n points of some VMs into the repository, all of them with the
// disk of like.
func scalePoints(t testing.TB, r *Repository, like *Point, n, vms int) {
	t.Helper()
	rec, err := r.pointRecord(t.Context(), like.ID)
	if err != nil {
		t.Fatal(err)
	}
	begin := rec.Time
	for i := range n {
		next := *rec
		next.ID, next.VM = fmt.Sprintf("%016x", i+1), fmt.Sprintf("vm-%04d", i%vms)
		next.Time = begin.Add(-time.Duration(n-i) * time.Minute)
		data, err := next.encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := r.putSealed(t.Context(), pointName(next.ID), data, backend.Exclusive); err != nil {
			t.Fatal(err)
		}
	}
}

// TestScaleOfManyPoints: 10,000 points of 1,000 VMs are listed with one request
// for each the first time and with none the second; a further backup, a prune
// and a verification of the structure do not read what points share once for
// each of them.
func TestScaleOfManyPoints(t *testing.T) {
	points, vms := scaled(2_000, 10_000), scaled(200, 1_000)
	c, r := scaleRepo(t)
	src := disktest.NewMemory(64 * testBlock)
	for i := range int64(64) {
		src.WriteAt(scaleBlock(uint64(i)), i*testBlock)
	}
	like := backup(t, r, "vm-0000", nil, src, nil)
	scalePoints(t, r, like, points, vms)

	r = scaleOpen(t, c)
	step := func(what string, limit int64, do func() error) {
		t.Helper()
		before := c.cost()
		if err := do(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		took := c.cost().minus(before)
		t.Logf("%s: %+v", what, took)
		if took.requests > limit {
			t.Errorf("%s asks %d times, at most %d were expected", what, took.requests, limit)
		}
	}
	list := func() error {
		got, err := r.Points(t.Context())
		if err == nil && len(got) != points+1 {
			err = fmt.Errorf("%d points, not %d", len(got), points+1)
		}
		return err
	}
	n := int64(points)
	step("the first list", 2*n+n/10+20, list)
	step("the second list", 10, list)
	step("the last point of a VM", 10, func() error {
		_, err := r.ResolvePoint(t.Context(), fmt.Sprintf("vm-%04d@latest", vms/2))
		return err
	})
	step("another backup", 100, func() error {
		src.WriteAt(scaleBlock(5000), 0)
		_, err := tryBackup(t.Context(), r, "vm-0000", like, src, []disk.Extent{{Length: testBlock}})
		return err
	})
	step("a prune", 4*n+200, func() error {
		_, err := r.Prune(t.Context(), PruneOptions{Grace: time.Hour})
		return err
	})
	step("verification of the structure", 3*n+200, func() error {
		report, err := r.Verify(t.Context(), VerifyOptions{Level: VerifyStructure})
		if err == nil && !report.OK() {
			err = fmt.Errorf("it finds damage: %v", report.Damages[0])
		}
		return err
	})
}

// TestScaleOfVerification: a verification notes what it has checked in the same
// kind of set as a prune, two of them, address by address.
func TestScaleOfVerification(t *testing.T) {
	const tb = int64(1e12)
	size := tb / 8 * int64(scaled(1, 80))
	set, used := heapOf(func() *addrBits {
		set := newAddrBits()
		for at, number := int64(0), uint64(256); at < size; number++ {
			for slot := range 1023 {
				set.add(segment.MakeAddr(number, slot))
			}
			at += 1023 * testBlock
		}
		return set
	})
	t.Logf("%d GB: %d bytes", size/1e9, used)
	if limit := size * bitsPerTB / tb; used > limit {
		t.Errorf("%d GB take %d bytes, at most %d are allowed", size/1e9, used, limit)
	}
	runtime.KeepAlive(set)
}

// heapOf is what make leaves on the heap, and what it made.
func heapOf[T any](mk func() T) (made T, bytes int64) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC() // what pools gave up in the first
	runtime.ReadMemStats(&before)
	made = mk()
	runtime.GC()
	runtime.ReadMemStats(&after)
	return made, int64(after.HeapAlloc) - int64(before.HeapAlloc)
}

// bitsPerTB is how much the marks of a prune or a verification may take of the
// 25 MB for each TB of unique data that the repository allows itself.
const bitsPerTB = 5_000_000

// TestScaleOfMarks: the bits of all blocks of so many TB of unique data, in
// segments as full as they come, take memory in proportion, and little of it.
func TestScaleOfMarks(t *testing.T) {
	const tb = int64(1e12)
	var last int64
	for _, size := range []int64{int64(scaled(1, 25)) * tb, int64(scaled(4, 100)) * tb} {
		for _, c := range []struct {
			what  string
			slots int // of a full segment
		}{{"data that does not compress", 1023}, {"data that compresses three to one", 3069}} {
			set, used := heapOf(func() *addrBits {
				set := newAddrBits()
				for at, number := int64(0), uint64(256); at < size; number++ {
					set.make(number).setRun(0, c.slots)
					at += int64(c.slots) * testBlock
				}
				return set
			})
			t.Logf("%d TB of %s: %d bytes", size/tb, c.what, used)
			if limit := size / tb * bitsPerTB; used > limit {
				t.Errorf("the marks of %d TB of %s take %d bytes, at most %d are allowed", size/tb, c.what, used, limit)
			}
			if !set.has(segment.MakeAddr(256, 0)) {
				t.Error("nothing is marked")
			}
			last = used
		}
	}
	if last == 0 {
		t.Error("nothing was measured")
	}
}

// TestScaleOfWhatIsPending: what a backup remembers of blocks that are not in
// the index yet is bounded, whatever it backs up.
func TestScaleOfWhatIsPending(t *testing.T) {
	pending, used := heapOf(func() map[segment.Identity]segment.Addr {
		m := make(map[segment.Identity]segment.Addr)
		for i := range uint64(maxPending) {
			var id segment.Identity
			binary.LittleEndian.PutUint64(id[:], i*0x9e3779b97f4a7c15)
			m[id] = segment.MakeAddr(i>>10+256, int(i&1023))
		}
		return m
	})
	t.Logf("%d blobs: %d bytes", len(pending), used)
	if used > 64<<20 {
		t.Errorf("%d blobs that are not in the index yet take %d bytes", len(pending), used)
	}
}
