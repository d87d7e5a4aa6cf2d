package ntfs_test

import (
	"testing"

	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
)

// peer is what ntfs-3g cannot tell, or tells of itself.
var peer = guestfstest.Compared{NoInodes: true, NoXattrs: true, NoOwner: true, NoDirSize: true, NoDirLinks: true, NoAllocated: true}

// variants are the ways to lay a volume out.
var variants = map[string][]string{
	"512":   {"-c", "512"},
	"1k":    {"-c", "1024"},
	"4k":    {"-c", "4096"},
	"64k":   {"-c", "65536"},
	"2m":    {"-c", "2097152"},
	"s4096": {"-s", "4096", "-c", "4096"},
}

// TestAgainstNTFS3G: the whole tree, as ntfs-3g shows it.
func TestAgainstNTFS3G(t *testing.T) {
	guestfstest.NeedMount(t, "fuse", "mkfs.ntfs", "ntfs-3g")
	for name, args := range variants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			size := int64(96 << 20)
			if name == "2m" {
				size = 2 << 30
			}
			image := format(t, size, args...)
			dir, unmount := mount(t, image, "")
			guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 1, Entries: 300, MaxFile: 100_000, Plain: true})
			unmount()
			dir, _ = mount(t, image, "ro")
			fsys := open(t, image)
			if n := guestfstest.Compare(t, fsys, dir, peer); n < 300 {
				t.Errorf("only %d entries were compared", n)
			}
			if info := fsys.Info(); info.State != guestfs.Clean || info.Label != "Größe" || info.Used <= 0 {
				t.Errorf("info: %+v", info)
			}
		})
	}
}
