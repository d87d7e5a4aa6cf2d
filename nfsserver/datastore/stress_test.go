package datastore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Clients do all they can at once while the session is detached and attached
// again. Nothing unexpected is answered; afterwards tree and host agree, and no
// descriptor is left open.
func TestEverythingAtOnce(t *testing.T) {
	fds := openFiles(t)
	f := newFixture(t, func(o *Options) { o.MaxOpen = 4 })
	f.create("disk")
	dev := newMemDisk(1 << 16)
	must(t, f.Bind("s/vm/disk", dev))
	handle := f.vm.Handle()
	var clients sync.WaitGroup
	for seed := range 4 {
		clients.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(seed)))
			for range 250 {
				if err := f.random(rng, handle); !expected(err) {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 10 {
		must(t, f.Detach("s"))
		if _, err := os.Lstat(f.host("disk")); err == nil {
			must(t, f.Bind("s/vm/disk", dev))
		}
		must(t, f.Attach("s"))
	}
	clients.Wait()
	must(t, filepath.WalkDir(f.root, func(path string, d os.DirEntry, err error) error {
		must(t, err)
		rel, err := filepath.Rel(f.root, path)
		must(t, err)
		n := f.walk(rel)
		if again, err := f.Resolve(n.Handle()); err != nil || again != n || (n.Type() == TypeDirectory) != d.IsDir() {
			t.Errorf("%s: %v", rel, err)
		}
		attrOf(t, n)
		return nil
	}))
	f.Close()
	f.Close()
	if _, err := f.Walk("s"); err == nil {
		t.Error("a closed tree answers")
	}
	if left := openFiles(t); left > fds {
		t.Errorf("%d descriptors open, %d before", left, fds)
	}
}

func (f *fixture) random(rng *rand.Rand, handle []byte) error {
	name := func() string { return fmt.Sprint("n", rng.IntN(5)) }
	dir, err := f.Resolve(handle)
	if err != nil {
		return err
	}
	if sub, err := dir.Lookup(Cred{}, name()); err == nil && sub.Type() == TypeDirectory && rng.IntN(2) == 0 {
		dir = sub
	}
	switch rng.IntN(10) {
	case 0:
		_, _, err = dir.Create(Cred{}, name(), CreateHow{Mode: CreateMode(rng.IntN(3))})
	case 1:
		_, _, err = dir.Mkdir(Cred{}, name(), SetAttr{})
	case 2:
		_, err = dir.Remove(Cred{}, name())
	case 3:
		_, err = dir.Rmdir(Cred{}, name())
	case 4:
		_, _, err = dir.Rename(Cred{}, name(), dir, name())
	case 5:
		for _, err = range dir.ReadDir(Cred{}, 0, 0, true) {
			if err != nil {
				break
			}
		}
	default:
		var n *Node
		if n, err = dir.Lookup(Cred{}, name()); err != nil || n.Type() != TypeRegular {
			break
		}
		if _, err = n.Attr(); err != nil {
			break
		}
		if _, _, err = n.WriteAt([]byte("data"), uint64(rng.IntN(100))); err != nil {
			break
		}
		if _, _, err = n.ReadAt(make([]byte, 50), 0); err != nil {
			break
		}
		if rng.IntN(4) == 0 {
			_, err = dir.Link(Cred{}, n, name())
		} else {
			_, err = n.SetAttr(Cred{}, SetAttr{Mode: ptr(uint32(0o600))}, nil)
		}
	}
	return err
}

func expected(err error) bool {
	if err == nil {
		return true
	}
	for _, ok := range []error{ErrNoEnt, ErrExist, ErrNotDir, ErrIsDir, ErrNotEmpty, ErrStale, ErrJukebox} {
		if errors.Is(err, ok) {
			return true
		}
	}
	return false
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}
