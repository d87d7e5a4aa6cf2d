package iso9660_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/iso9660"
)

// compared is what a disc does not keep.
var compared = guestfstest.Compared{
	NoInodes: true, NoXattrs: true, NoCtime: true, NoAtime: true, NoDirSize: true, NoDirLinks: true, NoAllocated: true, NoBtime: true,
	Granularity: time.Second, Skip: func(path string) bool { return strings.HasPrefix(path, "/special/time") },
}

// source makes a directory to burn.
func source(t *testing.T, plain bool) string {
	t.Helper()
	guestfstest.NeedMount(t, "", "genisoimage", "xorriso")
	dir := filepath.Join(t.TempDir(), "source")
	guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 5, Entries: 300, Plain: plain, MaxFile: 50_000, NoBigXattrs: true, NoACL: true})
	for _, name := range []string{"sizes/far away", "special/link of 4000", "special/link of 1000", "special/link of 255"} { // too much to burn; too long for the tools
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return dir
}

func open(t testing.TB, image string) *iso9660.FS {
	t.Helper()
	img, err := disk.Open(t.Context(), image, disk.OpenOptions{Format: disk.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	fsys, err := iso9660.Open(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

func TestRockRidge(t *testing.T) {
	for name, command := range map[string][]string{
		"genisoimage": {"genisoimage", "-quiet", "-R", "-D", "-input-charset", "iso8859-1", "-output-charset", "iso8859-1", "-V", "LIFE BOAT"},
		"xorriso":     {"xorriso", "-as", "mkisofs", "-quiet", "-R", "-V", "LIFE BOAT"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, image := source(t, false), filepath.Join(t.TempDir(), "disc.iso")
			guestfstest.Run(t, command[0], append(command[1:], "-o", image, dir)...)
			fsys := open(t, image)
			opts := compared
			if name == "genisoimage" {
				opts.Granularity = 25 * time.Hour // it is a day off from March 2028 on
			}
			if n := guestfstest.Compare(t, fsys, dir, opts); n < 300 {
				t.Errorf("only %d entries were compared", n)
			}
			uuid := strings.TrimSpace(guestfstest.Run(t, "blkid", "-p", "-s", "UUID", "-o", "value", image))
			if info := fsys.Info(); info.Label != "LIFE BOAT" || info.UUID != uuid || info.State != guestfs.Clean || info.Size < 1<<20 {
				t.Errorf("info: %+v, UUID of blkid %s", info, uuid)
			}
		})
	}
}

// TestJoliet: names of other systems, without owners and modes.
func TestJoliet(t *testing.T) {
	dir, image := t.TempDir(), filepath.Join(t.TempDir(), "disc.iso")
	guestfstest.NeedMount(t, "", "genisoimage")
	want := map[string]string{"Größe.txt": "a", "日本語 with a name of more than thirty-one letters": "b", "Directory/x.tar.gz": "c", "plain": "d"}
	for name, data := range want {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	guestfstest.Run(t, "genisoimage", "-quiet", "-J", "-joliet-long", "-input-charset", "utf-8", "-o", image, dir)
	opts := compared
	opts.NoOwner = true
	if n := guestfstest.Compare(t, open(t, image), dir, opts); n != 5 {
		t.Errorf("%d entries were compared", n)
	}
	// The plain names of the same files.
	guestfstest.Run(t, "genisoimage", "-quiet", "-input-charset", "utf-8", "-o", image, filepath.Join(dir, "Directory"))
	fsys := open(t, image)
	for e, err := range fsys.ReadDir(t.Context(), fsys.Root(), 0) {
		if err != nil || e.Name != "x.tgz" {
			t.Errorf("a plain name: %q, %v", e.Name, err)
		}
	}
}

// TestRelocated: directories that are too deep are elsewhere on the disc, and
// shown where they belong.
func TestRelocated(t *testing.T) {
	guestfstest.NeedMount(t, "", "genisoimage")
	dir, image := t.TempDir(), filepath.Join(t.TempDir(), "disc.iso")
	deep := ""
	for i := range 12 {
		deep = filepath.Join(deep, fmt.Sprintf("d%d", i))
	}
	if err := os.MkdirAll(filepath.Join(dir, deep), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, deep, "leaf"), []byte("found"), 0o600); err != nil {
		t.Fatal(err)
	}
	guestfstest.Run(t, "genisoimage", "-quiet", "-R", "-o", image, dir)
	fsys := open(t, image)
	at := fsys.Root()
	for name := range strings.SplitSeq(filepath.Join(deep, "leaf"), "/") {
		e, err := guestfs.Lookup(t.Context(), fsys, at, name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		at = e.Inode
	}
	img, err := fsys.Open(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	b := make([]byte, img.Size())
	if _, err := img.ReadAt(b, 0); err != nil || string(b) != "found" {
		t.Errorf("%q, %v", b, err)
	}
}

// handmade is a disc of 2,048-byte sectors with the given records in its root
// directory, which is in sector 18.
func handmade(records ...[]byte) []byte {
	disc := make([]byte, 24*2048)
	d := disc[16*2048:]
	copy(d, "\x01CD001\x01")
	d[80], d[129] = 24, 8 // sectors; 2048
	root := handmadeRecord("\x00", 18, 2048, 2)
	copy(d[156:], root)
	copy(d[2048:], "\xffCD001\x01")
	dir := d[4096:]
	for _, r := range append([][]byte{root, handmadeRecord("\x01", 18, 2048, 2)}, records...) {
		dir = dir[copy(dir, r):]
	}
	return disc
}

func handmadeRecord(name string, sector, size uint16, flags byte) []byte {
	r := make([]byte, (33+len(name)+1)&^1)
	r[0], r[25], r[32] = byte(len(r)), flags, byte(len(name))
	r[2], r[3], r[10], r[11] = byte(sector), byte(sector>>8), byte(size), byte(size>>8)
	copy(r[33:], name)
	return r
}

// TestParts: a file of more than 4 GiB has a record for each of its parts.
func TestParts(t *testing.T) {
	const more = 0x80
	disc := handmade(handmadeRecord("A.;1", 20, 2048, more), handmadeRecord("A.;1", 22, 2048, more), handmadeRecord("A.;1", 21, 7, 0), handmadeRecord("B.;1", 20, 3, 0))
	for i := range 2048 {
		disc[20*2048+i], disc[22*2048+i], disc[21*2048+i] = 'x', 'y', 'z'
	}
	fsys, err := iso9660.Open(t.Context(), disk.Bytes(t.Context(), disc))
	if err != nil {
		t.Fatal(err)
	}
	e, err := guestfs.Lookup(t.Context(), fsys, fsys.Root(), "a")
	if err != nil {
		t.Fatal(err)
	}
	img, err := fsys.Open(t.Context(), e.Inode)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	b := make([]byte, img.Size())
	want := strings.Repeat("x", 2048) + strings.Repeat("y", 2048) + strings.Repeat("z", 7)
	if _, err := img.ReadAt(b, 0); err != nil || string(b) != want {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if _, err := guestfs.Lookup(t.Context(), fsys, fsys.Root(), "b"); err != nil {
		t.Errorf("the file behind it: %v", err)
	}
	disc = handmade(handmadeRecord("A.;1", 20, 2048, more), handmadeRecord("B.;1", 21, 7, 0))
	if fsys, err = iso9660.Open(t.Context(), disk.Bytes(t.Context(), disc)); err != nil {
		t.Fatal(err)
	}
	if _, err := guestfs.Lookup(t.Context(), fsys, fsys.Root(), "a"); !errors.Is(err, guestfs.ErrCorrupt) {
		t.Errorf("a file without its last part: %v", err)
	}
}

// TestMutations: whatever is written over the structures, reading them ends.
func TestMutations(t *testing.T) {
	dir, image := source(t, false), filepath.Join(t.TempDir(), "disc.iso")
	guestfstest.Run(t, "genisoimage", "-quiet", "-R", "-D", "-input-charset", "iso8859-1", "-o", image, dir)
	pristine, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	pristine = pristine[:min(len(pristine), 600<<10)] // structures come first
	var used []int
	for i, c := range pristine {
		if c != 0 {
			used = append(used, i)
		}
	}
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 7))
		data := bytes.Clone(pristine)
		for range 1 + rng.IntN(200) {
			data[used[rng.IntN(len(used))]] = byte(rng.Uint32())
		}
		walkAll(t.Context(), data)
	}
}

// walkAll reads everything, as long as it is not endless.
func walkAll(ctx context.Context, data []byte) {
	fsys, err := iso9660.Open(ctx, disk.Bytes(ctx, data))
	if err != nil {
		return
	}
	budget := 5_000
	var walk func(dir guestfs.Inode, depth int)
	walk = func(dir guestfs.Inode, depth int) {
		for e, err := range fsys.ReadDir(ctx, dir, 0) {
			if budget--; err != nil || budget < 0 {
				return
			}
			if e.Name == "" || strings.ContainsAny(e.Name, "/\x00") {
				panic(fmt.Sprintf("a name that is none: %q", e.Name))
			}
			if _, err := fsys.Stat(ctx, e.Inode); err != nil {
				continue
			}
			if e.Type == guestfs.TypeDir {
				if depth < 12 {
					walk(e.Inode, depth+1)
				}
				continue
			}
			img, err := fsys.Open(ctx, e.Inode)
			if err != nil {
				continue
			}
			buf := make([]byte, min(img.Size(), 1<<16))
			_, _ = img.ReadAt(buf, 0)
			_, _ = img.ReadAt(buf, max(0, img.Size()-int64(len(buf))))
			img.Close()
		}
	}
	walk(fsys.Root(), 0)
}

func FuzzOpen(f *testing.F) {
	disc := handmade(handmadeRecord("A.;1", 20, 2048, 0), handmadeRecord("B", 18, 2048, 2))
	f.Add(disc)
	f.Fuzz(func(t *testing.T, data []byte) { walkAll(t.Context(), data) })
}
