package overlay

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/internal/vfs"
	"lifeboat/internal/vfs/crashfs"
)

// TestDiskFull fills the disk with log and data. Writes fail with ENOSPC and
// change nothing; what is there stays readable and durable; with room again
// everything goes on.
func TestDiskFull(t *testing.T) {
	for _, capacity := range []int64{100 << 10, 200 << 10, 333 << 10, 700 << 10} {
		fsys := crashfs.New(1, crashfs.Options{Capacity: capacity})
		opts := testOptions(fsys)
		opts.LogBytes *= 1 + capacity>>18 // with larger log files on the larger disks
		o := mustOpen(t, opts)
		h := newHistory(testBase(), testSize)
		rng := rand.New(rand.NewPCG(uint64(capacity), 1))
		full := fillDisk(t, o, h, rng)
		if !errors.Is(full, syscall.ENOSPC) {
			t.Fatalf("capacity %d: the disk never was full: %v", capacity, full)
		}
		if err := h.equals(o); err != nil {
			t.Errorf("capacity %d, disk full: %v", capacity, err)
		}
		if err := o.Sync(); err != nil {
			t.Errorf("Sync on a full disk: %v", err)
		}
		h.synced()

		was := fsys
		fsys = was.Crash(rng.Uint64())
		was.Stop()
		o.Close()
		o = mustOpen(t, testOptions(fsys))
		if err := h.survived(o); err != nil {
			t.Errorf("capacity %d, after a crash on the full disk: %v", capacity, err)
		}

		fsys.SetCapacity(0)
		p := randomBytes(rng, 50_000)
		if _, err := o.WriteAt(p, 3); err != nil {
			t.Fatalf("WriteAt with room again: %v", err)
		}
		h.write(p, 3)
		if err := o.Checkpoint(context.Background()); err != nil {
			t.Errorf("Checkpoint with room again: %v", err)
		}
		if err := h.equals(o); err != nil {
			t.Errorf("with room again: %v", err)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	}
}

// fillDisk writes until that fails, and returns the error.
func fillDisk(t *testing.T, o *Overlay, h *history, rng *rand.Rand) error {
	t.Helper()
	for i := range 5000 {
		page := rng.Int64N(testPages - 5)
		p := randomBytes(rng, 4*pageSize)
		before := bytes.Clone(h.now[page*pageSize:][:len(p)])
		n, err := o.WriteAt(p, page*pageSize)
		h.write(p[:n], page*pageSize)
		if err != nil {
			now := make([]byte, len(p))
			if _, rerr := o.ReadAt(now, page*pageSize); rerr != nil || !bytes.Equal(now[n:], before[n:]) {
				t.Errorf("the write that failed left a trace: %v", rerr)
			}
			return err
		}
		if i%7 == 0 {
			if err := o.Sync(); err != nil {
				t.Errorf("Sync: %v", err)
			}
		}
	}
	return nil
}

// TestRoomAgain: the same overlay goes on when the disk has room again, without
// being opened anew.
func TestRoomAgain(t *testing.T) {
	fsys := crashfs.New(1, crashfs.Options{Capacity: 260 << 10})
	o := mustOpen(t, testOptions(fsys))
	h := newHistory(testBase(), testSize)
	rng := rand.New(rand.NewPCG(1, 1))
	for range 3 {
		if err := fillDisk(t, o, h, rng); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("the disk never was full: %v", err)
		}
		fsys.SetCapacity(fsys.Used() + 200<<10)
	}
	fsys.SetCapacity(0)
	if err := work(o, h, rng, 300); err != nil {
		t.Fatal(err)
	}
	if err := h.equals(o); err != nil {
		t.Error(err)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
}

// TestCheckpointErrors: a checkpoint that fails keeps the log, and is done again.
func TestCheckpointErrors(t *testing.T) {
	for _, rule := range []crashfs.Rule{
		{Op: crashfs.OpWrite, Path: "data-*", Err: syscall.ENOSPC},
		{Op: crashfs.OpCreate, Path: "data-*", Err: syscall.EMFILE},
		{Op: crashfs.OpSync, Path: "data-*", Err: syscall.ENOSPC},
		{Op: crashfs.OpCreate, Path: "checkpoint-*", Err: syscall.ENOSPC},
		{Op: crashfs.OpSync, Path: "checkpoint-*", Err: syscall.EIO},
		{Op: crashfs.OpRename, Path: "checkpoint-*", Err: syscall.EIO},
		{Op: crashfs.OpRead, Path: "log-*", Err: syscall.EIO},
	} {
		fsys := crashfs.New(1, crashfs.Options{})
		o := mustOpen(t, testOptions(fsys))
		h := newHistory(testBase(), testSize)
		rng := rand.New(rand.NewPCG(3, 3))
		remove := fsys.Fail(rule)
		p := randomBytes(rng, 20*pageSize)
		if _, err := o.WriteAt(p, 0); err != nil {
			t.Fatal(err)
		}
		h.write(p, 0)
		if err := o.Checkpoint(context.Background()); !errors.Is(err, rule.Err) {
			t.Errorf("%+v: Checkpoint: %v", rule, err)
		}
		h.synced()
		remove()
		if err := h.equals(o); err != nil {
			t.Errorf("%+v: %v", rule, err)
		}
		crashed := mustOpen(t, testOptions(fsys.Crash(8)))
		if err := newHistoryOf(h).survived(crashed); err != nil {
			t.Errorf("%+v: after a crash: %v", rule, err)
		}
		crashed.Close()
		if err := work(o, h, rng, 60); err != nil {
			t.Errorf("%+v: going on: %v", rule, err)
		}
		if err := o.Checkpoint(context.Background()); err != nil {
			t.Errorf("%+v: the next Checkpoint: %v", rule, err)
		}
		if err := h.equals(o); err != nil {
			t.Errorf("%+v: at the end: %v", rule, err)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	}
}

// newHistoryOf is a copy of h.
func newHistoryOf(h *history) *history {
	c := &history{now: bytes.Clone(h.now), seed: h.seed}
	c.pages = append(c.pages, h.pages...)
	return c
}

// TestFailedSync: a sync that fails is never made good by another. What was
// durable stays readable, the rest is an error.
func TestFailedSync(t *testing.T) {
	for _, rule := range []crashfs.Rule{
		{Op: crashfs.OpSync, Path: "log-*", Times: 1, Err: syscall.EIO},
		{Op: crashfs.OpWrite, Path: "log-*", Times: 1, Err: syscall.EIO},
	} {
		fsys := crashfs.New(2, crashfs.Options{})
		o := mustOpen(t, testOptions(fsys))
		durable, lost := bytes.Repeat([]byte{1}, pageSize), bytes.Repeat([]byte{2}, pageSize)
		if _, err := o.WriteAt(durable, 0); err != nil {
			t.Fatal(err)
		}
		waitPrepared(o)
		if err := o.Sync(); err != nil {
			t.Fatal(err)
		}
		fsys.Fail(rule)
		if _, err := o.WriteAt(lost, 8*pageSize); err != nil {
			t.Fatal(err)
		}
		if err := o.Sync(); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
			t.Fatalf("Sync: %v, want ErrFailed and EIO", err)
		}
		if err := o.Sync(); !errors.Is(err, ErrFailed) {
			t.Errorf("the Sync after it: %v, want ErrFailed", err)
		}
		if _, err := o.WriteAt(lost, 0); !errors.Is(err, ErrFailed) {
			t.Errorf("WriteAt: %v, want ErrFailed", err)
		}
		if done, err := o.TryWriteAt(lost, 0); done && !errors.Is(err, ErrFailed) {
			t.Errorf("TryWriteAt: %v, want ErrFailed", err)
		}
		if err := o.Zero(0, pageSize); !errors.Is(err, ErrFailed) {
			t.Errorf("Zero: %v, want ErrFailed", err)
		}
		if err := o.Checkpoint(context.Background()); !errors.Is(err, ErrFailed) {
			t.Errorf("Checkpoint: %v, want ErrFailed", err)
		}
		if o.Stats().Failed == nil {
			t.Error("Stats does not tell")
		}
		p := make([]byte, pageSize)
		if _, err := o.ReadAt(p, 0); err != nil || !bytes.Equal(p, durable) {
			t.Errorf("what was durable: %v", err)
		}
		// Written, it is in a file that nobody can trust; not written, in memory.
		if _, err := o.ReadAt(p, 8*pageSize); rule.Op == crashfs.OpSync && !errors.Is(err, ErrFailed) {
			t.Errorf("what never became durable: %v, want ErrFailed", err)
		} else if rule.Op == crashfs.OpWrite && (err != nil || !bytes.Equal(p, lost)) {
			t.Errorf("what is in memory: %v", err)
		}
		if err := o.Close(); !errors.Is(err, ErrFailed) {
			t.Errorf("Close: %v, want ErrFailed", err)
		}
		again := mustOpen(t, testOptions(fsys.Crash(4)))
		if _, err := again.ReadAt(p, 0); err != nil || !bytes.Equal(p, durable) {
			t.Errorf("what was durable, opened again: %v", err)
		}
		again.Close()
	}
}

// waitPrepared waits until the next log file is there and no more syncs come
// from preparing it.
func waitPrepared(o *Overlay) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.shelf.next == nil {
		o.change.Wait()
	}
}

// TestDamage: a flipped bit in any file is found and named, or what it hits is
// the tail of the log that was never acknowledged.
func TestDamage(t *testing.T) {
	fsys := crashfs.New(5, crashfs.Options{})
	o := mustOpen(t, testOptions(fsys))
	h := newHistory(testBase(), testSize)
	rng := rand.New(rand.NewPCG(6, 6))
	if err := work(o, h, rng, 30); err != nil {
		t.Fatal(err)
	}
	if err := o.Checkpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	for page := range int64(20) { // a log behind the checkpoint, in several records and files
		p := randomBytes(rng, pageSize)
		p[0] = 1
		if _, err := o.WriteAt(p, page*pageSize); err != nil {
			t.Fatal(err)
		}
		if err := o.Sync(); err != nil {
			t.Fatal(err)
		}
		h.write(p, page*pageSize)
	}
	last := o.nextRec - 1
	base := fsys.Crash(1) // as a killed process leaves it
	fsys.Stop()
	o.Close()

	entries, err := base.ReadDir("/sessions/one")
	if err != nil {
		t.Fatal(err)
	}
	hit := map[string]int{}
	for _, e := range entries {
		kind, _, _ := strings.Cut(e.Name(), "-")
		if kind == "data" {
			continue // not checksummed; the file system's
		}
		info, _ := base.Stat(filepath.Join("/sessions/one", e.Name()))
		for off := int64(0); off < info.Size(); off += max(1, info.Size()/40) {
			broken := base.Crash(1)
			flip(t, broken, filepath.Join("/sessions/one", e.Name()), off)
			again, err := Open(testOptions(broken))
			switch {
			case errors.Is(err, ErrDamaged) && strings.Contains(err.Error(), "/sessions/one/"):
				hit[kind]++
			case err != nil:
				t.Errorf("%s, byte %d flipped: %v", e.Name(), off, err)
			default:
				if next := again.nextRec; next != last+1 && next != last {
					t.Errorf("%s, byte %d flipped: the log ends before record %d, it should before %d or %d", e.Name(), off, next, last, last+1)
				}
				again.Close()
			}
		}
	}
	for _, kind := range []string{"meta", "checkpoint", "log"} {
		if hit[kind] == 0 {
			t.Errorf("no flipped bit in a %s file was found", kind)
		}
	}
	for _, e := range entries {
		broken := base.Crash(1)
		if err := broken.Remove(filepath.Join("/sessions/one", e.Name())); err != nil {
			t.Fatal(err)
		}
		again, err := Open(testOptions(broken))
		if err == nil {
			err = newHistoryOf(h).equals(again)
			again.Close()
			if err == nil && !strings.HasPrefix(e.Name(), logPrefix) {
				t.Errorf("%s is gone and nobody minds", e.Name())
			}
		} else if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s is gone: %v", e.Name(), err)
		}
	}
}

func flip(t *testing.T, fsys vfs.FS, name string, off int64) {
	t.Helper()
	f, err := fsys.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// TestMismatch: an overlay opens over its own base only.
func TestMismatch(t *testing.T) {
	fsys := crashfs.New(1, crashfs.Options{})
	opts := testOptions(fsys)
	mustOpen(t, opts).Close()
	other := opts
	other.BaseID = "point 2, disk 0"
	if _, err := Open(other); !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), opts.BaseID) {
		t.Errorf("another base: %v, want ErrMismatch that names the right one", err)
	}
	other = opts
	other.Base = disktest.NewMemory(testSize + 512)
	if _, err := Open(other); !errors.Is(err, ErrMismatch) {
		t.Errorf("another size: %v, want ErrMismatch", err)
	}
	mustOpen(t, opts).Close()
}

// TestHugeDisk works at both ends of a disk of 62 TiB, which takes data files
// of its own for each TiB, and makes all of it read as zeros.
func TestHugeDisk(t *testing.T) {
	const size = 62 << 40
	fsys := crashfs.New(1, crashfs.Options{})
	opts := Options{FS: fsys, Dir: "/huge", Base: disktest.NewMemory(size), BaseID: "h", LogBytes: testLog, Logger: quiet()}
	began := time.Now()
	o := mustOpen(t, opts)
	t.Logf("opened in %v", time.Since(began))
	p := bytes.Repeat([]byte("lifeboat"), 1024)
	offs := []int64{0, 1<<40 - 4096, 17 << 40, 33<<40 + 100, size - int64(len(p))}
	write := func() {
		for _, off := range offs {
			if _, err := o.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
		if err := o.Checkpoint(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	check := func(want []byte) {
		t.Helper()
		got := make([]byte, len(p))
		for _, off := range offs {
			if _, err := o.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
				t.Errorf("at %d: differs, %v", off, err)
			}
		}
	}
	write()
	check(p)
	if err := o.Zero(0, size); err != nil {
		t.Fatal(err)
	}
	check(make([]byte, len(p)))
	if used := o.Used(); used != 0 {
		t.Errorf("a disk of zeros uses %d bytes", used)
	}
	if err := o.Checkpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	if used := fsys.Used(); used > 2<<20 {
		t.Errorf("a disk of zeros takes %d bytes", used)
	}
	write()
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	o = mustOpen(t, opts)
	check(p)
	extents := 0
	for e, err := range o.Changed(context.Background(), disk.Whole(o)) {
		if err != nil {
			t.Fatal(err)
		}
		if !e.Hole {
			extents++
		}
	}
	if extents < len(offs) || extents > 3*len(offs) {
		t.Errorf("%d extents of data for %d writes", extents, len(offs))
	}
	o.Close()
}

// TestClosed: a closed overlay refuses everything, has nothing left to replay,
// and is removed without a trace.
func TestClosed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "o")
	opts := Options{Dir: dir, Base: testBase(), LogBytes: 1 << 20, Logger: quiet()}
	o := mustOpen(t, opts)
	if _, err := o.WriteAt([]byte("x"), 77); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
	}
	p := make([]byte, 10)
	_, werr := o.WriteAt(p, 0)
	_, rerr := o.ReadAt(p, 0)
	for what, err := range map[string]error{"WriteAt": werr, "ReadAt": rerr, "Sync": o.Sync(), "Zero": o.Zero(0, 10), "Checkpoint": o.Checkpoint(t.Context())} {
		if !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%s: %v, want fs.ErrClosed", what, err)
		}
	}
	if o.ReadCached(p, 0) {
		t.Error("ReadCached succeeds")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), logPrefix) || strings.HasSuffix(e.Name(), tempSuffix) {
			t.Errorf("%s is left after Close", e.Name())
		}
	}
	o = mustOpen(t, opts)
	if _, err := o.ReadAt(p[:1], 77); err != nil || p[0] != 'x' {
		t.Errorf("opened again: %q, %v", p[0], err)
	}
	o.Close()
	for range 2 {
		if err := Remove(nil, dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v", err)
	}
}

// TestOrderInRecord: of a page written, zeroed and written again in one record,
// replay brings back the last.
func TestOrderInRecord(t *testing.T) {
	fsys := crashfs.New(1, crashfs.Options{})
	opts := testOptions(fsys)
	opts.LogBytes = 0
	o := mustOpen(t, opts)
	p := bytes.Repeat([]byte{3}, pageSize)
	for _, b := range []byte{1, 0, 3} {
		if _, err := o.WriteAt(bytes.Repeat([]byte{b}, pageSize), pageSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Sync(); err != nil {
		t.Fatal(err)
	}
	if r := o.Stats().Records; r != 1 {
		t.Fatalf("%d records, the test wants 1", r)
	}
	opts.FS = fsys.Crash(0)
	fsys.Stop()
	o.Close()
	o = mustOpen(t, opts)
	defer o.Close()
	got := make([]byte, pageSize)
	if _, err := o.ReadAt(got, pageSize); err != nil || !bytes.Equal(got, p) {
		t.Errorf("the page reads as %d, %v; want 3", got[0], err)
	}
}

// TestStaleEdge: the old content of a page that was read before the page went
// through log and checkpoint is not used.
func TestStaleEdge(t *testing.T) {
	o := mustOpen(t, testOptions(crashfs.New(1, crashfs.Options{})))
	defer o.Close()
	rewrite := func(b byte) {
		if _, err := o.WriteAt(bytes.Repeat([]byte{b}, pageSize), pageSize); err != nil {
			t.Fatal(err)
		}
		if err := o.Checkpoint(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	current := func(e *edge) bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.current(e)
	}
	rewrite(1)
	e := &edge{page: 1}
	if current(e) {
		t.Fatal("the content is known before it was read")
	}
	if err := o.load(e, true); err != nil {
		t.Fatal(err)
	}
	if !current(e) || e.buf[0] != 1 {
		t.Fatal("the content is not known after it was read")
	}
	rewrite(2)
	if current(e) {
		t.Error("content is taken for current that was read before the page changed")
	}
}
