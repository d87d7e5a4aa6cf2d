package store

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/internal/vfs"
	"lifeboat/internal/vfs/crashfs"
	"lifeboat/store/backend"
)

const testBlock = DefaultBlockSize

var testPassword = []byte("correct horse")

// cheap is a repository whose password costs nothing to try.
var cheap = InitOptions{KDFTime: 1, KDFMemory: 8, KDFThreads: 1}

// actors plays the processes of several machines: each repository opened for a
// test acts as one, and can be declared dead.
type actors struct {
	mu   sync.Mutex
	dead map[string]bool
}

type actor struct {
	all  *actors
	name string
}

func (a actor) Self() string { return a.name }

func (a actor) Dead(name string) bool {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	return a.all.dead[name]
}

func (a *actors) kill(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dead == nil {
		a.dead = make(map[string]bool)
	}
	a.dead[name] = true
}

// world is a repository's disk, and who lives on it.
type world struct {
	fs     vfs.FS
	actors *actors
	n      atomic.Int64
}

func newWorld(fs vfs.FS) *world { return &world{fs: fs, actors: new(actors)} }

func (w *world) backend(t testing.TB, me actor) backend.Backend {
	t.Helper()
	b, err := backend.NewDirWith(w.fs, "/repo", backend.DirOptions{Processes: me})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// open opens the repository as a new process.
func (w *world) open(t testing.TB) *Repository {
	t.Helper()
	r, err := w.tryOpen(t)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (w *world) tryOpen(t testing.TB) (*Repository, error) {
	me := actor{w.actors, fmt.Sprintf("actor-%d", w.n.Add(1))}
	return Open(t.Context(), w.backend(t, me), testPassword, w.options(me))
}

func (w *world) options(me actor) Options {
	return Options{
		CacheBytes: 8 << 20, Processes: me, Logger: quiet(),
		Clock: func() time.Time { return time.Unix(1_700_000_000, 0).Add(time.Duration(w.n.Add(1)) * time.Hour) },
	}
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// newRepo is a new repository in memory.
func newRepo(t testing.TB) (*world, *Repository) {
	t.Helper()
	return newRepoOf(t, 0)
}

// newRepoOf is newRepo with another block size.
func newRepoOf(t testing.TB, blockSize int) (*world, *Repository) {
	t.Helper()
	w := newWorld(crashfs.New(1, crashfs.Options{}))
	opts := cheap
	opts.BlockSize = blockSize
	if err := Init(t.Context(), w.backend(t, actor{w.actors, "init"}), testPassword, opts); err != nil {
		t.Fatal(err)
	}
	r := w.open(t)
	t.Cleanup(func() { r.Close() })
	return w, r
}

// backup makes a point of one disk.
func backup(t testing.TB, r *Repository, vm string, parent *Point, src disk.Image, changed []disk.Extent) *Point {
	t.Helper()
	p, err := tryBackup(t.Context(), r, vm, parent, src, changed)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func tryBackup(ctx context.Context, r *Repository, vm string, parent *Point, src disk.Image, changed []disk.Extent) (p *Point, err error) {
	in, err := r.NewIngest(ctx, IngestOptions{Workers: 2})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err2 := in.Close(); err == nil {
			err = err2
		}
	}()
	w, err := in.Begin(PointSpec{VM: vm, Parent: parent})
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	if err := w.AddDisk(ctx, DiskSpec{Key: 2000, Label: "Hard disk 1"}, src, changed, nil); err != nil {
		return nil, err
	}
	return w.Commit(ctx)
}

// wantDisk fails unless disk n of the point reads as want.
func wantDisk(t testing.TB, r *Repository, p *Point, n int, want disk.Image) {
	t.Helper()
	img, err := r.OpenDisk(t.Context(), p, n)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	disktest.Equal(t, img, want)
}

// wantSound fails if a verification finds anything.
func wantSound(t testing.TB, r *Repository) *Report {
	t.Helper()
	report, err := r.Verify(t.Context(), VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range report.Damages {
		t.Errorf("damage: %+v", d)
	}
	for _, name := range report.Unexpected {
		t.Errorf("unexpected object %s", name)
	}
	return report
}

// objects lists the names that begin with prefix.
func objects(t testing.TB, b backend.Backend, prefix string) []string {
	t.Helper()
	var names []string
	for info, err := range b.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	return names
}

// randomDisk is a disk of whole random blocks and holes.
func randomDisk(seed uint64, size int64) *disktest.Memory { return disktest.Random(seed, size, 0.6) }

// scribble overwrites n places of a disk and returns where.
func scribble(seed uint64, m *disktest.Memory, n int) []disk.Extent {
	rng := rand.New(rand.NewPCG(seed, 7))
	var out []disk.Extent
	for range n {
		p := make([]byte, 1+rng.IntN(100_000))
		off := rng.Int64N(m.Size() - int64(len(p)))
		if rng.IntN(4) == 0 {
			m.Zero(off, int64(len(p)))
		} else {
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			m.WriteAt(p, off)
		}
		out = append(out, disk.Extent{Offset: off, Length: int64(len(p))})
	}
	return out
}

func contents(t testing.TB, img disk.Image) []byte {
	t.Helper()
	p := make([]byte, img.Size())
	if n, err := img.ReadAt(p, 0); n != len(p) {
		t.Fatalf("read %d of %d bytes: %v", n, len(p), err)
	}
	return p
}

func sameBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Fatalf("%s differs (%d and %d bytes)", what, len(got), len(want))
	}
}
