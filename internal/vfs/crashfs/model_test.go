package crashfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/internal/vfs"
)

// While the power is on, it is a file system like the host's.
func TestLikeTheHost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "crashfs")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		host, err := vfs.Sub(vfs.OS(), dir)
		if err != nil {
			t.Fatal(err)
		}
		defer host.Close()
		p := &pair{t: t, a: host, b: New(1, Options{})}
		t.Repeat(map[string]func(*rapid.T){
			"write":    p.write,
			"truncate": p.truncate,
			"names":    p.names,
			"":         p.compare,
		})
	})
}

// pair does everything twice and compares.
type pair struct {
	t    *rapid.T
	a, b vfs.FS
}

func fileNames() *rapid.Generator[string] {
	return rapid.SampledFrom([]string{"f", "g", "d", "d/f", "d/g", "d/e", "d/e/f", "none/f"})
}

func (p *pair) both(what string, do func(vfs.FS) (string, error)) {
	ra, ea := do(p.a)
	rb, eb := do(p.b)
	if ra != rb || kind(ea) != kind(eb) {
		p.t.Fatalf("%s: host %q, %v; crashfs %q, %v", what, ra, ea, rb, eb)
	}
}

func kind(err error) string {
	for _, k := range []error{fs.ErrNotExist, fs.ErrExist, syscall.ENOTDIR, syscall.EISDIR, syscall.ENOTEMPTY, io.EOF} {
		if errors.Is(err, k) {
			return k.Error()
		}
	}
	if err != nil {
		return "error"
	}
	return ""
}

func (p *pair) write(t *rapid.T) {
	name := fileNames().Draw(t, "name")
	flag := os.O_RDWR | rapid.SampledFrom([]int{0, os.O_CREATE, os.O_CREATE | os.O_EXCL, os.O_TRUNC}).Draw(t, "flag")
	data := bytes.Repeat([]byte{byte(rapid.IntRange(1, 255).Draw(t, "byte"))}, rapid.IntRange(0, 9000).Draw(t, "n"))
	off := rapid.Int64Range(0, 20000).Draw(t, "off")
	p.both("write "+name, func(f vfs.FS) (string, error) {
		file, err := f.OpenFile(name, flag, 0o600)
		if err != nil {
			return "", err
		}
		defer file.Close()
		n, err := file.WriteAt(data, off)
		return fmt.Sprint(n), err
	})
}

func (p *pair) truncate(t *rapid.T) {
	name := fileNames().Draw(t, "name")
	off := rapid.Int64Range(0, 30000).Draw(t, "off")
	n := rapid.Int64Range(1, 10000).Draw(t, "n")
	how := rapid.SampledFrom([]string{"truncate", "punch", "allocate"}).Draw(t, "how")
	p.both(how+" "+name, func(f vfs.FS) (string, error) {
		file, err := f.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return "", err
		}
		defer file.Close()
		switch how {
		case "truncate":
			err = file.Truncate(off)
		case "punch":
			err = file.PunchHole(off, n)
		case "allocate":
			err = file.Allocate(off, n)
		}
		return "", err
	})
}

func (p *pair) names(t *rapid.T) {
	a, b := fileNames().Draw(t, "a"), fileNames().Draw(t, "b")
	how := rapid.SampledFrom([]string{"mkdir", "rename", "exclusive", "remove"}).Draw(t, "how")
	if a == b || b == "none/f" { // which of two errors wins is not worth a rule
		return
	}
	p.both(how+" "+a+" "+b, func(f vfs.FS) (string, error) {
		switch how {
		case "mkdir":
			return "", f.MkdirAll(a, 0o700)
		case "rename":
			return "", f.Rename(a, b)
		case "exclusive":
			return "", f.RenameExclusive(a, b)
		}
		return "", f.Remove(a)
	})
}

func (p *pair) compare(*rapid.T) {
	for _, dir := range []string{".", "d", "d/e", "f"} {
		p.both("list "+dir, func(f vfs.FS) (string, error) {
			entries, err := f.ReadDir(dir)
			out := ""
			for _, e := range entries {
				out += fmt.Sprint(e.Name(), e.IsDir(), " ")
			}
			return out, err
		})
	}
	for _, name := range []string{"f", "g", "d/f", "d/g", "d/e/f"} {
		p.both("read "+name, func(f vfs.FS) (string, error) {
			file, err := f.OpenFile(name, os.O_RDONLY, 0)
			if err != nil {
				return "", err
			}
			defer file.Close()
			data := make([]byte, 50000)
			n, err := file.ReadAt(data, 0)
			return string(data[:n]), err
		})
	}
}

// After power loss each sector of a file is one that it held since its last
// sync, and the size too.
func TestSurvivorsAreFromSinceTheSync(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := New(rapid.Uint64().Draw(t, "seed"), Options{})
		file := create(t, f, "f", nil)
		must(t, f.SyncDir("/"))
		const sectors = 40
		h := history{sizes: map[int64]bool{0: true}}
		for i := range sectors {
			h.versions[i] = map[string]bool{string(make([]byte, SectorSize)): true}
		}
		now := make([]byte, sectors*SectorSize)
		var size int64
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			off := rapid.Int64Range(0, sectors*SectorSize-1).Draw(t, "off")
			n := rapid.Int64Range(1, sectors*SectorSize-off).Draw(t, "n")
			switch rapid.SampledFrom([]string{"write", "write", "punch", "truncate", "sync"}).Draw(t, "step") {
			case "write":
				data := bytes.Repeat([]byte{byte(rapid.IntRange(1, 255).Draw(t, "byte"))}, int(n))
				write(t, file, data, off)
				copy(now[off:], data)
				size = max(size, off+n)
			case "punch":
				must(t, file.PunchHole(off, n))
				clear(now[off : off+n])
			case "truncate":
				must(t, file.Truncate(off))
				clear(now[off:])
				size = off
			case "sync":
				must(t, file.Sync())
				h = history{sizes: map[int64]bool{}}
			}
			h.add(now, size)
		}
		for range 4 {
			data, ok := content(t, f.Crash(rapid.Uint64().Draw(t, "crash")), "f")
			if !ok {
				t.Fatal("the file is gone")
			}
			h.check(t, data)
		}
	})
}

type history struct {
	versions [40]map[string]bool
	sizes    map[int64]bool
}

func (h *history) add(now []byte, size int64) {
	h.sizes[size] = true
	for i := range h.versions {
		if h.versions[i] == nil {
			h.versions[i] = map[string]bool{}
		}
		h.versions[i][string(now[i*SectorSize:(i+1)*SectorSize])] = true
	}
}

func (h *history) check(t *rapid.T, data []byte) {
	if !h.sizes[int64(len(data))] {
		t.Fatalf("%d bytes: never had that size", len(data))
	}
	for i := 0; i*SectorSize < len(data); i++ {
		got := data[i*SectorSize : min((i+1)*SectorSize, len(data))]
		found := false
		for v := range h.versions[i] {
			found = found || v[:len(got)] == string(got)
		}
		if !found {
			t.Fatalf("sector %d is no version that was written", i)
		}
	}
}
