package btrfs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
)

// TestSubvolumes: subvolumes, snapshots, those in them, and one that is gone.
func TestSubvolumes(t *testing.T) {
	guestfstest.NeedMount(t, "btrfs", "mkfs.btrfs", "btrfs")
	images := format(t, variant{1, nil, ""})
	dir, unmount := guestfstest.Mount(t, images[0], "btrfs", "")
	in := func(names ...string) string { return filepath.Join(append([]string{dir}, names...)...) }
	subvolume := func(args ...string) {
		t.Helper()
		guestfstest.Run(t, "btrfs", append([]string{"subvolume"}, args...)...)
	}
	subvolume("create", in("@"))
	subvolume("create", in("@", "nested"))
	guestfstest.Populate(t, in("@"), guestfstest.Trees{Seed: 3, Entries: 40, MaxFile: 10_000, NoBigXattrs: true})
	if err := os.WriteFile(in("@", "nested", "file"), []byte("in a nested subvolume"), 0o600); err != nil {
		t.Fatal(err)
	}
	subvolume("snapshot", "-r", in("@"), in("before"))
	subvolume("create", in("gone"))
	if err := os.WriteFile(in("@", "later"), make([]byte, 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	subvolume("snapshot", in("@"), in("@", "itself"))
	subvolume("delete", "-c", in("gone"))
	id := strings.Fields(guestfstest.Run(t, "btrfs", "inspect-internal", "rootid", in("before")))[0]
	subvolume("set-default", id, dir)
	unmount()
	dir, _ = guestfstest.Mount(t, images[0], "btrfs", "ro,noatime,subvolid=5")
	fsys := open(t, images...)
	// The empty directories in snapshots, where a subvolume was, have the time of
	// the mount.
	empty := map[string]bool{"/before/nested": true, "/@/itself/nested": true}
	n := guestfstest.Compare(t, fsys, dir, guestfstest.Compared{NoInodes: true, Skip: func(path string) bool { return empty[path] }})
	if n < 3*80 {
		t.Errorf("only %d entries were compared", n)
	}
	before, err := guestfs.Lookup(t.Context(), fsys, fsys.Root(), "before")
	if err != nil {
		t.Fatal(err)
	}
	if root, err := fsys.DefaultRoot(t.Context()); err != nil || root != before.Inode {
		t.Errorf("the default is %d, %v; want %d", root, err, before.Inode)
	}
	if got := len(fsys.Subvolumes()); got != 5 {
		t.Errorf("%d subvolumes, want 5", got)
	}
	nested, err := guestfs.Lookup(t.Context(), fsys, before.Inode, "nested")
	if err != nil {
		t.Fatal(err)
	}
	attr, err := fsys.Stat(t.Context(), nested.Inode)
	if err != nil || attr.Type() != guestfs.TypeDir {
		t.Errorf("%+v, %v", attr, err)
	}
	for e, err := range fsys.ReadDir(t.Context(), nested.Inode, 0) {
		t.Errorf("%+v, %v", e, err)
	}
	stat, err := os.Stat(filepath.Join(dir, "before", "nested"))
	if err != nil || uint32(stat.Mode().Perm()) != attr.Mode&0o777 {
		t.Errorf("%v, %v; we say %o", stat, err, attr.Mode)
	}
}
