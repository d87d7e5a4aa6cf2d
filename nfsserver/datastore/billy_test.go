package datastore

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/go-git/go-billy/v5"
)

func TestBilly(t *testing.T) {
	f := newFixture(t)
	b := f.Billy(f.vm, Cred{})
	if b.Root() != "/s/vm" {
		t.Fatal(b.Root())
	}
	must(t, b.MkdirAll("a/b/c", 0o750))
	must(t, b.MkdirAll("a/b/c", 0o750))
	w, err := b.Create(b.Join("a", "b", "file"))
	must(t, err)
	_, err = io.WriteString(w, "hello world")
	must(t, err)
	must(t, w.Truncate(5))
	must(t, w.Close())
	if err := w.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Fatal(err)
	}
	r, err := b.Open("/a/b/./../b/file")
	must(t, err)
	if data, err := io.ReadAll(r); err != nil || string(data) != "hello" {
		t.Fatalf("%q %v", data, err)
	}
	if _, err := r.Write([]byte("x")); !errors.Is(err, fs.ErrPermission) {
		t.Fatal(err)
	}
	if pos, err := r.Seek(-2, io.SeekEnd); err != nil || pos != 3 {
		t.Fatal(pos, err)
	}
	must(t, b.Rename("a/b/file", "a/moved"))
	must(t, b.Symlink("moved", "a/link"))
	if target, err := b.Readlink("a/link"); err != nil || target != "moved" {
		t.Fatal(target, err)
	}
	info, err := b.Stat("a/link")
	must(t, err)
	if info.Mode()&os.ModeSymlink == 0 {
		t.Fatal("a link was followed")
	}
	info, err = b.Lstat("a/moved")
	must(t, err)
	st := info.Sys().(*syscall.Stat_t)
	if info.Name() != "moved" || info.Size() != 5 || st.Ino != f.walk("s/vm/a/moved").FileID() || st.Nlink != 1 {
		t.Fatalf("%+v %+v", info, st)
	}
	list, err := b.ReadDir("a")
	if err != nil || len(list) != 3 {
		t.Fatal(list, err)
	}
	c := b.(billy.Change)
	must(t, c.Chmod("a/moved", 0o600|os.ModeSetuid))
	must(t, c.Chtimes("a/moved", time.Unix(5, 0), time.Unix(6, 7)))
	if info, err = b.Stat("a/moved"); err != nil || info.Mode() != 0o600|os.ModeSetuid || !info.ModTime().Equal(time.Unix(6, 7)) {
		t.Fatal(info.Mode(), info.ModTime(), err)
	}
	must(t, b.Remove("a/moved"))
	must(t, b.Remove("a/b/c"))
	if err := b.Remove("a"); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Fatal(err)
	}
	if _, err := b.Stat("a/moved"); !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if _, err := b.OpenFile("a/link", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); !os.IsExist(err) {
		t.Fatal(err)
	}
}

func TestBillyCannotLeave(t *testing.T) {
	f := newFixture(t)
	must(t, os.WriteFile(f.root+"/s/secret", []byte("secret"), 0o644))
	sub := f.mkdir("sub")
	must(t, os.Symlink("../..", f.host("sub/up")))
	must(t, os.Symlink("/", f.host("sub/abs")))
	b := f.Billy(sub, Cred{})
	for _, path := range []string{"../../secret", "/../../secret", "up/secret", "abs/etc/passwd", "up", "x/../../../secret"} {
		if r, err := b.Open(path); err == nil {
			t.Fatalf("%s opened %s", path, r.Name())
		}
		if _, err := b.Stat(path); err == nil && path != "up" {
			t.Fatalf("%s found", path)
		}
	}
	inner, err := b.Chroot("..")
	must(t, err)
	if inner.Root() != "/s/vm/sub" {
		t.Fatal(inner.Root())
	}
	if _, err := b.Chroot("up"); err == nil {
		t.Fatal("chroot through a link")
	}
	if err := b.MkdirAll("up/made", 0o755); err == nil {
		t.Fatal("mkdir through a link")
	}
}
