package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"lifeboat/disk/disktest"
	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
)

// Faults under every operation. A repository with some history is cloned for
// each run, one operation is let loose on it, and one of its calls to the
// backend goes wrong (or all from that one on). Then the process is gone, and
// another one looks: what was there before reads as its source, nothing is
// damaged, an operation that reported success has had its effect, and the
// repository can be written and pruned.

// faultScene is the repository before the operation.
type faultScene struct {
	memory *backendtest.Memory
	want   map[string]*disktest.Memory // content of the points, by ID
	last   *Point                      // newest of VM a
	spare  *Point                      // what an operation may forget
	source *disktest.Memory            // of last
	change *disktest.Memory            // what VM a became since
}

// faultOp is an operation. check, if there is one, is called when the operation
// has reported success.
type faultOp struct {
	name  string
	run   func(ctx context.Context, r *Repository, s *faultScene) error
	check func(t *testing.T, r *Repository, s *faultScene)
}

const faultDisk = 700_000

func newFaultScene(t *testing.T) *faultScene {
	t.Helper()
	s := &faultScene{memory: backendtest.NewMemory(), want: map[string]*disktest.Memory{}}
	if err := Init(t.Context(), s.memory, testPassword, cheap); err != nil {
		t.Fatal(err)
	}
	r := s.open(t, s.memory, "first")
	defer r.Close()
	s.source = randomDisk(1, faultDisk)
	first := backup(t, r, "a", nil, s.source, nil)
	s.want[first.ID] = s.source
	s.source = s.source.Clone()
	s.last = backup(t, r, "a", first, s.source, scribble(2, s.source, 3))
	s.want[s.last.ID] = s.source
	other := randomDisk(3, faultDisk)
	s.spare = backup(t, r, "b", nil, other, nil)
	s.want[s.spare.ID] = other
	gone := backup(t, r, "c", nil, randomDisk(4, faultDisk), nil)
	if err := r.Forget(t.Context(), gone.ID); err != nil {
		t.Fatal(err)
	}
	s.change = s.source.Clone()
	scribble(5, s.change, 3)
	return s
}

func (s *faultScene) open(t *testing.T, b backend.Backend, name string) *Repository {
	t.Helper()
	w := newWorld(nil)
	if name == "after" {
		w.actors.kill("victim")
	}
	r, err := Open(t.Context(), b, testPassword, w.options(actor{w.actors, name}))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func faultOps() []faultOp {
	return []faultOp{
		{
			name: "first backup",
			run: func(ctx context.Context, r *Repository, s *faultScene) error {
				_, err := tryBackup(ctx, r, "new", nil, s.change, nil)
				return err
			},
			check: func(t *testing.T, r *Repository, s *faultScene) { wantNewest(t, r, "new", s.change) },
		},
		{
			name: "incremental backup",
			run: func(ctx context.Context, r *Repository, s *faultScene) error {
				_, err := tryBackup(ctx, r, "a", s.last, s.change, nil)
				return err
			},
			check: func(t *testing.T, r *Repository, s *faultScene) { wantNewest(t, r, "a", s.change) },
		},
		{
			name: "forget",
			run: func(ctx context.Context, r *Repository, s *faultScene) error {
				delete(s.want, s.spare.ID)
				return r.Forget(ctx, s.spare.ID)
			},
			check: func(t *testing.T, r *Repository, s *faultScene) {
				if _, err := r.Point(t.Context(), s.spare.ID); !errors.Is(err, ErrNotFound) {
					t.Errorf("the forgotten point: %v", err)
				}
			},
		},
		{
			name: "prune",
			run: func(ctx context.Context, r *Repository, _ *faultScene) error {
				_, err := r.Prune(ctx, PruneOptions{Grace: -1})
				return err
			},
		},
		{
			name: "verify",
			run: func(ctx context.Context, r *Repository, _ *faultScene) error {
				_, err := r.Verify(ctx, VerifyOptions{})
				return err
			},
		},
		{
			name: "rebuild the index",
			run:  func(ctx context.Context, r *Repository, _ *faultScene) error { return r.RebuildIndex(ctx) },
		},
	}
}

func wantNewest(t *testing.T, r *Repository, vm string, want *disktest.Memory) {
	t.Helper()
	p, err := r.Latest(t.Context(), vm)
	if err != nil {
		t.Errorf("newest of %s: %v", vm, err)
		return
	}
	wantDisk(t, r, p, 0, want)
}

// clone is a scene of its own for one run.
func (s *faultScene) clone() *faultScene {
	c := *s
	c.memory, c.want = s.memory.Clone(), maps.Clone(s.want)
	return &c
}

// run lets op loose on a clone of the scene with a plan.
func (s *faultScene) run(t *testing.T, op faultOp, plan backendtest.Plan) {
	t.Helper()
	s = s.clone()
	faulty := backendtest.NewFaulty(s.memory, nil)
	r := s.open(t, faulty, "victim")
	faulty.SetPlan(plan)
	err := op.run(t.Context(), r, s)
	faulty.SetPlan(nil)
	if err := r.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if err != nil && len(faulty.Injected()) == 0 {
		t.Fatalf("%s without a fault: %v", op.name, err)
	}
	s.after(t, op, err)
}

// after is the process that comes next.
func (s *faultScene) after(t *testing.T, op faultOp, opErr error) {
	t.Helper()
	r := s.open(t, s.memory, "after")
	defer r.Close()
	if opErr == nil && op.check != nil {
		op.check(t, r, s)
	}
	s.wantAll(t, r)
	wantSound(t, r)
	p := backup(t, r, "later", nil, s.change, nil)
	s.want[p.ID] = s.change
	if _, err := r.Prune(t.Context(), PruneOptions{Grace: -1}); err != nil {
		t.Errorf("prune afterwards: %v", err)
	}
	s.wantAll(t, r)
	if report := wantSound(t, r); len(report.Leftovers) > 0 {
		t.Errorf("left for ever: %s", strings.Join(report.Leftovers, ", "))
	}
}

func (s *faultScene) wantAll(t *testing.T, r *Repository) {
	t.Helper()
	for id, want := range s.want {
		p, err := r.Point(t.Context(), id)
		if err != nil {
			t.Errorf("point %s: %v", id, err)
			continue
		}
		wantDisk(t, r, p, 0, want)
	}
}

// faultPlans are the plans of one operation whose calls without faults are
// given: each acknowledgement lost once, and a random selection of the rest.
func faultPlans(calls []backendtest.Call, random int) map[string]backendtest.Plan {
	plans := map[string]backendtest.Plan{}
	add := func(n int, fault backendtest.Fault) {
		plans[fmt.Sprintf("%v in call %d (%s %s)", fault, n, calls[n].Op, calls[n].Name)] = backendtest.At(n, fault)
	}
	for _, c := range calls {
		if c.Op == backendtest.OpCommit || c.Op == backendtest.OpRemove {
			add(c.N, backendtest.LoseAck)
		}
	}
	rng := rand.New(rand.NewPCG(1, uint64(len(calls))))
	faults := []backendtest.Fault{backendtest.Fail, backendtest.TimeOut, backendtest.Tear, backendtest.Stale}
	for range random {
		n := rng.IntN(len(calls))
		if rng.IntN(4) == 0 {
			plans[fmt.Sprintf("no backend from call %d (%s %s)", n, calls[n].Op, calls[n].Name)] = backendtest.From(n, backendtest.Fail)
			continue
		}
		add(n, faults[rng.IntN(len(faults))])
	}
	return plans
}

func TestFaultsUnderEveryOperation(t *testing.T) {
	scene := newFaultScene(t)
	for _, op := range faultOps() {
		t.Run(op.name, func(t *testing.T) {
			var calls []backendtest.Call
			scene.run(t, op, func(c backendtest.Call) backendtest.Fault {
				calls = append(calls, c)
				return backendtest.None
			})
			for name, plan := range faultPlans(calls, crashRuns(t, 30)) {
				if scene.run(t, op, plan); t.Failed() {
					t.Fatalf("with %s", name)
				}
			}
		})
	}
}

// TestManyFaults makes one call in a hundred go wrong, over a whole series of
// operations that go on regardless.
func TestManyFaults(t *testing.T) {
	scene := newFaultScene(t)
	faults := []backendtest.Fault{backendtest.Fail, backendtest.TimeOut, backendtest.Tear, backendtest.LoseAck, backendtest.Stale}
	for seed := range crashRuns(t, 6) {
		s := scene.clone()
		faulty := backendtest.NewFaulty(s.memory, nil)
		r := s.open(t, faulty, "victim")
		faulty.SetPlan(backendtest.Sometimes(uint64(seed), 0.01, faults...))
		rng := rand.New(rand.NewPCG(uint64(seed), 3))
		ops := faultOps()
		for range 12 {
			// Errors are expected; what they must not do is looked at below.
			_ = ops[rng.IntN(len(ops))].run(t.Context(), r, s)
		}
		faulty.SetPlan(nil)
		if err := r.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if s.after(t, faultOp{}, nil); t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}
