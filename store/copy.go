package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// CopyOptions says what to copy, and how. The zero value copies everything.
type CopyOptions struct {
	// Points to copy; nil means all.
	Points []*Point
	// Parallel is how many VMs are copied at the same time; 0 means 4. The
	// points of one VM go one after the other, because each is compared with the
	// one before.
	Parallel int
	// Workers is how many goroutines hash; 0 means one per CPU.
	Workers int
	// Verify reads what was written back from the destination and compares it
	// with the source, byte for byte.
	Verify bool
	// Tool is the version recorded in the copies.
	Tool string
	// KeepEvery is how often what was stored so far is made to stay, for the
	// next attempt to find if this one is interrupted; 0 means a minute.
	KeepEvery time.Duration
	// Progress, if not nil, is called about ten times a second and at the end,
	// from one goroutine at a time.
	Progress func(CopyProgress)
}

// CopyProgress is how far a copy has come. Bytes are of disks; before a point
// was looked at, Total has an estimate for it.
type CopyProgress struct {
	Points, AllPoints int
	Done, Total       int64
	New, Stored       int64 // what the destination did not have; after compression
}

// CopyReport is what a copy did. Each point that was asked for is in one of the
// lists, unless the copy ended early.
type CopyReport struct {
	Copied  []Copied      `json:"copied"`
	Skipped []Copied      `json:"skipped"` // were there already
	Failed  []CopyFailure `json:"failed"`
}

// Copied is a point and its copy.
type Copied struct {
	From string `json:"from"` // ID of the point in the source
	*Point
}

// CopyFailure is a point that could not be copied.
type CopyFailure struct {
	From  string    `json:"from"`
	VM    string    `json:"vm"`
	Time  time.Time `json:"time"`
	Error string    `json:"error"`
	Err   error     `json:"-"`
}

const (
	copyParallel  = 4
	copyReaders   = 8 // more than for a local file: the source may be far away
	copyKeepEvery = time.Minute
)

// ErrSameRepository: source and destination of a copy are one repository.
var ErrSameRepository = errors.New("source and destination are the same repository")

// CopyTo copies restore points to another repository, which may have another
// password, block size and backend. A point carries the [Origin] of what it is
// a copy of, so that nothing is copied twice, also by way of a third repository
// or back home.
//
// Where the destination has a copy of another point of the VM that is still
// here, only what differs between the two is read (as Diff tells). What is read
// is authenticated; every block gets its identity in the destination anew, so
// that what is there already, from an attempt that was interrupted too, is not
// stored again. Where the block sizes agree nothing is compressed again.
//
// A point that is damaged, or forgotten meanwhile, is named in the report and
// the rest goes on. Any other error ends the copy: with what the report names
// copied, and what was stored beyond that kept for the next attempt.
func (r *Repository) CopyTo(ctx context.Context, to *Repository, opts CopyOptions) (*CopyReport, error) {
	c, err := r.planCopy(ctx, to, opts)
	if err != nil {
		return nil, fmt.Errorf("copy: %w", err)
	}
	if len(c.vms) == 0 {
		c.tell(true)
		return &c.report, nil
	}
	err = c.run(ctx)
	c.report.sort()
	if err != nil {
		return &c.report, fmt.Errorf("copy: %w", err)
	}
	c.tell(true)
	return &c.report, nil
}

// copying is a copy under way.
type copying struct {
	src, dst *Repository
	opts     CopyOptions
	in       *Ingest // in dst
	vms      []*copyVM

	mu     sync.Mutex
	report CopyReport
	prog   CopyProgress
	told   time.Time
}

// copyVM is one VM's points. Only the goroutine that copies it uses it.
type copyVM struct {
	wanted []*Point          // to be copied, by time
	source []*Point          // all of the VM that there are in the source, by time
	twins  map[Origin]*Point // points of the destination, by what they are a copy of
}

// origin is where a point of r was first made.
func (r *Repository) origin(p *Point) Origin {
	if p.Origin != nil {
		return *p.Origin
	}
	return Origin{Repository: r.id, Point: p.ID}
}

// vmKey tells VMs apart, by their lasting identity where they have one.
func vmKey(p *Point) string {
	if p.VMID != "" {
		return "id " + p.VMID
	}
	return "name " + p.VM
}

// planCopy finds out what has to be copied.
func (r *Repository) planCopy(ctx context.Context, to *Repository, opts CopyOptions) (*copying, error) {
	if r.id == to.id {
		return nil, ErrSameRepository
	}
	opts.Parallel = cmp.Or(max(opts.Parallel, 0), copyParallel)
	if opts.KeepEvery <= 0 {
		opts.KeepEvery = copyKeepEvery
	}
	here, err := r.Points(ctx)
	if err != nil {
		return nil, fmt.Errorf("the source: %w", err)
	}
	there, err := to.Points(ctx)
	if err != nil {
		return nil, fmt.Errorf("the destination: %w", err)
	}
	if opts.Points == nil {
		opts.Points = here
	}
	c := &copying{src: r, dst: to, opts: opts}
	c.report = CopyReport{Copied: []Copied{}, Skipped: []Copied{}, Failed: []CopyFailure{}}
	c.group(here, there)
	return c, nil
}

// group sorts points into VMs and leaves out those whose copies are there.
func (c *copying) group(here, there []*Point) {
	twins := make(map[Origin]*Point, len(there))
	for _, p := range there {
		twins[c.dst.origin(p)] = p
	}
	vms := make(map[string]*copyVM)
	for _, p := range byTime(c.opts.Points) {
		if twin := twins[c.src.origin(p)]; twin != nil {
			c.report.Skipped = append(c.report.Skipped, Copied{p.ID, twin})
			continue
		}
		vm := vms[vmKey(p)]
		if vm == nil {
			vm = &copyVM{twins: make(map[Origin]*Point)}
			vms[vmKey(p)] = vm
			c.vms = append(c.vms, vm)
		}
		vm.wanted = append(vm.wanted, p)
		c.prog.AllPoints++
		c.prog.Total += estimate(p, len(vm.wanted) == 1)
	}
	for _, p := range byTime(here) {
		if vm := vms[vmKey(p)]; vm != nil {
			vm.source = append(vm.source, p)
			if twin := twins[c.src.origin(p)]; twin != nil {
				vm.twins[c.src.origin(p)] = twin
			}
		}
	}
}

func byTime(points []*Point) []*Point {
	points = slices.Clone(points)
	slices.SortStableFunc(points, func(a, b *Point) int {
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.ID, b.ID))
	})
	return slices.CompactFunc(points, func(a, b *Point) bool { return a.ID == b.ID })
}

// estimate is about how much of a point will have to be read.
func estimate(p *Point, first bool) (n int64) {
	if !first {
		return p.NewBytes
	}
	for _, d := range p.Disks {
		n += d.Used
	}
	return n
}

// run copies. The ingest outlives ctx, so that what was stored when ctx ended
// can be kept.
func (c *copying) run(ctx context.Context) (err error) {
	in, err := c.dst.NewIngest(context.WithoutCancel(ctx), IngestOptions{Workers: c.opts.Workers, Readers: copyReaders, Tool: c.opts.Tool})
	if err != nil {
		return fmt.Errorf("the destination: %w", err)
	}
	c.in = in
	defer func() {
		if cerr := in.Close(); err == nil {
			err = cerr
		}
	}()
	whole, cancel := context.WithCancelCause(ctx)
	var keeper sync.WaitGroup
	keeper.Go(func() { c.keepNowAndThen(whole) })
	defer keeper.Wait()
	defer cancel(nil)
	group, each := errgroup.WithContext(whole)
	group.SetLimit(c.opts.Parallel)
	for _, vm := range c.vms {
		group.Go(func() error { return c.copyVM(each, vm) })
	}
	return group.Wait()
}

// keepNowAndThen bounds what an interruption costs.
func (c *copying) keepNowAndThen(ctx context.Context) {
	tick := time.NewTicker(c.opts.KeepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := c.in.keepStored(); err != nil && ctx.Err() == nil {
			c.dst.log.Warn("could not secure what was copied so far", "error", err)
		}
	}
}

// keepStored makes what the ingest has written so far stay, and known to the
// dedupe index, whether or not a point will ever need it; a prune frees what
// none does.
func (in *Ingest) keepStored() error {
	in.app.mu.Lock()
	defer in.app.mu.Unlock()
	if len(in.app.written) == 0 {
		return nil
	}
	return in.checkpoint(in.ctx)
}

func (r *CopyReport) sort() {
	order := func(a, b Copied) int { return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.From, b.From)) }
	slices.SortFunc(r.Copied, order)
	slices.SortFunc(r.Failed, func(a, b CopyFailure) int {
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.From, b.From))
	})
}

// advance adds to the progress. done and total may be negative, where an
// estimate is put right.
func (c *copying) advance(points int, p CopyProgress) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.prog.Points += points
	c.prog.Done += p.Done
	c.prog.Total += p.Total
	c.prog.New += p.New
	c.prog.Stored += p.Stored
	c.tellLocked(false)
}

func (c *copying) tell(last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tellLocked(last)
}

func (c *copying) tellLocked(last bool) {
	if c.opts.Progress == nil || !last && time.Since(c.told) < progressEvery {
		return
	}
	c.told = time.Now()
	c.opts.Progress(c.prog)
}
