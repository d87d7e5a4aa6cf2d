package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"lifeboat/disk/disktest"
	"lifeboat/store/backend"
	"lifeboat/store/internal/segment"
)

// abandoned begins a backup in another process and leaves it in the middle,
// with segments on the disk.
func abandoned(t *testing.T, w *world) (*Repository, *Ingest, *PointWriter) {
	t.Helper()
	r := w.open(t)
	in, err := r.NewIngest(t.Context(), IngestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pw, err := in.Begin(PointSpec{VM: "unfinished"})
	if err != nil {
		t.Fatal(err)
	}
	if err := pw.AddDisk(t.Context(), DiskSpec{Key: 1}, randomDisk(99, 1<<20), nil, nil); err != nil {
		t.Fatal(err)
	}
	in.app.mu.Lock()
	defer in.app.mu.Unlock()
	if _, err := in.app.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r, in, pw
}

func segmentsOf(t *testing.T, r *Repository, claim uint64) int {
	t.Helper()
	n := 0
	for _, name := range objects(t, r.backend, "segments/") {
		number, _, err := segment.ParseName(name)
		if err == nil && number/rangeSize == claim {
			n++
		}
	}
	return n
}

func TestSweepOfDeadWriters(t *testing.T) {
	w, r := newRepo(t)
	src := randomDisk(1, 1<<20)
	p := backup(t, r, "vm", nil, src, nil)
	dead, in, _ := abandoned(t, w)
	claim := in.claim.record()
	if n := segmentsOf(t, r, claim.Number); n == 0 {
		t.Fatal("nothing was written")
	}
	if err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := segmentsOf(t, r, claim.Number); n == 0 {
		t.Fatal("a living writer was swept")
	}
	if left := wantSound(t, r).Leftovers; len(left) > 0 {
		t.Errorf("leftovers of the living: %v", left)
	}
	w.actors.kill(claim.Owner.Process)
	if left := wantSound(t, r).Leftovers; len(left) < 3 {
		t.Errorf("leftovers of the dead: %v", left)
	}
	if err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := segmentsOf(t, r, claim.Number); n != 0 {
		t.Errorf("%d segments of a dead writer are left", n)
	}
	if left := wantSound(t, r).Leftovers; len(left) > 0 {
		t.Errorf("leftovers after the sweep: %v", left)
	}
	wantDisk(t, r, p, 0, src)
	dead.Close()
}

// TestSweepAtEveryStep: whichever steps of a commit a writer got through, the
// point is there with all it needs or not at all.
func TestSweepAtEveryStep(t *testing.T) {
	src := randomDisk(99, 1<<20)
	for steps := range 3 {
		t.Run(fmt.Sprint(steps), func(t *testing.T) {
			w, r := newRepo(t)
			_, in, pw := abandoned(t, w)
			rec := in.claim.record()
			pw.rec.ID, pw.rec.Claim, pw.rec.Through = rec.Pending, rec.Number, in.app.next-1
			data, err := pw.rec.encode()
			if err != nil {
				t.Fatal(err)
			}
			if steps > 0 {
				if err := in.createPoint(t.Context(), rec.Pending, data); err != nil {
					t.Fatal(err)
				}
			}
			if steps > 1 {
				if err := in.keep(t.Context(), in.app.next-1, newPointID()); err != nil {
					t.Fatal(err)
				}
			}
			w.actors.kill(rec.Owner.Process)
			if err := r.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			points, err := r.Points(t.Context())
			if err != nil || len(points) != min(steps, 1) {
				t.Fatal(points, err)
			}
			if steps > 0 {
				wantDisk(t, r, points[0], 0, src)
			} else if n := segmentsOf(t, r, rec.Number); n > 0 {
				t.Errorf("%d segments are left", n)
			}
			wantSound(t, r)
		})
	}
}

// TestForgetOfPendingPoint: a point whose writer died right after creating it
// is forgotten only after the claim was settled; its child keeps what it needs.
func TestForgetOfPendingPoint(t *testing.T) {
	w, r := newRepo(t)
	src := randomDisk(99, 1<<20)
	_, in, pw := abandoned(t, w)
	rec := in.claim.record()
	pw.rec.ID, pw.rec.Claim, pw.rec.Through = rec.Pending, rec.Number, in.app.next-1
	data, _ := pw.rec.encode()
	if err := in.createPoint(t.Context(), rec.Pending, data); err != nil {
		t.Fatal(err)
	}
	parent, err := r.Point(t.Context(), rec.Pending)
	if err != nil {
		t.Fatal(err)
	}
	child := backup(t, r, "child", parent, src, nil)
	w.actors.kill(rec.Owner.Process)
	if err := r.Forget(t.Context(), parent.ID); err != nil {
		t.Fatal(err)
	}
	if err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	fresh := w.open(t)
	defer fresh.Close()
	wantDisk(t, fresh, child, 0, src)
	wantSound(t, fresh)
}

// late lets a backend's modification times of some objects be old.
type late struct {
	backend.Backend
	mu  sync.Mutex
	age map[string]time.Duration
}

func (l *late) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		for info, err := range l.Backend.List(ctx, prefix) {
			l.mu.Lock()
			info.Modified = info.Modified.Add(-l.age[info.Name])
			l.mu.Unlock()
			if !yield(info, err) {
				return
			}
		}
	}
}

// TestFencing: a writer whose lease ran out while it was suspended is swept,
// and can't commit when it wakes up.
func TestFencing(t *testing.T) {
	w, r := newRepo(t)
	_, in, pw := abandoned(t, w)
	rec := in.claim.record()
	slow := &late{Backend: r.backend, age: map[string]time.Duration{claimName(rec.Number): DefaultLease / 2}}
	r.backend = slow
	if err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := segmentsOf(t, r, rec.Number); n == 0 {
		t.Fatal("swept before the lease ran out")
	}
	slow.mu.Lock()
	slow.age[claimName(rec.Number)] = DefaultLease + time.Minute
	slow.mu.Unlock()
	if err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := segmentsOf(t, r, rec.Number); n != 0 {
		t.Fatal("not swept after the lease ran out")
	}
	// Even before it noticed that its claim is gone:
	_, err := pw.Commit(t.Context())
	if err == nil {
		t.Fatal("a fenced writer committed")
	}
	if err := in.createPoint(t.Context(), rec.Pending, []byte("{}")); !errors.Is(err, ErrFenced) {
		t.Fatalf("a fenced writer created its point: %v", err)
	}
	points, err := r.Points(t.Context())
	if err != nil || len(points) != 0 {
		t.Fatal(points, err)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	wantSound(t, r)
}

// TestRenewal: the claim is renewed while the ingest lives, and its loss is
// noticed.
func TestRenewal(t *testing.T) {
	w, _ := newRepo(t)
	me := actor{w.actors, "renewer"}
	b := &counting{Backend: w.backend(t, me), replaced: make(chan string, 100)}
	opts := w.options(me)
	opts.Lease = 20 * time.Millisecond
	r, err := Open(t.Context(), b, testPassword, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	in, err := r.NewIngest(t.Context(), IngestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	for range 3 {
		if name := <-b.replaced; name != claimName(in.claim.record().Number) {
			t.Fatalf("replaced %s", name)
		}
	}
	if err := r.backend.Remove(t.Context(), claimName(in.claim.record().Number)); err != nil {
		t.Fatal(err)
	}
	<-in.ctx.Done()
	if err := context.Cause(in.ctx); !errors.Is(err, ErrFenced) {
		t.Fatal(err)
	}
	if _, err := in.Begin(PointSpec{VM: "vm", Config: map[string][]byte{"a": []byte("b")}}); !errors.Is(err, ErrFenced) {
		t.Errorf("begin after the loss of the claim: %v", err)
	}
}

// counting tells which objects are replaced.
type counting struct {
	backend.Backend
	replaced chan string
}

func (c *counting) Create(ctx context.Context, name string, mode backend.Mode) (backend.Writer, error) {
	if mode == backend.Replace {
		select {
		case c.replaced <- name:
		default:
		}
	}
	return c.Backend.Create(ctx, name, mode)
}

// TestWritersTogether: many writers at once never share a segment number.
func TestWritersTogether(t *testing.T) {
	w, r := newRepo(t)
	var group sync.WaitGroup
	points := make([]*Point, 6)
	src := func(i int) *disktest.Memory { return randomDisk(uint64(i/2), 1<<20) }
	for i := range points {
		group.Go(func() {
			other, err := w.tryOpen(t)
			if err != nil {
				t.Error(err)
				return
			}
			defer other.Close()
			if points[i], err = tryBackup(t.Context(), other, fmt.Sprint("vm", i), nil, src(i), nil); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if t.Failed() {
		return
	}
	for i, p := range points {
		wantDisk(t, r, p, 0, src(i))
	}
	wantSound(t, r)
	if names := objects(t, r.backend, claimPrefix); len(names) > len(points) {
		t.Errorf("claims: %v", names)
	}
	if err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if names := objects(t, r.backend, claimPrefix); len(names) != 1 {
		t.Errorf("claims after a sweep: %v", names)
	}
}

// TestNumbersAreNotReused: whatever is swept, a claim's number comes once.
func TestNumbersAreNotReused(t *testing.T) {
	w, r := newRepo(t)
	var seen []uint64
	for range 4 {
		_, in, _ := abandoned(t, w)
		rec := in.claim.record()
		if slices.Contains(seen, rec.Number) {
			t.Fatalf("claim %d twice", rec.Number)
		}
		seen = append(seen, rec.Number)
		w.actors.kill(rec.Owner.Process)
		if err := r.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestClaimNames(t *testing.T) {
	for _, n := range []uint64{1, 255, maxClaim} {
		if got, ok := parseClaimName(claimName(n)); !ok || got != n {
			t.Errorf("%d → %s → %d", n, claimName(n), got)
		}
	}
	for _, bad := range []string{"claims/", "claims/1", "claims/0000000000000000", "claims/000000000000000A", "claims/ffffffffffffffff", "claims/+000000000000001", "points/0000000000000001"} {
		if _, ok := parseClaimName(bad); ok {
			t.Errorf("%s was taken for a claim", bad)
		}
	}
	if !strings.HasPrefix(claimName(1), claimPrefix) {
		t.Error(claimName(1))
	}
}

// TestDamagedClaim: a damaged claim holds nobody up for long, its segments stay,
// and a living owner mends it.
func TestDamagedClaim(t *testing.T) {
	w, r := newRepo(t)
	p := backup(t, r, "vm", nil, randomDisk(1, 1<<20), nil)
	_, in, pw := abandoned(t, w)
	rec := in.claim.record()
	name := claimName(rec.Number)
	flip(t, w.fs, name, 70, 1)
	backup(t, r, "vm", nil, randomDisk(2, 1<<20), nil)
	if err := r.Forget(t.Context(), p.ID); err != nil {
		t.Errorf("forget beside a damaged claim: %v", err)
	}
	if err := in.claim.update(t.Context(), func(*claimRecord) {}); err != nil {
		t.Fatal(err)
	}
	if got, err := r.getClaim(t.Context(), rec.Number); err != nil || got.Pending != rec.Pending {
		t.Fatalf("not mended: %+v %v", got, err)
	}
	if _, err := pw.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	flip(t, w.fs, name, 70, 1)
	w.actors.kill(rec.Owner.Process)
	old := &late{Backend: r.backend, age: map[string]time.Duration{name: DefaultLease + time.Minute}}
	r.backend = old
	q := backup(t, r, "vm", nil, randomDisk(2, 1<<20), nil)
	if n := segmentsOf(t, r, rec.Number); n == 0 {
		t.Error("the segments of a damaged claim were swept")
	}
	old.mu.Lock()
	old.age[name] = maxLease + time.Minute
	old.mu.Unlock()
	if err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := segmentsOf(t, r, rec.Number); n == 0 {
		t.Error("the segments of a damaged claim were swept")
	}
	wantDisk(t, r, q, 0, randomDisk(2, 1<<20))
	wantSound(t, r)
}
