package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"lifeboat/disk/disktest"
	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
)

// Interleavings: writers, readers, somebody who forgets and prunes, all at once on
// a repository in memory, each stopped at every call to the backend until a
// scheduler lets one of them go on, in an order that a seed decides. The
// scheduler moves the backend's clock, too, so that leases run out under those who
// are alive. Afterwards every point reads as its source, and in the meantime every
// point that was held did.

// stage lets actors go on one call at a time.
type stage struct {
	mu      sync.Mutex
	changed *sync.Cond
	waiting map[string][]chan struct{} // by actor, in the order of arrival
	alive   map[string]bool
}

func newStage() *stage {
	s := &stage{waiting: make(map[string][]chan struct{}), alive: make(map[string]bool)}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// enter waits for the scheduler.
func (s *stage) enter(actor string) {
	turn := make(chan struct{})
	s.mu.Lock()
	if !s.alive[actor] {
		s.mu.Unlock()
		return
	}
	s.waiting[actor] = append(s.waiting[actor], turn)
	s.changed.Broadcast()
	s.mu.Unlock()
	<-turn
}

// leave takes an actor off: what it still does is nobody's business.
func (s *stage) leave(actor string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.alive, actor)
	for _, turn := range s.waiting[actor] {
		close(turn)
	}
	delete(s.waiting, actor)
	s.changed.Broadcast()
}

// run schedules until no actor is left.
func (s *stage) run(rng *rand.Rand, between func()) (steps int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; ; steps++ {
		for len(s.waiting) < len(s.alive) {
			s.changed.Wait()
		}
		if len(s.alive) == 0 {
			return steps
		}
		names := make([]string, 0, len(s.waiting))
		for name := range s.waiting {
			names = append(names, name)
		}
		slices.Sort(names)
		name := names[rng.IntN(len(names))]
		turns := s.waiting[name]
		if s.waiting[name] = turns[1:]; len(turns) == 1 {
			delete(s.waiting, name)
		}
		close(turns[0])
		between()
	}
}

// staged is the backend as one actor has it.
type staged struct {
	backend.Backend
	s     *stage
	actor string
}

func (b *staged) Open(ctx context.Context, name string) (backend.Object, error) {
	b.s.enter(b.actor)
	return b.Backend.Open(ctx, name)
}

func (b *staged) Remove(ctx context.Context, name string) error {
	b.s.enter(b.actor)
	return b.Backend.Remove(ctx, name)
}

func (b *staged) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		b.s.enter(b.actor)
		for info, err := range b.Backend.List(ctx, prefix) {
			if !yield(info, err) {
				return
			}
		}
	}
}

func (b *staged) Create(ctx context.Context, name string, mode backend.Mode) (backend.Writer, error) {
	w, err := b.Backend.Create(ctx, name, mode)
	return &stagedWriter{w, b}, err
}

type stagedWriter struct {
	backend.Writer
	b *staged
}

func (w *stagedWriter) Commit(ctx context.Context) error {
	w.b.s.enter(w.b.actor)
	return w.Writer.Commit(ctx)
}

// play is one run.
type play struct {
	t     *testing.T
	stage *stage
	timed *timed
	w     *world
	jumps bool // the clock moves by more than leases
	seed  uint64

	mu     sync.Mutex
	acked  map[string]int  // content of points whose commit was acknowledged
	doomed map[string]bool // points that somebody set out to forget
	failed []string
}

// playBlocks is the pool that contents are made of, so that points share blocks.
const playBlocks = 10

func playBlock(n int) []byte {
	p := make([]byte, testBlock)
	c := rand.NewChaCha8([32]byte{7, byte(n)})
	_, _ = c.Read(p)
	return p
}

// playDisk is content number n: a few blocks of the pool.
func playDisk(n int) *disktest.Memory {
	rng := rand.New(rand.NewPCG(uint64(n), 0x9a7))
	m := disktest.NewMemory(6 * testBlock)
	for i := range int64(6) {
		if rng.IntN(3) > 0 {
			m.WriteAt(playBlock(rng.IntN(playBlocks)), i*testBlock)
		}
	}
	return m
}

func (p *play) problem(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = append(p.failed, fmt.Sprintf(format, args...))
}

// cast opens the repository as an actor and lets it act.
func (p *play) cast(group *sync.WaitGroup, name string, act func(ctx context.Context, rng *rand.Rand, r *Repository) error) {
	p.stage.mu.Lock()
	p.stage.alive[name] = true
	p.stage.mu.Unlock()
	group.Go(func() {
		defer p.stage.leave(name)
		ctx := p.t.Context()
		r, err := Open(ctx, &staged{p.timed, p.stage, name}, testPassword, p.w.options(actor{p.w.actors, name}))
		if err != nil {
			p.problem("%s: %v", name, err)
			return
		}
		defer r.Close()
		var seed uint64
		for _, c := range name {
			seed = seed*31 + uint64(c)
		}
		if err := act(ctx, rand.New(rand.NewPCG(p.seed, seed)), r); err != nil {
			p.problem("%s: %v", name, err)
		}
	})
}

// write makes points, with parents and without.
func (p *play) write(vm string) func(context.Context, *rand.Rand, *Repository) error {
	return func(ctx context.Context, rng *rand.Rand, r *Repository) error {
		for range 2 {
			in, err := r.NewIngest(ctx, IngestOptions{Workers: 1, Readers: 1, commits: 1})
			if p.excused(err) {
				continue
			}
			if err != nil {
				return err
			}
			for range 1 + rng.IntN(2) {
				if err := p.writePoint(ctx, rng, r, in, vm); err != nil && !p.excused(err) && !errors.Is(err, ErrNotFound) {
					return errors.Join(err, in.Close())
				}
			}
			if err := in.Close(); err != nil && !p.excused(err) {
				return err
			}
		}
		return nil
	}
}

// excused are the errors of those who were taken for dead.
func (p *play) excused(err error) bool {
	return p.jumps && (errors.Is(err, ErrFenced) || errors.Is(err, ErrClosed))
}

func (p *play) writePoint(ctx context.Context, rng *rand.Rand, r *Repository, in *Ingest, vm string) error {
	content := rng.IntN(1000)
	spec := PointSpec{VM: vm, Labels: map[string]string{"content": strconv.Itoa(content)}}
	if rng.IntN(3) > 0 {
		points, err := r.Points(ctx)
		if err != nil {
			return err
		}
		if len(points) > 0 {
			spec.Parent = points[rng.IntN(len(points))]
		}
	}
	w, err := in.Begin(spec)
	if err != nil {
		return err
	}
	defer w.Abort()
	if err := w.AddDisk(ctx, DiskSpec{Key: 2000}, playDisk(content), nil, nil); err != nil {
		return err
	}
	if rng.IntN(6) == 0 {
		return nil
	}
	point, err := w.Commit(ctx)
	if err == nil {
		p.mu.Lock()
		p.acked[point.ID] = content
		p.mu.Unlock()
	}
	return err
}

// read holds points and reads them again and again.
func (p *play) read(ctx context.Context, rng *rand.Rand, r *Repository) error {
	for range 3 {
		points, err := r.Points(ctx)
		if err != nil {
			return err
		}
		if len(points) == 0 {
			continue
		}
		point := points[rng.IntN(len(points))]
		h, err := r.Hold(ctx, []*Point{point}, HoldOptions{})
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if err := p.readPoint(ctx, r, point); err != nil && !p.jumps {
			return fmt.Errorf("a point that is held: %w", err)
		}
		if err := h.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (p *play) readPoint(ctx context.Context, r *Repository, point *Point) error {
	content, err := strconv.Atoi(point.Labels["content"])
	if err != nil {
		return err
	}
	img, err := r.OpenDisk(ctx, point, 0)
	if err != nil {
		return err
	}
	defer img.Close()
	want := playDisk(content)
	got, exp := make([]byte, testBlock), make([]byte, testBlock)
	for off := int64(0); off < want.Size(); off += testBlock {
		if _, err := img.ReadAt(got, off); err != nil {
			return fmt.Errorf("point %s at %d: %w", point.ID, off, err)
		}
		want.ReadAt(exp, off)
		if string(got) != string(exp) {
			return fmt.Errorf("point %s at %d is not what was written", point.ID, off)
		}
	}
	return nil
}

// forget forgets points, and has second thoughts.
func (p *play) forget(ctx context.Context, rng *rand.Rand, r *Repository) error {
	for range 4 {
		points, err := r.Points(ctx)
		if err != nil {
			return err
		}
		if len(points) == 0 {
			continue
		}
		id := points[rng.IntN(len(points))].ID
		p.mu.Lock()
		p.doomed[id] = true
		p.mu.Unlock()
		if err := r.Forget(ctx, id); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if rng.IntN(4) == 0 {
			if err := r.Unforget(ctx, id); err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrBusy) && !p.excused(err) {
				return err
			}
		}
	}
	return nil
}

func (p *play) prune(ctx context.Context, rng *rand.Rand, r *Repository) error {
	for range 3 {
		grace := time.Duration(-1)
		if rng.IntN(3) == 0 {
			grace = time.Minute
		}
		if _, err := r.Prune(ctx, PruneOptions{Grace: grace}); err != nil && !errors.Is(err, ErrBusy) && !p.excused(err) {
			return err
		}
	}
	return nil
}

// runPlay is one run over a clone of a repository.
func runPlay(t *testing.T, origin *backendtest.Memory, made map[string]time.Time, seed uint64) (steps int) {
	p := &play{t: t, stage: newStage(), w: newWorld(nil), seed: seed, jumps: seed%3 == 0, acked: make(map[string]int), doomed: make(map[string]bool)}
	p.timed = newTimed(origin.Clone())
	for name, at := range made {
		p.timed.made[name] = at
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	var group sync.WaitGroup
	p.cast(&group, "writer-1", p.write("one"))
	p.cast(&group, "writer-2", p.write("two"))
	p.cast(&group, "reader", p.read)
	p.cast(&group, "forgetter", p.forget)
	p.cast(&group, "pruner", p.prune)
	steps = p.stage.run(rng, func() {
		switch {
		case rng.IntN(20) == 0:
			p.timed.advance(time.Second)
		case p.jumps && rng.IntN(150) == 0:
			p.timed.advance([]time.Duration{time.Minute, 20 * time.Minute, 2 * time.Hour}[rng.IntN(3)])
		}
	})
	group.Wait()
	p.after()
	for _, f := range p.failed {
		t.Errorf("seed %d: %s", seed, f)
	}
	return steps
}

// after looks at what is left, prunes and looks again.
func (p *play) after() {
	ctx := p.t.Context()
	r, err := Open(ctx, p.timed, testPassword, p.w.options(actor{p.w.actors, "after"}))
	if err != nil {
		p.problem("open: %v", err)
		return
	}
	defer r.Close()
	p.look(r)
	p.timed.advance(24 * time.Hour)
	for range 2 {
		if _, err := r.Prune(ctx, PruneOptions{Grace: -1}); err != nil {
			p.problem("the last prune: %v", err)
		}
	}
	p.look(r)
	report, err := r.Verify(ctx, VerifyOptions{})
	if err != nil || len(report.Damages) > 0 {
		p.problem("verify: %v %+v", err, report.Damages)
	}
	if stones, err := r.tombstones(ctx); err != nil || len(stones) > 0 {
		p.problem("left: %v %v", stones, err)
	}
}

func (p *play) look(r *Repository) {
	points, err := r.Points(p.t.Context())
	if err != nil {
		p.problem("points: %v", err)
	}
	there := make(map[string]bool)
	for _, point := range points {
		there[point.ID] = true
		if err := p.readPoint(p.t.Context(), r, point); err != nil {
			p.problem("afterwards: %v", err)
		}
	}
	for id := range p.acked {
		if !there[id] && !p.doomed[id] {
			p.problem("point %s was acknowledged, forgotten by nobody, and is gone", id)
		}
	}
}

func TestInterleavings(t *testing.T) {
	memory := backendtest.NewMemory()
	start := newTimed(memory)
	if err := Init(t.Context(), start, testPassword, cheap); err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), start, testPassword, newWorld(nil).options(actor{new(actors), "first"}))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := &play{t: t, acked: make(map[string]int)}
	in, err := r.NewIngest(t.Context(), IngestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(4) {
		if err := p.writePoint(t.Context(), rand.New(rand.NewPCG(seed, 9)), r, in, "zero"); err != nil {
			t.Fatal(err)
		}
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	first := uint64(0)
	if s := os.Getenv("LIFEBOAT_CRASH_SEED"); s != "" {
		if first, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("LIFEBOAT_CRASH_SEED: %v", err)
		}
	}
	steps := 0
	for i := range uint64(crashRuns(t, 40)) {
		if steps += runPlay(t, memory, start.made, first+i); t.Failed() {
			return
		}
	}
	t.Logf("%d steps", steps)
}
