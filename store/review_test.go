package store

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"

	"lifeboat/disk/disktest"
	"lifeboat/store/backend"
	"lifeboat/store/internal/segment"
)

// Schedules in which somebody is asleep between two of its calls to the backend
// while others go on.

// sleepy is a backend whose owner falls asleep right before a call: the first for
// which when returns true. What happens meanwhile is asleep.
type sleepy struct {
	backend.Backend
	when   func(op, name string) bool
	asleep func()
	mu     sync.Mutex
	slept  bool
}

func (b *sleepy) call(op, name string) {
	b.mu.Lock()
	now := !b.slept && b.when(op, name)
	b.slept = b.slept || now
	b.mu.Unlock()
	if now {
		b.asleep()
	}
}

func (b *sleepy) Open(ctx context.Context, name string) (backend.Object, error) {
	b.call("open", name)
	return b.Backend.Open(ctx, name)
}

func (b *sleepy) Remove(ctx context.Context, name string) error {
	b.call("remove", name)
	return b.Backend.Remove(ctx, name)
}

func (b *sleepy) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		b.call("list", prefix)
		b.Backend.List(ctx, prefix)(yield)
	}
}

func (b *sleepy) Create(ctx context.Context, name string, mode backend.Mode) (backend.Writer, error) {
	w, err := b.Backend.Create(ctx, name, mode)
	return &sleepyWriter{w, b, name}, err
}

type sleepyWriter struct {
	backend.Writer
	b    *sleepy
	name string
}

func (w *sleepyWriter) Commit(ctx context.Context) error {
	w.b.call("commit", w.name)
	return w.Writer.Commit(ctx)
}

// openSleepy opens the repository as a process that falls asleep.
func (s *pruneScene) openSleepy(t *testing.T, name string, when func(op, name string) bool, asleep func()) *Repository {
	t.Helper()
	b := &sleepy{Backend: s.timed, when: when, asleep: asleep}
	r, err := Open(t.Context(), b, testPassword, s.w.options(actor{s.w.actors, name}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// nth is true the nth time that a call is of this kind.
func nth(n int, op, prefix string) func(op, name string) bool {
	return func(o, name string) bool {
		if o == op && strings.HasPrefix(name, prefix) {
			n--
			return n == 0
		}
		return false
	}
}

// TestClaimOfANumberThatWasGivenOut: a writer is asleep between the list of claims
// and the claim, until the number that it chose was taken, used and given up.
func TestClaimOfANumberThatWasGivenOut(t *testing.T) {
	s := newPruneScene(t)
	r := s.open(t, "other")
	content := disktest.Random(1, 1<<20, 1)
	var p *Point
	late := s.openSleepy(t, "late", nth(1, "commit", claimPrefix), func() {
		first, err := r.NewIngest(t.Context(), IngestOptions{})
		if err != nil {
			t.Fatal(err)
		}
		second, err := s.open(t, "third").takeClaim(t.Context(), claimWriter)
		if err != nil {
			t.Fatal(err)
		}
		w, err := first.Begin(PointSpec{VM: "a"})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.AddDisk(t.Context(), DiskSpec{Key: 1}, content, nil, nil); err != nil {
			t.Fatal(err)
		}
		if p, err = w.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(first.Close(), second.close(t.Context())); err != nil {
			t.Fatal(err)
		}
	})
	mine := disktest.Random(2, 1<<20, 1)
	q, err := tryBackup(t.Context(), late, "b", nil, mine, nil)
	if err != nil {
		t.Error(err)
	} else {
		wantDisk(t, s.open(t, "reader"), q, 0, mine)
	}
	wantDisk(t, s.open(t, "reader"), p, 0, content)
	wantSound(t, s.open(t, "verifier"))
}

// TestPruneAsleep: a prune is taken for dead, and what it was about to remove is
// brought back before it wakes up: in the middle of a renewal, and before one.
func TestPruneAsleep(t *testing.T) {
	for _, op := range []string{"commit", "open"} {
		s := newPruneScene(t)
		r := s.open(t, "other")
		content := disktest.Random(1, 1<<20, 1)
		p := backup(t, r, "a", nil, content, nil)
		backup(t, r, "b", nil, disktest.Random(2, 1<<20, 1), nil)
		mustForget(t, r, p.ID)
		marked := false
		victim := s.openSleepy(t, "victim", func(o, name string) bool {
			marked = marked || o == "commit" && name == condemnedName
			return marked && o == op && strings.HasPrefix(name, claimPrefix)
		}, func() {
			s.advance(2 * DefaultLease)
			if op == "commit" {
				if err := r.Sweep(t.Context()); err != nil {
					t.Error(err)
				}
			}
			if err := r.Unforget(t.Context(), p.ID); err != nil {
				t.Error(err)
			}
		})
		if _, err := victim.Prune(t.Context(), PruneOptions{Grace: -1}); !errors.Is(err, ErrFenced) {
			t.Errorf("%s: %v", op, err)
		}
		wantDisk(t, s.open(t, "reader"), p, 0, content)
	}
}

// TestForgetTakesBackBesideAPrune: Forget finds out that somebody pinned the point
// meanwhile, while a prune goes by its tombstone. At least one of the two who
// pinned and forgot must give way, to the end.
func TestForgetTakesBackBesideAPrune(t *testing.T) {
	s := newPruneScene(t)
	r := s.open(t, "other")
	content := disktest.Random(1, 1<<20, 1)
	p := backup(t, r, "a", nil, content, nil)
	backup(t, r, "b", nil, disktest.Random(2, 1<<20, 1), nil)
	looked, goOn, pruned := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	pruner := s.openSleepy(t, "pruner", nth(1, "list", "segments/"), func() {
		close(looked)
		<-goOn
	})
	forgetter := s.openSleepy(t, "forgetter", nth(2, "list", pinPrefix), func() {
		go func() {
			_, err := pruner.Prune(t.Context(), PruneOptions{Grace: -1})
			pruned <- err
		}()
		<-looked
		if err := r.putSealed(t.Context(), pinName(p.ID), []byte(`{"format":1,"id":"`+p.ID+`","time":"2026-01-01T00:00:00Z"}`), backend.Replace); err != nil {
			t.Error(err)
		}
	})
	if err := forgetter.Forget(t.Context(), p.ID); err == nil {
		t.Error("a pinned point was forgotten")
	}
	_, err := r.Point(t.Context(), p.ID) // as Pin looks again
	close(goOn)
	if err := <-pruned; err != nil {
		t.Error(err)
	}
	if err == nil {
		wantDisk(t, s.open(t, "reader"), p, 0, content)
	}
}

// TestSweepAsleep: who sweeps a dead writer that got as far as its point is asleep
// until others have swept it, built on the point and removed it.
func TestSweepAsleep(t *testing.T) {
	s := newPruneScene(t)
	r := s.open(t, "other")
	content := disktest.Random(1, 1<<20, 1)
	in, err := s.open(t, "dead").NewIngest(t.Context(), IngestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := in.Begin(PointSpec{VM: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.AddDisk(t.Context(), DiskSpec{Key: 2000}, content, nil, nil); err != nil {
		t.Fatal(err)
	}
	in.app.mu.Lock()
	if _, err := in.app.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	rec := in.claim.record()
	w.rec.ID, w.rec.Claim, w.rec.Through = rec.Pending, rec.Number, in.app.next-1
	in.app.mu.Unlock()
	data, err := w.rec.encode()
	if err == nil {
		err = in.createPoint(t.Context(), rec.Pending, data)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.w.actors.kill("dead")
	var child *Point
	late := s.openSleepy(t, "late", nth(1, "open", pointName(rec.Pending)), func() {
		if err := r.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		p, err := r.Point(t.Context(), rec.Pending)
		if err != nil {
			t.Fatal(err)
		}
		child = backup(t, r, "a", p, content, nil)
		mustForget(t, r, p.ID)
		if got := mustPrune(t, r, PruneOptions{Grace: -1}); got.PointsRemoved != 1 {
			t.Errorf("%+v", got)
		}
	})
	if err := late.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantDisk(t, s.open(t, "reader"), child, 0, content)
	wantSound(t, s.open(t, "verifier"))
}

// TestOlderGenerationIsCondemned: a prune was interrupted after it had written a
// segment anew, and its list was lost. What only the older generation has, a writer
// finds in an index that was made anew, and counts on it.
func TestOlderGenerationIsCondemned(t *testing.T) {
	for _, committed := range []bool{false, true} {
		s := newPruneScene(t)
		r := s.open(t, "one")
		content := disktest.Random(1, 1<<20, 1)
		part := disktest.NewMemory(1 << 20)
		some := make([]byte, 3*testBlock)
		if _, err := content.ReadAt(some, 5*testBlock); err != nil {
			t.Fatal(err)
		}
		part.WriteAt(some, 0)
		gone := backup(t, r, "gone", nil, content, nil)
		keep := backup(t, r, "keep", nil, part, nil)
		old := make(map[string][]byte)
		for _, name := range objects(t, s, "segments/") {
			old[name] = objectBytes(t, s, name)
		}
		mustForget(t, r, gone.ID)
		if got := mustPrune(t, r, PruneOptions{Grace: -1}); got.Compacted != 1 {
			t.Fatalf("%+v", got)
		}
		for _, name := range objects(t, s, "segments/") {
			if before, ok := strings.CutSuffix(name, ".1"); ok {
				if err := putObject(t.Context(), s, before+".0", old[before+".0"], backend.Exclusive); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := s.Remove(t.Context(), condemnedName); err != nil {
			t.Fatal(err)
		}
		if err := s.open(t, "rebuilder").RebuildIndex(t.Context()); err != nil {
			t.Fatal(err)
		}
		in, err := s.open(t, "writer").NewIngest(t.Context(), IngestOptions{})
		if err != nil {
			t.Fatal(err)
		}
		w, err := in.Begin(PointSpec{VM: "b"})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.AddDisk(t.Context(), DiskSpec{Key: 1}, content, nil, nil); err != nil {
			t.Fatal(err)
		}
		if !committed {
			mustPrune(t, s.open(t, "two"), PruneOptions{Grace: -1})
		}
		p, err := w.Commit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		mustPrune(t, s.open(t, "three"), PruneOptions{Grace: -1})
		wantDisk(t, s.open(t, "reader"), p, 0, content)
		wantDisk(t, s.open(t, "reader"), keep, 0, part)
	}
}

func objectBytes(t *testing.T, b backend.Backend, name string) []byte {
	t.Helper()
	data, err := getObject(t.Context(), b, name, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestPruneDoesNotTrustItsCache: what this host has in its cache is from before a
// repair elsewhere, after which the same point, under the same name, and the same
// node, under the same address, need other blocks.
func TestPruneDoesNotTrustItsCache(t *testing.T) {
	for _, what := range []string{pointPrefix, "segments/"} {
		w, r := newRepo(t)
		content := disktest.Random(1, 1<<20, 1)
		p := backup(t, r, "vm", nil, content, nil)
		from := copied(t, r, 0)
		dir := t.TempDir()
		cached := func() *Repository {
			me := actor{w.actors, "cached"}
			opts := w.options(me)
			opts.DiskCache = DiskCache{Dir: dir, Bytes: 64 << 20}
			c, err := Open(t.Context(), w.backend(t, me), testPassword, opts)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		c := cached()
		if _, err := c.Points(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantDisk(t, c, p, 0, content)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		for _, name := range objects(t, r.backend, "segments/") {
			if err := r.backend.Remove(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		if what == pointPrefix {
			flip(t, w.fs, pointName(p.ID), 60, 1)
		}
		repairer := w.open(t)
		if done, after := repaired(t, repairer, RepairOptions{From: from}); !after.OK() {
			t.Fatalf("%s: %+v %+v", what, done, after.Damages)
		}
		repairer.Close()
		c = cached()
		if _, err := c.Points(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := c.Prune(t.Context(), PruneOptions{Grace: -1}); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		c.Close()
		fresh := w.open(t)
		if p, err := fresh.Point(t.Context(), p.ID); err != nil {
			t.Errorf("%s: %v", what, err)
		} else {
			wantDisk(t, fresh, p, 0, content)
		}
		fresh.Close()
	}
}

// TestPartsThatFitOnTheList: as many as there is room for can be written.
func TestPartsThatFitOnTheList(t *testing.T) {
	dead := make([]byte, slotBytes)
	p := &pruner{list: new(condemnedRecord)}
	n := p.partsRoom() / partBytes(dead)
	if encoded, err := json.Marshal(condemnedPart{segment.MaxNumber, dead}); err != nil || len(encoded)+1 > partBytes(dead) {
		t.Errorf("a part takes %d bytes, not %d: %v", len(encoded)+1, partBytes(dead), err)
	}
	p.list.Batches = []condemnedBatch{{Parts: slices.Repeat([]condemnedPart{{segment.MaxNumber, dead}}, n)}}
	if left := p.partsRoom(); left < 0 || left >= partBytes(dead) {
		t.Errorf("there is room for %d bytes more", left)
	}
}

// TestDamagedListBesideAPrune: a writer that cannot read the list by which a prune
// is removing things must not count on anything.
func TestDamagedListBesideAPrune(t *testing.T) {
	s := newPruneScene(t)
	r := s.open(t, "other")
	content := disktest.Random(1, 1<<20, 1)
	p := backup(t, r, "a", nil, content, nil)
	backup(t, r, "b", nil, disktest.Random(2, 1<<20, 1), nil)
	mustForget(t, r, p.ID)
	var in *Ingest
	var w *PointWriter
	var begun error
	pruner := s.openSleepy(t, "pruner", nth(1, "list", indexPrefix), func() {
		if err := putObject(t.Context(), s, condemnedName, []byte("?"), backend.Replace); err != nil {
			t.Error(err)
		}
		if in, begun = r.NewIngest(t.Context(), IngestOptions{}); begun != nil {
			return
		}
		var err error
		if w, err = in.Begin(PointSpec{VM: "a"}); err == nil {
			err = w.AddDisk(t.Context(), DiskSpec{Key: 2000}, content, nil, nil)
		}
		if err != nil {
			t.Error(err)
		}
	})
	mustPrune(t, pruner, PruneOptions{Grace: -1})
	if begun != nil {
		if !errors.Is(begun, ErrBusy) {
			t.Error(begun)
		}
		backup(t, r, "a", nil, content, nil)
		return
	}
	q, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantDisk(t, s.open(t, "reader"), q, 0, content)
}
