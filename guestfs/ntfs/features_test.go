package ntfs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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
	dir, unmount = mount(t, image, "ro")
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
	unmount()
	splitMFT(t, image)
	dir, _ = mount(t, image, "ro")
	fsys = open(t, image)
	guestfstest.Compare(t, fsys, dir, peer)
	if n := attributeLists(t, fsys, image); n != 1 {
		t.Errorf("the MFT has %d attribute lists: nothing was tested", n)
	}
}

// splitMFT moves all but the first run of the MFT's own map from its record to
// another one, as Windows does when it gets too long.
func splitMFT(t *testing.T, image string) {
	t.Helper()
	runs, err := open(t, image).AttrRuns(t.Context(), 1<<48, attrData, "")
	must(t, err)
	if len(runs) < 3 {
		t.Fatalf("the MFT has only %d pieces", len(runs))
	}
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	le := binary.LittleEndian
	record := func(n int64, do func(b []byte)) {
		b := make([]byte, 1024)
		_, err := f.ReadAt(b, runs[0].At+1024*n)
		must(t, err)
		must(t, ntfs.Unfix(b))
		do(b)
		ntfs.Fix(b)
		_, err = f.WriteAt(b, runs[0].At+1024*n)
		must(t, err)
		if n == 0 { // and its copy
			boot := make([]byte, 512)
			_, err = f.ReadAt(boot, 0)
			must(t, err)
			_, err = f.WriteAt(b, int64(le.Uint64(boot[56:]))*512)
			must(t, err)
		}
	}
	const spare = 15 // the first that Windows takes
	var data []byte
	record(0, func(b []byte) {
		attrs := attributes(b)
		var list, rest []byte
		for _, a := range attrs {
			kind := le.Uint32(a)
			list = append(list, listEntry(kind, 0, 1<<48, le.Uint16(a[14:]))...)
			if kind == attrData {
				data = bytes.Clone(a)
				a = partOf(a, runs[:1], 0)
				list = append(list, listEntry(kind, runs[1].Offset/512, spare|spare<<48, 0)...)
			}
			rest = append(rest, a...)
		}
		first := len(attrs[0]) // $STANDARD_INFORMATION; the list comes next
		header := make([]byte, 24)
		le.PutUint32(header, 0x20)
		le.PutUint32(header[4:], uint32(24+(len(list)+7)&^7))
		le.PutUint16(header[14:], 77)
		le.PutUint32(header[16:], uint32(len(list)))
		le.PutUint16(header[20:], 24)
		header = append(append(header, list...), make([]byte, -len(list)&7)...)
		setAttrs(t, b, slices.Concat(rest[:first], header, rest[first:]))
	})
	record(spare, func(b []byte) {
		le.PutUint16(b[16:], spare)
		le.PutUint16(b[22:], 1) // in use
		le.PutUint64(b[32:], 1<<48)
		setAttrs(t, b, partOf(data, runs[1:], 1))
	})
}

const attrData = 0x80

// listEntry is an entry of an attribute list, of an attribute without a name.
func listEntry(kind uint32, lowest int64, ref uint64, id uint16) []byte {
	le := binary.LittleEndian
	b := make([]byte, 32)
	le.PutUint32(b, kind)
	le.PutUint16(b[4:], 32)
	b[7] = 26
	le.PutUint64(b[8:], uint64(lowest))
	le.PutUint64(b[16:], ref)
	le.PutUint16(b[24:], id)
	return b
}

// partOf is a part of a non-resident attribute, with some of its runs.
func partOf(attr []byte, runs []guestfs.PhysicalExtent, id int) []byte {
	const cluster, header = 512, 64
	le := binary.LittleEndian
	b := bytes.Clone(attr[:header])
	last := runs[len(runs)-1]
	le.PutUint64(b[16:], uint64(runs[0].Offset/cluster))
	le.PutUint64(b[24:], uint64((last.Offset+last.Length)/cluster-1))
	le.PutUint16(b[32:], header)
	if id > 0 {
		le.PutUint16(b[14:], 0)
		clear(b[40:64])
	}
	at := int64(0)
	for _, r := range runs {
		b = append(b, 0x44)
		b = le.AppendUint32(b, uint32(r.Length/cluster))
		b = le.AppendUint32(b, uint32(int32(r.At/cluster-at)))
		at = r.At / cluster
	}
	b = append(b, make([]byte, 8-len(b)%8)...)
	le.PutUint32(b[4:], uint32(len(b)))
	return b
}

// setAttrs makes these the attributes of a record.
func setAttrs(t *testing.T, b, attrs []byte) {
	t.Helper()
	le := binary.LittleEndian
	first := int(le.Uint16(b[20:]))
	if first+len(attrs)+8 > len(b) {
		t.Fatal("too many attributes for a record")
	}
	copy(b[first:], attrs)
	le.PutUint32(b[first+len(attrs):], 0xffffffff)
	le.PutUint32(b[24:], uint32(first+len(attrs)+8))
}

// attributeLists counts those of the MFT's first record.
func attributeLists(t *testing.T, fsys *ntfs.FS, image string) (n int) {
	t.Helper()
	runs, err := fsys.AttrRuns(t.Context(), 1<<48, attrData, "")
	must(t, err)
	b, err := os.ReadFile(image)
	must(t, err)
	r := b[runs[0].At:][:1024]
	must(t, ntfs.Unfix(r))
	for _, a := range attributes(r) {
		if binary.LittleEndian.Uint32(a) == 0x20 {
			n++
		}
	}
	return n
}

// TestInodesIn: a file that changed is found by the bytes of the MFT that did.
func TestInodesIn(t *testing.T) {
	guestfstest.NeedMount(t, "fuse", "mkfs.ntfs", "ntfs-3g", "ntfsrecover")
	t.Parallel()
	p := makePair(t)
	fsys, err := ntfs.Open(t.Context(), disk.Bytes(t.Context(), p.after))
	must(t, err)
	runs, err := fsys.MetadataExtents(t.Context())
	must(t, err)
	changed := map[guestfs.Inode]bool{}
	for _, r := range runs {
		for off := r.Offset; off < r.End(); off += 512 {
			if bytes.Equal(p.before[off:off+512], p.after[off:off+512]) {
				continue
			}
			for inode, err := range fsys.InodesIn(t.Context(), disk.Extent{Offset: off, Length: 512}) {
				must(t, err)
				changed[inode] = true
			}
		}
	}
	for path, want := range map[string]bool{"new": true, "dir": true, "dir/old name 2": true, "dir/renamed 1": true, "new dir/moved": true, "dir/old name 3": false, "small/c": true} {
		if got := changed[find(t, fsys, path)]; got != want {
			t.Errorf("%s: changed is %v, want %v", path, got, want)
		}
	}
}

// TestCompressed: LZNT1, as ntfs-3g writes it, with holes, and with what does
// not compress in between.
func TestCompressed(t *testing.T) {
	guestfstest.NeedMount(t, "fuse", "mkfs.ntfs", "ntfs-3g")
	for _, cluster := range []string{"512", "4096"} {
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
