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

	"lifeboat/store/internal/segment"
)

// VerifyOptions says what to verify. The zero value is everything.
type VerifyOptions struct {
	// Points limits the check to what these points need: their objects, block
	// maps and blocks. None means every byte of every object.
	Points []*Point
	// Workers is how many objects are read at the same time; 0 means one per
	// CPU.
	Workers int
	// Progress, if not nil, hears of it now and then, from one goroutine at a
	// time.
	Progress func(VerifyProgress)
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
	Objects int64    `json:"objects"`
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
}

// OK reports whether nothing is damaged.
func (r *Report) OK() bool { return len(r.Damages) == 0 }

// Verify reads and checks. Without points, it is every byte of every object:
// header, keys, claims, points, dedupe index and segments, and then whether
// every point's block maps lead to blocks that are there. With points, it is
// all that reading them needs. Damage is in the report; the error is for what
// kept it from looking.
func (r *Repository) Verify(ctx context.Context, opts VerifyOptions) (*Report, error) {
	if opts.Workers <= 0 {
		opts.Workers = runtime.GOMAXPROCS(0)
	}
	v := &verification{r: r, opts: opts, report: &Report{Damages: []Damage{}}, bad: make(map[uint64]*badSegment)}
	if err := v.run(ctx); err != nil {
		return v.report, fmt.Errorf("verify: %w", err)
	}
	return v.report, nil
}

// verification is a verification under way.
type verification struct {
	r    *Repository
	opts VerifyOptions

	mu     sync.Mutex // guards what follows, while several goroutines read
	report *Report
	bad    map[uint64]*badSegment
	done   int64
	total  int64
	told   time.Time
}

// run looks at the objects first and at what they mean to points then, so that
// the second can say whom the damage of the first hurts.
func (v *verification) run(ctx context.Context) error {
	var recs []*pointRecord
	if len(v.opts.Points) == 0 {
		list, err := v.list(ctx)
		if err != nil {
			return err
		}
		if recs, err = v.small(ctx, list); err != nil {
			return err
		}
		if err := v.segments(ctx, list.segments); err != nil {
			return err
		}
	} else {
		for _, p := range v.opts.Points {
			rec, err := v.r.pointRecord(ctx, p.ID)
			if err != nil && !errors.Is(err, ErrDamaged) {
				return err
			}
			v.count(pointName(p.ID), 0)
			if err != nil {
				v.whole(pointName(p.ID), err, &Hurt{Point: p.ID, Disk: -1})
				continue
			}
			recs = append(recs, rec)
		}
		if err := v.blocks(ctx, recs); err != nil {
			return err
		}
	}
	v.report.Points = len(recs)
	if err := v.structure(ctx, recs); err != nil {
		return err
	}
	v.sort()
	v.progress(0, true)
	return nil
}

// badSegment is what of a segment can't be read: indices into the damages.
type badSegment struct {
	all   []int // it cannot be opened
	pages map[int][]int
	slots map[int][]int
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
	index := v.add(Damage{Object: d.Object, Offset: d.Offset, Length: d.Length, Problem: d.Error(), frame: d.Frame})
	b := v.bad[number]
	if b == nil {
		b = &badSegment{pages: make(map[int][]int), slots: make(map[int][]int), identities: make(map[int]bool)}
		v.bad[number] = b
	}
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
	v.done += n
	if v.opts.Progress == nil || !last && time.Since(v.told) < progressEvery {
		return
	}
	v.told = time.Now()
	v.opts.Progress(VerifyProgress{Done: v.done, Total: v.total, Damages: len(v.report.Damages) + v.report.MoreDamages})
}

// sort puts the report into the order of the objects.
func (v *verification) sort() {
	slices.SortStableFunc(v.report.Damages, func(a, b Damage) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Offset, b.Offset))
	})
	slices.Sort(v.report.Unexpected)
	slices.Sort(v.report.Leftovers)
}
