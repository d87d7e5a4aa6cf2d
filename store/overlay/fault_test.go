package overlay

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"

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
