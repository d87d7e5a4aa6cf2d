package exfat_test

import (
	"bytes"
	"context"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/exfat"
	"lifeboat/guestfs/guestfstest"
)

// compared is what the peer cannot tell: it is a driver in user space (relan's
// exfat-fuse), and the kernel here has none.
var compared = guestfstest.Compared{
	NoInodes: true, NoXattrs: true, NoCtime: true, NoOwner: true, NoDirSize: true, NoDirLinks: true, NoAllocated: true, NoBtime: true,
	NoAtime: true, Granularity: 2 * time.Second,
}

// mount mounts an image with exfat-fuse until unmount or the test's end.
func mount(t *testing.T, image, options string) (dir string, unmount func()) {
	t.Helper()
	guestfstest.NeedMount(t, "", "mount.exfat-fuse", "mkfs.exfat")
	return guestfstest.Mount(t, image, "exfat-fuse", options)
}

func open(t testing.TB, image string) *exfat.FS {
	t.Helper()
	img, err := disk.Open(t.Context(), image, disk.OpenOptions{Format: disk.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	fsys, err := exfat.Open(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

// fill makes files, a large directory, and fragments.
func fill(t *testing.T, dir string, many int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	write := func(size int64, path ...string) {
		t.Helper()
		name := filepath.Join(append([]string{dir}, path...)...)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(1_000_000_000+rng.Int64N(500_000_000), 0)
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 60 {
		write(9000, fmt.Sprintf("filler %d", i))
	}
	for i := 0; i < 60; i += 2 {
		if err := os.Remove(filepath.Join(dir, fmt.Sprintf("filler %d", i))); err != nil {
			t.Fatal(err)
		}
	}
	for _, size := range []int64{0, 1, 511, 512, 4095, 4096, 4097, 32768, 3_000_000} {
		write(size, fmt.Sprintf("size %d", size))
	}
	for i := range many {
		write(rng.Int64N(300), "many", fmt.Sprintf("a file with a long name, number %d", i))
	}
	for _, name := range []string{"lower.txt", "UPPER.TXT", "Größe", "日本語.txt", "🛟 lifeboat", "a  b", strings.Repeat("n", 255), "with.many.dots", ".hidden"} {
		write(100, "odd names", name)
	}
	deep := []string{}
	for i := range 10 {
		deep = append(deep, fmt.Sprintf("Directory %d", i))
		write(10, append(deep, "leaf")...)
	}
	name := filepath.Join(dir, "longer than written")
	write(1000, "longer than written")
	if err := os.Truncate(name, 100_000); err != nil {
		t.Fatal(err)
	}
}

func TestAgainstDriver(t *testing.T) {
	for name, args := range map[string][]string{
		"4K clusters":  {"-c", "4K"},
		"512 bytes":    {"-c", "512"},
		"64K clusters": {"-c", "64K"},
		"packed":       {"--pack-bitmap"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image := guestfstest.NewImage(t, 64<<20)
			guestfstest.NeedMount(t, "", "mount.exfat-fuse", "mkfs.exfat")
			guestfstest.Run(t, "mkfs.exfat", append(args, "-L", "LIFE BÖAT", image)...)
			dir, unmount := mount(t, image, "rw")
			fill(t, dir, 400)
			unmount()
			dir, _ = mount(t, image, "ro")
			fsys := open(t, image)
			if n := guestfstest.Compare(t, fsys, dir, compared); n < 450 {
				t.Errorf("only %d entries were compared", n)
			}
			info := fsys.Info()
			uuid := strings.TrimSpace(guestfstest.Run(t, "blkid", "-p", "-s", "UUID", "-o", "value", image))
			if info.Label != "LIFE BÖAT" || info.UUID != uuid || info.State != guestfs.Clean || info.Used <= 3_000_000 || info.Used >= info.Size {
				t.Errorf("info: %+v", info)
			}
			for _, name := range []string{"ODD NAMES", "Many", "size 4096"} {
				if _, err := fsys.Lookup(t.Context(), fsys.Root(), name); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

// TestInUse: a copy of a mounted volume says that it was in use, and a damaged
// boot region is replaced by its copy.
func TestInUse(t *testing.T) {
	guestfstest.NeedMount(t, "", "mount.exfat-fuse", "mkfs.exfat")
	image := guestfstest.NewImage(t, 16<<20)
	guestfstest.Run(t, "mkfs.exfat", image)
	dir, unmount := mount(t, image, "rw")
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if info := open(t, guestfstest.CopyImage(t, image)).Info(); info.State != guestfs.Dirty {
		t.Errorf("in use: %+v", info)
	}
	unmount()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 200), 0); err != nil {
		t.Fatal(err)
	}
	fsys := open(t, image)
	if info := fsys.Info(); info.State != guestfs.Damaged || info.Note == "" {
		t.Errorf("a damaged boot region: %+v", info)
	}
	if _, err := fsys.Lookup(t.Context(), fsys.Root(), "A"); err != nil {
		t.Errorf("with the copy of the boot region: %v", err)
	}
}

// TestMutations: whatever is written over a volume, with the checksums of the
// boot region and of sets of entries made right again, reading it ends.
func TestMutations(t *testing.T) {
	guestfstest.NeedMount(t, "", "mount.exfat-fuse", "mkfs.exfat")
	image := guestfstest.NewImage(t, 8<<20)
	guestfstest.Run(t, "mkfs.exfat", "-c", "512", "--pack-bitmap", image)
	dir, unmount := mount(t, image, "rw")
	fill(t, dir, 20)
	unmount()
	pristine, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	var used []int // where there is anything
	for i, c := range pristine {
		if c != 0 && i < 2<<20 {
			used = append(used, i)
		}
	}
	opened := 0
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 7))
		data := bytes.Clone(pristine)
		for range 1 + rng.IntN(30) {
			data[used[rng.IntN(len(used))]] = byte(rng.Uint32())
			if rng.IntN(3) == 0 {
				data[rng.IntN(120)] = byte(rng.Uint32())
			}
		}
		mend(data)
		if walkAll(t.Context(), data) {
			opened++
		}
	}
	if opened < 50 {
		t.Errorf("only %d of 400 could be opened: nothing was tested", opened)
	}
}

// mend makes checksums right.
func mend(data []byte) {
	sector := 1 << (data[108] & 15)
	if sector >= 512 && 12*sector < len(data) {
		var sum uint32
		for i, c := range data[:11*sector] {
			if i != 106 && i != 107 && i != 112 {
				sum = bits.RotateLeft32(sum, -1) + uint32(c)
			}
		}
		for i := range sector / 4 {
			copy(data[11*sector+4*i:], []byte{byte(sum), byte(sum >> 8), byte(sum >> 16), byte(sum >> 24)})
		}
	}
	for at := 0; at+32 <= len(data); at += 32 {
		end := at + 32*(1+int(data[at+1]))
		if data[at] != 0x85 || end > len(data) || data[at+1] > 20 {
			continue
		}
		var sum uint16
		for i, c := range data[at:end] {
			if i != 2 && i != 3 {
				sum = bits.RotateLeft16(sum, -1) + uint16(c)
			}
		}
		data[at+2], data[at+3] = byte(sum), byte(sum>>8)
	}
}

// walkAll reads everything, as long as it is not endless.
func walkAll(ctx context.Context, data []byte) bool {
	fsys, err := exfat.Open(ctx, disk.Bytes(ctx, data))
	if err != nil {
		return false
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
	return true
}

func FuzzOpen(f *testing.F) {
	boot := make([]byte, 64<<10)
	copy(boot[3:], "EXFAT   ")
	copy(boot[80:], "\x18\x00\x00\x00\x08\x00\x00\x00\x20\x00\x00\x00\x40\x00\x00\x00\x02\x00\x00\x00")
	copy(boot[106:], "\x00\x00\x09\x00\x01")
	copy(boot[510:], "\x55\xaa")
	mend(boot)
	f.Add(boot)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 512 {
			return
		}
		mend(data)
		walkAll(t.Context(), data)
	})
}
