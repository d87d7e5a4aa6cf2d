package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/internal/vfs"
)

const (
	testPages = 300
	// testSize ends within a sector of a page.
	testSize = (testPages-1)*pageSize + 1234
	// testLog makes log files of 16 pages and records of 4: rotations and
	// checkpoints all the time.
	testLog = 2 * minLogFile
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// testBase is immutable, and shared because it takes a while to make.
var testBase = sync.OnceValue(func() disk.Image { return disktest.Random(7, testSize, 0.5) })

func testOptions(fsys vfs.FS) Options {
	return Options{FS: fsys, Dir: "/sessions/one", Base: testBase(), BaseID: "point 1, disk 0", LogBytes: testLog, Logger: quiet()}
}

func mustOpen(t testing.TB, o Options) *Overlay {
	t.Helper()
	ov, err := Open(o)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return ov
}

// history is what a disk may hold: for every page the content that is known to
// be durable, or what was written since, in any combination.
type history struct {
	now   []byte
	pages [][]uint64 // hashes; the last is that of now, if certain
	seed  maphash.Seed
}

func newHistory(base io.ReaderAt, size int64) *history {
	h := &history{now: make([]byte, size), seed: maphash.MakeSeed()}
	if n, err := base.ReadAt(h.now, 0); n < len(h.now) {
		panic(err)
	}
	h.pages = make([][]uint64, (size+pageSize-1)/pageSize)
	for i := range h.pages {
		h.pages[i] = []uint64{h.hash(i)}
	}
	return h
}

func (h *history) page(i int) []byte {
	return h.now[i*pageSize : min(len(h.now), (i+1)*pageSize)]
}

func (h *history) hash(i int) uint64 { return maphash.Bytes(h.seed, h.page(i)) }

func (h *history) write(p []byte, off int64) {
	copy(h.now[off:], p)
	for i := int(off / pageSize); len(p) > 0 && int64(i)*pageSize < off+int64(len(p)); i++ {
		h.pages[i] = append(h.pages[i], h.hash(i))
	}
}

// synced: what is there now is durable.
func (h *history) synced() {
	for i, v := range h.pages {
		h.pages[i] = v[len(v)-1:]
	}
}

// survived checks what a disk holds after a crash, and takes it as certain.
func (h *history) survived(r io.ReaderAt) error {
	buf := make([]byte, pageSize)
	for i := range h.pages {
		p := buf[:len(h.page(i))]
		if n, err := r.ReadAt(p, int64(i)*pageSize); n < len(p) {
			return fmt.Errorf("page %d: %w", i, err)
		}
		copy(h.page(i), p)
		is := h.hash(i)
		if !slices.Contains(h.pages[i], is) {
			return fmt.Errorf("page %d holds none of the %d contents that it may hold", i, len(h.pages[i]))
		}
		h.pages[i] = []uint64{is}
	}
	return nil
}

// equals checks what a disk reads as.
func (h *history) equals(r io.ReaderAt) error {
	got := make([]byte, len(h.now))
	if n, err := r.ReadAt(got, 0); n < len(got) {
		return err
	}
	for i := range h.pages {
		if at := i * pageSize; !bytes.Equal(got[at:min(len(got), at+pageSize)], h.page(i)) {
			return fmt.Errorf("page %d differs", i)
		}
	}
	return nil
}

// reads checks a random read, in both ways.
func (h *history) reads(o *Overlay, rng *rand.Rand) error {
	off, n := randomRange(rng)
	p := make([]byte, n)
	if rng.IntN(2) == 0 && o.ReadCached(p, off) {
		if !bytes.Equal(p, h.now[off:off+n]) {
			return fmt.Errorf("cached read of %d bytes at %d differs", n, off)
		}
	}
	if _, err := o.ReadAt(p, off); err != nil {
		return err
	}
	if !bytes.Equal(p, h.now[off:off+n]) {
		return fmt.Errorf("read of %d bytes at %d differs", n, off)
	}
	return nil
}

// randomRange is a range of the test disk: whole pages, within a page, or any.
func randomRange(rng *rand.Rand) (off, n int64) {
	switch rng.IntN(3) {
	case 0:
		page := rng.Int64N(testPages - 1)
		return page * pageSize, pageSize * (1 + rng.Int64N(min(6, testPages-1-page)))
	case 1:
		off = rng.Int64N(testSize - 1)
		return off, 1 + rng.Int64N(min(testSize-off, pageSize))
	}
	off = rng.Int64N(testSize - 1)
	return off, 1 + rng.Int64N(min(testSize-off, 40_000))
}

func randomBytes(rng *rand.Rand, n int64) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	if rng.IntN(4) == 0 { // some pages of zeros among them
		at := rng.Int64N(n)
		clear(p[at:min(n, at+3*pageSize)])
	}
	return p
}

// errKilled is what a killed process gets.
var errKilled = errors.New("the process was killed")

// process is a process's view of a file system. Killed, it can do nothing any
// more; what it wrote stays where it is, synced or not.
type process struct {
	vfs.FS
	dead *atomic.Bool
}

func newProcess(fsys vfs.FS) process { return process{fsys, new(atomic.Bool)} }

func (p process) alive() error {
	if p.dead.Load() {
		return errKilled
	}
	return nil
}

func (p process) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	if err := p.alive(); err != nil {
		return nil, err
	}
	f, err := p.FS.OpenFile(name, flag, perm)
	return processFile{f, p}, err
}

func (p process) Rename(oldname, newname string) error {
	if err := p.alive(); err != nil {
		return err
	}
	return p.FS.Rename(oldname, newname)
}

func (p process) Remove(name string) error {
	if err := p.alive(); err != nil {
		return err
	}
	return p.FS.Remove(name)
}

func (p process) SyncDir(name string) error {
	if err := p.alive(); err != nil {
		return err
	}
	return p.FS.SyncDir(name)
}

type processFile struct {
	vfs.File
	p process
}

func (f processFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.p.alive(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, off)
}

func (f processFile) Sync() error {
	if err := f.p.alive(); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f processFile) Truncate(size int64) error {
	if err := f.p.alive(); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f processFile) Allocate(off, n int64) error {
	if err := f.p.alive(); err != nil {
		return err
	}
	return f.File.Allocate(off, n)
}

func (f processFile) PunchHole(off, n int64) error {
	if err := f.p.alive(); err != nil {
		return err
	}
	return f.File.PunchHole(off, n)
}
