package ntfs_test

import (
	"bytes"
	"os"
	"testing"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/ntfs"
)

// peer is what ntfs-3g cannot tell, or tells of itself.
var peer = guestfstest.Compared{NoInodes: true, NoXattrs: true, NoOwner: true, NoDirSize: true, NoDirLinks: true, NoAllocated: true, Skip: farAway}

// farAway is a file of 2 GiB that is hardly there: ntfs-3g does not tell where,
// so comparing it as others are would take as long as reading it all.
func farAway(path string) bool { return path == farFile }

// variants are the ways to lay a volume out.
var variants = map[string][]string{
	"512":   {"-c", "512"},
	"4k":    {"-c", "4096"},
	"64k":   {"-c", "65536"},
	"2m":    {"-c", "2097152"},
	"s4096": {"-s", "4096", "-c", "4096"},
}

const farFile = "/sizes/far away"

// compareData compares what a file has besides holes.
func compareData(t *testing.T, fsys *ntfs.FS, inode guestfs.Inode, host string) {
	t.Helper()
	peer, err := os.Open(host)
	must(t, err)
	defer peer.Close()
	img, err := fsys.Open(t.Context(), inode)
	must(t, err)
	defer img.Close()
	data := int64(0)
	for e, err := range disk.Extents(t.Context(), img, disk.Whole(img)) {
		must(t, err)
		if e.Hole {
			continue
		}
		data += e.Length
		a, b := make([]byte, e.Length), make([]byte, e.Length)
		_, err = img.ReadAt(a, e.Offset)
		must(t, err)
		_, err = peer.ReadAt(b, e.Offset)
		must(t, err)
		if !bytes.Equal(a, b) {
			t.Errorf("%s differs after %d", host, e.Offset)
		}
	}
	if data == 0 || data > img.Size()/50 {
		t.Errorf("%s has %d bytes of data in %d", host, data, img.Size())
	}
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
			guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 1, Entries: 120, MaxFile: 60_000, Plain: true})
			unmount()
			dir, _ = mount(t, image, "ro")
			fsys := open(t, image)
			if n := guestfstest.Compare(t, fsys, dir, peer); n < 120 {
				t.Errorf("only %d entries were compared", n)
			}
			compareData(t, fsys, find(t, fsys, "sizes/far away"), dir+farFile)
			if info := fsys.Info(); info.State != guestfs.Clean || info.Label != "Größe" || info.Used <= 0 {
				t.Errorf("info: %+v", info)
			}
		})
	}
}
