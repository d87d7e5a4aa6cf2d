package datastore

import (
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestCreateModes(t *testing.T) {
	f := newFixture(t)
	create := func(mode CreateMode, verf byte, set SetAttr) (*Node, error) {
		n, _, err := f.vm.Create(Cred{}, "x", CreateHow{Mode: mode, Verifier: [8]byte{verf}, Attr: set})
		return n, err
	}
	n, err := create(Guarded, 0, SetAttr{Mode: ptr(uint32(0o600)), Size: ptr(uint64(5))})
	must(t, err)
	if a := attrOf(t, n); a.Size != 5 || a.Mode != 0o600 || a.Type != TypeRegular || a.Nlink != 1 {
		t.Fatalf("%+v", a)
	}
	_, err = create(Guarded, 0, SetAttr{})
	wantErr(t, err, ErrExist)
	_, err = create(Exclusive, 1, SetAttr{})
	wantErr(t, err, ErrExist)

	again, err := create(Unchecked, 0, SetAttr{Mode: ptr(uint32(0o777))})
	must(t, err)
	if a := attrOf(t, again); again != n || a.Size != 5 || a.Mode != 0o600 {
		t.Fatalf("UNCHECKED changed an existing file: %+v", a)
	}
	_, err = create(Unchecked, 0, SetAttr{Size: ptr(uint64(0))})
	must(t, err)
	if a := attrOf(t, n); a.Size != 0 {
		t.Fatalf("UNCHECKED with size 0: %+v", a)
	}
	f.mkdir("d")
	_, _, err = f.vm.Create(Cred{}, "d", CreateHow{})
	wantErr(t, err, ErrIsDir)
	_, _, err = f.vm.Create(Cred{}, "d", CreateHow{Mode: Guarded})
	wantErr(t, err, ErrExist)
	_, _, err = f.vm.Create(Cred{}, "z", CreateHow{Mode: 3})
	wantErr(t, err, ErrInval)
	_, _, err = f.vm.Create(Cred{}, "big", CreateHow{Attr: SetAttr{Size: ptr(uint64(1 << 63))}})
	wantErr(t, err, ErrFBig)
	if _, err := os.Lstat(f.host("big")); err == nil {
		t.Fatal("a failed create left a file")
	}
}

func TestExclusiveCreateSurvivesRestart(t *testing.T) {
	for _, poor := range []bool{false, true} {
		testExclusiveCreate(t, newFixture(t), poor)
	}
}

// poor: on a file system without unnamed files and extended attributes.
func testExclusiveCreate(t *testing.T, f *fixture, poor bool) {
	weaken := func() {
		if poor {
			f.nameFirst.Store(true)
			f.xattrs, f.ordered, f.kernelHandles = false, false, false
		}
	}
	excl := func(verf byte) (*Node, error) {
		n, _, err := f.vm.Create(Cred{}, ".lck-0123", CreateHow{Mode: Exclusive, Verifier: [8]byte{verf, 9}})
		return n, err
	}
	weaken()
	n, err := excl(1)
	must(t, err)
	ino := n.FileID()
	if !poor { // a write changes the times, where the verifier is then
		_, _, err = n.WriteAt(make([]byte, 84), 0)
		must(t, err)
	}
	f.restart(false)
	weaken()
	n, err = excl(1)
	must(t, err)
	if n.FileID() != ino {
		t.Fatal("another file")
	}
	_, err = excl(2)
	wantErr(t, err, ErrExist)
}

// Many hosts want one lock: exactly one gets it, whatever the way.
func TestExclusiveCreateRace(t *testing.T) {
	for _, mode := range []CreateMode{Exclusive, Guarded} {
		f := newFixture(t)
		for round := range 5 {
			name := strings.Repeat("l", round+1)
			var won atomic.Int32
			var wg sync.WaitGroup
			start := make(chan struct{})
			for host := range 16 {
				wg.Go(func() {
					<-start
					_, _, err := f.vm.Create(Cred{}, name, CreateHow{Mode: mode, Verifier: [8]byte{byte(host)}})
					switch {
					case err == nil:
						won.Add(1)
					case !errors.Is(err, ErrExist):
						t.Error(err)
					}
				})
			}
			close(start)
			wg.Wait()
			if won.Load() != 1 {
				t.Fatalf("mode %d: %d winners", mode, won.Load())
			}
		}
	}
}

func TestNames(t *testing.T) {
	f := newFixture(t)
	for name, want := range map[string]error{
		"": ErrInval, ".": ErrInval, "..": ErrInval, "a/b": ErrInval, "a\x00b": ErrInval, "/": ErrInval,
		strings.Repeat("x", 256): ErrNameTooLong,
	} {
		_, _, err := f.vm.Create(Cred{}, name, CreateHow{})
		wantErr(t, err, want)
		_, _, err = f.vm.Mkdir(Cred{}, name, SetAttr{})
		wantErr(t, err, want)
		_, _, err = f.vm.Symlink(Cred{}, name, "t", SetAttr{})
		wantErr(t, err, want)
		_, err = f.vm.Remove(Cred{}, name)
		wantErr(t, err, want)
		_, err = f.vm.Rmdir(Cred{}, name)
		wantErr(t, err, want)
		_, _, err = f.vm.Rename(Cred{}, name, f.vm, "ok")
		wantErr(t, err, want)
		f.create("there")
		_, _, err = f.vm.Rename(Cred{}, "there", f.vm, name)
		wantErr(t, err, want)
		_, err = f.vm.Link(Cred{}, f.walk("s/vm/there"), name)
		wantErr(t, err, want)
		_, err = f.vm.Remove(Cred{}, "there")
		must(t, err)
		if name != "." && name != ".." {
			_, err = f.vm.Lookup(Cred{}, name)
			wantErr(t, err, want)
		}
	}
	long := strings.Repeat("x", 255)
	f.create(long)
	f.create("\xff\xfe") // names are bytes
	if n, err := f.vm.Lookup(Cred{}, "."); err != nil || n != f.vm {
		t.Fatal(n, err)
	}
	if n, err := f.vm.Lookup(Cred{}, ".."); err != nil || n != f.walk("s") {
		t.Fatal(n, err)
	}
	root := f.walk("")
	if n, err := f.walk("s").Lookup(Cred{}, ".."); err != nil || n != root {
		t.Fatal(n, err)
	}
	if n, err := root.Lookup(Cred{}, ".."); err != nil || n != root {
		t.Fatal(n, err)
	}
	_, err := f.Walk("s/../s/vm")
	wantErr(t, err, ErrInval)
}

func TestRootIsReadOnly(t *testing.T) {
	f := newFixture(t)
	must(t, os.Mkdir(f.root+"/hidden", 0o755))
	root := f.walk("")
	_, _, err := root.Create(Cred{}, "x", CreateHow{})
	wantErr(t, err, ErrROFS)
	_, _, err = root.Mkdir(Cred{}, "x", SetAttr{})
	wantErr(t, err, ErrROFS)
	_, err = root.Rmdir(Cred{}, "s")
	wantErr(t, err, ErrROFS)
	_, _, err = root.Rename(Cred{}, "s", root, "t")
	wantErr(t, err, ErrROFS)
	_, _, err = root.Rename(Cred{}, "s", f.vm, "t")
	wantErr(t, err, ErrROFS)
	_, _, err = f.walk("s").Rename(Cred{}, "vm", root, "t")
	wantErr(t, err, ErrROFS)
	file := f.create("x")
	_, err = root.Link(Cred{}, file, "y")
	wantErr(t, err, ErrROFS)
	_, err = root.SetAttr(Cred{}, SetAttr{Mode: ptr(uint32(0o777))}, nil)
	wantErr(t, err, ErrROFS)
	if a, err := root.Allowed(Cred{}, Read|Write|Exec); err != nil || a != Read|Exec {
		t.Fatal(a, err)
	}
	_, err = root.Lookup(Cred{}, "hidden")
	wantErr(t, err, ErrNoEnt)
	var names []string
	for e, err := range root.ReadDir(Cred{}, 0, 0, true) {
		must(t, err)
		names = append(names, e.Name)
	}
	if strings.Join(names, " ") != ". .. s" {
		t.Fatalf("root lists %q", names)
	}
}

func TestSessionsAreApart(t *testing.T) {
	f := newFixture(t)
	must(t, os.MkdirAll(f.root+"/other/vm", 0o755))
	must(t, f.Attach("other"))
	wantErr(t, f.Attach("other"), ErrExist)
	wantErr(t, f.Attach("none"), ErrNoEnt)
	wantErr(t, f.Attach("../x"), ErrInval)
	wantErr(t, f.Detach("none"), ErrNoEnt)
	must(t, os.Symlink("other", f.root+"/sym"))
	wantErr(t, f.Attach("sym"), ErrNotDir)
	n := f.create("x")
	other := f.walk("other/vm")
	_, _, err := f.vm.Rename(Cred{}, "x", other, "x")
	wantErr(t, err, ErrXDev)
	_, err = other.Link(Cred{}, n, "x")
	wantErr(t, err, ErrXDev)
}

func TestRename(t *testing.T) {
	f := newFixture(t)
	d1, d2 := f.mkdir("d1"), f.mkdir("d2")
	a, b := f.create("a"), f.create("b")
	from, to, err := f.vm.Rename(Cred{}, "a", d1, "a")
	must(t, err)
	if !from.HasPre || !from.HasPost || !to.HasPre || !to.HasPost || from.Pre.Mtime == from.Post.Mtime {
		t.Fatalf("wcc %+v %+v", from, to)
	}
	_, _, err = d1.Rename(Cred{}, "a", f.vm, "b") // replaces b
	must(t, err)
	if f.walk("s/vm/b") != a {
		t.Fatal("not replaced")
	}
	_, err = b.Attr()
	wantErr(t, err, ErrStale)
	for _, c := range []struct {
		from *Node
		name string
		to   *Node
		as   string
		want error
	}{
		{f.vm, "none", f.vm, "x", ErrNoEnt},
		{f.vm, "d1", f.vm, "b", ErrExist},
		{f.vm, "b", f.vm, "d1", ErrExist},
		{f.vm, "d1", d1, "x", ErrInval}, // into itself
		{f.vm, "b", a, "x", ErrNotDir},
		{a, "b", f.vm, "x", ErrNotDir},
	} {
		_, _, err := c.from.Rename(Cred{}, c.name, c.to, c.as)
		wantErr(t, err, c.want)
	}
	_, _, err = d2.Create(Cred{}, "in", CreateHow{})
	must(t, err)
	_, _, err = f.vm.Rename(Cred{}, "d1", f.vm, "d2")
	wantErr(t, err, ErrExist) // not empty
	in := f.walk("s/vm/d2/in")
	_, _, err = f.vm.Rename(Cred{}, "d2", f.vm, "d1") // empty: replaced
	must(t, err)
	if f.walk("s/vm/d1") != d2 || f.walk("s/vm/d1/in") != in {
		t.Fatal("directory not replaced")
	}
	_, err = d1.Attr()
	wantErr(t, err, ErrStale)
	f.files.drop(in)
	f.files.drop(d2)
	in.changed()
	attrOf(t, in) // found by its new path
}

func TestHardLinks(t *testing.T) {
	f := newFixture(t)
	n := f.create("a")
	d := f.mkdir("d")
	_, err := d.Link(Cred{}, n, "b")
	must(t, err)
	_, err = d.Link(Cred{}, n, "b")
	wantErr(t, err, ErrExist)
	_, err = d.Link(Cred{}, d, "c")
	wantErr(t, err, ErrInval)
	if f.walk("s/vm/d/b") != n || attrOf(t, n).Nlink != 2 {
		t.Fatal("not the same file")
	}
	_, _, err = f.vm.Rename(Cred{}, "a", d, "b") // two names of one file: nothing happens
	must(t, err)
	if attrOf(t, n).Nlink != 2 {
		t.Fatal("a link was lost")
	}
	_, err = f.vm.Remove(Cred{}, "a")
	must(t, err)
	_, _, err = n.WriteAt([]byte("still"), 0)
	must(t, err)
	if attrOf(t, n).Nlink != 1 {
		t.Fatal("nlink", attrOf(t, n).Nlink)
	}
	f.restart(true)
	n = f.walk("s/vm/d/b")
	f.files.drop(n)
	for range maxLinks * 2 { // more names than are remembered
		_, err := f.vm.Link(Cred{}, n, strings.Repeat("l", 1+int(attrOf(t, n).Nlink)))
		must(t, err)
	}
	_, err = f.walk("s/vm/d").Remove(Cred{}, "b")
	must(t, err)
	for range maxLinks * 2 {
		_, err = f.vm.Remove(Cred{}, strings.Repeat("l", int(attrOf(t, n).Nlink)+1))
		must(t, err)
		f.files.drop(n)
		if _, err = n.Attr(); err != nil {
			break
		}
	}
	wantErr(t, err, ErrStale)
}

func TestRemove(t *testing.T) {
	f := newFixture(t)
	d := f.mkdir("d")
	n := f.create("x")
	_, err := f.vm.Remove(Cred{}, "d")
	wantErr(t, err, ErrIsDir)
	_, err = f.vm.Rmdir(Cred{}, "x")
	wantErr(t, err, ErrNotDir)
	_, err = f.vm.Remove(Cred{}, "none")
	wantErr(t, err, ErrNoEnt)
	_, _, err = d.Create(Cred{}, "in", CreateHow{})
	must(t, err)
	_, err = f.vm.Rmdir(Cred{}, "d")
	wantErr(t, err, ErrNotEmpty)
	_, err = d.Remove(Cred{}, "in")
	must(t, err)
	wcc, err := f.vm.Rmdir(Cred{}, "d")
	must(t, err)
	if !wcc.HasPre || !wcc.HasPost || wcc.Post.Nlink+1 != 3 {
		t.Fatalf("%+v", wcc)
	}
	_, _, err = d.Create(Cred{}, "in", CreateHow{})
	wantErr(t, err, ErrStale)
	_, err = d.Lookup(Cred{}, "in")
	wantErr(t, err, ErrStale)
	_, err = f.vm.Remove(Cred{}, "x")
	must(t, err)
	_, _, err = n.ReadAt(make([]byte, 1), 0)
	wantErr(t, err, ErrStale)
	wantErr(t, n.Sync(), ErrStale)
}

func TestSymlinks(t *testing.T) {
	f := newFixture(t)
	_, _, err := f.vm.Symlink(Cred{UID: 5, GID: 6}, "l", "/etc/passwd", SetAttr{})
	wantErr(t, err, ErrAcces) // the directory is root's
	n, _, err := f.vm.Symlink(Cred{}, "l", "/etc/passwd", SetAttr{})
	must(t, err)
	if target, err := n.Readlink(); err != nil || target != "/etc/passwd" {
		t.Fatal(target, err)
	}
	if a := attrOf(t, n); a.Type != TypeSymlink || a.Size != 11 {
		t.Fatalf("%+v", a)
	}
	_, err = n.SetAttr(Cred{}, SetAttr{UID: ptr(uint32(9)), Mtime: SetTime{How: ToClientOwn, To: Time{Sec: 5}}}, nil)
	must(t, err)
	if a := attrOf(t, n); os.Geteuid() == 0 && a.UID != 9 || a.Mtime.Sec != 5 {
		t.Fatalf("%+v", a)
	}
	_, err = n.Lookup(Cred{}, "x")
	wantErr(t, err, ErrNotDir)
	_, _, err = n.ReadAt(make([]byte, 1), 0)
	wantErr(t, err, ErrInval)
	_, _, err = f.vm.Create(Cred{}, "l", CreateHow{})
	wantErr(t, err, ErrExist)
	_, err = f.Walk("s/vm/l/passwd")
	wantErr(t, err, ErrNotDir)
	_, err = f.vm.Readlink()
	wantErr(t, err, ErrInval)
	_, _, err = f.vm.Mknod(Cred{}, "fifo", TypeFIFO, SetAttr{})
	wantErr(t, err, ErrNotSupp)
}

func TestMaxFiles(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.MaxFiles = 4 })
	f.create("a")
	f.create("b")
	_, _, err := f.vm.Create(Cred{}, "c", CreateHow{})
	wantErr(t, err, ErrDQuot)
	_, _, err = f.vm.Mkdir(Cred{}, "c", SetAttr{})
	wantErr(t, err, ErrDQuot)
	_, err = f.vm.Remove(Cred{}, "a")
	must(t, err)
	f.create("c")
}
