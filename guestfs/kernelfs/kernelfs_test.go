package kernelfs_test

import (
	"errors"
	"io/fs"
	"testing"

	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/kernelfs"
)

// TestAgainstItself: what is shown of a directory is what is there.
func TestAgainstItself(t *testing.T) {
	for name, v := range map[string]struct {
		fs     string
		format []string
		size   int64
	}{
		"ext4":  {"ext4", []string{"mke2fs", "-q", "-F", "-t", "ext4", "-O", "ea_inode"}, 64 << 20},
		"xfs":   {"xfs", []string{"mkfs.xfs", "-q", "-f"}, 320 << 20},
		"btrfs": {"btrfs", []string{"mkfs.btrfs", "-q", "-f"}, 256 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			guestfstest.NeedMount(t, v.fs, v.format[0])
			image := guestfstest.NewImage(t, v.size)
			guestfstest.Run(t, v.format[0], append(v.format[1:], image)...)
			dir, _ := guestfstest.Mount(t, image, v.fs, "noatime")
			guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 1, Entries: 300, MaxFile: 100_000, NoBigXattrs: v.fs == "btrfs"})
			fsys, err := kernelfs.Open(dir, guestfs.Info{Type: v.fs})
			if err != nil {
				t.Fatal(err)
			}
			defer fsys.Close()
			if n := guestfstest.Compare(t, fsys, dir, guestfstest.Compared{}); n < 300 {
				t.Errorf("only %d entries were compared", n)
			}
			if info := fsys.Info(); info.Size < v.size/2 || info.Used <= 0 || info.Used > info.Size {
				t.Errorf("info: %+v", info)
			}
			if _, err := fsys.Stat(t.Context(), 1<<40); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("an inode that was never listed: %v", err)
			}
		})
	}
}

// TestSubvolumes: files of different subvolumes have different numbers.
func TestSubvolumes(t *testing.T) {
	guestfstest.NeedMount(t, "btrfs", "mkfs.btrfs", "btrfs")
	image := guestfstest.NewImage(t, 256<<20)
	guestfstest.Run(t, "mkfs.btrfs", "-q", "-f", image)
	dir, _ := guestfstest.Mount(t, image, "btrfs", "")
	guestfstest.Run(t, "btrfs", "subvolume", "create", dir+"/a")
	guestfstest.Populate(t, dir+"/a", guestfstest.Trees{Seed: 1, Entries: 10, Plain: true, MaxFile: 1000})
	guestfstest.Run(t, "btrfs", "subvolume", "snapshot", dir+"/a", dir+"/b")
	fsys, err := kernelfs.Open(dir, guestfs.Info{Type: "btrfs"})
	if err != nil {
		t.Fatal(err)
	}
	defer fsys.Close()
	if n := guestfstest.Compare(t, fsys, dir, guestfstest.Compared{NoInodes: true}); n < 20 {
		t.Errorf("only %d entries were compared", n)
	}
	seen := map[guestfs.Inode]string{}
	var walk func(inode guestfs.Inode, path string)
	walk = func(inode guestfs.Inode, path string) {
		for e, err := range fsys.ReadDir(t.Context(), inode, 0) {
			if err != nil {
				t.Fatal(err)
			}
			if was := seen[e.Inode]; was != "" {
				t.Errorf("%s has the number of %s", path+"/"+e.Name, was)
			}
			seen[e.Inode] = path + "/" + e.Name
			if e.Type == guestfs.TypeDir {
				walk(e.Inode, path+"/"+e.Name)
			}
		}
	}
	walk(fsys.Root(), "")
}
