package store

import (
	"context"
	"errors"
	"iter"
	"maps"
	"sync"
	"testing"
	"time"

	"lifeboat/disk/disktest"
	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
	"lifeboat/store/internal/segment"
)

// timed is a backend with a clock that stands still unless a test moves it.
type timed struct {
	backend.Backend
	mu   *sync.Mutex
	now  *time.Time
	made map[string]time.Time
}

func newTimed(b backend.Backend) *timed {
	now := time.Unix(1_800_000_000, 0)
	return &timed{Backend: b, mu: new(sync.Mutex), now: &now, made: make(map[string]time.Time)}
}

func (b *timed) advance(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	*b.now = b.now.Add(d)
}

func (b *timed) Create(ctx context.Context, name string, mode backend.Mode) (backend.Writer, error) {
	w, err := b.Backend.Create(ctx, name, mode)
	return &timedWriter{w, b, name}, err
}

type timedWriter struct {
	backend.Writer
	b    *timed
	name string
}

func (w *timedWriter) Commit(ctx context.Context) error {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	err := w.Writer.Commit(ctx)
	if err == nil {
		w.b.made[w.name] = *w.b.now
	}
	return err
}

func (b *timed) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		for info, err := range b.Backend.List(ctx, prefix) {
			b.mu.Lock()
			info.Modified = b.made[info.Name]
			b.mu.Unlock()
			if !yield(info, err) {
				return
			}
		}
	}
}

// pruneScene is a repository in memory whose backend has such a clock.
type pruneScene struct {
	*timed
	w *world
}

func newPruneScene(t *testing.T) *pruneScene {
	t.Helper()
	s := &pruneScene{timed: newTimed(backendtest.NewMemory()), w: newWorld(nil)}
	if err := Init(t.Context(), s.timed, testPassword, cheap); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *pruneScene) open(t *testing.T, name string) *Repository {
	t.Helper()
	r, err := Open(t.Context(), s.timed, testPassword, s.w.options(actor{s.w.actors, name}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func mustPrune(t *testing.T, r *Repository, opts PruneOptions) *PruneReport {
	t.Helper()
	report, err := r.Prune(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func mustForget(t *testing.T, r *Repository, ids ...string) {
	t.Helper()
	if err := r.Forget(t.Context(), ids...); err != nil {
		t.Fatal(err)
	}
}

func segmentBytes(t *testing.T, r *Repository) int64 {
	t.Helper()
	var n int64
	for info, err := range r.backend.List(t.Context(), "segments/") {
		if err != nil {
			t.Fatal(err)
		}
		n += info.Size
	}
	return n
}

// TestPruneInTime goes through the life of what nobody needs: forgotten, brought
// back, forgotten, condemned, removed.
func TestPruneInTime(t *testing.T) {
	s := newPruneScene(t)
	r := s.open(t, "one")
	shared, other := disktest.Random(1, 2<<20, 1), disktest.Random(2, 3<<20, 1)
	a := backup(t, r, "a", nil, shared, nil)
	b := backup(t, r, "b", nil, other, nil)
	c := backup(t, r, "c", nil, shared, nil) // lives of a's blocks
	full := segmentBytes(t, r)
	s.advance(DefaultGrace)
	if got := mustPrune(t, r, PruneOptions{Grace: -1}); got.Removed != 0 || segmentBytes(t, r) != full {
		t.Errorf("pruned what is needed: %+v", got)
	}
	mustForget(t, r, a.ID, b.ID)
	s.advance(DefaultGrace - time.Second)
	got := mustPrune(t, r, PruneOptions{})
	if got.Removed+got.Condemned+got.PointsRemoved != 0 || len(got.Pending) != 1 || len(got.Pending[0].Points) != 2 || got.Pending[0].Bytes < full/2 {
		t.Errorf("within the grace: %+v", got)
	}
	if err := r.Unforget(t.Context(), b.ID); err != nil {
		t.Fatal(err)
	}
	wantDisk(t, r, b, 0, other)
	if _, err := r.Point(t.Context(), b.ID); err != nil {
		t.Fatal(err)
	}
	mustForget(t, r, b.ID)
	s.advance(DefaultGrace)
	if got := mustPrune(t, r, PruneOptions{DryRun: true}); got.PointsRemoved != 2 || got.Condemned == 0 {
		t.Errorf("dry run: %+v", got)
	}
	if got := mustPrune(t, r, PruneOptions{}); got.PointsRemoved != 2 || got.Removed != 0 || got.CondemnedBytes < full/2 || segmentBytes(t, r) != full {
		t.Errorf("after the grace: %+v", got)
	}
	if err := r.Unforget(t.Context(), b.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("unforget of what is gone: %v", err)
	}
	s.advance(settleTime - time.Second)
	if got := mustPrune(t, r, PruneOptions{}); got.Removed != 0 || len(got.Pending) != 1 || got.Pending[0].When.IsZero() {
		t.Errorf("before it settled: %+v", got)
	}
	// What is condemned is not used again.
	again := s.open(t, "two")
	back := backup(t, again, "b", nil, other, nil)
	if back.NewBytes != b.NewBytes {
		t.Errorf("%d of %d bytes were stored again", back.NewBytes, b.NewBytes)
	}
	s.advance(time.Second)
	if got := mustPrune(t, r, PruneOptions{}); got.RemovedBytes < full/2 || got.Condemned != 0 {
		t.Errorf("after it settled: %+v", got)
	}
	wantDisk(t, again, back, 0, other)
	wantDisk(t, again, c, 0, shared)
	if p := backup(t, again, "b", nil, other, nil); p.NewBytes != 0 {
		t.Errorf("%d bytes were stored again", p.NewBytes)
	}
	wantSound(t, again)
}

// TestPruneCompacts: segments with little left are written anew; addresses stay,
// and what was dropped is not found again.
func TestPruneCompacts(t *testing.T) {
	s := newPruneScene(t)
	r := s.open(t, "one")
	big := disktest.Random(1, 4<<20, 1)
	a := backup(t, r, "a", nil, big, nil)
	small := disktest.NewMemory(4 << 20)
	part := make([]byte, 1<<20)
	if _, err := big.ReadAt(part, 2<<20); err != nil {
		t.Fatal(err)
	}
	small.WriteAt(part, 0)
	b := backup(t, r, "b", nil, small, nil)
	img, err := r.OpenDisk(t.Context(), b, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	disktest.Equal(t, img, small)
	mustForget(t, r, a.ID)
	before := segmentBytes(t, r)
	got := mustPrune(t, r, PruneOptions{Grace: -1})
	if got.Compacted != 1 || got.CompactedBytes < 1<<20 || before-segmentBytes(t, r) != got.FreedBytes {
		t.Fatalf("%+v, of %d bytes %d are left", got, before, segmentBytes(t, r))
	}
	disktest.Equal(t, img, small)
	again := s.open(t, "two")
	wantDisk(t, again, b, 0, small)
	if p := backup(t, again, "a", nil, big, nil); p.NewBytes != 3<<20 {
		t.Errorf("%d bytes were stored again", p.NewBytes)
	} else {
		wantDisk(t, again, p, 0, big)
	}
	if got := mustPrune(t, r, PruneOptions{Grace: -1}); got.Compacted+got.Removed != 0 {
		t.Errorf("again: %+v", got)
	}
	wantSound(t, again)
}

// TestPruneBesideWriter: a writer that has taken a block from the index before it
// was condemned keeps it, whenever it commits; nobody waits for anybody.
func TestPruneBesideWriter(t *testing.T) {
	s := newPruneScene(t)
	r := s.open(t, "one")
	content := disktest.Random(1, 2<<20, 1)
	a := backup(t, r, "a", nil, content, nil)
	writer := s.open(t, "writer")
	in, err := writer.NewIngest(t.Context(), IngestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	w, err := in.Begin(PointSpec{VM: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.AddDisk(t.Context(), DiskSpec{Key: 1}, content, nil, nil); err != nil {
		t.Fatal(err)
	}
	mustForget(t, r, a.ID)
	got := mustPrune(t, r, PruneOptions{Grace: -1})
	if got.PointsRemoved != 1 || got.Removed != 0 || got.Condemned == 0 || len(got.Pending) == 0 || !got.Pending[0].When.IsZero() {
		t.Fatalf("%+v", got)
	}
	b, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := mustPrune(t, r, PruneOptions{Grace: -1}); got.RemovedBytes > 64<<10 {
		t.Fatalf("%+v", got)
	}
	wantDisk(t, r, b, 0, content)
	wantSound(t, r)
	// The same ingest goes on, and knows better now.
	mustForget(t, r, b.ID)
	if got := mustPrune(t, r, PruneOptions{Grace: -1}); got.Removed != 0 || got.Condemned == 0 {
		t.Fatalf("%+v", got)
	}
	w, err = in.Begin(PointSpec{VM: "c"})
	if err != nil {
		t.Fatal(err)
	}
	if got := mustPrune(t, r, PruneOptions{Grace: -1}); got.Removed == 0 {
		t.Fatalf("%+v", got)
	}
	if err := w.AddDisk(t.Context(), DiskSpec{Key: 1}, content, nil, nil); err != nil {
		t.Fatal(err)
	}
	c, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantDisk(t, s.open(t, "two"), c, 0, content)
	wantSound(t, r)
}

// TestPruneKeepsParents: a point that a backup builds on stays until the backup is
// over, and one that is forgotten is nobody's parent.
func TestPruneKeepsParents(t *testing.T) {
	s := newPruneScene(t)
	r := s.open(t, "one")
	content := disktest.Random(1, 2<<20, 1)
	a := backup(t, r, "a", nil, content, nil)
	in, err := s.open(t, "writer").NewIngest(t.Context(), IngestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	w, err := in.Begin(PointSpec{VM: "a", Parent: a})
	if err != nil {
		t.Fatal(err)
	}
	mustForget(t, r, a.ID)
	if got := mustPrune(t, r, PruneOptions{Grace: -1}); got.PointsRemoved != 0 || got.Removed != 0 || len(got.Pending) != 1 {
		t.Fatalf("%+v", got)
	}
	if _, err := in.Begin(PointSpec{VM: "a", Parent: a}); !errors.Is(err, ErrNotFound) {
		t.Fatalf("a forgotten parent: %v", err)
	}
	if err := w.AddDisk(t.Context(), DiskSpec{Key: 2000}, content, nil, nil); err != nil {
		t.Fatal(err)
	}
	b, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := mustPrune(t, r, PruneOptions{Grace: -1}); got.PointsRemoved != 1 || got.RemovedBytes > 64<<10 {
		t.Fatalf("%+v", got)
	}
	wantDisk(t, r, b, 0, content)
	wantSound(t, r)
}

// TestPruneRespectsHolds: as long as they count.
func TestPruneRespectsHolds(t *testing.T) {
	s := newPruneScene(t)
	r := s.open(t, "one")
	content := disktest.Random(1, 2<<20, 1)
	for _, c := range []struct {
		name string
		opts HoldOptions
		end  func(h *Hold)
	}{
		{"closed", HoldOptions{}, func(h *Hold) { h.Close() }},
		{"killed", HoldOptions{}, func(*Hold) { s.w.actors.kill("killed") }},
		{"run out", HoldOptions{Lease: time.Hour}, func(*Hold) { s.advance(time.Hour + time.Second) }},
		{"released", HoldOptions{Lasting: true}, func(h *Hold) { h.Release(t.Context()) }},
	} {
		a := backup(t, r, "a", nil, content, nil)
		h, err := s.open(t, c.name).Hold(t.Context(), []*Point{a}, c.opts)
		if err != nil {
			t.Fatal(err)
		}
		err = r.Forget(t.Context(), a.ID)
		if errors.Is(err, ErrHeld) != c.opts.Lasting {
			t.Fatalf("%s: forget: %v", c.name, err)
		}
		if !c.opts.Lasting {
			if got := mustPrune(t, r, PruneOptions{Grace: -1}); got.PointsRemoved != 0 || got.Removed != 0 || len(got.Pending) != 1 {
				t.Fatalf("%s: %+v", c.name, got)
			}
			wantDisk(t, r, a, 0, content)
		}
		c.end(h)
		if c.opts.Lasting {
			mustForget(t, r, a.ID)
		}
		if got := mustPrune(t, r, PruneOptions{Grace: -1}); got.PointsRemoved != 1 || got.Removed == 0 {
			t.Fatalf("%s: %+v", c.name, got)
		}
		if _, err := r.Hold(t.Context(), []*Point{a}, HoldOptions{}); !errors.Is(err, ErrNotFound) {
			t.Fatalf("%s: a hold of what is gone: %v", c.name, err)
		}
		h.Release(t.Context())
	}
	if names := objects(t, r.backend, holdPrefix); len(names) != 0 {
		t.Errorf("left: %v", names)
	}
}

// TestPrunesExcludeEachOther, and nobody else.
func TestPrunesExcludeEachOther(t *testing.T) {
	w, r := newRepo(t)
	c, err := w.open(t).takeClaim(t.Context(), claimPrune)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Prune(t.Context(), PruneOptions{}); !errors.Is(err, ErrBusy) {
		t.Fatal(err)
	}
	p := backup(t, r, "vm", nil, randomDisk(1, 1<<20), nil)
	mustForget(t, r, p.ID)
	if err := r.Unforget(t.Context(), p.ID); !errors.Is(err, ErrBusy) {
		t.Fatal(err)
	}
	if err := c.close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Unforget(t.Context(), p.ID); err != nil {
		t.Fatal(err)
	}
}

// TestLostListOfTheCondemned: a writer that has seen a list that was lost since
// has not seen the one that is begun anew.
func TestLostListOfTheCondemned(t *testing.T) {
	s := newPruneScene(t)
	r := s.open(t, "one")
	content := disktest.Random(1, 2<<20, 1)
	first := backup(t, r, "first", nil, disktest.Random(2, 2<<20, 1), nil)
	a := backup(t, r, "a", nil, content, nil)
	mustForget(t, r, first.ID)
	mustPrune(t, r, PruneOptions{Grace: -1})
	in, err := s.open(t, "writer").NewIngest(t.Context(), IngestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if seen := in.claim.record().Seen; seen == 0 {
		t.Fatal("the writer has not seen the list")
	}
	if err := r.backend.Remove(t.Context(), condemnedName); err != nil {
		t.Fatal(err)
	}
	w, err := in.Begin(PointSpec{VM: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.AddDisk(t.Context(), DiskSpec{Key: 1}, content, nil, nil); err != nil {
		t.Fatal(err)
	}
	mustForget(t, r, a.ID)
	if got := mustPrune(t, r, PruneOptions{Grace: -1}); got.Removed != 0 || got.Condemned == 0 {
		t.Fatalf("%+v", got)
	}
	b, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantDisk(t, r, b, 0, content)
}

// TestPruneStopsAtDamage: a point that cannot be read may need anything.
func TestPruneStopsAtDamage(t *testing.T) {
	w, r := newRepo(t)
	p := backup(t, r, "vm", nil, randomDisk(1, 1<<20), nil)
	backup(t, r, "vm", nil, randomDisk(2, 1<<20), nil)
	flip(t, w.fs, pointName(p.ID), 60, 1)
	fresh := w.open(t)
	defer fresh.Close()
	if _, err := fresh.Prune(t.Context(), PruneOptions{Grace: -1}); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	if err := fresh.Forget(t.Context(), p.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := fresh.Prune(t.Context(), PruneOptions{Grace: -1}); err != nil || got.Removed == 0 {
		t.Fatal(got, err)
	}
}

// TestCondemnedSet: what was condemned once stays so.
func TestCondemnedSet(t *testing.T) {
	var s *condemnedSet
	if s.has(segment.MakeAddr(1, 0)) {
		t.Error("nothing is condemned yet")
	}
	s = s.with(&condemnedRecord{Sequence: 1, Batches: []condemnedBatch{{Segments: []uint64{7}, Parts: []condemnedPart{{8, []byte{1, 2}}}}}})
	s = s.with(&condemnedRecord{Sequence: 2, Batches: []condemnedBatch{{Parts: []condemnedPart{{7, []byte{1}}, {8, []byte{4}}}}}})
	got := map[segment.Addr]bool{}
	for n := uint64(6); n < 10; n++ {
		for slot := range 20 {
			if a := segment.MakeAddr(n, slot); s.has(a) && n != 7 {
				got[a] = true
			}
		}
	}
	want := map[segment.Addr]bool{segment.MakeAddr(8, 0): true, segment.MakeAddr(8, 2): true, segment.MakeAddr(8, 9): true}
	if !s.has(segment.MakeAddr(7, 500)) || !maps.Equal(got, want) || s.sequence != 2 {
		t.Errorf("%v", got)
	}
}
