package nfsserver

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/disk/disktest"
	"lifeboat/nfsserver/nfstest"
)

func TestReaddir(t *testing.T) {
	w := newWorld(t, disktest.NewMemory(1<<20))
	const files = 200
	names := map[string]bool{".": true, "..": true, "vm": true}
	for i := range files {
		name := fmt.Sprintf("file-%d-%0*d", i, i%60+1, i)
		names[name] = true
		must(t, os.WriteFile(filepath.Join(w.root, "s1", name), []byte("x"), 0o644))
	}
	c, dir, _ := w.mount()
	// Whatever the limits, replies keep them, and all of them together list
	// every entry once.
	rapid.Check(t, func(t *rapid.T) {
		plus := rapid.Bool().Draw(t, "plus")
		dircount := rapid.Uint32Range(200, 20_000).Draw(t, "dircount")
		maxcount := rapid.Uint32Range(500, 40_000).Draw(t, "maxcount")
		seen := map[string]bool{}
		var cookie, verifier uint64
		for {
			var l nfstest.Listing
			var err error
			if plus {
				l, err = c.Readdirplus(dir, cookie, verifier, dircount, maxcount)
			} else {
				l, err = c.Readdir(dir, cookie, verifier, maxcount)
			}
			must(t, err)
			if l.Size > int(maxcount) || (plus && l.DirSize > int(dircount)) {
				t.Fatalf("limits %d, %d; reply of %d, %d bytes", dircount, maxcount, l.DirSize, l.Size)
			}
			for _, e := range l.Entries {
				if !names[e.Name] || seen[e.Name] {
					t.Fatalf("entry %q: unknown, or twice", e.Name)
				}
				seen[e.Name] = true
				if plus && e.Name[0] == 'f' && (e.Attr == nil || e.Attr.FileID != e.FileID || len(e.Handle) == 0) {
					t.Fatalf("entry %q: %+v", e.Name, e)
				}
			}
			if l.EOF {
				break
			}
			if len(l.Entries) == 0 {
				t.Fatal("a reply without entries and not at the end")
			}
			cookie, verifier = l.Entries[len(l.Entries)-1].Cookie, l.Verifier
		}
		if len(seen) != len(names) {
			t.Fatalf("%d of %d entries", len(seen), len(names))
		}
	})

	l, err := c.Readdirplus(dir, 0, 0, 1<<20, 1<<20)
	must(t, err)
	again, err := c.Readdirplus(dir, 0, 0, 1<<20, uint32(l.Size))
	must(t, err)
	want(t, "entries with maxcount as big as needed", len(again.Entries), len(l.Entries))
	again, err = c.Readdirplus(dir, 0, 0, 1<<20, uint32(l.Size-1))
	must(t, err)
	want(t, "entries with a byte less", len(again.Entries), len(l.Entries)-1)

	for _, count := range []uint32{0, 1, 80, 104} {
		_, err = c.Readdir(dir, 0, 0, count)
		wantStatus(t, fmt.Sprintf("count %d", count), err, nfstest.TooSmall)
		_, err = c.Readdirplus(dir, 0, 0, 4096, count)
		wantStatus(t, fmt.Sprintf("maxcount %d", count), err, nfstest.TooSmall)
	}
	_, err = c.Readdirplus(dir, 0, 0, 1, 4096)
	wantStatus(t, "dircount 1", err, nfstest.TooSmall)
	_, err = c.Readdir(dir, 1<<63+5, 0, 4096)
	wantStatus(t, "a cookie that cannot be", err, nfstest.BadCookie)
	_, err = c.Readdir(dir, 1, l.Verifier+1, 4096)
	wantStatus(t, "a wrong verifier", err, nfstest.BadCookie)
	file, _, err := c.Lookup(dir, "file-0-0")
	must(t, err)
	_, err = c.Readdir(file, 0, 0, 4096)
	wantStatus(t, "READDIR of a file", err, nfstest.NotDir)
	_, err = c.Readdirplus(noHandle, 0, 0, 4096, 4096)
	wantStatus(t, "READDIRPLUS of a forged handle", err, nfstest.BadHandle)
}

func TestReaddirHuge(t *testing.T) {
	const files = 100_000
	w := newWorld(t, nil)
	big := filepath.Join(w.root, "s1/big")
	must(t, os.Mkdir(big, 0o755))
	for i := range files { // links are quicker to make than files
		name := filepath.Join(big, fmt.Sprint(i))
		if i%30_000 == 0 {
			must(t, os.WriteFile(name, nil, 0o644))
			continue
		}
		must(t, os.Link(filepath.Join(big, fmt.Sprint(i/30_000*30_000)), name))
	}
	c, dir, _ := w.mount()
	h, _, err := c.Lookup(dir, "big")
	must(t, err)
	all, err := c.ReadAll(h, 256<<10)
	must(t, err)
	want(t, "entries", len(all), files+2)
	seen := make(map[string]bool, len(all))
	for _, e := range all {
		seen[e.Name] = true
	}
	want(t, "different entries", len(seen), files+2)
}
