package store

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/internal/vfs/crashfs"
)

// wantClean fails unless only the sound point is there and nothing of another.
func wantClean(t *testing.T, w *world, before []string, r *Repository) {
	t.Helper()
	var after []string
	for _, name := range objects(t, r.backend, "") {
		if !strings.HasPrefix(name, claimPrefix) {
			after = append(after, name)
		}
	}
	before = slices.DeleteFunc(slices.Clone(before), func(n string) bool { return strings.HasPrefix(n, claimPrefix) })
	if !slices.Equal(before, after) {
		t.Errorf("objects before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}

func TestFailuresLeaveNothing(t *testing.T) {
	boom := errors.New("boom")
	gone := func(src *disktest.Memory) disk.Image {
		s := disktest.NewShrinking(src)
		s.ShrinkTo(7 << 20)
		return s
	}
	for name, c := range map[string]struct {
		src  func(*disktest.Memory) disk.Image
		want error
	}{
		"shrinks": {gone, disk.ErrChanged},
		"fails": {func(src *disktest.Memory) disk.Image {
			return &failing{src, 6 << 20, boom}
		}, boom},
	} {
		t.Run(name, func(t *testing.T) {
			w, r := newRepo(t)
			first := randomDisk(1, 2<<20)
			kept := backup(t, r, "vm", nil, first, nil)
			before := objects(t, r.backend, "")
			src := disktest.Random(7, 10<<20, 1)
			if _, err := tryBackup(t.Context(), r, "vm", kept, c.src(src), nil); !errors.Is(err, c.want) {
				t.Fatal(err)
			}
			wantClean(t, w, before, r)
			wantDisk(t, r, kept, 0, first)
			p := backup(t, r, "vm", kept, src, nil) // and the next one is none the worse
			wantDisk(t, r, p, 0, src)
			wantSound(t, r)
		})
	}
}

// failing fails reads at and after an offset.
type failing struct {
	disk.Image
	from int64
	err  error
}

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	if off >= f.from {
		return 0, f.err
	}
	return f.Image.ReadAt(p, off)
}

// cancelling cancels when an offset is read.
type cancelling struct {
	disk.Image
	at     int64
	cancel func()
}

func (c cancelling) ReadAt(p []byte, off int64) (int, error) {
	if off >= c.at {
		c.cancel()
	}
	return c.Image.ReadAt(p, off)
}

func TestCancelLeavesNothing(t *testing.T) {
	w, r := newRepo(t)
	kept := backup(t, r, "vm", nil, randomDisk(1, 1<<20), nil)
	before := objects(t, r.backend, "")
	src := disktest.Random(7, 20<<20, 1)
	for _, at := range []int64{0, 5 << 20, 19 << 20} {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := tryBackup(ctx, r, "vm", kept, cancelling{src, at, cancel}, nil)
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled at %d: %v", at, err)
		}
		wantClean(t, w, before, r)
	}
	wantSound(t, r)
}

func TestNoSpace(t *testing.T) {
	w, r := newRepo(t)
	fs := w.fs.(*crashfs.FS)
	first := randomDisk(1, 1<<20)
	kept := backup(t, r, "vm", nil, first, nil)
	before := objects(t, r.backend, "")
	used := fs.Used()
	src := disktest.Random(7, 8<<20, 1)
	for room := int64(0); room <= 3<<20; room += 1 << 20 {
		fs.SetCapacity(used + room)
		if _, err := tryBackup(t.Context(), r, "vm", kept, src, nil); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("%d bytes of room: %v", room, err)
		}
		fs.SetCapacity(0)
		// With no room at all not even a claim can be replaced by a closed one:
		// the next writer sees to it.
		if err := r.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantClean(t, w, before, r)
		wantDisk(t, r, kept, 0, first)
	}
	wantDisk(t, r, backup(t, r, "vm", kept, src, nil), 0, src)
	wantSound(t, r)
}

func TestAbort(t *testing.T) {
	w, r := newRepo(t)
	before := objects(t, r.backend, "")
	in, err := r.NewIngest(t.Context(), IngestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	src := randomDisk(1, 1<<20)
	for range 3 {
		pw, err := in.Begin(PointSpec{VM: "vm"})
		if err != nil {
			t.Fatal(err)
		}
		if err := pw.AddDisk(t.Context(), DiskSpec{Key: 1}, src, nil, nil); err != nil {
			t.Fatal(err)
		}
		if err := pw.AddDisk(t.Context(), DiskSpec{Key: 1}, src, nil, nil); err == nil {
			t.Fatal("the same key twice")
		}
		pw.Abort()
		if _, err := pw.Commit(t.Context()); !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
		wantClean(t, w, before, r)
	}
	// After an aborted point the ingest is as good as new.
	pw, err := in.Begin(PointSpec{VM: "vm"})
	if err != nil {
		t.Fatal(err)
	}
	if err := pw.AddDisk(t.Context(), DiskSpec{Key: 1}, src, nil, nil); err != nil {
		t.Fatal(err)
	}
	p, err := pw.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pw.Abort()
	wantDisk(t, r, p, 0, src)
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Begin(PointSpec{VM: "vm"}); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	wantSound(t, r)
}

// TestAbortBesideAnother: what an aborted point wrote stays while another one
// may refer to it.
func TestAbortBesideAnother(t *testing.T) {
	_, r := newRepo(t)
	in, err := r.NewIngest(t.Context(), IngestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	src := randomDisk(1, 1<<20)
	var pw [2]*PointWriter
	for i := range pw {
		if pw[i], err = in.Begin(PointSpec{VM: "vm"}); err != nil {
			t.Fatal(err)
		}
		if err := pw[i].AddDisk(t.Context(), DiskSpec{Key: 1}, src, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	pw[0].Abort()
	p, err := pw[1].Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	wantDisk(t, r, p, 0, src)
	wantSound(t, r)
}
