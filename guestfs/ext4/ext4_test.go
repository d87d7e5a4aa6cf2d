package ext4_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/ext4"
	"lifeboat/guestfs/guestfstest"
)

// variants are the ways of mke2fs to lay a file system out.
var variants = map[string][]string{
	"ext2":            {"-t", "ext2"},
	"ext2 1k":         {"-t", "ext2", "-b", "1024"},
	"ext2 128":        {"-t", "ext2", "-I", "128", "-O", "^resize_inode"},
	"ext3":            {"-t", "ext3"},
	"ext3 2k":         {"-t", "ext3", "-b", "2048"},
	"ext4":            {"-t", "ext4"},
	"ext4 1k":         {"-t", "ext4", "-b", "1024"},
	"ext4 no sums":    {"-t", "ext4", "-O", "^metadata_csum,uninit_bg"},
	"ext4 32bit":      {"-t", "ext4", "-O", "^64bit,^extent"},
	"ext4 inline":     {"-t", "ext4", "-I", "512", "-O", "inline_data"},
	"ext4 ea_inode":   {"-t", "ext4", "-O", "ea_inode,metadata_csum_seed"},
	"ext4 meta_bg":    {"-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"},
	"ext4 bigalloc":   {"-t", "ext4", "-O", "bigalloc", "-C", "65536"},
	"ext4 sparse2":    {"-t", "ext4", "-O", "sparse_super2,large_dir"},
	"ext4 inodes 128": {"-t", "ext4", "-I", "128"},
	"ext4 flags":      {"-t", "ext4", "-O", "encrypt,verity,stable_inodes"},
}

func format(t *testing.T, size int64, args ...string) string {
	t.Helper()
	image := guestfstest.NewImage(t, size)
	guestfstest.Run(t, "mke2fs", append(append([]string{"-q", "-F", "-b", "4096"}, args...), image)...)
	return image
}

func open(t *testing.T, image string) *ext4.FS {
	t.Helper()
	img, err := disk.Open(t.Context(), image, disk.OpenOptions{Format: disk.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	fsys, err := ext4.Open(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

// TestAgainstKernel: the whole tree, as the kernel shows it, for every variant.
func TestAgainstKernel(t *testing.T) {
	guestfstest.NeedMount(t, "ext4", "mke2fs")
	for name, args := range variants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image := format(t, 64<<20, args...)
			dir, unmount := guestfstest.Mount(t, image, "ext4", "")
			old := name == "ext2 128" || name == "ext4 inodes 128"
			guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 1, Entries: 300, MaxFile: 100_000, NoBigXattrs: name != "ext4 ea_inode", Year2038: old})
			unmount()
			dir, _ = guestfstest.Mount(t, image, "ext4", "ro,noload")
			fsys := open(t, image)
			n := guestfstest.Compare(t, fsys, dir, guestfstest.Compared{})
			if n < 300 {
				t.Errorf("only %d entries were compared", n)
			}
			// A mount namespace that somebody else made meanwhile keeps it mounted.
			info := fsys.Info()
			if info.State != guestfs.Clean && info.State != guestfs.Replayed || info.Type != name[:4] && name != "ext4 32bit" {
				t.Errorf("info: %+v", info)
			}
		})
	}
}

// TestLive: a copy of a file system in use holds its latest changes in the
// journal only. The reader shows what the kernel shows after it has replayed.
func TestLive(t *testing.T) {
	guestfstest.NeedMount(t, "ext4", "mke2fs")
	for name, args := range map[string][]string{
		"ext4":         {"-t", "ext4"},
		"ext4 1k":      {"-t", "ext4", "-b", "1024", "-O", "^64bit"},
		"ext4 no sums": {"-t", "ext4", "-O", "^metadata_csum"},
		"ext3":         {"-t", "ext3"},
	} {
		for _, mode := range []string{"data=ordered", "data=journal"} {
			t.Run(name+" "+mode, func(t *testing.T) {
				t.Parallel()
				image := format(t, 64<<20, args...)
				dir, _ := guestfstest.Mount(t, image, "ext4", mode)
				guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 2, Entries: 150, MaxFile: 50_000, NoBigXattrs: true})
				for round := range 2 {
					churn(t, dir, round)
					copied := guestfstest.CopyImage(t, image)
					replayed := guestfstest.CopyImage(t, copied)
					fsys := open(t, copied)
					peer, unmount := guestfstest.Mount(t, replayed, "ext4", "noatime")
					if n := guestfstest.Compare(t, fsys, peer, guestfstest.Compared{NoAtime: true}); n < 150 {
						t.Errorf("only %d entries were compared", n)
					}
					unmount()
					if info := fsys.Info(); info.State != guestfs.Replayed {
						t.Errorf("the state is %+v: nothing was tested", info)
					}
				}
			})
		}
	}
}

// churn changes much, and has it committed to the journal, but not written to
// its place.
func churn(t *testing.T, dir string, round int) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sub := filepath.Join(dir, fmt.Sprintf("round %d", round))
	must(os.Mkdir(sub, 0o755))
	for i := range 200 {
		name := filepath.Join(sub, fmt.Sprintf("new %d", i))
		must(os.WriteFile(name, make([]byte, i*100), 0o600))
		switch i % 4 {
		case 0:
			must(os.Remove(name))
		case 1:
			must(os.Rename(name, name+" renamed"))
		case 2:
			must(os.Mkdir(name+" directory", 0o700))
		}
	}
	if round > 0 { // directories that go are blocks that are revoked
		must(os.RemoveAll(filepath.Join(dir, fmt.Sprintf("round %d", round-1))))
	}
	f, err := os.Create(filepath.Join(sub, "synced"))
	must(err)
	defer f.Close()
	_, err = f.WriteString("the journal is committed with this")
	must(err)
	must(f.Sync())
}

// TestNotExt4: what is no file system of this family says so.
func TestNotExt4(t *testing.T) {
	for _, size := range []int64{0, 1000, 2048, 1 << 20} {
		img := disk.Bytes(t.Context(), make([]byte, size))
		if _, err := ext4.Open(t.Context(), img); !errors.Is(err, guestfs.ErrNoFS) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}
