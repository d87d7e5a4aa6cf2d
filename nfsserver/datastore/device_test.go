package datastore

import (
	"bytes"
	"os"
	"slices"
	"testing"
)

func newDiskFixture(t testing.TB, edit ...func(*Options)) (*fixture, *Node, *memDisk) {
	f := newFixture(t, edit...)
	n := f.create("x-flat.vmdk")
	dev := newMemDisk(1 << 20)
	must(t, f.Bind("s/vm/x-flat.vmdk", dev))
	return f, n, dev
}

func TestVirtualDisk(t *testing.T) {
	f, n, dev := newDiskFixture(t)
	if n.Device() != dev {
		t.Fatal("not bound")
	}
	if a := attrOf(t, n); a.Size != 1<<20 || a.Used != 1<<19 || a.Type != TypeRegular || a.Mode != 0o644 {
		t.Fatalf("%+v", a)
	}
	p := bytes.Repeat([]byte("disk"), 128)
	k, wcc, err := n.WriteAt(p, 4096)
	must(t, err)
	if k != len(p) || !wcc.HasPre || !wcc.HasPost || wcc.Post.Mtime.Unix() <= wcc.Pre.Mtime.Unix() {
		t.Fatalf("%d %+v", k, wcc)
	}
	if a := attrOf(t, n); a.pre() != wcc.Post.pre() {
		t.Fatalf("%+v, write said %+v", a, wcc.Post)
	}
	must(t, n.Sync())
	if dev.syncs.Load() != 1 {
		t.Fatal("not synced")
	}
	if st, _ := os.Stat(f.host("x-flat.vmdk")); st.Size() != 0 {
		t.Fatal("the placeholder was written")
	}
	got := make([]byte, 1024)
	k, eof, err := n.ReadAt(got, 4096)
	if err != nil || k != 1024 || eof || !bytes.Equal(got[:len(p)], p) {
		t.Fatal(k, eof, err)
	}
	for _, c := range []struct {
		off  uint64
		k    int
		eof  bool
		when string
	}{
		{1<<20 - 1024, 1024, true, "exactly to the end"},
		{1<<20 - 1, 1, true, "short"},
		{1 << 20, 0, true, "at the end"},
		{1 << 62, 0, true, "beyond"},
		{1 << 63, 0, true, "far beyond"},
	} {
		if k, eof, err := n.ReadAt(got, c.off); err != nil || k != c.k || eof != c.eof {
			t.Fatalf("%s: %d %v %v", c.when, k, eof, err)
		}
	}
	for _, off := range []uint64{1<<20 - 1, 1 << 20, 1 << 40, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
		_, _, err := n.WriteAt([]byte("xx"), off)
		wantErr(t, err, ErrFBig)
	}
}

func TestVirtualDiskKeepsItsSize(t *testing.T) {
	f, n, _ := newDiskFixture(t)
	_, err := n.SetAttr(Cred{}, SetAttr{Size: ptr(uint64(1 << 20)), Mode: ptr(uint32(0o640))}, nil)
	must(t, err)
	if attrOf(t, n).Mode != 0o640 {
		t.Fatal("mode not set")
	}
	for _, size := range []uint64{0, 1, 1<<20 + 1} {
		_, err := n.SetAttr(Cred{}, SetAttr{Size: &size, Mode: ptr(uint32(0))}, nil)
		wantErr(t, err, ErrInval)
	}
	if a := attrOf(t, n); a.Mode != 0o640 {
		t.Fatal("a refused SETATTR changed something")
	}
	_, _, err = f.vm.Create(Cred{}, "x-flat.vmdk", CreateHow{Attr: SetAttr{Size: ptr(uint64(0))}})
	wantErr(t, err, ErrInval)
	_, _, err = f.vm.Create(Cred{}, "x-flat.vmdk", CreateHow{})
	must(t, err)
	_, _, err = f.vm.Create(Cred{}, "x-flat.vmdk", CreateHow{Mode: Exclusive})
	wantErr(t, err, ErrExist)
}

func TestBindingFollowsTheInode(t *testing.T) {
	var events []Unlinked
	f, n, dev := newDiskFixture(t, func(o *Options) { o.Unlinked = func(u Unlinked) { events = append(events, u) } })
	d := f.mkdir("d")
	_, _, err := f.vm.Rename(Cred{}, "x-flat.vmdk", d, "y")
	must(t, err)
	if f.walk("s/vm/d/y").Device() != dev {
		t.Fatal("lost by renaming")
	}
	_, err = f.vm.Link(Cred{}, n, "z")
	must(t, err)
	_, err = d.Remove(Cred{}, "y")
	must(t, err)
	if len(events) != 0 || f.walk("s/vm/z").Device() != dev {
		t.Fatal("lost with one of two names")
	}
	_, err = f.vm.Remove(Cred{}, "z")
	must(t, err)
	if len(events) != 1 || events[0].Device != dev || events[0].Path != "s/vm/z" || events[0].FileID != n.FileID() {
		t.Fatalf("%+v", events)
	}
	_, _, err = n.WriteAt([]byte("x"), 0)
	wantErr(t, err, ErrStale)

	f.create("a")
	must(t, f.Bind("s/vm/a", dev))
	f.create("b")
	_, _, err = f.vm.Rename(Cred{}, "b", f.vm, "a") // replaces a disk
	must(t, err)
	if len(events) != 2 || events[1].Path != "s/vm/a" {
		t.Fatalf("%+v", events)
	}
}

func TestBindErrors(t *testing.T) {
	f, _, dev := newDiskFixture(t)
	f.mkdir("d")
	_, _, err := f.vm.Symlink(Cred{}, "l", "x-flat.vmdk", SetAttr{})
	must(t, err)
	for path, want := range map[string]error{
		"": ErrInval, "s": ErrInval, "s/vm/none": ErrNoEnt, "none/x": ErrNoEnt, "s/vm/d": ErrIsDir,
		"s/vm/l": ErrInval, "s/vm/x-flat.vmdk": ErrExist, "s/../s/vm/x-flat.vmdk": ErrInval,
	} {
		wantErr(t, f.Bind(path, dev), want)
	}
}

// After a restart a client may be faster than Bind. It must not take the empty
// placeholder for the disk.
func TestUnboundPlaceholderIsNotServed(t *testing.T) {
	f, n, dev := newDiskFixture(t)
	fh := slices.Clone(n.Handle())
	f.restart(false)
	n, err := f.Resolve(fh)
	must(t, err)
	_, _, err = n.ReadAt(make([]byte, 1), 0)
	wantErr(t, err, ErrJukebox)
	_, _, err = n.WriteAt([]byte("x"), 0)
	wantErr(t, err, ErrJukebox)
	must(t, f.Bind("s/vm/x-flat.vmdk", dev))
	_, _, err = n.WriteAt([]byte("x"), 0)
	must(t, err)
	f.Close()

	f.open() // the better order: bound before it can be seen
	must(t, f.Bind("s/vm/x-flat.vmdk", dev))
	_, err = f.Resolve(fh)
	wantErr(t, err, ErrJukebox)
	f.attach()
	n, err = f.Resolve(fh)
	must(t, err)
	if n.Device() != dev {
		t.Fatal("not bound")
	}
}

func TestTimesOfAVirtualDiskNeverGoBack(t *testing.T) {
	for _, clean := range []bool{true, false} {
		f, n, dev := newDiskFixture(t)
		last := attrOf(t, n)
		for range 100 {
			wcc := n.Written()
			if wcc.Pre != last.pre() || wcc.Post.Mtime.Unix() <= last.Mtime.Unix() || wcc.Post.Ctime.Unix() <= last.Ctime.Unix() {
				t.Fatalf("%+v after %+v", wcc, last)
			}
			last = wcc.Post
		}
		f.restart(clean)
		must(t, f.Bind("s/vm/x-flat.vmdk", dev))
		a := attrOf(t, f.walk("s/vm/x-flat.vmdk"))
		if a.Mtime.Unix() < last.Mtime.Unix() || a.Ctime.Unix() < last.Ctime.Unix() {
			t.Fatalf("clean=%v: mtime %v ctime %v, before %v %v", clean, a.Mtime, a.Ctime, last.Mtime, last.Ctime)
		}
		if clean && a.Mtime != last.Mtime {
			t.Fatal("mtime changed by a clean restart")
		}
		if st, _ := os.Stat(f.host("x-flat.vmdk")); clean && st.ModTime().UnixNano() != last.Mtime.Unix() {
			t.Fatal("mtime not on the placeholder")
		}
		f.Close()
	}
}

func TestSetTimesOfAVirtualDisk(t *testing.T) {
	_, n, _ := newDiskFixture(t)
	n.Written()
	before := attrOf(t, n)
	set := SetAttr{Mtime: SetTime{How: ToClientOwn, To: Time{Sec: 1000, Nsec: 7}}}
	wcc, err := n.SetAttr(Cred{}, set, &before.Ctime)
	must(t, err)
	if wcc.Pre != before.pre() || wcc.Post.Mtime != set.Mtime.To || wcc.Post.Ctime.Unix() <= before.Ctime.Unix() {
		t.Fatalf("%+v", wcc)
	}
	_, err = n.SetAttr(Cred{}, set, &before.Ctime)
	wantErr(t, err, ErrNotSync)
}

func TestStatFS(t *testing.T) {
	f := newFixture(t)
	before, err := f.StatFS()
	must(t, err)
	if before.TotalBytes == 0 || before.TotalFiles == 0 || before.FreeBytes > before.TotalBytes {
		t.Fatalf("%+v", before)
	}
	f.create("huge")
	must(t, f.Bind("s/vm/huge", &memDisk{size: 62 << 40}))
	s, err := f.StatFS()
	must(t, err)
	if s.TotalBytes < 62<<40 || s.FreeBytes > s.TotalBytes-62<<40 {
		t.Fatalf("%+v", s)
	}
	_, err = f.vm.Remove(Cred{}, "huge")
	must(t, err)
	if s, err = f.StatFS(); err != nil || s.TotalBytes != before.TotalBytes {
		t.Fatalf("%+v %v", s, err)
	}
}
