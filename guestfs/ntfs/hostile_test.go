package ntfs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/ntfs"
)

// Bounds of what one damaged volume may cost.
const (
	maxEntries  = 5000
	maxRead     = 1 << 20 // bytes of a file
	maxMillis   = 10_000
	maxAllocMiB = 400 // in total, not at once
)

// victim makes a small volume that has a bit of everything.
func victim(t testing.TB) []byte {
	t.Helper()
	image := format(t, 6<<20, "-c", "1024")
	dir, unmount := mount(t, image, "streams_interface=windows,compression")
	in := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Mkdir(in("packed"), 0o755))
	must(t, unix.Setxattr(in("packed"), "system.ntfs_attrib_be", []byte{0, 0, 8, 0}, 0))
	must(t, os.WriteFile(in("packed/file"), bytes.Repeat([]byte("compress me, please "), 9000), 0o644))
	must(t, os.WriteFile(in("one"), make([]byte, 30_000), 0o644))
	must(t, os.WriteFile(in("one:stream"), []byte("named"), 0o644))
	for i := range 20 {
		must(t, os.Link(in("one"), in(fmt.Sprintf("%0100d", i))))
	}
	must(t, os.Symlink("one", in("link")))
	must(t, os.Mkdir(in("many"), 0o755))
	for i := range 150 {
		must(t, os.WriteFile(in(fmt.Sprintf("many/a rather long name %d", i)), nil, 0o644))
	}
	text := samples(t)["text"][:200_000]
	for name, m := range methods {
		putWOF(t, in(name), len(text), packed(t, text, m.args...), m.number)
	}
	unmount()
	b, err := os.ReadFile(image)
	must(t, err)
	return b
}

// mutate changes a few bytes of something that is metadata, and keeps its update
// sequence valid. It returns how to undo that.
func mutate(rng *rand.Rand, b []byte, places []place) func() {
	p := places[rng.IntN(len(places))]
	piece := b[p.at : p.at+p.size]
	saved := bytes.Clone(piece)
	guarded := p.guarded && ntfs.Unfix(piece) == nil
	for range 1 + rng.IntN(3) {
		limit := len(piece)
		if p.used > 0 && rng.IntN(4) > 0 {
			limit = p.used
		}
		at := rng.IntN(limit)
		switch rng.IntN(6) {
		case 0:
			piece[at] = byte(rng.Uint32())
		case 1:
			piece[at] ^= 1 << rng.IntN(8)
		case 2:
			piece[at] = 0xff
		case 3:
			piece[at] = 0
		case 4:
			for i := at &^ 7; i < min(len(piece), at&^7+8); i++ {
				piece[i] = 0xff
			}
		case 5:
			from := rng.IntN(len(piece))
			copy(piece[at:], bytes.Clone(piece[from:min(len(piece), from+16)]))
		}
	}
	if guarded && len(piece) >= 8 && ntfs.Fixable(piece) {
		ntfs.Fix(piece)
	}
	return func() { copy(piece, saved) }
}

// place is metadata on the volume.
type place struct {
	at, size, used int
	guarded        bool
}

// places finds records and index blocks by their signatures, and what is
// compressed.
func places(b []byte) (out []place) {
	out = append(out, place{at: 0, size: 512, used: 90})
	for at := 0; at+1024 <= len(b); at += 512 {
		switch string(b[at : at+4]) {
		case "FILE":
			p := place{at: at, size: 1024, used: int(b[at+24]) | int(b[at+25])<<8, guarded: true}
			out = append(out, p, p)
		case "INDX":
			out = append(out, place{at: at, size: 4096, used: 600, guarded: true})
		case "RSTR", "RCRD":
			if at+4096 <= len(b) {
				out = append(out, place{at: at, size: 4096, used: 300, guarded: true})
			}
		}
	}
	return out
}

// survey reads all of a volume, within bounds.
func survey(ctx context.Context, img disk.Image) {
	fsys, err := ntfs.Open(ctx, img)
	if err != nil {
		return
	}
	fsys.Info()
	left := maxEntries
	seen := map[guestfs.Inode]bool{}
	buf := make([]byte, maxRead)
	var visit func(dir guestfs.Inode, depth int)
	visit = func(dir guestfs.Inode, depth int) {
		if seen[dir] || depth > 20 {
			return
		}
		seen[dir] = true
		for e, err := range fsys.ReadDir(ctx, dir, 0) {
			if left--; err != nil || left < 0 {
				return
			}
			fsys.Lookup(ctx, dir, e.Name)
			inspect(ctx, fsys, e.Inode, buf)
			visit(e.Inode, depth+1)
		}
	}
	for _, name := range []string{"$MFT", "$Secure", "$Extend"} {
		if e, err := fsys.Lookup(ctx, fsys.Root(), name); err == nil {
			inspect(ctx, fsys, e.Inode, buf)
		}
	}
	visit(fsys.Root(), 0)
}

func inspect(ctx context.Context, fsys *ntfs.FS, inode guestfs.Inode, buf []byte) {
	fsys.Stat(ctx, inode)
	fsys.SecurityDescriptor(ctx, inode)
	streams, _ := fsys.Streams(ctx, inode)
	for _, s := range streams[:min(len(streams), 10)] {
		if img, err := fsys.OpenStream(ctx, inode, s.Name); err == nil {
			img.ReadAt(buf[:4096], 0)
			img.Close()
		}
	}
	n := 0
	for _, err := range fsys.PhysicalExtents(ctx, inode) {
		if n++; err != nil || n > 1000 {
			break
		}
	}
	img, err := fsys.Open(ctx, inode)
	if err != nil {
		return
	}
	defer img.Close()
	img.ReadAt(buf, 0)
	img.ReadAt(buf[:5000], max(0, img.Size()-3000))
	n = 0
	for _, err := range disk.Extents(ctx, img, disk.Whole(img)) {
		if n++; err != nil || n > 1000 {
			break
		}
	}
}

// TestMutations: no damage crashes the reader, makes it hang or eat memory.
func TestMutations(t *testing.T) {
	guestfstest.NeedMount(t, "fuse", "mkfs.ntfs", "ntfs-3g", "wimcapture")
	t.Run("volume", func(t *testing.T) {
		b := victim(t)
		damage(t, b, places(b), 80)
	})
	t.Run("log", func(t *testing.T) {
		p := makePair(t)
		w := newLogWriter(t, logSize(t, p.before), false, 0, 7)
		checkpoint := w.checkpoint(p.open, p.names, nil, nil)
		known := w.last
		p.log(t, w, p.before, p.after, 0x40)
		b := withLog(t, p.before, w.finish(checkpoint, known))
		var where []place
		for _, p := range places(b) {
			if magic := string(b[p.at : p.at+4]); magic == "RCRD" || magic == "RSTR" {
				where = append(where, p)
			}
		}
		damage(t, b, where, 60)
	})
}

// damage surveys a volume again and again, each time with other damage.
func damage(t *testing.T, b []byte, where []place, runs int) {
	t.Helper()
	if n, err := strconv.Atoi(os.Getenv("LIFEBOAT_CRASH_RUNS")); err == nil {
		runs = n
	}
	if len(where) < 10 {
		t.Fatalf("only %d places to damage", len(where))
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := range runs {
		undo := mutate(rng, b, where)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		ctx, cancel := context.WithTimeoutCause(t.Context(), maxMillis*time.Millisecond, errors.New("it hangs"))
		survey(ctx, disk.Bytes(ctx, b))
		runtime.ReadMemStats(&after)
		if ctx.Err() != nil {
			t.Errorf("run %d of seed %d takes %v", i, seed, time.Since(start))
		}
		if mib := (after.TotalAlloc - before.TotalAlloc) >> 20; mib > maxAllocMiB {
			t.Errorf("run %d of seed %d allocates %d MiB", i, seed, mib)
		}
		cancel()
		undo()
	}
}

// FuzzOpen begins with what a volume begins with.
func FuzzOpen(f *testing.F) {
	boot := make([]byte, 4096)
	copy(boot[3:], "NTFS    ")
	boot[12], boot[13], boot[40], boot[48], boot[64], boot[68], boot[510], boot[511] = 2, 1, 8, 2, 0xf6, 0xf6, 0x55, 0xaa
	copy(boot[1024:], "FILE\x30\x00\x03\x00")
	f.Add(boot)
	f.Fuzz(func(t *testing.T, b []byte) { survey(t.Context(), disk.Bytes(t.Context(), b)) })
}
