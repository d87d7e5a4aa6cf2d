package vfs

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func create(t *testing.T, name, content string) *osFile {
	t.Helper()
	f, err := OS().OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteAt([]byte(content), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	return f.(*osFile)
}

func content(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func linkNames(o, n string) error {
	return linkExclusive(place{unix.AT_FDCWD, o}, place{unix.AT_FDCWD, n})
}

func renames() map[string]func(o, n string) error {
	return map[string]func(o, n string) error{
		"renameat2": OS().RenameExclusive,
		"link":      linkNames,
		"in a root": func(o, n string) error {
			root, err := Sub(OS(), filepath.Dir(o))
			if err != nil {
				return err
			}
			defer root.Close()
			return root.RenameExclusive(filepath.Base(o), filepath.Base(n))
		},
	}
}

// All ways of an exclusive rename must agree.
func TestRenameExclusive(t *testing.T) {
	for way, rename := range renames() {
		t.Run(way, func(t *testing.T) {
			dir := t.TempDir()
			a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
			create(t, a, "first")
			create(t, b, "second")
			if err := rename(a, b); !errors.Is(err, fs.ErrExist) {
				t.Fatalf("onto an existing file: %v, want fs.ErrExist", err)
			}
			if got := content(t, b); got != "second" {
				t.Fatalf("the target became %q", got)
			}
			if err := rename(a, c); err != nil {
				t.Fatal(err)
			}
			if got := content(t, c); got != "first" {
				t.Fatalf("renamed file holds %q", got)
			}
			if _, err := os.Stat(a); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("old name: %v, want fs.ErrNotExist", err)
			}
			if err := rename(a, b+"2"); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("of nothing: %v, want fs.ErrNotExist", err)
			}
		})
	}
}

func TestRenameExclusiveHasOneWinner(t *testing.T) {
	for way, rename := range renames() {
		t.Run(way, func(t *testing.T) {
			dir := t.TempDir()
			var won atomic.Int32
			var wg sync.WaitGroup
			for i := range 16 {
				name := filepath.Join(dir, strings.Repeat("x", i+1))
				create(t, name, "x")
				wg.Go(func() {
					switch err := rename(name, filepath.Join(dir, "target")); {
					case err == nil:
						won.Add(1)
					case !errors.Is(err, fs.ErrExist):
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if won.Load() != 1 {
				t.Fatalf("%d winners", won.Load())
			}
		})
	}
}

// A retransmitted LINK of NFS: the link exists although the call failed.
func TestLinkExclusiveKnowsItsOwnLink(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	create(t, a, "x")
	if err := os.Link(a, b); err != nil {
		t.Fatal(err)
	}
	if err := linkNames(a, b); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(a); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("the old name is still there")
	}
}

func TestAllocateKeepsDataAndGrows(t *testing.T) {
	ways := map[string]func(*osFile) func(off, n int64) error{
		"fallocate": func(f *osFile) func(off, n int64) error { return f.Allocate },
		"writing":   func(f *osFile) func(off, n int64) error { return f.allocateByWriting },
	}
	const mib = 1 << 20
	for way, allocate := range ways {
		t.Run(way, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "f")
			f := create(t, name, "head")
			if _, err := f.WriteAt([]byte("middle"), mib); err != nil {
				t.Fatal(err)
			}
			if err := f.Truncate(2 * mib); err != nil {
				t.Fatal(err)
			}
			if err := allocate(f)(1, 3*mib); err != nil {
				t.Fatal(err)
			}
			want := make([]byte, 3*mib+1)
			copy(want, "head")
			copy(want[mib:], "middle")
			if got := content(t, name); got != string(want) {
				t.Fatalf("content differs: %d bytes, want %d", len(got), len(want))
			}
			var st unix.Stat_t
			if err := unix.Stat(name, &st); err != nil {
				t.Fatal(err)
			}
			if st.Blocks*512 < 3*mib {
				t.Fatalf("only %d bytes are allocated", st.Blocks*512)
			}
		})
	}
}

func TestPunchHole(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	const size, off, n = 64 << 10, 4097, 50<<10 + 7
	f := create(t, name, strings.Repeat("x", size))
	if err := f.PunchHole(off, n); err != nil {
		t.Fatal(err)
	}
	x := func(n int) string { return strings.Repeat("x", n) }
	want := x(off) + strings.Repeat("\x00", n) + x(size-off-n)
	if content(t, name) != want {
		t.Fatal("not exactly the range reads as zeros")
	}
	if err := f.PunchHole(size-1, 1<<20); err != nil { // past the end
		t.Fatal(err)
	}
	if got := content(t, name); got != want[:size-1]+"\x00" {
		t.Fatalf("at the end: wrong content, or the size changed to %d", len(got))
	}
}

func TestRangesOutsideAreRefused(t *testing.T) {
	f := create(t, filepath.Join(t.TempDir(), "f"), "x")
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {1<<63 - 1, 1}} {
		if err := f.Allocate(r[0], r[1]); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Allocate%v: %v, want fs.ErrInvalid", r, err)
		}
		if err := f.PunchHole(r[0], r[1]); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("PunchHole%v: %v, want fs.ErrInvalid", r, err)
		}
	}
}

func TestReadAtNoWait(t *testing.T) {
	f := create(t, filepath.Join(t.TempDir(), "f"), strings.Repeat("0123456789abcdef", 1024))
	p := make([]byte, 100)
	if _, err := f.ReadAt(p, 5); err != nil { // into the page cache
		t.Fatal(err)
	}
	q := make([]byte, 100)
	if !f.ReadAtNoWait(q, 5) {
		t.Skipf("this file system refuses RWF_NOWAIT (flag now %v)", f.noWait.Load())
	}
	if !bytes.Equal(p, q) {
		t.Fatalf("got %q, want %q", q, p)
	}
	if f.ReadAtNoWait(q, 16<<10-50) {
		t.Error("a read across the end claims to be complete")
	}
	if f.ReadAtNoWait(q, -1) {
		t.Error("a negative offset claims to be read")
	}
	if n := testing.AllocsPerRun(100, func() { f.ReadAtNoWait(q, 5) }); n >= 1 {
		t.Errorf("%v allocations a read", n)
	}
	f.Close()
	if f.ReadAtNoWait(q, 5) {
		t.Error("a closed file was read")
	}
}

func TestMkdirAll(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "a", "b", "c")
	for range 2 {
		if err := OS().MkdirAll(name, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := OS().Stat(name); err != nil || !info.IsDir() {
		t.Fatalf("%v, %v", info, err)
	}
	create(t, filepath.Join(dir, "file"), "")
	if err := OS().MkdirAll(filepath.Join(dir, "file"), 0o700); !errors.Is(err, unix.ENOTDIR) {
		t.Fatalf("over a file: %v, want ENOTDIR", err)
	}
	if err := OS().SyncDir(name); err != nil {
		t.Fatal(err)
	}
	if free, err := OS().Free(name); err != nil || free <= 0 {
		t.Fatalf("free = %d, %v", free, err)
	}
}

// Nothing that lies outside a root may be read, written or removed through it.
func TestRootDoesNotLeak(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	create(t, filepath.Join(outside, "secret"), "secret")
	for link, target := range map[string]string{"file": "secret", "dir": ""} {
		if err := os.Symlink(filepath.Join(outside, target), filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	create(t, filepath.Join(dir, "own"), "own")
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := Sub(OS(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	up := filepath.Join("..", filepath.Base(outside), "secret")
	for _, name := range []string{"file", "dir/secret", up, filepath.Join(outside, "secret"), "fifo", "."} {
		if f, err := root.OpenFile(name, os.O_RDONLY, 0); err == nil {
			f.Close()
			t.Errorf("%s was opened", name)
		}
	}
	attempts := map[string]error{
		"create":    second(root.OpenFile("dir/new", os.O_RDWR|os.O_CREATE, 0o600)),
		"rename":    root.Rename("own", "dir/own"),
		"exclusive": root.RenameExclusive("own", "dir/own"),
		"remove":    root.Remove("dir/secret"),
		"mkdir":     root.MkdirAll("dir/new", 0o700),
		"list":      second(root.ReadDir("dir")),
		"sync":      root.SyncDir("dir"),
		"free":      second(root.Free("dir")),
	}
	for what, err := range attempts {
		if err == nil {
			t.Errorf("%s through a symbolic link worked", what)
		}
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
		t.Fatalf("outside: %v, %v", entries, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestRoot(t *testing.T) {
	dir := t.TempDir()
	root, err := Sub(OS(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := root.MkdirAll("a/b", 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := root.OpenFile("a/b/f", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		f.Sync(), root.Rename("a/b/f", "a/g"), root.SyncDir("a"), root.SyncDir("."),
		root.RenameExclusive("a/g", "a/b/h"), second(root.Stat("a/b/h")), second(root.Free(".")),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if entries, err := root.ReadDir("a/b"); err != nil || len(entries) != 1 || entries[0].Name() != "h" {
		t.Errorf("%v, %v", entries, err)
	}
	if err := root.Remove("a/b/h"); err != nil {
		t.Error(err)
	}
	if _, err := root.Stat("a/b/h"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want fs.ErrNotExist", err)
	}
}

func BenchmarkReadAtNoWait4K(b *testing.B) {
	name := filepath.Join(b.TempDir(), "f")
	if err := os.WriteFile(name, make([]byte, 1<<20), 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := OS().OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 4096)
	b.ReportAllocs()
	for i := range b.N {
		if !f.(NoWaitReader).ReadAtNoWait(p, int64(i%256)*4096) {
			b.Skip("the file is not in memory, or the file system refuses RWF_NOWAIT")
		}
	}
}
