package btrfs_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/btrfs"
	"lifeboat/guestfs/guestfstest"
)

// variant is a way to lay a file system out, and to write to it.
type variant struct {
	devices int
	mkfs    []string
	mount   string
}

var variants = map[string]variant{
	"default":       {1, nil, ""},
	"single":        {1, []string{"-m", "single", "-O", "^no-holes"}, "max_inline=0"},
	"dup xxhash":    {1, []string{"-d", "dup", "-m", "dup", "--csum", "xxhash"}, ""},
	"sha256":        {1, []string{"--csum", "sha256", "-n", "4096"}, ""},
	"blake2":        {1, []string{"--csum", "blake2", "-n", "65536"}, ""},
	"mixed":         {1, []string{"-M"}, ""},
	"zlib":          {1, nil, "compress-force=zlib"},
	"lzo":           {1, nil, "compress-force=lzo"},
	"zstd":          {1, nil, "compress-force=zstd"},
	"no sums":       {1, nil, "nodatasum"},
	"raid0":         {3, []string{"-d", "raid0", "-m", "raid1"}, ""},
	"raid1":         {2, []string{"-d", "raid1", "-m", "raid1"}, "compress=lzo"},
	"raid1c3":       {4, []string{"-d", "raid1c3", "-m", "raid1c4"}, ""},
	"raid10":        {4, []string{"-d", "raid10", "-m", "raid10"}, "compress-force=zstd"},
	"raid5":         {3, []string{"-d", "raid5", "-m", "raid5"}, ""},
	"raid6":         {4, []string{"-d", "raid6", "-m", "raid6"}, ""},
	"single of two": {2, []string{"-d", "single", "-m", "dup"}, ""},
}

const imageSize = 240 << 20

func format(t testing.TB, v variant) []string {
	t.Helper()
	var images []string
	for range v.devices {
		images = append(images, guestfstest.NewImage(t, imageSize))
	}
	guestfstest.Run(t, "mkfs.btrfs", append(append([]string{"-q", "-f"}, v.mkfs...), images...)...)
	return images
}

func image(t testing.TB, file string) disk.Image {
	t.Helper()
	img, err := disk.Open(t.Context(), file, disk.OpenOptions{Format: disk.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

func open(t testing.TB, images ...string) *btrfs.FS {
	t.Helper()
	var imgs []disk.Image
	for _, file := range images {
		imgs = append(imgs, image(t, file))
	}
	fsys, err := btrfs.Open(t.Context(), imgs[0], imgs[1:]...)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

// rare are left out unless longer runs are asked for: others go the same ways.
var rare = []string{"zlib", "raid1", "single of two", "single", "sha256", "blake2", "zstd", "raid0", "raid1c3", "raid5"}

// TestAgainstKernel: the whole tree, as the kernel shows it, for every variant.
func TestAgainstKernel(t *testing.T) {
	guestfstest.NeedMount(t, "btrfs", "mkfs.btrfs")
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if slices.Contains(rare, name) && os.Getenv("LIFEBOAT_CRASH_RUNS") == "" {
				t.Skip("LIFEBOAT_CRASH_RUNS is not set")
			}
			images := format(t, v)
			dir, unmount := guestfstest.MountDevices(t, images, "btrfs", v.mount)
			guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 1, Entries: 100, MaxFile: 300_000, NoBigXattrs: true})
			unmount()
			dir, _ = guestfstest.MountDevices(t, images, "btrfs", "ro,noatime,subvolid=5")
			fsys := open(t, images...)
			if n := guestfstest.Compare(t, fsys, dir, guestfstest.Compared{}); n < 100 {
				t.Errorf("only %d entries were compared", n)
			}
			if v.devices == 1 {
				if n := guestfstest.Physical(t, fsys, image(t, images[0])); n < 30 {
					t.Errorf("only %d extents", n)
				}
			}
			if info := fsys.Info(); info.State != guestfs.Clean || info.Type != "btrfs" {
				t.Errorf("info: %+v", info)
			}
		})
	}
}

// TestChangedUUID: metadata keep the UUID that the file system was made with.
func TestChangedUUID(t *testing.T) {
	guestfstest.NeedMount(t, "btrfs", "mkfs.btrfs", "btrfstune")
	images := format(t, variants["default"])
	dir, unmount := guestfstest.Mount(t, images[0], "btrfs", "")
	guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 4, Entries: 50, MaxFile: 10_000, NoBigXattrs: true})
	unmount()
	now := fmt.Sprintf("0f1e2d3c-4b5a-4697-8877-%012x", rand.Uint64()>>16)
	guestfstest.Run(t, "btrfstune", "-f", "-M", now, images[0])
	dir, _ = guestfstest.Mount(t, images[0], "btrfs", "ro,noatime")
	fsys := open(t, images...)
	if info := fsys.Info(); info.UUID != now {
		t.Errorf("info: %+v", info)
	}
	guestfstest.Compare(t, fsys, dir, guestfstest.Compared{})
}

// TestNotBtrfs: what is no such file system says so.
func TestNotBtrfs(t *testing.T) {
	for _, size := range []int64{0, 1000, 70_000, 1 << 20} {
		img := disk.Bytes(t.Context(), make([]byte, size))
		if _, err := btrfs.Open(t.Context(), img); !errors.Is(err, guestfs.ErrNoFS) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}
