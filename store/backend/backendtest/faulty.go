package backendtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"

	"lifeboat/store/backend"
)

// Fault is what goes wrong in one call of a backend.
type Fault int

const (
	// None lets the call through.
	None Fault = iota
	// Fail fails with ErrInjected; nothing was done.
	Fail
	// TimeOut fails with os.ErrDeadlineExceeded; nothing was done.
	TimeOut
	// Tear does half: a Write takes half of its bytes, a read fills half of its
	// buffer, a listing ends in the middle, each with ErrInjected. Any other
	// call fails.
	Tear
	// LoseAck does all of a Commit or Remove and fails nevertheless; a Commit
	// with backend.ErrUncertain, as its contract asks. Any other call fails.
	LoseAck
	// Stale makes a listing show what was there some mutations ago. Any other
	// call succeeds.
	Stale
)

func (f Fault) String() string {
	return [...]string{"none", "fail", "time-out", "tear", "lost acknowledgement", "stale listing"}[f]
}

// ErrInjected is the error of an injected fault.
var ErrInjected = errors.New("injected fault")

// Op is a method of backend.Backend, Writer or Object.
type Op string

// The calls in which something can go wrong.
const (
	OpCreate Op = "create"
	OpWrite  Op = "write"
	OpCommit Op = "commit"
	OpOpen   Op = "open"
	OpRead   Op = "read"
	OpList   Op = "list"
	OpRemove Op = "remove"
)

// Call is one call as a Plan sees it.
type Call struct {
	Op   Op
	Name string // or prefix
	N    int    // from 0, over all calls
}

// Plan decides what goes wrong in a call. It is called by one goroutine at a
// time.
type Plan func(Call) Fault

// At makes the nth call go wrong, and no other.
func At(n int, f Fault) Plan {
	return func(c Call) Fault {
		if c.N == n {
			return f
		}
		return None
	}
}

// From makes every call from the nth on go wrong: the backend is gone.
func From(n int, f Fault) Plan {
	return func(c Call) Fault {
		if c.N >= n {
			return f
		}
		return None
	}
}

// Sometimes makes a share of all calls go wrong, with one of faults each.
func Sometimes(seed uint64, share float64, faults ...Fault) Plan {
	rng := rand.New(rand.NewPCG(seed, 0xfa17))
	return func(Call) Fault {
		if rng.Float64() >= share {
			return None
		}
		return faults[rng.IntN(len(faults))]
	}
}

// Faulty is a backend in which things go wrong by plan. It passes on nothing of
// the optional interfaces of what it wraps.
type Faulty struct {
	b backend.Backend

	mu       sync.Mutex
	plan     Plan
	calls    int
	injected map[Fault]int
	history  []mutation // the last ones, oldest first
}

// mutation is what to do to a listing to have it as before.
type mutation struct {
	name   string
	before *backend.Info // nil: it was not there
}

// staleBy is how many mutations a stale listing lags behind at most.
const staleBy = 8

// NewFaulty wraps b. A nil plan lets everything through.
func NewFaulty(b backend.Backend, plan Plan) *Faulty {
	return &Faulty{b: b, plan: plan, injected: map[Fault]int{}}
}

// SetPlan begins another plan, whose calls count from 0.
func (f *Faulty) SetPlan(plan Plan) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plan, f.calls = plan, 0
}

// Calls is how many calls there have been since the plan began.
func (f *Faulty) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// Injected is how often each fault was injected, over all plans.
func (f *Faulty) Injected() map[Fault]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.injected)
}

// next asks the plan about a call.
func (f *Faulty) next(op Op, name string) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.calls
	f.calls++
	if f.plan == nil {
		return None
	}
	fault := f.plan(Call{op, name, n})
	if fault == Stale && op != OpList {
		fault = None
	}
	if fault != None {
		f.injected[fault]++
	}
	return fault
}

// refuse is the error of a fault that does nothing, or nil.
func refuse(fault Fault, op Op, name string) error {
	switch fault {
	case None, Stale:
		return nil
	case TimeOut:
		return fmt.Errorf("%s %s: %w", op, name, os.ErrDeadlineExceeded)
	}
	return fmt.Errorf("%s %s: %w (%v)", op, name, ErrInjected, fault)
}

// Create implements [backend.Backend].
func (f *Faulty) Create(ctx context.Context, name string, mode backend.Mode) (backend.Writer, error) {
	if err := refuse(f.next(OpCreate, name), OpCreate, name); err != nil {
		return nil, err
	}
	w, err := f.b.Create(ctx, name, mode)
	if err != nil {
		return nil, err
	}
	return &faultyWriter{Writer: w, f: f, name: name}, nil
}

// Open implements [backend.Backend].
func (f *Faulty) Open(ctx context.Context, name string) (backend.Object, error) {
	if err := refuse(f.next(OpOpen, name), OpOpen, name); err != nil {
		return nil, err
	}
	o, err := f.b.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return &faultyObject{Object: o, f: f, name: name}, nil
}

// Remove implements [backend.Backend].
func (f *Faulty) Remove(ctx context.Context, name string) error {
	fault := f.next(OpRemove, name)
	err := refuse(fault, OpRemove, name)
	if err != nil && fault != LoseAck {
		return err
	}
	return errors.Join(err, f.mutate(ctx, name, func() error { return f.b.Remove(ctx, name) }))
}

// mutate does something to an object and remembers how it was before.
func (f *Faulty) mutate(ctx context.Context, name string, do func() error) error {
	m := mutation{name: name}
	for info, err := range f.b.List(ctx, name) {
		if err == nil && info.Name == name {
			m.before = &info
		}
	}
	if err := do(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.history = append(f.history, m)
	if len(f.history) > staleBy {
		f.history = slices.Delete(f.history, 0, len(f.history)-staleBy)
	}
	return nil
}

// List implements [backend.Backend].
func (f *Faulty) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	fault := f.next(OpList, prefix)
	return func(yield func(backend.Info, error) bool) {
		err := refuse(fault, OpList, prefix)
		if err != nil && fault != Tear {
			yield(backend.Info{}, err)
			return
		}
		var infos []backend.Info
		for info, err := range f.b.List(ctx, prefix) {
			if err != nil {
				yield(backend.Info{}, err)
				return
			}
			infos = append(infos, info)
		}
		switch fault {
		case Stale:
			infos = f.rewind(infos, prefix)
		case Tear:
			infos = infos[:len(infos)/2]
		}
		for _, info := range infos {
			if !yield(info, nil) {
				return
			}
		}
		if fault == Tear {
			yield(backend.Info{}, err)
		}
	}
}

// rewind undoes the mutations that are remembered.
func (f *Faulty) rewind(infos []backend.Info, prefix string) []backend.Info {
	byName := map[string]backend.Info{}
	for _, info := range infos {
		byName[info.Name] = info
	}
	f.mu.Lock()
	history := slices.Clone(f.history)
	f.mu.Unlock()
	for _, m := range slices.Backward(history) {
		switch {
		case !strings.HasPrefix(m.name, prefix):
		case m.before == nil:
			delete(byName, m.name)
		default:
			byName[m.name] = *m.before
		}
	}
	old := make([]backend.Info, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		old = append(old, byName[name])
	}
	return old
}

type faultyWriter struct {
	backend.Writer
	f    *Faulty
	name string
}

func (w *faultyWriter) Write(p []byte) (int, error) {
	fault := w.f.next(OpWrite, w.name)
	err := refuse(fault, OpWrite, w.name)
	switch {
	case err == nil:
		return w.Writer.Write(p)
	case fault == Tear:
		n, writeErr := w.Writer.Write(p[:len(p)/2])
		return n, errors.Join(err, writeErr)
	}
	return 0, err
}

func (w *faultyWriter) Commit(ctx context.Context) error {
	fault := w.f.next(OpCommit, w.name)
	err := refuse(fault, OpCommit, w.name)
	if err != nil && fault != LoseAck {
		w.Abort()
		return err
	}
	if commitErr := w.f.mutate(ctx, w.name, func() error { return w.Writer.Commit(ctx) }); commitErr != nil {
		return commitErr
	}
	if err != nil {
		return fmt.Errorf("%w: %w", backend.ErrUncertain, err)
	}
	return nil
}

type faultyObject struct {
	backend.Object
	f    *Faulty
	name string
}

func (o *faultyObject) ReadAt(p []byte, off int64) (int, error) {
	fault := o.f.next(OpRead, o.name)
	err := refuse(fault, OpRead, o.name)
	switch {
	case err == nil:
		return o.Object.ReadAt(p, off)
	case fault == Tear:
		n, readErr := o.Object.ReadAt(p[:len(p)/2], off)
		if readErr != nil && !errors.Is(readErr, io.EOF) {
			err = errors.Join(err, readErr)
		}
		return n, err
	}
	return 0, err
}
