package xfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/internal/meta"
	"lifeboat/guestfs/internal/patch"
)

// victim is an image whose metadata are about to be damaged: as it was copied, or
// as it is after replay, which would repair most damage.
type victim struct {
	img      disk.Image
	sb       *superblock
	metadata []int64 // offsets of what has a magic
	replayed bool
}

// newVictim fills a file system and copies it while it is in use, so that there
// is something in its log.
func newVictim(t testing.TB) *victim {
	t.Helper()
	live := guestfstest.NewLive(t, 320<<20)
	guestfstest.Run(t, "mkfs.xfs", "-q", "-f", "-b", "size=1024", live.Image)
	dir, _ := guestfstest.Mount(t, live.Image, "xfs", "")
	guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 5, Entries: 120, MaxFile: 20_000})
	stop := guestfstest.Load(t, dir, 6)
	time.Sleep(100 * time.Millisecond) // any amount of load will do
	image := live.Copy(t, live.Image)
	stop()
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	v := &victim{img: disk.Bytes(t.Context(), data)}
	v.find(t)
	return v
}

// after is the same file system after replay.
func (v *victim) after(t testing.TB) *victim {
	t.Helper()
	f, err := Open(t.Context(), v.img)
	if err != nil || f.state != guestfs.Replayed {
		t.Fatalf("%v, %+v", err, f)
	}
	w := &victim{img: f.disk, replayed: true}
	w.find(t)
	return w
}

func (v *victim) open(ctx context.Context, img disk.Image) (*FS, error) {
	if !v.replayed {
		return Open(ctx, img)
	}
	sb, err := readSuper(img)
	return &FS{sb: sb, disk: img, meta: meta.New(img, v.sb.blockSize, cacheBytes)}, err
}

// find finds what can be damaged: it has a magic.
func (v *victim) find(t testing.TB) {
	t.Helper()
	var err error
	if v.sb, err = readSuper(v.img); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, v.img.Size())
	if n, err := v.img.ReadAt(data, 0); n < len(data) {
		t.Fatal(err)
	}
	for off := 0; off < len(data); off += sector {
		b := data[off : off+sector]
		be := binary.BigEndian
		l, known := (&FS{sb: v.sb}).layoutOf(b)
		if known && v.replayed {
			known = l.owner != 0 // no reader looks at the others
		}
		if be.Uint16(b) == inMagic && be.Uint16(b[inMode:]) != 0 || known || be.Uint32(b) == recordMagic && !v.replayed || be.Uint32(b) == valueMagic {
			v.metadata = append(v.metadata, int64(off))
		}
	}
	if len(v.metadata) < 100 {
		t.Fatalf("only %d places to damage", len(v.metadata))
	}
}

// damage changes a few bytes of one piece of metadata, or of what follows it, and
// sets its checksum right.
func (v *victim) damage(t testing.TB, rng *rand.Rand) disk.Image {
	t.Helper()
	at := v.metadata[rng.IntN(len(v.metadata))]
	size := v.sb.blockSize
	if rng.IntN(4) == 0 {
		size = sector
	}
	b := make([]byte, size)
	if n, err := v.img.ReadAt(b, at); n < len(b) {
		t.Fatal(err)
	}
	for range 1 + rng.IntN(4) {
		i := rng.IntN(min(size, 1<<(3+rng.IntN(10))))
		switch rng.IntN(5) {
		case 0:
			b[i] ^= 1 << rng.IntN(8)
		case 1:
			b[i] = byte(rng.Uint32())
		case 2:
			b[i]++
		case 3:
			copy(b[i:], []byte{0xff, 0xff, 0xff, 0xff})
		case 4:
			copy(b[i:], make([]byte, 8))
		}
	}
	r := &recovery{f: &FS{sb: v.sb}}
	if binary.BigEndian.Uint32(b) == recordMagic {
		clear(b[recCRC : recCRC+4]) // a record without a checksum is taken as it is
	}
	r.seal(b)
	blocks := map[int64]patch.Block{}
	for i := 0; i < size; i += sector {
		blocks[(at+int64(i))/sector] = patch.Block{Data: b[i : i+sector]}
	}
	return patch.New(v.img, sector, blocks)
}

func TestHostile(t *testing.T) {
	guestfstest.NeedMount(t, "xfs", "mkfs.xfs")
	v := newVictim(t)
	t.Run("damaged", func(t *testing.T) { testDamaged(t, v) })
	t.Run("torn", func(t *testing.T) { testTorn(t, v) })
}

// testDamaged: whatever its metadata say, a file system is read or refused: no
// crash, no hang, no memory without bound.
func testDamaged(t *testing.T, first *victim) {
	victims := []*victim{first, first.after(t), first.after(t)}
	runs := 150
	if n, _ := strconv.Atoi(os.Getenv("LIFEBOAT_CRASH_RUNS")); n > 0 {
		runs = 1000 * n
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	entries, refused := 0, 0
	for i := range runs {
		n, err := damaged(t, victims[i%len(victims)], rng)
		entries += n
		if err != nil {
			refused++
		}
	}
	t.Logf("%d runs: %d entries, %d refused", runs, entries, refused)
	if entries < 20*runs || refused < runs/20 {
		t.Errorf("%d runs saw %d entries, and %d errors", runs, entries, refused)
	}
}

// damaged explores one damaged image.
func damaged(t *testing.T, v *victim, rng *rand.Rand) (int, error) {
	t.Helper()
	img := v.damage(t, rng)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	n, err := v.explore(t.Context(), img)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 600<<20 {
		t.Errorf("it took %d MiB", used>>20)
	}
	return n, err
}

// explore does everything that a reader can be asked for, within bounds. It
// returns the number of entries that it saw, and one of the errors.
func (v *victim) explore(ctx context.Context, img disk.Image) (int, error) {
	f, err := v.open(ctx, img)
	if err != nil {
		return 0, err
	}
	f.Info()
	var worst error
	note := func(err error) {
		if err != nil {
			worst = err
		}
	}
	seen := map[guestfs.Inode]bool{}
	queue := []guestfs.Inode{f.Root()}
	total := 0
	for len(queue) > 0 && total < 1500 {
		dir := queue[0]
		queue = queue[1:]
		for e, err := range f.ReadDir(ctx, dir, 0) {
			note(err)
			if total++; err != nil || total > 1500 {
				break
			}
			_, err = f.Lookup(ctx, dir, e.Name)
			note(err)
			if seen[e.Inode] {
				continue
			}
			seen[e.Inode] = true
			a, err := f.Stat(ctx, e.Inode)
			note(err)
			if err == nil && a.Type() == guestfs.TypeDir {
				queue = append(queue, e.Inode)
			}
			note(f.touch(ctx, e.Inode, a))
		}
	}
	return total, worst
}

func (f *FS) touch(ctx context.Context, number guestfs.Inode, a *guestfs.Attr) error {
	if _, err := f.Xattrs(ctx, number); err != nil {
		return err
	}
	if a == nil || a.Type() != guestfs.TypeFile && a.Type() != guestfs.TypeSymlink {
		return nil
	}
	n := 0
	for _, err := range f.PhysicalExtents(ctx, number) {
		if n++; err != nil || n > 1000 {
			break
		}
	}
	img, err := f.Open(ctx, number)
	if err != nil {
		return err
	}
	defer img.Close()
	p := make([]byte, min(img.Size(), 64<<10))
	for _, off := range []int64{0, max(0, img.Size()-int64(len(p)))} {
		if n, err := img.ReadAt(p, off); n < len(p) {
			return err
		}
	}
	return nil
}

// testTorn: the head of a log is where its last whole record ends. Cutting one
// byte of the latest record makes the volume one that is a record older, and never
// anything else than replayed.
func testTorn(t *testing.T, v *victim) {
	at, _ := v.sb.linear(v.sb.logStart, v.sb.logBlocks)
	l := &xlog{img: v.img, base: int64(at) << v.sb.blockLog, size: int64(v.sb.logBlocks) << v.sb.blockLog / sector, v2: true, uuid: v.sb.uuid}
	tail, head, err := l.tail(t.Context())
	if err != nil || tail == head {
		t.Fatalf("tail %d, head %d: %v", tail, head, err)
	}
	last, err := l.before(t.Context(), head, l.size)
	if err != nil {
		t.Fatal(err)
	}
	place := l.base/sector + last.at + last.header
	b := make([]byte, sector)
	if n, err := v.img.ReadAt(b, place*sector); n < len(b) {
		t.Fatal(err)
	}
	torn := bytes.Clone(b)
	torn[100] ^= 1
	l.img = patch.New(v.img, sector, map[int64]patch.Block{place: {Data: torn}})
	if _, now, err := l.tail(t.Context()); err != nil || now != last.at {
		t.Errorf("the head is %d, %v; want %d, before the torn record", now, err, last.at)
	}
	if f, err := Open(t.Context(), l.img); err != nil || f.state != guestfs.Replayed {
		t.Errorf("%v, %v", f, err)
	}
}
