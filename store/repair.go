package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"lifeboat/store/internal/dedupe"
	"lifeboat/store/internal/keyring"
	"lifeboat/store/internal/segment"
)

// How a repair mends what a verification found follows from what the format is:
//
//   - A damaged segment gets a next generation in which everything that can be
//     read is as it was. What cannot be read comes from elsewhere: the same
//     content under another address here, or the same place of the same disk in
//     another repository. What is found nowhere is marked as lost, frame by
//     frame: reading it is an error there and nowhere else. Its identity stays
//     known, so that the next backup does not count on it, stores the content
//     again if it turns up, and Heal can put it back for the old points.
//   - A restore point that cannot be read is made anew from its copy, with the
//     same ID.
//   - Index, header, and what only saves time are made anew, or removed.
//
// Why a crash makes nothing worse, wherever it happens: a new object is written
// whole, read back and verified before the damaged one is removed. Until then
// readers use the damaged one, as before; after it they find the new one, and so
// they do between. Blocks that a rebuilt node of a map leads to are kept by a
// claim before the node appears.
//
// Who may be at work at the same time: everybody but prunes, which a claim of
// their kind keeps away. Nothing that anybody can read is dropped: of what no
// point needs, a writer may have taken an address a moment ago. Segments that
// belong to a writer alone are left to it.

// RepairOptions says where a repair finds what is lost. The zero value is good.
type RepairOptions struct {
	// From is another repository with copies of the points (Repository.Copy made
	// them, or this one was made from it). Without it, content is looked for in
	// this repository only.
	From *Repository
	// Progress, if not nil, hears how many segments are done, from one goroutine.
	Progress func(done, total int)
}

// RepairReport is what a repair did.
type RepairReport struct {
	// Segments is how many were written anew.
	Segments int `json:"segments"`
	// Restored is the blocks and map nodes whose content was found again.
	Restored int `json:"restored"`
	// Lost is those that are marked as lost, now or before.
	Lost int `json:"lost"`
	// Points lists the restore points that were made anew, LostPoints those that
	// could not be: forgetting them is all that is left.
	Points     []string `json:"points,omitempty"`
	LostPoints []string `json:"lost_points,omitempty"`
	// Renewed names other objects that were made anew or removed because they can
	// be done without.
	Renewed []string `json:"renewed,omitempty"`
	// Left says what could not be mended, and what to do about it.
	Left []string `json:"left,omitempty"`
}

// Repair mends the damage in the report of a Verify of this repository. ErrBusy:
// a prune is running. What it could not mend is in its report, and no error;
// verify again to see what is left (VerifyOptions.After).
func (r *Repository) Repair(ctx context.Context, report *Report, opts RepairOptions) (*RepairReport, error) {
	if report.found == nil || report.found.r.id != r.id {
		return nil, errors.New("repair: the report is not of a verification of this repository")
	}
	p := &repairer{r: r, opts: opts, report: &RepairReport{}}
	if report.OK() {
		return p.report, nil
	}
	err := p.exclusively(ctx, opts.From != nil, func(ctx context.Context) error { return p.all(ctx, report) })
	if err == nil && len(p.retry) > 0 {
		// Anew, so that what is lost now is not taken for present.
		err = p.exclusively(ctx, true, p.second)
	}
	if err != nil {
		return p.report, fmt.Errorf("repair: %w", err)
	}
	return p.report, nil
}

// repairer is a repair under way.
type repairer struct {
	r      *Repository
	opts   RepairOptions
	report *RepairReport

	in     *Ingest // writes what rebuilt nodes and points need; nil without a source
	source *repairSource
	index  *dedupe.Index
	unkept func(number uint64) bool
	lost   map[uint64][]int // slots that are marked, as they will be kept
	retry  []string         // points that ran into segments not mended yet
}

// exclusively runs fn beside everybody but prunes.
func (p *repairer) exclusively(ctx context.Context, writes bool, fn func(context.Context) error) (err error) {
	if writes {
		if p.in, err = p.r.NewIngest(ctx, IngestOptions{}); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.in.Close()) }()
	}
	ctx, done, err := p.r.keepPrunesAway(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	if p.unkept, err = p.r.unkept(ctx); err != nil {
		return err
	}
	if p.index, err = dedupe.Open(ctx, p.r.backend, p.r.keys, dedupe.Options{Logger: p.r.log, Now: p.r.clock}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.index.Close()) }()
	if p.lost, err = p.r.lostSlots(ctx); err != nil {
		return err
	}
	return fn(ctx)
}

// keepPrunesAway takes the claim that prunes take of each other. It holds until
// done, or until the returned context ends.
func (r *Repository) keepPrunesAway(ctx context.Context) (_ context.Context, done func() error, err error) {
	c, err := r.takeClaim(ctx, claimPrune)
	if err != nil {
		return nil, nil, err
	}
	// A prune whose lease ran out may only be asleep: sweeping it sees to it that
	// it goes no further when it wakes up.
	err = r.sweep(ctx, c.rec.Number)
	var live []claimRecord
	if err == nil {
		live, err = r.liveClaims(ctx, c.rec.Number, claimPrune)
	}
	if err == nil && len(live) > 0 {
		err = fmt.Errorf("%w: a prune or a repair is running on %s; try again when it has finished", ErrBusy, live[0].Owner.Host)
	}
	if err != nil {
		return nil, nil, errors.Join(err, c.close(context.WithoutCancel(ctx)))
	}
	inner, cancel := context.WithCancelCause(ctx)
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		c.renew(inner, cancel)
	}()
	return inner, func() error {
		cancel(nil)
		<-renewed
		after := context.WithoutCancel(ctx)
		return errors.Join(c.lost(after), c.close(after))
	}, nil
}

// all repairs everything in a report. Points come first, since they say what
// else is needed.
func (p *repairer) all(ctx context.Context, report *Report) error {
	var err error
	if p.opts.From != nil {
		if p.source, err = newRepairSource(ctx, p.r, p.opts.From); err != nil {
			return err
		}
		defer p.source.close()
	}
	for _, d := range report.Damages {
		if id, ok := strings.CutPrefix(d.Object, pointPrefix); ok && validID(id) {
			if err := p.point(ctx, id, true); err != nil {
				return fmt.Errorf("restore point %s: %w", id, err)
			}
		}
	}
	if err := p.small(ctx, report); err != nil {
		return err
	}
	if err := p.segments(ctx, report.found.bad); err != nil {
		return err
	}
	if err := p.r.putLostSlots(ctx, p.lost); err != nil {
		return err
	}
	return p.renewIndex(ctx, report)
}

// second makes those points anew that needed what was damaged before, and what
// they need besides.
func (p *repairer) second(ctx context.Context) (err error) {
	if p.source, err = newRepairSource(ctx, p.r, p.opts.From); err != nil {
		return err
	}
	defer p.source.close()
	for _, id := range p.retry {
		if err := p.point(ctx, id, false); err != nil {
			return fmt.Errorf("restore point %s: %w", id, err)
		}
	}
	marked := make(map[uint64]*badSegment, len(p.lost))
	for number := range p.lost {
		marked[number] = &badSegment{marked: true}
	}
	p.report.Lost = 0 // counted again
	if err := p.segments(ctx, marked); err != nil {
		return err
	}
	return p.r.putLostSlots(ctx, p.lost)
}

// small mends what is not a point, a segment or the index.
func (p *repairer) small(ctx context.Context, report *Report) error {
	header := false
	for _, d := range report.Damages {
		var err error
		switch {
		case d.Object == keyring.HeaderName && !header:
			header = true
			err = p.r.ring.WriteHeader(ctx, p.r.backend)
			p.report.Renewed = append(p.report.Renewed, d.Object)
		case strings.HasPrefix(d.Object, keyring.KeyPrefix):
			p.left(d.Object, "add its password again with `lifeboat key add`, and remove it")
		case dispensable(d.Object):
			err = p.r.backend.Remove(ctx, d.Object)
			p.report.Renewed = append(p.report.Renewed, d.Object)
		case isEnvelope(d.Object):
			p.left(d.Object, "set anew what it said")
		case strings.HasPrefix(d.Object, claimPrefix):
			p.left(d.Object, "a living writer mends it; a later backup removes it after a day")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", d.Object, err)
		}
	}
	return nil
}

func (p *repairer) left(object, advice string) {
	line := object + ": " + advice
	if !slices.Contains(p.report.Left, line) {
		p.report.Left = append(p.report.Left, line)
	}
}

// dispensable reports whether an object only saves time or keeps a record of
// what was, so that one that is damaged may go.
func dispensable(name string) bool {
	return name == condemnedName || name == lostName || strings.HasPrefix(name, verifiedPrefix) || strings.HasPrefix(name, "traces/")
}

// renewIndex makes the index anew if it is damaged. It comes last: the damaged
// one knows of identities that no segment tells any more.
func (p *repairer) renewIndex(ctx context.Context, report *Report) error {
	for _, d := range report.Damages {
		if strings.HasPrefix(d.Object, indexPrefix) {
			p.report.Renewed = append(p.report.Renewed, indexPrefix)
			return p.r.RebuildIndex(ctx)
		}
	}
	return nil
}

// point makes a point anew from its copy, with the same ID. Where damage is in
// the way it can be tried again later.
func (p *repairer) point(ctx context.Context, id string, again bool) error {
	if _, err := p.r.readPoint(ctx, id); !errors.Is(err, ErrDamaged) {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrVersion) {
			return nil
		}
		return err
	}
	var copied *Point
	if p.source != nil {
		copied = p.source.copyOf(id)
	}
	if copied == nil {
		p.report.LostPoints = append(p.report.LostPoints, id)
		return nil
	}
	err := p.source.restorePoint(ctx, p.in, copied, id)
	switch {
	case err == nil:
		p.r.points.drop(id)
		p.report.Points = append(p.report.Points, id)
	case errors.Is(damaged(err), ErrDamaged) && again:
		p.retry = append(p.retry, id)
	case errors.Is(damaged(err), ErrDamaged):
		p.r.log.Error("could not make a restore point anew from its copy", "point", id, "error", err)
		p.report.LostPoints = append(p.report.LostPoints, id)
	default:
		return err
	}
	return nil
}

// lostAddrs is the marked slots as a set, nil where there are none.
func lostAddrs(lost map[uint64][]int) *addrSet {
	if len(lost) == 0 {
		return nil
	}
	set := newAddrSet()
	for number, slots := range lost {
		for _, slot := range slots {
			set.add(segment.MakeAddr(number, slot))
		}
	}
	return set
}
