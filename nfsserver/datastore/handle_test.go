package datastore

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestHandlesSurviveRestartAndRename(t *testing.T) {
	for _, clean := range []bool{true, false} {
		t.Run(fmt.Sprint("clean=", clean), func(t *testing.T) {
			f := newFixture(t)
			dir := f.mkdir("dir")
			file := f.create("file")
			_, _, err := file.WriteAt([]byte("content"), 0)
			must(t, err)
			_, _, err = f.vm.Rename(Cred{}, "file", dir, "moved")
			must(t, err)
			handles := [][]byte{}
			for _, n := range []*Node{f.walk(""), f.walk("s"), f.vm, dir, file} {
				if len(n.Handle()) > 64 {
					t.Fatalf("handle of %d bytes", len(n.Handle()))
				}
				handles = append(handles, slices.Clone(n.Handle()))
			}
			ids := []uint64{f.walk("").FileID(), f.walk("s").FileID(), f.vm.FileID(), dir.FileID(), file.FileID()}
			f.restart(clean)
			for i, fh := range handles {
				n, err := f.Resolve(fh)
				must(t, err)
				if n.FileID() != ids[i] {
					t.Fatalf("handle %d leads to %d, want %d", i, n.FileID(), ids[i])
				}
			}
			n, _ := f.Resolve(handles[4])
			buf := make([]byte, 16)
			k, eof, err := n.ReadAt(buf, 0)
			must(t, err)
			if string(buf[:k]) != "content" || !eof {
				t.Fatalf("read %q eof=%v", buf[:k], eof)
			}
		})
	}
}

func TestResolveRefuses(t *testing.T) {
	f := newFixture(t)
	file := f.create("file")
	fh := slices.Clone(file.Handle())

	for i := range fh {
		bad := slices.Clone(fh)
		bad[i] ^= 0x40
		_, err := f.Resolve(bad)
		wantErr(t, err, ErrBadHandle)
	}
	for _, bad := range [][]byte{nil, fh[:len(fh)-1], append(slices.Clone(fh), 0), make([]byte, 52), make([]byte, 64)} {
		_, err := f.Resolve(bad)
		wantErr(t, err, ErrBadHandle)
	}

	must(t, f.Detach("s"))
	_, err := f.Resolve(fh)
	wantErr(t, err, ErrJukebox)
	_, err = file.Attr()
	wantErr(t, err, ErrJukebox)
	_, err = f.Walk("s/vm")
	wantErr(t, err, ErrNoEnt)

	f.attach()
	if _, err := f.Resolve(fh); err != nil {
		t.Fatal(err)
	}
	f.Close()

	other := f.opts
	other.Key[0]++
	tree, err := Open(other)
	must(t, err)
	defer tree.Close()
	must(t, tree.Attach("s"))
	_, err = tree.Resolve(fh)
	wantErr(t, err, ErrBadHandle)

	other = f.opts
	other.FSID++
	tree2, err := Open(other)
	must(t, err)
	defer tree2.Close()
	must(t, tree2.Attach("s"))
	_, err = tree2.Resolve(fh)
	wantErr(t, err, ErrBadHandle)
}

func TestHandleOfRemovedSessionIsStale(t *testing.T) {
	f := newFixture(t)
	fh := slices.Clone(f.vm.Handle())
	must(t, f.Detach("s"))
	_, err := f.Resolve(fh)
	wantErr(t, err, ErrJukebox)
	must(t, os.RemoveAll(f.root+"/s"))
	_, err = f.Resolve(fh)
	wantErr(t, err, ErrStale)
	must(t, os.MkdirAll(f.root+"/s/vm", 0o755)) // may get the same inode number
	f.attach()
	_, err = f.Resolve(fh)
	wantErr(t, err, ErrStale)
}

// A file system gives a freed inode number out again at once. The old handle
// must not lead to the new file.
func TestReusedInodeIsAnotherGeneration(t *testing.T) {
	f := newFixture(t)
	reused := 0
	for range 50 {
		old := f.create("x")
		fh, ino := slices.Clone(old.Handle()), old.FileID()
		_, err := f.vm.Remove(Cred{}, "x")
		must(t, err)
		n := f.create("y")
		if n.FileID() == ino {
			reused++
			if bytes.Equal(fh, n.Handle()) {
				t.Fatal("same handle for another file")
			}
		}
		_, err = f.Resolve(fh)
		wantErr(t, err, ErrStale)
		_, _, err = old.WriteAt([]byte("lost"), 0)
		wantErr(t, err, ErrStale)
		if a := attrOf(t, n); a.Size != 0 {
			t.Fatal("a write to a removed file reached another one")
		}
		_, err = f.vm.Remove(Cred{}, "y")
		must(t, err)
	}
	t.Logf("inode number reused %d times of 50", reused)
}

// Two files may have one inode number within one tick of the clock that measures
// births: then only the kernel's own handle tells them apart.
func TestGenerationIsNotOnlyTheBirth(t *testing.T) {
	f := newFixture(t)
	if !f.kernelHandles {
		t.Skip("no kernel file handles on the file system of the temporary directory")
	}
	dir, err := os.Open(f.host(""))
	must(t, err)
	defer dir.Close()
	inos := map[uint64]uint64{} // inode number → generation, all births made equal
	twins := 0
	for range 200 {
		must(t, os.WriteFile(f.host("x"), nil, 0o600))
		st, err := f.statAt(int(dir.Fd()), "x")
		must(t, err)
		st.btime = 1
		gen, err := f.generation(int(dir.Fd()), "x", &st)
		must(t, err)
		if other, ok := inos[st.attr.FileID]; ok {
			twins++
			if other == gen {
				t.Fatal("one generation for two files")
			}
		}
		inos[st.attr.FileID] = gen
		must(t, os.Remove(f.host("x")))
	}
	t.Logf("%d times an inode number that had been used before", twins)
}

func TestFileMovedOnTheHostIsFound(t *testing.T) {
	f := newFixture(t)
	n := f.create("x")
	f.mkdir("deep")
	f.files.drop(n)
	must(t, os.Rename(f.host("x"), f.host("deep/y")))
	n.changed()
	if _, err := n.Attr(); err != nil {
		t.Fatal(err)
	}
	f.files.drop(n)
	must(t, os.Remove(f.host("deep/y")))
	n.changed()
	_, err := n.Attr()
	wantErr(t, err, ErrStale)
	_, err = f.Resolve(n.Handle())
	wantErr(t, err, ErrStale)
}

func FuzzResolve(f *testing.F) {
	fx := newFixture(f)
	file := fx.create("file")
	f.Add(slices.Clone(file.Handle()))
	f.Add(slices.Clone(fx.walk("").Handle()))
	f.Add(make([]byte, handleLen))
	f.Add([]byte{1})
	known := map[string]bool{}
	for _, p := range []string{"", "s", "s/vm", "s/vm/file"} {
		known[string(fx.walk(p).Handle())] = true
	}
	f.Fuzz(func(t *testing.T, fh []byte) {
		n, err := fx.Resolve(fh)
		if (err == nil) != known[string(fh)] {
			t.Fatalf("%x: %v", fh, err)
		}
		if err == nil && !bytes.Equal(n.Handle(), fh) {
			t.Fatal("handle of another file")
		}
	})
}

// Directories moved on the host can make what we remember go in a circle.
func TestCircleOfDirectories(t *testing.T) {
	f := newFixture(t)
	a, b := f.mkdir("a"), f.mkdir("b")
	_, _, err := f.vm.Rename(Cred{}, "a", b, "a") // b/a
	must(t, err)
	_, err = a.Lookup(Cred{}, "none") // now a is open
	wantErr(t, err, ErrNoEnt)
	must(t, os.Rename(f.host("b/a"), f.host("a")))
	must(t, os.Rename(f.host("b"), f.host("a/b"))) // a/b
	_, err = a.Lookup(Cred{}, "b")
	must(t, err)
	if a.links[0].parent != b || b.links[0].parent != a {
		t.Fatal("no circle: the test proves nothing")
	}
	for _, n := range []*Node{a, b} {
		f.files.drop(n)
		n.changed()
	}
	_ = f.path(a)
	attrOf(t, a)
	attrOf(t, b)
	if p := f.path(b); p != "s/vm/a/b" {
		t.Fatal(p)
	}
}

// While the session cannot be listed nothing may be called stale: that would
// kill a VM whose file is there.
func TestFailedListingIsNotStale(t *testing.T) {
	f := newFixture(t)
	f.mkdir("dir")
	fh := slices.Clone(f.create("file").Handle())
	f.restart(true)
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	none := limit
	none.Cur = 3
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &none))
	_, err := f.Resolve(fh)
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	wantErr(t, err, ErrJukebox)
	f.session("s").failed = nil // it is remembered for a second
	if _, err := f.Resolve(fh); err != nil {
		t.Fatal(err)
	}
}
