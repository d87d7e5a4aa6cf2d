package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"lifeboat/store/backend"
	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/segment"
)

// VerifyLevel is how thorough a verification is.
type VerifyLevel string

const (
	// VerifyAll reads every byte.
	VerifyAll VerifyLevel = "all"
	// VerifySample checks the structure and reads a part of the blocks, another
	// one each time, so that 1/part verifications have read all.
	VerifySample VerifyLevel = "sample"
	// VerifyStructure checks that everything is there and leads where it should:
	// points, block maps, the tables and trailers of segments. Blocks are not
	// read: seconds per terabyte.
	VerifyStructure VerifyLevel = "structure"
)

// rank orders levels by what they prove.
func (l VerifyLevel) rank() int {
	switch l {
	case VerifyAll:
		return 2
	case VerifySample:
		return 1
	}
	return 0
}

// VerifyOptions says what to verify, and how. The zero value is every byte of
// everything.
type VerifyOptions struct {
	// Points limits the check to what these points need: their objects, block
	// maps and blocks. None means every object.
	Points []*Point
	// Level is how thorough to be; empty means VerifyAll.
	Level VerifyLevel
	// Sample is the part of the blocks that VerifySample reads, in (0, 1].
	Sample float64
	// Keep leaves the result in the repository, where Points finds it, and now
	// and then how far it is, so that Resume can go on. Where that is not
	// possible the log says so.
	Keep bool
	// Resume goes on with the newest verification of the same level and points
	// that was kept and did not end. Without one it begins anew.
	Resume bool
	// After is the report of a verification that a repair followed: what it found
	// good is not read again. The level must be the same.
	After *Report
	// Rate bounds what is read of segments, in bytes a second; 0: no bound.
	Rate int64
	// Workers is how many objects are read at the same time; 0 means one per
	// CPU, at least 4.
	Workers int
	// Progress, if not nil, hears of it now and then, from one goroutine at a
	// time.
	Progress func(VerifyProgress)
}

func (o *VerifyOptions) check() error {
	if o.Level == "" {
		o.Level = VerifyAll
	}
	switch {
	case o.Level == VerifySample && !(o.Sample > 0 && o.Sample <= 1):
		return fmt.Errorf("a sample of %g: it is a part, more than 0 and at most 1", o.Sample)
	case o.Level != VerifyAll && o.Level != VerifySample && o.Level != VerifyStructure:
		return fmt.Errorf("level %q: there are %s, %s and %s", o.Level, VerifyAll, VerifySample, VerifyStructure)
	case o.Rate < 0:
		return fmt.Errorf("a rate of %d bytes a second", o.Rate)
	}
	if o.Workers <= 0 {
		o.Workers = max(4, runtime.GOMAXPROCS(0))
	}
	return nil
}

// VerifyProgress is how far a verification has come.
type VerifyProgress struct {
	Done, Total int64 // bytes of objects
	Damages     int
}

// Damage is one thing that is wrong.
type Damage struct {
	// Object is the name of the damaged object.
	Object string `json:"object"`
	// Offset is where in the object, in bytes; -1 when it is all of it.
	Offset int64 `json:"offset"`
	// Length is how many bytes are affected, 0 when that is not known.
	Length int64 `json:"length,omitempty"`
	// Problem says what is wrong.
	Problem string `json:"problem"`
	// Hurts lists what of the restore points cannot be read any more because of
	// it; nothing means that no point needs it.
	Hurts []Hurt `json:"hurts,omitempty"`
	// MoreHurts is how many more areas it hurts than are listed.
	MoreHurts int `json:"more_hurts,omitempty"`
	// Lost says that it is known: a repair found the content nowhere and marked
	// the place.
	Lost bool `json:"lost,omitempty"`

	frame int // the frame of a block that it is in, or -1
}

// Hurt is an area of a disk that cannot be read, or a whole point.
type Hurt struct {
	Point  string `json:"point"`          // ID
	Disk   int    `json:"disk"`           // index, -1 for the whole point
	File   string `json:"file,omitempty"` // configuration file
	Offset int64  `json:"offset"`         // bytes
	Length int64  `json:"length"`         // bytes
}

// Report is the outcome of a verification.
type Report struct {
	Level  VerifyLevel `json:"level"`
	Sample float64     `json:"sample,omitempty"` // the part that was read
	// Resumed is when the verification began that this one went on with.
	Resumed *time.Time `json:"resumed,omitempty"`
	Objects int64      `json:"objects"`
	// Bytes is the size of what was checked; with VerifyStructure and
	// VerifySample not all of them were read.
	Bytes   int64    `json:"bytes"`
	Points  int      `json:"points"`
	Damages []Damage `json:"damages"`
	// MoreDamages is how many more there are than are listed.
	MoreDamages int `json:"more_damages,omitempty"`
	// Unexpected names objects that do not belong to a repository. They do no
	// harm.
	Unexpected []string `json:"unexpected,omitempty"`
	// Leftovers names what writers left that did not finish; the next backup
	// removes it.
	Leftovers []string `json:"leftovers,omitempty"`

	found *verification // what a repair needs to know
}

// OK reports whether nothing is damaged.
func (r *Report) OK() bool { return len(r.Damages) == 0 }

// Verify reads and checks. Without points, it is all objects: header, keys,
// claims, points, dedupe index, segments and what else there is, and then
// whether every point's block maps lead to blocks that are there. With points,
// it is all that reading them needs. Damage is in the report; the error is for
// what kept it from looking.
//
// It reads the storage itself: what is in memory or in a cache on a local disk
// proves nothing.
func (r *Repository) Verify(ctx context.Context, opts VerifyOptions) (*Report, error) {
	if err := opts.check(); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	v := &verification{
		r: r, opts: opts, bad: make(map[uint64]*badSegment), done: make(map[uint64]struct{}), hurtPoints: make(map[string]struct{}),
		report: &Report{Damages: []Damage{}, Level: opts.Level, Sample: opts.Sample},
		pace:   pace{rate: opts.Rate},
	}
	v.report.found = v
	v.segments = segment.NewReader(r.backend, r.keys, segment.ReaderOptions{Logger: r.log, TableBytes: 64 << 20})
	defer v.segments.Close()
	v.maps = blockmap.NewReader(v.segments, blockmap.ReaderOptions{})
	release, err := v.hold(ctx)
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	defer release()
	if err = v.begin(ctx); err == nil {
		err = v.run(ctx)
		v.end(ctx, err)
	}
	if err != nil {
		return v.report, fmt.Errorf("verify: %w", err)
	}
	return v.report, nil
}

// verification is a verification under way.
type verification struct {
	r        *Repository
	opts     VerifyOptions
	segments *segment.Reader // of the storage, without caches
	maps     *blockmap.Reader
	pace     pace
	rec      verifyRecord   // as it is kept; see verified.go
	resumed  *verifyRecord  // the run that this one goes on with, or nil
	wanted   []backend.Info // segments to check

	mu     sync.Mutex // guards what follows, while several goroutines read
	report *Report
	bad    map[uint64]*badSegment
	done   map[uint64]struct{} // segments that this run found good, by number
	// hurtPoints is the IDs of all points that are hurt, listed or not.
	hurtPoints map[string]struct{}
	read       int64
	total      int64
	told       time.Time
	saved      time.Time
}

// hold keeps prunes from removing meanwhile what is looked at. That it can't be
// had is no reason not to look.
func (v *verification) hold(ctx context.Context) (release func(), err error) {
	const tries = 5
	for try := 1; ; try++ {
		points := v.opts.Points
		if len(points) == 0 {
			if points, err = v.r.Points(ctx); err != nil {
				return nil, err
			}
		}
		release, err := v.r.HoldToRead(ctx, points[:min(len(points), maxHoldPoints)], "verify")
		switch {
		case err == nil:
			return release, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, ErrNotFound) && len(v.opts.Points) > 0:
			return nil, err
		case errors.Is(err, ErrNotFound) && try < tries:
			continue // forgotten since it was listed
		}
		v.r.log.Warn("verify without a hold: do not forget restore points and prune meanwhile", "error", err)
		return func() {}, nil
	}
}

// run looks at the objects first and at what they mean to points then, so that
// the second can say whom the damage of the first hurts.
func (v *verification) run(ctx context.Context) error {
	recs, err := v.objects(ctx)
	if err != nil {
		return err
	}
	v.report.Points = len(recs)
	for _, rec := range recs {
		v.rec.Points = append(v.rec.Points, rec.ID)
	}
	if err := v.structure(ctx, recs); err != nil {
		return err
	}
	v.sort()
	v.progress(0, true)
	return nil
}

// objects checks the objects, and returns the points that can be read.
func (v *verification) objects(ctx context.Context) ([]*pointRecord, error) {
	if len(v.opts.Points) == 0 {
		list, err := v.list(ctx)
		if err != nil {
			return nil, err
		}
		recs, err := v.small(ctx, list)
		if err != nil {
			return nil, err
		}
		return recs, v.allSegments(ctx, list.segments)
	}
	var recs []*pointRecord
	for _, p := range v.opts.Points {
		rec, err := v.r.pointRecord(ctx, p.ID)
		if err != nil && !errors.Is(err, ErrDamaged) {
			return nil, err
		}
		v.count(pointName(p.ID), 0)
		if err != nil {
			v.whole(pointName(p.ID), err, &Hurt{Point: p.ID, Disk: -1})
			continue
		}
		recs = append(recs, rec)
	}
	return recs, v.neededSegments(ctx, recs)
}

// badSegment is what of a segment can't be read: indices into the damages.
type badSegment struct {
	marked bool  // none is more than frames that a repair marked as lost
	all    []int // it cannot be opened
	pages  map[int][]int
	slots  map[int][]int
	// identities are the pages of the identity table that are damaged. They keep
	// nobody from reading: frames are authenticated by themselves.
	identities map[int]bool
	// object is the damages of the object as a whole. Whether they keep anybody
	// from reading shows when it is opened.
	object []int
}

// segmentPage is the number of slots that a page of a segment's tables covers.
const segmentPage = 256

// of returns the damages that keep addr from being read.
func (b *badSegment) of(addr segment.Addr) []int {
	if b == nil {
		return nil
	}
	return slices.Concat(b.all, b.pages[addr.Slot()/segmentPage], b.slots[addr.Slot()])
}

// damaged records damage in a segment.
func (v *verification) damaged(number uint64, d *segment.DamageError) {
	v.mu.Lock()
	defer v.mu.Unlock()
	index := v.add(Damage{Object: d.Object, Offset: d.Offset, Length: d.Length, Problem: d.Error(), Lost: errors.Is(d, segment.ErrLost), frame: d.Frame})
	b := v.bad[number]
	if b == nil {
		b = &badSegment{marked: true, pages: make(map[int][]int), slots: make(map[int][]int), identities: make(map[int]bool)}
		v.bad[number] = b
	}
	b.marked = b.marked && errors.Is(d, segment.ErrLost)
	switch {
	case d.Part == segment.PartIdentityTable:
		b.identities[d.Page] = true
	case d.Part == segment.PartLocationTable:
		b.pages[d.Page] = append(b.pages[d.Page], index)
	case d.Part == segment.PartObject:
		b.object = append(b.object, index)
	case d.Addr != 0:
		b.slots[d.Addr.Slot()] = append(b.slots[d.Addr.Slot()], index)
	}
}

// whole records that an object as a whole is damaged.
func (v *verification) whole(object string, err error, hurt *Hurt) {
	v.mu.Lock()
	defer v.mu.Unlock()
	d := Damage{Object: object, Offset: -1, Problem: err.Error(), frame: -1}
	if hurt != nil {
		v.hurtPoints[hurt.Point] = struct{}{}
		d.Hurts = []Hurt{*hurt}
	}
	v.add(d)
}

// maxDamages is how many damages a report lists.
const maxDamages = 10_000

// unlisted stands for the index of a damage that found no room in the report.
const unlisted = -1

// add lists a damage and returns its index. v.mu is held.
func (v *verification) add(d Damage) int {
	if len(v.report.Damages) >= maxDamages {
		v.report.MoreDamages++
		return unlisted
	}
	v.report.Damages = append(v.report.Damages, d)
	return len(v.report.Damages) - 1
}

func (v *verification) count(object string, size int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Objects++
	v.report.Bytes += size
}

func (v *verification) progress(n int64, last bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.read += n
	if v.opts.Progress == nil || !last && time.Since(v.told) < progressEvery {
		return
	}
	v.told = time.Now()
	if last {
		v.read = v.total
	}
	v.opts.Progress(VerifyProgress{Done: v.read, Total: v.total, Damages: len(v.report.Damages) + v.report.MoreDamages})
}

// pace keeps reading below a rate.
type pace struct {
	rate int64 // bytes a second, 0: any

	mu   sync.Mutex
	next time.Time // when the next byte may be read
}

// wait waits until n bytes may be read.
func (p *pace) wait(ctx context.Context, n int64) error {
	if p.rate <= 0 {
		return nil
	}
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	due := p.next
	p.next = due.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	p.mu.Unlock()
	timer := time.NewTimer(due.Sub(now))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// sort puts the report into the order of the objects. What was lost and is
// needed by nobody any more is no damage.
func (v *verification) sort() {
	v.report.Damages = slices.DeleteFunc(v.report.Damages, func(d Damage) bool { return d.Lost && len(d.Hurts) == 0 })
	slices.SortStableFunc(v.report.Damages, func(a, b Damage) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Offset, b.Offset))
	})
	slices.Sort(v.report.Unexpected)
	slices.Sort(v.report.Leftovers)
}
