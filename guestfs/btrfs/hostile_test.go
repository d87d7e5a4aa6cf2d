package btrfs

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/internal/patch"
)

// victim is an image whose metadata are about to be damaged.
type victim struct {
	img   disk.Image
	sb    *superblock
	nodes []int64 // where they are
}

// newVictim fills a file system and copies it while it is in use, so that there
// is something in its log.
func newVictim(t testing.TB) *victim {
	t.Helper()
	live := guestfstest.NewLive(t, 128<<20)
	guestfstest.Run(t, "mkfs.btrfs", "-q", "-f", "-m", "single", "-n", "4096", live.Image)
	dir, _ := guestfstest.Mount(t, live.Image, "btrfs", "compress-force=lzo")
	guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 5, Entries: 120, MaxFile: 20_000, NoBigXattrs: true})
	guestfstest.Run(t, "btrfs", "subvolume", "snapshot", dir, filepath.Join(dir, "snapshot"))
	stop := guestfstest.Load(t, dir, 6)
	time.Sleep(100 * time.Millisecond) // any amount of load will do
	stop()
	synced, err := os.Create(filepath.Join(dir, "synced"))
	if err != nil {
		t.Fatal(err)
	}
	defer synced.Close()
	if err := synced.Sync(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(live.Copy(t, live.Image))
	if err != nil {
		t.Fatal(err)
	}
	v := &victim{img: disk.Bytes(t.Context(), data)}
	if v.sb, err = readSuper(v.img); err != nil {
		t.Fatal(err)
	}
	for off := 0; off+v.sb.nodeSize <= len(data); off += v.sb.sectorSize {
		b := data[off : off+v.sb.nodeSize]
		if off != superOffset && bytes.Equal(b[nodeFSID:nodeFSID+16], v.sb.fsid[:]) && v.sb.sum.ok(b[sumBytes:], b) {
			v.nodes = append(v.nodes, int64(off))
		}
	}
	if len(v.nodes) < 50 {
		t.Fatalf("only %d nodes to damage", len(v.nodes))
	}
	return v
}

// damage changes a few bytes of one node, or of the superblock, and sets its
// checksum right.
func (v *victim) damage(t testing.TB, rng *rand.Rand) disk.Image {
	t.Helper()
	at, size := v.nodes[rng.IntN(len(v.nodes))], v.sb.nodeSize
	if rng.IntN(20) == 0 {
		at, size = superOffset, superSize
	}
	b := make([]byte, size)
	if n, err := v.img.ReadAt(b, at); n < len(b) {
		t.Fatal(err)
	}
	for range 1 + rng.IntN(6) {
		i := sumBytes + rng.IntN(size-sumBytes)
		if rng.IntN(3) == 0 {
			i = 72 + rng.IntN(300) // the header, and the first keys
		}
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
	copy(b, v.sb.sum.of(b[sumBytes:]))
	return patch.New(v.img, size, map[int64]patch.Block{at / int64(size): {Data: b}})
}

// TestDamaged: whatever its metadata say, a file system is read or refused: no
// crash, no hang, no memory without bound.
func TestDamaged(t *testing.T) {
	guestfstest.NeedMount(t, "btrfs", "mkfs.btrfs", "btrfs")
	v := newVictim(t)
	runs := 150
	if n, _ := strconv.Atoi(os.Getenv("LIFEBOAT_CRASH_RUNS")); n > 0 {
		runs = 1000 * n
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	entries, refused := 0, 0
	for i := range runs {
		img := v.damage(t, rng)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		n, err := explore(t.Context(), img)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("run %d took %v", i, took)
		}
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 600<<20 {
			t.Errorf("run %d took %d MiB", i, used>>20)
		}
		entries += n
		if err != nil {
			refused++
		}
	}
	t.Logf("%d runs, %d nodes: %d entries, %d refused", runs, len(v.nodes), entries, refused)
	if entries < 20*runs || refused < runs/20 {
		t.Errorf("%d runs saw %d entries, and %d errors", runs, entries, refused)
	}
}

// explore does everything that a reader can be asked for, within bounds. It
// returns the number of entries that it saw, and one of the errors.
func explore(ctx context.Context, img disk.Image) (int, error) {
	f, err := Open(ctx, img)
	if err != nil {
		return 0, err
	}
	worst := error(nil)
	note := func(err error) {
		if err != nil {
			worst = err
		}
	}
	f.Info()
	_, err = f.DefaultRoot(ctx)
	note(err)
	f.Subvolumes()
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
