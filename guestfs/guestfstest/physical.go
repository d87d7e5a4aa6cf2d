package guestfstest

import (
	"bytes"
	"testing"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// Physical checks what a reader says of where the content of every file stands on
// its volume: that it is there, and that nothing but zeros is left out. It returns
// the number of extents that it looked at.
func Physical(t testing.TB, fsys guestfs.FS, volume disk.Image) int {
	t.Helper()
	mapped, ok := fsys.(guestfs.Mapped)
	if !ok {
		t.Fatalf("%T does not say where content is", fsys)
	}
	n := 0
	seen := map[guestfs.Inode]bool{}
	for queue := []guestfs.Inode{fsys.Root()}; len(queue) > 0; queue = queue[1:] {
		for e, err := range fsys.ReadDir(t.Context(), queue[0], 0) {
			if err != nil {
				t.Fatal(err)
			}
			a, err := fsys.Stat(t.Context(), e.Inode)
			if err != nil {
				t.Fatalf("%q: %v", e.Name, err)
			}
			switch {
			case seen[e.Inode]:
			case a.Type() == guestfs.TypeDir:
				queue = append(queue, e.Inode)
			case a.Type() == guestfs.TypeFile && a.Size < 64<<20:
				n += physical(t, fsys, mapped, e, volume)
			}
			seen[e.Inode] = true
		}
	}
	return n
}

func physical(t testing.TB, fsys guestfs.FS, mapped guestfs.Mapped, e guestfs.Dirent, volume disk.Image) (n int) {
	t.Helper()
	img, err := fsys.Open(t.Context(), e.Inode)
	if err != nil {
		t.Fatalf("%q: %v", e.Name, err)
	}
	defer img.Close()
	want := make([]byte, img.Size())
	if m, err := img.ReadAt(want, 0); m < len(want) {
		t.Fatalf("%q: %v", e.Name, err)
	}
	got := make([]byte, len(want))
	for x, err := range mapped.PhysicalExtents(t.Context(), e.Inode) {
		if err != nil {
			t.Fatalf("%q: %v", e.Name, err)
		}
		if n++; x.Encoded {
			return n
		}
		p := make([]byte, x.Length)
		if m, err := volume.ReadAt(p, x.At); m < len(p) {
			t.Fatalf("%q: %+v: %v", e.Name, x, err)
		}
		if x.Offset < int64(len(got)) {
			copy(got[x.Offset:], p)
		}
	}
	if n > 0 && !bytes.Equal(got, want) { // else it stands in the inode
		t.Errorf("%q: its %d bytes are not where it says (%d extents)", e.Name, len(want), n)
	}
	return n
}
