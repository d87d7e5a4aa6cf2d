package fat_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/fat"
	"lifeboat/guestfs/guestfstest"
)

// compared is what mtools cannot keep or a FAT does not have.
var compared = guestfstest.Compared{
	NoInodes: true, NoXattrs: true, NoCtime: true, NoAtime: true, NoOwner: true, NoDirSize: true, NoDirLinks: true, NoAllocated: true, NoBtime: true, NoDirTimes: true,
	Granularity: 2 * time.Second,
}

// tree makes a directory that fits on a FAT.
func tree(t *testing.T, rng *rand.Rand, many int, biggest int64) string {
	t.Helper()
	dir := t.TempDir()
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
	for i := range many {
		write(rng.Int64N(3000), "many", fmt.Sprintf("a file with a long name, number %d", i))
	}
	for _, size := range []int64{0, 1, 511, 512, 513, 2048, 4096, 4097, biggest} {
		write(size, fmt.Sprintf("size%d", size))
	}
	for _, name := range []string{"lower.txt", "UPPER.TXT", "Mixed.Txt", "Größe", "日本語.txt", "a  b", strings.Repeat("n", 200), "with.many.dots", "x.tar.gz", "12345678.123", "123456789.1234", "~1", "é.é", "THIRTEENCHARS", "exactly13char", "twenty-six-characters-long"} {
		write(100, "odd names", name)
	}
	deep := []string{}
	for i := range 10 {
		deep = append(deep, fmt.Sprintf("Directory %d", i))
		write(10, append(deep, "leaf")...)
	}
	return dir
}

func mtool(t *testing.T, name, image string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, append([]string{"-i", image}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MTOOLS_SKIP_CHECK=1", "TZ=UTC")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

func format(t *testing.T, size int64, args ...string) string {
	t.Helper()
	image := guestfstest.NewImage(t, size)
	guestfstest.Run(t, "mkfs.vfat", append(args, "-n", "LIFEBOAT", "-i", "1234abcd", image)...)
	return image
}

// fill copies a directory's content in, around holes that files left which were
// there before.
func fill(t *testing.T, image, dir string) {
	t.Helper()
	filler := t.TempDir()
	var all, half []string
	for i := range 60 {
		name := fmt.Sprintf("filler %d", i)
		if err := os.WriteFile(filepath.Join(filler, name), make([]byte, 2000+i*10), 0o600); err != nil {
			t.Fatal(err)
		}
		all = append(all, filepath.Join(filler, name))
		if i%2 == 0 {
			half = append(half, "::/"+name)
		}
	}
	mtool(t, "mcopy", image, append(all, "::/")...)
	mtool(t, "mdel", image, half...)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-s", "-m"}
	for _, e := range entries {
		args = append(args, filepath.Join(dir, e.Name()))
	}
	mtool(t, "mcopy", image, append(args, "::/")...)
	for i := range 60 {
		if i%2 == 1 {
			mtool(t, "mdel", image, fmt.Sprintf("::/filler %d", i))
		}
	}
}

func open(t testing.TB, image string) *fat.FS {
	t.Helper()
	img, err := disk.Open(t.Context(), image, disk.OpenOptions{Format: disk.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	fsys, err := fat.Open(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

func TestAgainstWriter(t *testing.T) {
	if _, err := exec.LookPath("mcopy"); err != nil {
		t.Fatal("mcopy is missing: run tools/provision.sh test")
	}
	for name, v := range map[string]struct {
		size    int64
		many    int
		biggest int64
		args    []string
	}{
		"FAT12":            {4 << 20, 100, 500_000, []string{"-F", "12", "-s", "2", "-r", "512"}},
		"FAT12 floppy":     {1440 << 10, 20, 200_000, []string{"-F", "12"}},
		"FAT16":            {40 << 20, 300, 3_000_000, []string{"-F", "16"}},
		"FAT16 one table":  {40 << 20, 300, 3_000_000, []string{"-F", "16", "-f", "1", "-R", "8"}},
		"FAT32":            {80 << 20, 250, 8_000_000, []string{"-F", "32"}},
		"FAT32 512":        {64 << 20, 250, 8_000_000, []string{"-F", "32", "-s", "1"}},
		"FAT32 4K sectors": {300 << 20, 50, 8_000_000, []string{"-F", "32", "-S", "4096", "-s", "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image := format(t, v.size, v.args...)
			dir := tree(t, rand.New(rand.NewPCG(1, 2)), v.many, v.biggest)
			fill(t, image, dir)
			fsys := open(t, image)
			if n := guestfstest.Compare(t, fsys, dir, compared); n < v.many+30 {
				t.Errorf("only %d entries were compared", n)
			}
			info := fsys.Info()
			if info.Label != "LIFEBOAT" || info.UUID != "1234-ABCD" || info.State != guestfs.Clean || info.Used <= v.biggest || info.Used >= info.Size {
				t.Errorf("info: %+v", info)
			}
		})
	}
}

// TestLookup finds names whatever their case, and by their short ones.
func TestLookup(t *testing.T) {
	image := format(t, 8<<20)
	dir := tree(t, rand.New(rand.NewPCG(3, 4)), 3, 1000)
	fill(t, image, dir)
	fsys := open(t, image)
	ctx := t.Context()
	for _, name := range []string{"ODD NAMES", "odd names", "Many", "SIZE4096", "ODDNAM~1"} {
		if _, err := fsys.Lookup(ctx, fsys.Root(), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := fsys.Lookup(ctx, fsys.Root(), "no such"); err == nil {
		t.Error("a name that is not there was found")
	}
	if _, err := fsys.Stat(ctx, 1<<40); err == nil {
		t.Error("an inode behind the end exists")
	}
}

// TestDirty: a volume whose last user did not let go of it.
func TestDirty(t *testing.T) {
	for bits, at := range map[string]int64{"16": 0x25, "32": 0x41} {
		image := format(t, 80<<20, "-F", bits)
		f, err := os.OpenFile(image, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{1}, at); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if info := open(t, image).Info(); info.State != guestfs.Dirty || info.Note == "" {
			t.Errorf("FAT%s: %+v", bits, info)
		}
	}
}

// TestMutations: whatever is written over a volume, reading it ends.
func TestMutations(t *testing.T) {
	image := format(t, 2<<20, "-F", "12", "-s", "1")
	fill(t, image, tree(t, rand.New(rand.NewPCG(5, 6)), 40, 100_000))
	pristine, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	const metadata = 64 << 10
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 7))
		data := bytes.Clone(pristine)
		for range 1 + rng.IntN(20) {
			at := rng.IntN(metadata)
			if rng.IntN(4) == 0 {
				at = rng.IntN(len(data))
			}
			data[at] = byte(rng.Uint32())
		}
		walkAll(t.Context(), data)
	}
}

// walkAll reads everything, as long as it is not endless.
func walkAll(ctx context.Context, data []byte) {
	fsys, err := fat.Open(ctx, disk.Bytes(ctx, data))
	if err != nil {
		return
	}
	budget := 20_000
	var walk func(dir guestfs.Inode, depth int)
	walk = func(dir guestfs.Inode, depth int) {
		for e, err := range fsys.ReadDir(ctx, dir, 0) {
			if budget--; err != nil || budget < 0 {
				return
			}
			if e.Name == "" || strings.ContainsAny(e.Name, "/\x00") || !fs.ValidPath(strings.ToValidUTF8(e.Name, "_")) {
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
	boot := make([]byte, 64<<10)
	copy(boot, "\xeb\x3c\x90mkfs.fat\x00\x02\x01\x01\x00\x01\x10\x00\x80\x00\xf8\x01\x00")
	copy(boot[510:], "\x55\xaa")
	copy(boot[512:], "\xf8\xff\xff")
	copy(boot[1024:], "A\x61\x00\x62\x00\x00\x00\xff\xff\xff\xff\x0f\x00\x33\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\xff\xff\xff\xff")
	f.Add(boot)
	f.Fuzz(func(t *testing.T, data []byte) { walkAll(t.Context(), data) })
}
