package datastore

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// listAll reads a directory in replies of at most count entries each.
func listAll(t testing.TB, d *Node, count int, plus bool) []Entry {
	t.Helper()
	var all []Entry
	cookie, verifier := uint64(0), uint64(0)
	for {
		entries, eof := page(t, d, cookie, verifier, count, plus)
		all = append(all, entries...)
		if eof {
			return all
		}
		cookie, verifier = entries[len(entries)-1].Cookie, d.CookieVerifier()
	}
}

func page(t testing.TB, d *Node, cookie, verifier uint64, count int, plus bool) (entries []Entry, eof bool) {
	t.Helper()
	for e, err := range d.ReadDir(Cred{}, cookie, verifier, plus) {
		must(t, err)
		if len(entries) == count {
			return entries, false
		}
		entries = append(entries, e)
	}
	return entries, true
}

func TestReadDir(t *testing.T) {
	f := newFixture(t)
	want := map[string]*Node{".": f.vm, "..": f.walk("s")}
	for i := range 50 {
		name := fmt.Sprint("f", i)
		want[name] = f.create(name)
	}
	want["sub"] = f.mkdir("sub")
	for _, count := range []int{1, 2, 3, 7, 1000} {
		got := listAll(t, f.vm, count, true)
		if len(got) != len(want) || got[0].Name != "." || got[1].Name != ".." {
			t.Fatalf("%d entries at %d a time, want %d", len(got), count, len(want))
		}
		for _, e := range got {
			if e.Node != want[e.Name] || e.FileID != e.Node.FileID() || !e.HasAttr || e.Attr != attrOf(t, e.Node) {
				t.Fatalf("%+v", e)
			}
		}
	}
	if got := listAll(t, f.vm, 5, false); len(got) != len(want) || got[9].Node != nil {
		t.Fatal("without plus")
	}
}

func TestReadDirErrors(t *testing.T) {
	f := newFixture(t)
	last := func(n *Node, c Cred, cookie, verifier uint64) (err error) {
		for _, err = range n.ReadDir(c, cookie, verifier, false) {
		}
		return err
	}
	wantErr(t, last(f.create("x"), Cred{}, 0, 0), ErrNotDir)
	wantErr(t, last(f.vm, Cred{}, 1<<63, 0), ErrBadCookie)
	wantErr(t, last(f.vm, Cred{}, 2, f.vm.CookieVerifier()+2), ErrBadCookie)
	must(t, last(f.vm, Cred{}, 2, 0))
	must(t, last(f.vm, Cred{}, cookieEnd, 0))
	for shift := range 63 {
		_ = last(f.vm, Cred{}, 1<<shift, 0) // any position a client may make up
	}
	must(t, os.Chmod(f.host(""), 0o711))
	f.vm.changed()
	wantErr(t, last(f.vm, Cred{UID: 5}, 0, 0), ErrAcces)
}

// What is there all the time is listed exactly once, whatever comes and goes
// between the calls, and also when the server restarts in between.
func TestReadDirWhileChanging(t *testing.T) {
	f := newFixture(t)
	const n = 300
	for i := range n {
		must(t, os.WriteFile(f.host(fmt.Sprint("stay", i)), nil, 0o644))
		must(t, os.WriteFile(f.host(fmt.Sprint("go", i)), nil, 0o644))
	}
	seen := map[string]int{}
	cookie, verifier := uint64(0), uint64(0)
	for i := 0; ; i++ {
		entries, eof := page(t, f.vm, cookie, verifier, 7, true)
		for _, e := range entries {
			seen[e.Name]++
		}
		if eof {
			break
		}
		last := entries[len(entries)-1]
		cookie, verifier = last.Cookie, f.vm.CookieVerifier()
		if last.Name[0] == 'g' { // the very entry that the cookie stands after
			must(t, os.Remove(f.host(last.Name)))
		}
		_ = os.Remove(f.host(fmt.Sprint("go", i)))
		must(t, os.WriteFile(f.host(fmt.Sprint("new", i)), nil, 0o644))
		if i == 20 {
			f.restart(false)
		}
	}
	for i := range n {
		if c := seen[fmt.Sprint("stay", i)]; c != 1 {
			t.Fatalf("stay%d listed %d times", i, c)
		}
	}
	for name, c := range seen {
		if c > 1 {
			t.Fatalf("%s listed %d times", name, c)
		}
	}
}

// A big directory: 20,000 entries, most of them hard links, which are cheaper to
// make than files; with LIFEBOAT_BIG_DIR=1 100,000 entries, all files.
func TestBigDirectory(t *testing.T) {
	n, files := 20_000, 2000
	if os.Getenv("LIFEBOAT_BIG_DIR") != "" {
		n, files = 100_000, 100_000
	}
	f := newFixture(t)
	big := f.mkdir("big")
	dir, err := os.Open(f.host("big"))
	must(t, err)
	defer dir.Close()
	at := int(dir.Fd())
	name := func(i int) string { return fmt.Sprintf("entry%06d", i) }
	for i := range n {
		if i >= files {
			must(t, unix.Linkat(at, name(i%files), at, name(i), 0))
			continue
		}
		fd, err := unix.Openat(at, name(i), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o644)
		must(t, err)
		must(t, unix.Close(fd))
	}
	one, err := big.Lookup(Cred{}, name(n/2))
	must(t, err)
	handles := [][]byte{slices.Clone(one.Handle()), slices.Clone(big.Handle())}
	f.restart(false)
	start := time.Now()
	for _, fh := range handles {
		_, err := f.Resolve(fh)
		must(t, err)
	}
	t.Logf("handles found again by listing %d entries: %v", n, time.Since(start))
	big = f.walk("s/vm/big")
	start = time.Now()
	if got := listAll(t, big, 100, false); len(got) != n+2 {
		t.Fatalf("%d entries", len(got))
	}
	t.Logf("READDIR, 100 entries a reply: %v", time.Since(start))
	start = time.Now()
	if got := listAll(t, big, 200, true); len(got) != n+2 {
		t.Fatalf("%d entries", len(got))
	}
	t.Logf("READDIRPLUS, 200 entries a reply: %v", time.Since(start))
}
