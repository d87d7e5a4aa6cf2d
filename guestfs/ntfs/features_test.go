package ntfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/guestfs"
	"lifeboat/guestfs/guestfstest"
	"lifeboat/guestfs/ntfs"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// find walks a path from the root.
func find(t testing.TB, fsys *ntfs.FS, path string) guestfs.Inode {
	t.Helper()
	at := fsys.Root()
	for name := range strings.SplitSeq(path, "/") {
		e, err := fsys.Lookup(t.Context(), at, name)
		must(t, err)
		at = e.Inode
	}
	return at
}

func content(t testing.TB, img disk.Image, err error) []byte {
	t.Helper()
	must(t, err)
	defer img.Close()
	b := make([]byte, img.Size())
	if n, err := img.ReadAt(b, 0); n < len(b) {
		t.Fatalf("read %d of %d bytes: %v", n, len(b), err)
	}
	return b
}

// TestNames: hard links, links, what is listed and what is not.
func TestNames(t *testing.T) {
	guestfstest.NeedMount(t, "fuse", "mkfs.ntfs", "ntfs-3g")
	t.Parallel()
	image := format(t, 32<<20)
	dir, unmount := mount(t, image, "")
	in := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.WriteFile(in("one"), []byte("content"), 0o644))
	for i := range 60 { // more than a record holds
		must(t, os.Link(in("one"), in(fmt.Sprintf("%s %d", strings.Repeat("name ", 20), i))))
	}
	must(t, os.Symlink("one", in("link")))
	must(t, os.Symlink("../etc/shadow", in("link out")))
	must(t, unix.Mkfifo(in("fifo"), 0o644))
	must(t, os.WriteFile(in("with a DOS name"), nil, 0o644))
	must(t, unix.Setxattr(in("with a DOS name"), "system.ntfs_dos_name", []byte("DOSNAM~1.TXT"), 0))
	unmount()
	dir, _ = mount(t, image, "ro")
	fsys := open(t, image)
	opts := peer
	opts.Skip = func(path string) bool { return farAway(path) || path == "/with a DOS name" } // ntfs-3g counts that as a link
	if n := guestfstest.Compare(t, fsys, dir, opts); n < 60 {
		t.Errorf("only %d entries were compared", n)
	}
	for name, other := range map[string]string{"ONE": strings.Repeat("NAME ", 20) + " 7", "dosnam~1.txt": "with a dos name"} {
		if a, b := find(t, fsys, name), find(t, fsys, other); a != b {
			t.Errorf("%q is file %d, %q is file %d", name, a, other, b)
		}
	}
	if got := find(t, fsys, "$mft"); got&(1<<48-1) != 0 {
		t.Errorf("$MFT is file %d", got)
	}
	find(t, fsys, "$Extend/$Reparse")
}

// TestHugeDirectory: a tree of several levels, read whole and searched.
func TestHugeDirectory(t *testing.T) {
	guestfstest.NeedMount(t, "fuse", "mkfs.ntfs", "ntfs-3g")
	t.Parallel()
	image := format(t, 32<<20)
	dir, unmount := mount(t, image, "")
	want := map[string]bool{}
	for i := range 6_000 {
		name := fmt.Sprintf("Entry %d of many", i*7919%6_000)
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
		want[name] = true
	}
	unmount()
	fsys := open(t, image)
	seen, cookies := 0, map[uint64]bool{}
	for e, err := range fsys.ReadDir(t.Context(), fsys.Root(), 0) {
		must(t, err)
		if !want[e.Name] || cookies[e.Cookie] {
			t.Fatalf("entry %+v", e)
		}
		seen++
		cookies[e.Cookie] = true
		if got := find(t, fsys, strings.ToUpper(e.Name)); got != e.Inode {
			t.Fatalf("%q is file %d, found %d", e.Name, e.Inode, got)
		}
		if seen%1000 == 0 {
			for next, err := range fsys.ReadDir(t.Context(), fsys.Root(), e.Cookie) {
				must(t, err)
				if cookies[next.Cookie] {
					t.Fatalf("after %q comes %q, which came before", e.Name, next.Name)
				}
				break
			}
		}
	}
	if seen != len(want) {
		t.Errorf("%d entries, want %d", seen, len(want))
	}
	if _, err := fsys.Lookup(t.Context(), fsys.Root(), "Entry 7 of manz"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a name that is not there: %v", err)
	}
}

// TestStreams: named streams, small and large, on files and directories.
func TestStreams(t *testing.T) {
	guestfstest.NeedMount(t, "fuse", "mkfs.ntfs", "ntfs-3g")
	t.Parallel()
	image := format(t, 32<<20)
	dir, unmount := mount(t, image, "streams_interface=windows")
	file, sub := filepath.Join(dir, "file"), filepath.Join(dir, "sub")
	must(t, os.WriteFile(file, []byte("unnamed"), 0o644))
	must(t, os.Mkdir(sub, 0o755))
	want := map[string]string{"Zone.Identifier": "[ZoneTransfer]\r\nZoneId=3\r\n", "empty": "", "Größe": strings.Repeat("large ", 50_000)}
	for i := range 40 {
		want[fmt.Sprintf("stream %d", i)] = strings.Repeat("x", 10*i)
	}
	for _, on := range []string{file, sub} {
		for name, data := range want {
			must(t, os.WriteFile(on+":"+name, []byte(data), 0o644))
		}
	}
	unmount()
	fsys := open(t, image)
	for _, on := range []string{"file", "sub"} {
		inode := find(t, fsys, on)
		streams, err := fsys.Streams(t.Context(), inode)
		must(t, err)
		if len(streams) != len(want) {
			t.Errorf("%s has %d streams, want %d", on, len(streams), len(want))
		}
		for _, s := range streams {
			img, err := fsys.OpenStream(t.Context(), inode, s.Name)
			if got := string(content(t, img, err)); got != want[s.Name] || int(s.Size) != len(got) {
				t.Errorf("%s:%s is %.50q", on, s.Name, got)
			}
		}
	}
	if _, err := fsys.OpenStream(t.Context(), find(t, fsys, "file"), "missing"); err == nil {
		t.Error("a stream that is not there was opened")
	}
}

// TestDescriptors: of $Secure, and of the file itself.
func TestDescriptors(t *testing.T) {
	guestfstest.NeedMount(t, "fuse", "mkfs.ntfs", "ntfs-3g")
	t.Parallel()
	image := format(t, 32<<20)
	dir, unmount := mount(t, image, "permissions")
	for i := range 500 { // an index of several levels
		name := filepath.Join(dir, fmt.Sprint(i))
		must(t, os.WriteFile(name, nil, 0o600))
		must(t, os.Chown(name, 1000+i, 2000+i))
	}
	unmount()
	dir, _ = mount(t, image, "ro,permissions")
	fsys := open(t, image)
	entries, err := os.ReadDir(dir)
	must(t, err)
	want := make([]byte, 1<<16)
	for _, e := range entries {
		n, err := unix.Getxattr(filepath.Join(dir, e.Name()), "system.ntfs_acl", want)
		must(t, err)
		got, err := fsys.SecurityDescriptor(t.Context(), find(t, fsys, e.Name()))
		if err != nil || !bytes.Equal(got, want[:n]) {
			t.Fatalf("%s: %x, %v; want %x", e.Name(), got, err, want[:n])
		}
	}
}

// scatter leaves free no two clusters that are together: files that grow by turns
// fill the volume, and every other one goes.
func scatter(t testing.TB, dir string, cluster int) {
	t.Helper()
	files := make([]*os.File, 32)
	for i := range files {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("filler %d", i)))
		must(t, err)
		defer f.Close()
		files[i] = f
	}
	data := make([]byte, cluster)
	for full, n := false, 0; !full; n++ {
		for i, f := range files {
			copy(data, fmt.Sprintf("cluster %d of file %d", n, i))
			_, err := f.Write(data)
			full = full || err != nil
		}
	}
	for i := 0; i < len(files); i += 2 {
		must(t, os.Remove(files[i].Name()))
	}
}

// TestFragmented: files, a directory and the MFT itself in thousands of pieces,
// whose maps are spread over many records.
func TestFragmented(t *testing.T) {
	guestfstest.NeedMount(t, "fuse", "mkfs.ntfs", "ntfs-3g")
	t.Parallel()
	image := format(t, 12<<20, "-c", "512")
	dir, unmount := mount(t, image, "")
	scatter(t, dir, 512)
	sub := filepath.Join(dir, "sub")
	must(t, os.Mkdir(sub, 0o755))
	for i := range 1500 {
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("%d %s", i, strings.Repeat("long ", 30))), make([]byte, 200), 0o644); err != nil {
			break
		}
	}
	unmount()
	dir, _ = mount(t, image, "ro")
	fsys := open(t, image)
	guestfstest.Compare(t, fsys, dir, peer)
	pieces := 0
	for e, err := range fsys.PhysicalExtents(t.Context(), find(t, fsys, "filler 1")) {
		must(t, err)
		pieces++
		if e.Encoded || e.Length <= 0 {
			t.Fatalf("%+v", e)
		}
	}
	if pieces < 500 {
		t.Errorf("the file has only %d pieces: nothing was tested", pieces)
	}
	pieces = 0
	for _, err := range fsys.PhysicalExtents(t.Context(), find(t, fsys, "$MFT")) {
		must(t, err)
		pieces++
	}
	if pieces < 10 {
		t.Errorf("the MFT has only %d pieces: nothing was tested", pieces)
	}
}

// TestCompressed: LZNT1, as ntfs-3g writes it, with holes, and with what does
// not compress in between.
func TestCompressed(t *testing.T) {
	guestfstest.NeedMount(t, "fuse", "mkfs.ntfs", "ntfs-3g")
	for _, cluster := range []string{"512", "2048", "4096"} {
		t.Run(cluster, func(t *testing.T) {
			t.Parallel()
			image := format(t, 64<<20, "-c", cluster)
			dir, unmount := mount(t, image, "compression")
			must(t, unix.Setxattr(dir, "system.ntfs_attrib_be", []byte{0, 0, 8, 0}, 0))
			guestfstest.Populate(t, dir, guestfstest.Trees{Seed: 3, Entries: 40, MaxFile: 300_000, Plain: true})
			unmount()
			dir, _ = mount(t, image, "ro")
			fsys := open(t, image)
			guestfstest.Compare(t, fsys, dir, peer)
			inode := find(t, fsys, "sizes/65537")
			a, err := fsys.Stat(t.Context(), inode)
			must(t, err)
			if a.Flags&guestfs.Compressed == 0 || a.Allocated >= a.Size {
				t.Errorf("not compressed: %+v", a)
			}
			img, err := fsys.Open(t.Context(), find(t, fsys, "sizes/holes"))
			must(t, err)
			want, err := os.ReadFile(filepath.Join(dir, "sizes/holes"))
			must(t, err)
			disktest.RunImage(t, disktest.FromBytes(want), func(t *testing.T) disk.Image {
				img, err := fsys.Open(t.Context(), find(t, fsys, "sizes/holes"))
				must(t, err)
				return img
			})
			img.Close()
		})
	}
}
