package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
	"lifeboat/store/backend/s3"
	"lifeboat/store/backend/s3/s3test"
)

// rig is a server, a proxy before it in which things go wrong, and a way
// around it.
type rig struct {
	server *s3test.Server
	proxy  *s3test.Proxy
}

const rigBucket = "lifeboat"

func newRig(t testing.TB) *rig {
	t.Helper()
	server := s3test.Run(t, s3test.Options{})
	server.MakeBucket(t, rigBucket)
	return &rig{server, s3test.RunProxy(t, server.Endpoint)}
}

// open is the same place twice: through the proxy, and directly.
func (r *rig) open(t testing.TB, opts s3.Options) (through, direct *s3.Bucket) {
	t.Helper()
	if opts.Pause == 0 {
		opts.Pause = time.Millisecond
	}
	prefix := s3test.Unique()
	direct = open(t, r.server.URL(rigBucket, prefix), r.server, s3.Options{})
	return open(t, s3test.URL(r.proxy.Endpoint, rigBucket, prefix), r.server, opts), direct
}

func noise(seed, n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(data) // never fails
	return data
}

func put(ctx context.Context, b backend.Backend, name string, data []byte, mode backend.Mode) error {
	w, err := b.Create(ctx, name, mode)
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		return err
	}
	return w.Commit(ctx)
}

func get(ctx context.Context, b backend.Backend, name string) ([]byte, error) {
	o, err := b.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	data := make([]byte, o.Size())
	if n, err := o.ReadAt(data, 0); n < len(data) {
		return data[:n], err
	}
	return data, nil
}

// TestFaultInEveryRequest makes every request of every operation go wrong
// once, in every way, and wants the operation to do what it does without.
func TestFaultInEveryRequest(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	small, large := noise(1, 1000), noise(2, 6<<20)
	operations := []struct {
		name   string
		slow   bool
		before func(direct *s3.Bucket)
		do     func(b *s3.Bucket) error
		after  func(direct *s3.Bucket) error
	}{
		{
			name:  "exclusive",
			do:    func(b *s3.Bucket) error { return put(ctx, b, "x", small, backend.Exclusive) },
			after: func(direct *s3.Bucket) error { return holds(ctx, direct, "x", small) },
		},
		{
			name:   "exclusive, taken",
			before: func(direct *s3.Bucket) { backendtest.Put(t, direct, "x", small, backend.Exclusive) },
			do: func(b *s3.Bucket) error {
				if err := put(ctx, b, "x", []byte("late"), backend.Exclusive); !errors.Is(err, fs.ErrExist) {
					return fmt.Errorf("%w, want fs.ErrExist", err)
				}
				return nil
			},
			after: func(direct *s3.Bucket) error { return holds(ctx, direct, "x", small) },
		},
		{
			name:   "replace",
			before: func(direct *s3.Bucket) { backendtest.Put(t, direct, "x", []byte("old"), backend.Exclusive) },
			do:     func(b *s3.Bucket) error { return put(ctx, b, "x", small, backend.Replace) },
			after:  func(direct *s3.Bucket) error { return holds(ctx, direct, "x", small) },
		},
		{
			name:  "exclusive in parts",
			slow:  true,
			do:    func(b *s3.Bucket) error { return put(ctx, b, "x", large, backend.Exclusive) },
			after: func(direct *s3.Bucket) error { return holds(ctx, direct, "x", large) },
		},
		{
			name:   "read",
			before: func(direct *s3.Bucket) { backendtest.Put(t, direct, "x", large[:300_000], backend.Exclusive) },
			do:     func(b *s3.Bucket) error { return holds(ctx, b, "x", large[:300_000]) },
		},
		{
			name: "list",
			before: func(direct *s3.Bucket) {
				for i := range 3 {
					backendtest.Put(t, direct, fmt.Sprintf("l/%d", i), nil, backend.Exclusive)
				}
			},
			do: func(b *s3.Bucket) error {
				if got := backendtest.Names(t, b, "l/"); !slices.Equal(got, []string{"l/0", "l/1", "l/2"}) {
					return fmt.Errorf("listed %q", got)
				}
				return nil
			},
		},
		{
			name:   "remove",
			before: func(direct *s3.Bucket) { backendtest.Put(t, direct, "x", small, backend.Exclusive) },
			do:     func(b *s3.Bucket) error { return b.Remove(ctx, "x") },
			after: func(direct *s3.Bucket) error {
				if _, err := get(ctx, direct, "x"); !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("%w, want fs.ErrNotExist", err)
				}
				return nil
			},
		},
	}
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			run := func(plan func(s3test.Request) s3test.Fault) {
				t.Helper()
				through, direct := r.open(t, s3.Options{PartSize: 5 << 20})
				r.proxy.SetPlan(nil)
				if op.before != nil {
					op.before(direct)
				}
				r.proxy.SetPlan(plan)
				err := op.do(through)
				if err == nil && op.after != nil {
					err = op.after(direct)
				}
				if err != nil {
					t.Error(err)
				}
			}
			run(nil)
			requests := r.proxy.Count()
			if requests == 0 || requests > 8 {
				t.Fatalf("%d requests", requests)
			}
			faults := []s3test.Fault{s3test.SlowDown, s3test.LoseAck, s3test.LoseAck500, s3test.Truncate}
			if op.slow {
				faults = []s3test.Fault{s3test.Drop, s3test.LoseAck}
			}
			if os.Getenv("LIFEBOAT_CRASH_RUNS") != "" {
				faults = []s3test.Fault{s3test.SlowDown, s3test.Internal, s3test.Drop, s3test.LoseAck, s3test.LoseAck500, s3test.Truncate}
			}
			for _, fault := range faults {
				for n := range requests {
					run(func(q s3test.Request) s3test.Fault {
						if q.N == n {
							return fault
						}
						return s3test.None
					})
					if t.Failed() {
						t.Fatalf("with fault %d in request %d of %d", fault, n, requests)
					}
				}
			}
		})
	}
}

func holds(ctx context.Context, b *s3.Bucket, name string, want []byte) error {
	got, err := get(ctx, b, name)
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%s holds %d bytes that are not what was written (%d)", name, len(got), len(want))
	}
	return err
}

// TestExclusiveRaceWithFaults: several write one name while requests and
// answers are lost. At most one wins, the object is the winner's, and who does
// not know says so.
func TestExclusiveRaceWithFaults(t *testing.T) {
	const racers = 4
	rounds := crashRuns(t, 8)
	r := newRig(t)
	through, direct := r.open(t, s3.Options{Attempts: 5})
	if ok, err := through.ProbeExclusive(t.Context()); !ok || err != nil {
		t.Fatal(ok, err) // so that nobody looks first
	}
	rng := rand.New(rand.NewPCG(3, 4))
	faults := []s3test.Fault{s3test.LoseAck, s3test.LoseAck500, s3test.Drop, s3test.SlowDown, s3test.Internal}
	uncertain := 0
	for round := range rounds {
		r.proxy.SetPlan(func(s3test.Request) s3test.Fault {
			if rng.IntN(5) < 2 {
				return faults[rng.IntN(len(faults))]
			}
			return s3test.None
		})
		name := fmt.Sprintf("claims/%d", round)
		errs := make([]error, racers)
		var wg sync.WaitGroup
		for i := range racers {
			wg.Go(func() { errs[i] = put(t.Context(), through, name, fmt.Appendf(nil, "racer %d", i), backend.Exclusive) })
		}
		wg.Wait()
		winner, doubts := -1, 0
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				t.Fatalf("round %d: both %d and %d won", round, winner, i)
			case err == nil:
				winner = i
			case errors.Is(err, backend.ErrUncertain):
				doubts++
			}
		}
		uncertain += doubts
		got, err := get(t.Context(), direct, name)
		if winner >= 0 && (err != nil || string(got) != fmt.Sprintf("racer %d", winner)) {
			t.Fatalf("round %d: racer %d won, but the object holds %q, %v", round, winner, got, err)
		}
		if winner < 0 && doubts == 0 && err == nil {
			t.Fatalf("round %d: %q is there, and nobody says that it may be theirs: %v", round, got, errs)
		}
	}
	t.Logf("%d of %d commits were uncertain", uncertain, racers*rounds)
}

// crashRuns is how many rounds of a random test to run: LIFEBOAT_CRASH_RUNS, or
// a few.
func crashRuns(t *testing.T, few int) int {
	t.Helper()
	value := os.Getenv("LIFEBOAT_CRASH_RUNS")
	if value == "" {
		return few
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 {
		t.Fatalf("LIFEBOAT_CRASH_RUNS=%q: want a number", value)
	}
	return n
}

// TestUncertain: when nothing is heard after the object was sent, that is what
// Commit says, and the object may be there.
func TestUncertain(t *testing.T) {
	r := newRig(t)
	through, direct := r.open(t, s3.Options{Attempts: 3})
	if ok, err := through.ProbeExclusive(t.Context()); !ok || err != nil {
		t.Fatal(ok, err)
	}
	for _, mode := range []backend.Mode{backend.Exclusive, backend.Replace} {
		acted := false
		r.proxy.SetPlan(func(q s3test.Request) s3test.Fault {
			if q.Method == http.MethodPut && !acted {
				acted = true
				return s3test.LoseAck
			}
			return s3test.Drop
		})
		name := fmt.Sprintf("x/%d", mode)
		if err := put(t.Context(), through, name, []byte("sent"), mode); !errors.Is(err, backend.ErrUncertain) {
			t.Errorf("mode %d: %v, want backend.ErrUncertain", mode, err)
		}
		if got, err := get(t.Context(), direct, name); string(got) != "sent" {
			t.Errorf("mode %d: %q, %v", mode, got, err)
		}
	}
	// Before anything was sent there is no doubt.
	r.proxy.SetPlan(func(s3test.Request) s3test.Fault { return s3test.SlowDown })
	if err := put(t.Context(), through, "y", nil, backend.Exclusive); err == nil || errors.Is(err, backend.ErrUncertain) {
		t.Errorf("refused for good: %v", err)
	}
}

// TestCutOff: a read over a line that breaks again and again gets there, and
// asks for no byte twice that it has.
func TestCutOff(t *testing.T) {
	r := newRig(t)
	through, direct := r.open(t, s3.Options{Attempts: 3})
	data := noise(5, 8<<20)
	backendtest.Put(t, direct, "x", data, backend.Exclusive)
	o, err := through.Open(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	r.proxy.SetPlan(func(s3test.Request) s3test.Fault { return s3test.Truncate })
	p := make([]byte, 7<<20)
	if n, err := o.ReadAt(p, 0); err == nil || !bytes.Equal(p[:n], data[:n]) || n < 6<<20 {
		t.Errorf("with every answer cut in half: %d, %v", n, err)
	}
	requests := 0
	r.proxy.SetPlan(func(s3test.Request) s3test.Fault {
		if requests++; requests <= 4 {
			return s3test.Truncate
		}
		return s3test.None
	})
	if n, err := o.ReadAt(p, 0); n != len(p) || err != nil || !bytes.Equal(p, data[:n]) {
		t.Errorf("with four answers cut in half: %d, %v", n, err)
	}
	if got := r.proxy.Bytes(); got > 7<<20 {
		t.Errorf("%d bytes were sent for %d", got, len(p))
	}
}

// TestStall: a request in which nothing moves is given up and tried again; and
// cancelling ends it at once.
func TestStall(t *testing.T) {
	r := newRig(t)
	data := noise(6, 1<<20)
	through, direct := r.open(t, s3.Options{Stall: 300 * time.Millisecond})
	backendtest.Put(t, direct, "x", data, backend.Exclusive)
	r.proxy.SetPlan(s3test.First(2, "GET", s3test.Stall))
	if err := holds(t.Context(), through, "x", data); err != nil {
		t.Error(err)
	}

	patient, _ := r.open(t, s3.Options{Stall: time.Hour})
	r.proxy.SetPlan(nil)
	backendtest.Put(t, patient, "x", data, backend.Exclusive)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o, err := patient.Open(ctx, "x")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	r.proxy.SetPlan(func(s3test.Request) s3test.Fault {
		cancel()
		return s3test.Stall
	})
	if _, err := o.ReadAt(make([]byte, 1<<19), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("a read that hangs: %v, want context.Canceled", err)
	}
}
