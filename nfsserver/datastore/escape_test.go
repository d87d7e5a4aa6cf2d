package datastore

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// While a directory and a file are swapped with symbolic links that lead
// outside, faster than any client could, every operation goes on. Nothing
// outside may be read, changed, made or removed.
func TestNoEscapeThroughSwappedLinks(t *testing.T) {
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600))
	must(t, os.MkdirAll(filepath.Join(outside, "dir"), 0o700))
	before := snapshot(t, outside)

	f := newFixture(t)
	for _, name := range []string{"d", "f"} {
		target := outside
		if name == "d" {
			must(t, os.MkdirAll(f.host("d/dir"), 0o755))
			must(t, os.WriteFile(f.host("d/secret"), []byte("inside"), 0o644))
		} else {
			must(t, os.WriteFile(f.host("f"), []byte("inside"), 0o644))
			target = filepath.Join(outside, "secret")
		}
		must(t, os.Symlink(target, f.host(name+".link")))
	}
	must(t, os.Symlink("loop", f.host("loop")))
	must(t, os.Symlink("../../..", f.host("up")))

	stop := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, name := range []string{"d", "f"} {
				err := unix.Renameat2(unix.AT_FDCWD, f.host(name), unix.AT_FDCWD, f.host(name+".link"), unix.RENAME_EXCHANGE)
				if err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	var clients sync.WaitGroup
	for range 3 {
		clients.Go(func() {
			for range 60 {
				tryEverything(t, f)
			}
		})
	}
	clients.Wait()
	close(stop)
	swapper.Wait()
	if after := snapshot(t, outside); after != before {
		t.Fatalf("outside was\n%s\nis\n%s", before, after)
	}
}

// tryEverything does what a client can do with the swapped names. Operations
// may fail; they may not get out.
func tryEverything(t *testing.T, f *fixture) {
	zero := uint64(0)
	for _, name := range []string{"f", "d/secret", "up/etc/passwd", "loop/x", "f.link"} {
		n, err := f.Walk("s/vm/" + name)
		if err != nil {
			continue
		}
		f.files.drop(n) // open it anew
		buf := make([]byte, 16)
		if k, _, err := n.ReadAt(buf, 0); err == nil && strings.Contains(string(buf[:k]), "secret") {
			t.Error("read the secret")
		}
		_, _, _ = n.WriteAt([]byte("inside"), 0)
		_, _ = n.SetAttr(Cred{}, SetAttr{Mode: ptr(uint32(0o666)), UID: ptr(uint32(0))}, nil)
		if n.Type() != TypeSymlink {
			_, _ = n.SetAttr(Cred{}, SetAttr{Size: &zero}, nil)
		}
		_, _ = n.Attr()
	}
	d, err := f.Walk("s/vm/d")
	if err != nil {
		return
	}
	f.files.drop(d)
	_, _, _ = d.Create(Cred{}, "new", CreateHow{})
	_, _, _ = d.Create(Cred{}, "excl", CreateHow{Mode: Exclusive})
	_, _, _ = d.Mkdir(Cred{}, "newdir", SetAttr{})
	_, _, _ = d.Rename(Cred{}, "new", d, "renamed")
	_, _ = d.Rmdir(Cred{}, "newdir")
	_, _ = d.Remove(Cred{}, "excl")
	_, _ = d.Remove(Cred{}, "renamed")
	for range d.ReadDir(Cred{}, 0, 0, true) {
	}
	b := f.Billy(f.vm, Cred{})
	_ = b.MkdirAll("d/billy", 0o755)
	_ = b.Symlink("x", "d/billy/link")
	_ = b.Remove("d/billy/link")
	_ = b.Remove("d/billy")
	_, _ = b.Stat("../../../../etc/passwd")
}

// snapshot describes all that is below dir.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var s strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		must(t, err)
		info, err := d.Info()
		must(t, err)
		s.WriteString(strings.Join([]string{path, info.Mode().String(), info.ModTime().String(), "\n"}, " "))
		return nil
	}))
	data, err := os.ReadFile(filepath.Join(dir, "secret"))
	must(t, err)
	return s.String() + string(data)
}
