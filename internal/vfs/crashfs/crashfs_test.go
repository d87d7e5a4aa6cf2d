package crashfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"testing"

	"lifeboat/internal/vfs"
)

const seeds = 64

// fataler is a testing.TB or a rapid.T.
type fataler interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func must(t fataler, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func create(t fataler, f vfs.FS, name string, data []byte) vfs.File {
	t.Helper()
	file, err := f.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	must(t, err)
	write(t, file, data, 0)
	return file
}

func write(t fataler, file vfs.File, data []byte, off int64) {
	t.Helper()
	if n, err := file.WriteAt(data, off); n != len(data) || err != nil {
		t.Fatalf("WriteAt = %d, %v", n, err)
	}
}

// content is a file's content, or nil and false where there is none.
func content(t fataler, f vfs.FS, name string) ([]byte, bool) {
	t.Helper()
	file, err := f.OpenFile(name, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false
	}
	must(t, err)
	defer file.Close()
	size, err := file.Size()
	must(t, err)
	data := make([]byte, size)
	if n, err := file.ReadAt(data, 0); n != len(data) || err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("ReadAt = %d, %v", n, err)
	}
	return data, true
}

// outcomes counts what look says of the disk after power loss, over many seeds.
func outcomes(f *FS, look func(*FS) string) map[string]int {
	seen := map[string]int{}
	for seed := range uint64(seeds) {
		seen[look(f.Crash(seed))]++
	}
	return seen
}

// want checks that exactly these outcomes occur.
func want(t *testing.T, seen map[string]int, outcomes ...string) {
	t.Helper()
	for _, o := range outcomes {
		if seen[o] == 0 {
			t.Errorf("%q never occurs; seen: %v", o, seen)
		}
	}
	for o := range seen {
		if !slices.Contains(outcomes, o) {
			t.Errorf("%q occurs", o)
		}
	}
}

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

func TestUnsyncedSectorsAreTorn(t *testing.T) {
	f := New(1, Options{})
	file := create(t, f, "f", fill('a', 4*SectorSize))
	must(t, file.Sync(), f.SyncDir("/"))
	write(t, file, fill('b', 3*SectorSize), SectorSize/2) // touches four sectors
	seen := outcomes(f, func(f *FS) string {
		data, _ := content(t, f, "f")
		out := ""
		for i := range 4 {
			s := data[i*SectorSize : (i+1)*SectorSize]
			edge := slices.Concat(fill('a', SectorSize/2), fill('b', SectorSize/2))
			switch {
			case bytes.Equal(s, fill('a', SectorSize)):
				out += "a"
			case bytes.Equal(s, fill('b', SectorSize)), bytes.Equal(s, edge) && i == 0:
				out += "b"
			case i == 3 && bytes.Equal(s, slices.Concat(fill('b', SectorSize/2), fill('a', SectorSize/2))):
				out += "b"
			default:
				out += "?"
			}
		}
		return out
	})
	for outcome := range seen {
		if bytes.Contains([]byte(outcome), []byte("?")) {
			t.Errorf("a sector was torn: %q", outcome)
		}
	}
	for _, o := range []string{"aaaa", "bbbb"} {
		if seen[o] == 0 {
			t.Errorf("%q never occurs: %v", o, seen)
		}
	}
	if len(seen) < 8 {
		t.Errorf("only %d of 16 outcomes: %v", len(seen), seen)
	}
	must(t, file.Sync())
	want(t, outcomes(f, func(f *FS) string {
		data, _ := content(t, f, "f")
		return string(data[SectorSize : SectorSize+1])
	}), "b")
}

func TestVersionsFromInBetween(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(seeds) {
		f := New(seed, Options{})
		file := create(t, f, "f", fill('a', 100))
		must(t, file.Sync(), f.SyncDir("/"))
		write(t, file, fill('b', 100), 0)
		write(t, file, fill('c', 100), 0)
		for o, n := range outcomes(f, func(f *FS) string {
			data, _ := content(t, f, "f")
			return string(data[:1])
		}) {
			seen[o] += n
		}
	}
	want(t, seen, "a", "b", "c")
}

func TestUnsyncedSize(t *testing.T) {
	size := func(f *FS) string {
		data, _ := content(t, f, "f")
		return fmt.Sprint(len(data))
	}
	f := New(1, Options{})
	file := create(t, f, "f", fill('a', 100))
	must(t, f.SyncDir("/"))
	write(t, file, fill('a', 100), 100)
	want(t, outcomes(f, size), "0", "100", "200")
	must(t, file.Sync())
	want(t, outcomes(f, size), "200")
	must(t, file.Truncate(50))
	want(t, outcomes(f, size), "50", "200")
	must(t, file.Sync())
	want(t, outcomes(f, size), "50")
	must(t, file.Truncate(300)) // what was cut off must not come back
	want(t, outcomes(f, func(f *FS) string {
		data, _ := content(t, f, "f")
		return fmt.Sprint(len(data), bytes.Count(data, []byte{'a'}))
	}), "50 50", "300 50")
}

func TestPunchedHole(t *testing.T) {
	f := New(1, Options{})
	file := create(t, f, "f", fill('a', 3*pageSize))
	must(t, file.Sync(), f.SyncDir("/"))
	must(t, file.PunchHole(pageSize, pageSize))
	count := func(f *FS) string {
		data, _ := content(t, f, "f")
		return fmt.Sprint(bytes.Count(data, []byte{0}) > 0)
	}
	want(t, outcomes(f, count), "true", "false")
	if f.Used() != 3*pageSize {
		t.Errorf("used %d before the hole is durable", f.Used())
	}
	must(t, file.Sync())
	want(t, outcomes(f, count), "true")
	if f.Used() != 2*pageSize {
		t.Errorf("used %d after", f.Used())
	}
}

func TestUnsyncedNames(t *testing.T) {
	f := New(1, Options{})
	must(t, f.MkdirAll("d", 0o700))
	for _, name := range []string{"d/a", "d/b"} {
		must(t, create(t, f, name, []byte("x")).Sync())
	}
	names := func(f *FS) string {
		entries, err := f.ReadDir("d")
		must(t, err)
		out := ""
		for _, e := range entries {
			out += e.Name()
		}
		return out
	}
	// A later one survives an earlier one of another name.
	want(t, outcomes(f, names), "", "a", "b", "ab")
	must(t, f.SyncDir("d"))
	want(t, outcomes(f, names), "ab")
	must(t, f.Remove("d/a"))
	want(t, outcomes(f, names), "ab", "b")
	must(t, f.SyncDir("d"))
	want(t, outcomes(f, names), "b")
}

func TestRenameIsAtomic(t *testing.T) {
	f := New(1, Options{})
	must(t, f.MkdirAll("d", 0o700), f.MkdirAll("e", 0o700))
	for name, data := range map[string]string{"d/tmp": "new", "e/x": "old"} {
		must(t, create(t, f, name, []byte(data)).Sync())
	}
	must(t, f.SyncDir("d"), f.SyncDir("e"), f.Rename("d/tmp", "e/x"))
	look := func(f *FS) string {
		tmp, _ := content(t, f, "d/tmp")
		x, _ := content(t, f, "e/x")
		return string(tmp) + "|" + string(x)
	}
	want(t, outcomes(f, look), "new|old", "|new")
	for _, dir := range []string{"d", "e"} { // either of them makes it durable
		g := f.Crash(0)
		must(t, g.Rename("d/tmp", "e/x"), g.SyncDir(dir))
		want(t, outcomes(g, look), "|new")
	}
}

// A file never has two names, and a name that was taken twice keeps its order.
func TestChangesOfOneNameKeepTheirOrder(t *testing.T) {
	f := New(1, Options{})
	must(t, create(t, f, "a", []byte("1")).Sync(), f.SyncDir("/"))
	must(t, f.Rename("a", "b"), f.Rename("b", "c"))
	want(t, outcomes(f, func(f *FS) string {
		entries, err := f.ReadDir("/")
		must(t, err)
		return fmt.Sprint(entries)
	}), "[- a]", "[- b]", "[- c]")
}

// What was made inside a directory whose own entry is lost is lost with it.
func TestUnsyncedDirectory(t *testing.T) {
	f := New(1, Options{})
	must(t, f.MkdirAll("a/b", 0o700))
	must(t, f.Rename("a/b", "a/c"))
	must(t, create(t, f, "a/c/f", []byte("x")).Sync(), f.SyncDir("a/c"))
	want(t, outcomes(f, func(f *FS) string {
		_, b := content(t, f, "a/b/f")
		_, c := content(t, f, "a/c/f")
		return fmt.Sprint(b, c)
	}), "true false", "false true")
}

func TestMkdirAllIsDurable(t *testing.T) {
	f := New(1, Options{})
	must(t, f.MkdirAll("/a/b/c", 0o700))
	want(t, outcomes(f, func(f *FS) string {
		info, err := f.Stat("a/b/c")
		return fmt.Sprint(err == nil && info.IsDir())
	}), "true")
}

// The crash image is a file system like any other, and its source goes on.
func TestCrashLeavesTheSourceAlone(t *testing.T) {
	f := New(1, Options{})
	file := create(t, f, "f", fill('a', 100))
	g := f.Crash(1)
	write(t, file, fill('b', 100), 0)
	if data, ok := content(t, g, "f"); !ok || !bytes.Equal(data, fill('a', 100)) {
		t.Errorf("%q, %v", data, ok)
	}
	other := create(t, g, "f", fill('c', 10))
	must(t, other.Sync())
	if data, _ := content(t, f, "f"); !bytes.Equal(data, fill('b', 100)) {
		t.Errorf("%q", data)
	}
}

func TestSameSeedSameOutcome(t *testing.T) {
	build := func() *FS {
		f := New(7, Options{})
		file := create(t, f, "f", fill('a', 1<<16))
		must(t, file.Sync(), f.SyncDir("/"))
		write(t, file, fill('b', 1<<16), 0)
		write(t, file, fill('c', 1<<15), 77)
		return f
	}
	one, other := build(), build()
	for seed := range uint64(seeds) {
		a, _ := content(t, one.Crash(seed), "f")
		b, _ := content(t, other.Crash(seed), "f")
		if !bytes.Equal(a, b) {
			t.Fatalf("seed %d: two outcomes", seed)
		}
	}
}
