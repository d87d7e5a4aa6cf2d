package guestfstest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Load changes a mounted directory in every way that it can think of, on several
// threads, until the function that it returns is called. What cannot be done here
// (no space, no shared blocks) is passed over: it is what happens to be on the
// disk in the middle that is looked at.
func Load(t testing.TB, dir string, seed uint64) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	for i := range 3 {
		w := &worker{rng: rand.New(rand.NewPCG(seed, uint64(i))), dir: filepath.Join(dir, fmt.Sprintf("load %d", i))}
		if err := os.Mkdir(w.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		wait.Go(func() {
			for ctx.Err() == nil {
				if err := w.step(); err != nil && !harmless(err) {
					t.Errorf("load: %v", err)
					return
				}
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); wait.Wait() })
	t.Cleanup(stop)
	return stop
}

// harmless errors are those of a full or limited file system, or of chance.
func harmless(err error) bool {
	for _, e := range []error{unix.ENOSPC, unix.ENOENT, unix.EEXIST, unix.ENOTEMPTY, unix.EOPNOTSUPP, unix.EINVAL, unix.E2BIG, unix.ENODATA, unix.EISDIR, unix.ENOTDIR, unix.EIO, unix.ERANGE, unix.EMLINK, unix.ELOOP, unix.ENAMETOOLONG} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

type worker struct {
	rng *rand.Rand
	dir string
	n   int
}

// some is the path of something that may be there.
func (w *worker) some() string {
	return filepath.Join(w.dir, fmt.Sprintf("d%d", w.rng.IntN(6)), fmt.Sprintf("%d%s", w.rng.IntN(300), strings.Repeat("x", w.rng.IntN(2)*w.rng.IntN(200))))
}

func (w *worker) data(n int) []byte {
	w.n++
	b := make([]byte, n)
	for i := 0; i < n; i += 64 {
		copy(b[i:], fmt.Sprintf("write %d at %d ", w.n, i))
	}
	return b
}

func (w *worker) step() error {
	name := w.some()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	switch w.rng.IntN(18) {
	case 0, 1, 2, 3:
		return os.WriteFile(name, w.data(w.rng.IntN(1<<w.rng.IntN(18))), 0o644)
	case 4:
		return os.Remove(name)
	case 5:
		return os.Rename(name, w.some())
	case 6:
		return os.Link(name, w.some())
	case 7:
		return os.Symlink(strings.Repeat("t", 1+w.rng.IntN(1000)), name)
	case 8:
		return os.Mkdir(name, 0o700)
	case 9:
		return unix.Lsetxattr(name, fmt.Sprintf("trusted.a%d", w.rng.IntN(9)), w.data(w.rng.IntN(1<<w.rng.IntN(13))), 0)
	case 10:
		return unix.Lremovexattr(name, fmt.Sprintf("trusted.a%d", w.rng.IntN(9)))
	case 11:
		return w.many(name)
	case 12:
		return os.RemoveAll(filepath.Dir(name))
	case 13:
		return syncOne(name)
	case 14:
		return syncOne(filepath.Dir(name))
	}
	return w.inside(name)
}

// syncOne makes a file or directory durable, and nothing else.
func syncOne(name string) error {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// many makes a directory grow, and shrink.
func (w *worker) many(name string) error {
	dir := name + " many"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return os.RemoveAll(dir)
	}
	for i := range w.rng.IntN(200) {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("entry %d of a directory that grows", i)), nil, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// inside changes what is in a file.
func (w *worker) inside(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	for range w.rng.IntN(12) {
		off, n := w.rng.Int64N(1<<20), w.rng.Int64N(1<<17)
		switch w.rng.IntN(7) {
		case 0, 1:
			_, err = f.WriteAt(w.data(int(n)), off)
		case 2:
			err = f.Truncate(off)
		case 3:
			err = unix.Fallocate(int(f.Fd()), 0, off, n+1)
		case 4:
			err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n+1)
		case 5:
			err = w.clone(f)
		case 6:
			err = f.Sync()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// clone makes a file share the blocks of another.
func (w *worker) clone(to *os.File) error {
	from, err := os.Open(w.some())
	if err != nil {
		return err
	}
	defer from.Close()
	return unix.IoctlFileClone(int(to.Fd()), int(from.Fd()))
}
