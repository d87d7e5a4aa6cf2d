package backend_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"syscall"
	"testing"

	"lifeboat/internal/vfs/crashfs"
	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
)

func crashDir(t testing.TB, f *crashfs.FS, procs backend.Processes) *backend.Dir {
	t.Helper()
	d, err := backend.NewDirWith(f, "/repo", backend.DirOptions{Processes: procs})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDirOnCrashFS(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		return crashDir(t, crashfs.New(1, crashfs.Options{}), nil)
	})
}

// history is what a run of objectStory was told.
type history struct {
	created  map[string]bool // exclusively, and acknowledged
	removed  map[string]bool
	replaced int // the last acknowledged version of "replaced"
	tried    int // the last one that was begun
}

func body(name string, version int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("%s %d;", name, version)), 300)
}

func write(d *backend.Dir, name string, version int, mode backend.Mode) error {
	ctx := context.Background()
	w, err := d.Create(ctx, name, mode)
	if err != nil {
		return err
	}
	defer w.Abort()
	for data := body(name, version); len(data) > 0; {
		n := min(len(data), 1000)
		if _, err := w.Write(data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return w.Commit(ctx)
}

// objectStory creates, replaces and removes until something fails.
func objectStory(d *backend.Dir) (h history) {
	h = history{created: map[string]bool{}, removed: map[string]bool{}}
	for i := range 3 {
		name := fmt.Sprintf("segments/%02x/%d", i%2, i)
		if write(d, name, 0, backend.Exclusive) != nil {
			return h
		}
		h.created[name] = true
		h.tried++
		if write(d, "replaced", h.tried, backend.Replace) != nil {
			return h
		}
		h.replaced = h.tried
	}
	if d.Remove(context.Background(), "segments/00/0") == nil {
		h.removed["segments/00/0"] = true
	}
	delete(h.created, "segments/00/0") // gone, or perhaps gone
	return h
}

// Power fails at every point of the story, with several outcomes each: every
// acknowledged object is there, whole; every removed one is gone; nothing is
// there by half.
func TestDirSurvivesPowerLoss(t *testing.T) {
	whole := crashfs.New(1, crashfs.Options{})
	objectStory(crashDir(t, whole, nil))
	runs := 6
	if n, err := strconv.Atoi(os.Getenv("LIFEBOAT_CRASH_RUNS")); err == nil {
		runs = n
	}
	for point := 1; point <= whole.Points(); point++ {
		for seed := range uint64(runs) {
			f := crashfs.New(seed, crashfs.Options{})
			f.StopAtPoint(point)
			h := objectStory(crashDir(t, f, processes{self: "before"}))
			after := crashDir(t, f.Crash(seed), processes{self: "after", dead: "before"})
			if err := h.check(after); err != nil {
				t.Fatalf("point %d, seed %d: %v", point, seed, err)
			}
			if err := goesOn(after); err != nil {
				t.Fatalf("point %d, seed %d, afterwards: %v", point, seed, err)
			}
		}
	}
}

func (h history) check(d *backend.Dir) error {
	ctx := context.Background()
	versions := map[string]int{}
	for info, err := range d.List(ctx, "") {
		if err != nil {
			return err
		}
		version, err := versionOf(d, info.Name)
		if err != nil {
			return err
		}
		versions[info.Name] = version
	}
	for name := range h.created {
		if _, ok := versions[name]; !ok {
			return fmt.Errorf("%s is lost", name)
		}
	}
	for name := range h.removed {
		if _, ok := versions[name]; ok {
			return fmt.Errorf("%s is back", name)
		}
	}
	if v := versions["replaced"]; v < h.replaced || v > h.tried {
		return fmt.Errorf("replaced: version %d, want %d to %d", v, h.replaced, h.tried)
	}
	return nil
}

// versionOf fails unless the object is wholly one version.
func versionOf(d *backend.Dir, name string) (int, error) {
	o, err := d.Open(context.Background(), name)
	if err != nil {
		return 0, err
	}
	defer o.Close()
	data := make([]byte, o.Size())
	if _, err := o.ReadAt(data, 0); err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	for v := range 10 {
		if bytes.Equal(data, body(name, v)) {
			return v, nil
		}
	}
	return 0, fmt.Errorf("%s is no version, but %d bytes", name, len(data))
}

func goesOn(d *backend.Dir) error {
	if _, err := d.Sweep(context.Background()); err != nil {
		return err
	}
	if n, err := d.Sweep(context.Background()); n != 0 || err != nil {
		return fmt.Errorf("a second sweep removed %d, %w", n, err)
	}
	err := write(d, "segments/00/new", 0, backend.Exclusive)
	return errors.Join(err, write(d, "replaced", 9, backend.Replace))
}

// A directory that somebody else made and has not synced yet is not taken for
// durable because it is there.
func TestDirSyncsWhatOthersMade(t *testing.T) {
	f := crashfs.New(1, crashfs.Options{})
	other := crashDir(t, f, nil)
	if err := write(other, "x", 0, backend.Exclusive); err != nil {
		t.Fatal(err)
	}
	f.Fail(crashfs.Rule{Op: crashfs.OpSyncDir, Path: "/repo", Times: 1, Err: errors.New("boom")})
	if err := write(other, "made/x", 0, backend.Exclusive); err == nil {
		t.Fatal("the other one has synced after all")
	}
	if err := write(crashDir(t, f, nil), "made/y", 0, backend.Exclusive); err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(16) {
		if _, err := versionOf(crashDir(t, f.Crash(seed), nil), "made/y"); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
}

func TestDirFull(t *testing.T) {
	f := crashfs.New(1, crashfs.Options{Capacity: 64 << 10})
	d := crashDir(t, f, nil)
	if err := write(d, "first", 0, backend.Exclusive); err != nil {
		t.Fatal(err)
	}
	used := f.Used()
	w, err := d.Create(context.Background(), "second", backend.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 128<<10)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%v, want ENOSPC", err)
	}
	w.Abort()
	if f.Used() != used {
		t.Errorf("%d bytes are left behind", f.Used()-used)
	}
	if _, err := versionOf(d, "first"); err != nil {
		t.Error(err)
	}
	if err := write(d, "third", 0, backend.Exclusive); err != nil {
		t.Error(err)
	}
}

// A sync that fails is never taken for one that worked.
func TestDirFailingSyncs(t *testing.T) {
	boom := errors.New("boom")
	for _, op := range []crashfs.Op{crashfs.OpSync, crashfs.OpSyncDir, crashfs.OpRename, crashfs.OpMkdir, crashfs.OpCreate} {
		f := crashfs.New(1, crashfs.Options{})
		d := crashDir(t, f, nil)
		if err := write(d, "a/x", 0, backend.Replace); err != nil {
			t.Fatal(err)
		}
		name := "a/x"
		if op == crashfs.OpMkdir {
			name = "b/x"
		}
		remove := f.Fail(crashfs.Rule{Op: op, Err: boom})
		err := write(d, name, 1, backend.Replace)
		if !errors.Is(err, boom) {
			t.Errorf("op %b: %v", op, err)
		}
		if errors.Is(err, backend.ErrUncertain) != (op == crashfs.OpSyncDir) {
			t.Errorf("op %b: %v: ErrUncertain is wrong or missing", op, err)
		}
		remove()
		if entries, err := f.ReadDir("/repo/tmp"); len(entries) != 0 || err != nil {
			t.Errorf("op %b: left %v, %v", op, entries, err)
		}
		if err := write(d, name, 2, backend.Replace); err != nil {
			t.Errorf("op %b, afterwards: %v", op, err)
		}
		if v, err := versionOf(d, name); v != 2 || err != nil {
			t.Errorf("op %b, afterwards: version %d, %v", op, v, err)
		}
	}
	if _, err := crashDir(t, crashfs.New(1, crashfs.Options{}), nil).Open(t.Context(), "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
