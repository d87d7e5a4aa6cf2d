package xfs_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/internal/patch"
	"lifeboat/guestfs/xfs"
)

// variants are the ways of mkfs.xfs to lay a file system out.
var variants = map[string][]string{
	"v5":             {"-m", "crc=1"},
	"v5 small log":   {"-m", "crc=1", "-l", "size=6m"},
	"v5 nrext64":     {"-i", "nrext64=1", "-m", "bigtime=1,inobtcount=1"},
	"v5 rmapbt":      {"-m", "rmapbt=1,reflink=1"},
	"v5 old":         {"-m", "crc=1,finobt=0,reflink=0,bigtime=0,inobtcount=0", "-i", "sparse=0"},
	"v5 1k":          {"-b", "size=1024"},
	"v5 1k dir 16k":  {"-b", "size=1024", "-n", "size=16384"},
	"v5 dir 64k":     {"-n", "size=65536"},
	"v5 inodes 2k":   {"-i", "size=2048"},
	"v5 inodes 1k":   {"-i", "size=1024", "-b", "size=2048"},
	"v5 sectors 4k":  {"-s", "size=4096"},
	"v5 log unit":    {"-l", "su=65536"},
	"v5 log unit256": {"-l", "su=262144"},
	"v5 groups":      {"-d", "agcount=9", "-l", "agnum=2,size=8m"},
}

func format(t testing.TB, size int64, args ...string) string {
	t.Helper()
	image := guestfstest.NewImage(t, size)
	mkfs(t, image, args...)
	return image
}

// mkfs formats an image. The variables have mkfs.xfs make file systems and logs
// that are smaller than anybody should use: a small log comes around often.
func mkfs(t testing.TB, image string, args ...string) {
	t.Helper()
	args = append([]string{"TEST_DIR=x", "TEST_DEV=x", "QA_CHECK_FS=1", "mkfs.xfs", "-q", "-f"}, args...)
	guestfstest.Run(t, "env", append(args, image)...)
}

func volume(t testing.TB, image string) disk.Image {
	t.Helper()
	img, err := disk.Open(t.Context(), image, disk.OpenOptions{Format: disk.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

func open(t testing.TB, image string) *xfs.FS {
	t.Helper()
	fsys, err := xfs.Open(t.Context(), volume(t, image))
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

const imageSize = 160 << 20

// rare are left out unless longer runs are asked for: others go the same ways.
var rare = []string{"v5 nrext64", "v5 1k", "v5", "v5 small log", "v5 old", "v5 inodes 1k", "v5 log unit", "v5 groups", "v5 dir 64k"}

// TestAgainstKernel: the whole tree, as the kernel shows it, for every variant.
func TestAgainstKernel(t *testing.T) {
	guestfstest.NeedMount(t, "xfs", "mkfs.xfs")
	for name, args := range variants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if slices.Contains(rare, name) && os.Getenv("LIFEBOAT_CRASH_RUNS") == "" {
				t.Skip("LIFEBOAT_CRASH_RUNS is not set")
			}
			image := format(t, imageSize, args...)
			dir, unmount := guestfstest.Mount(t, image, "xfs", "")
			guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 1, Entries: 200, MaxFile: 100_000, Year2038: args[1] != "crc=1" || name == "v5 old"})
			unmount()
			dir, _ = guestfstest.Mount(t, image, "xfs", "ro,norecovery,nouuid")
			fsys := open(t, image)
			if n := guestfstest.Compare(t, fsys, dir, guestfstest.Compared{}); n < 200 {
				t.Errorf("only %d entries were compared", n)
			}
			if n := guestfstest.Physical(t, fsys, volume(t, image)); n < 50 {
				t.Errorf("only %d extents", n)
			}
			if info := fsys.Info(); info.State != guestfs.Clean && info.State != guestfs.Replayed || info.Type != "xfs" {
				t.Errorf("info: %+v", info)
			}
		})
	}
}

// TestChangedUUID: metadata keep the UUID that the file system was made with.
func TestChangedUUID(t *testing.T) {
	guestfstest.NeedMount(t, "xfs", "mkfs.xfs", "xfs_admin")
	image := format(t, imageSize)
	dir, unmount := guestfstest.Mount(t, image, "xfs", "")
	guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 4, Entries: 50, MaxFile: 10_000})
	unmount()
	now := fmt.Sprintf("0f1e2d3c-4b5a-4697-8877-%012x", rand.Uint64()>>16)
	guestfstest.Run(t, "xfs_admin", "-U", now, image)
	dir, unmount = guestfstest.Mount(t, image, "xfs", "")
	guestfstest.Populate(t, dir+"/odd names", guestfstest.Trees{Seed: 5, Entries: 50, MaxFile: 10_000})
	dirty := guestfstest.CopyImage(t, image)
	unmount()
	dir, _ = guestfstest.Mount(t, image, "xfs", "ro,norecovery,nouuid")
	for _, image := range []string{image, dirty} {
		fsys := open(t, image)
		if info := fsys.Info(); info.UUID != now {
			t.Errorf("info: %+v", info)
		}
		guestfstest.Compare(t, fsys, dir, guestfstest.Compared{})
	}
}

// TestRefused: what this reader cannot do is said, and what it can is still there.
func TestRefused(t *testing.T) {
	guestfstest.NeedMount(t, "", "mkfs.xfs")
	elsewhere := guestfstest.NewImage(t, 64<<20)
	fsys := open(t, format(t, imageSize, "-l", "logdev="+elsewhere+",size=16m"))
	if info := fsys.Info(); info.State != guestfs.Dirty || !strings.Contains(info.Note, "on another device") {
		t.Errorf("a log on another device: %+v", info)
	}
	if a, err := fsys.Stat(t.Context(), fsys.Root()); err != nil || a.Type() != guestfs.TypeDir {
		t.Errorf("the root directory: %+v, %v", a, err)
	}
	image := format(t, imageSize)
	for name, edit := range map[string]func(sb []byte){
		"zoned storage": func(sb []byte) { sb[218] |= 2 },
		"version 3":     func(sb []byte) { sb[101] = sb[101]&0xf0 | 3 },
		"feature":       func(sb []byte) { sb[216] |= 0x80 },
	} {
		img := volume(t, image)
		sb := make([]byte, 512)
		if n, err := img.ReadAt(sb, 0); n < len(sb) {
			t.Fatal(err)
		}
		edit(sb)
		const crc = 224
		clear(sb[crc : crc+4])
		binary.LittleEndian.PutUint32(sb[crc:], crc32.Checksum(sb, crc32.MakeTable(crc32.Castagnoli)))
		_, err := xfs.Open(t.Context(), patch.New(img, 512, map[int64]patch.Block{0: {Data: sb}}))
		if !errors.Is(err, guestfs.ErrUnsupported) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNotXFS: what is no such file system says so.
func TestNotXFS(t *testing.T) {
	for _, size := range []int64{0, 1000, 2048, 1 << 20} {
		img := disk.Bytes(t.Context(), make([]byte, size))
		if _, err := xfs.Open(t.Context(), img); !errors.Is(err, guestfs.ErrNoFS) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}
