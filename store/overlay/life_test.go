package overlay

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/internal/vfs/crashfs"
)

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
