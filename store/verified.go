package store

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"lifeboat/store/backend"
)

// Results of verifications are kept as verified/<16 hex>, an object for each
// run. While it goes on it is replaced now and then with how far it is; when it
// has ended it stays until later ones say as much of every point. Losing them
// loses the knowledge of what was verified when, and nothing else.
const (
	verifiedPrefix   = "verified/"
	maxVerifiedBytes = 64 << 20
	// saveEvery is how often a run that goes on is kept.
	saveEvery = 30 * time.Second
	// resumeWithin is for how long a run can be resumed.
	resumeWithin = 30 * 24 * time.Hour
)

// VerifiedInfo is what is known of a point from the verifications that were
// kept: the most thorough recent one, and any later one that found damage.
type VerifiedInfo struct {
	Time  time.Time   `json:"time"` // when it ended
	Level VerifyLevel `json:"level"`
	OK    bool        `json:"ok"`
}

// verifyRecord is a verification as it is kept.
type verifyRecord struct {
	Format   int         `json:"format"`
	ID       string      `json:"id"`
	Level    VerifyLevel `json:"level"`
	Sample   float64     `json:"sample,omitempty"`
	Turn     int         `json:"turn,omitempty"` // which part of the blocks a sample is
	Scope    []string    `json:"scope,omitempty"`
	Started  time.Time   `json:"started"`
	Time     time.Time   `json:"time"` // when it ended, or was kept last
	Complete bool        `json:"complete"`
	Points   []string    `json:"points,omitempty"`
	Hurt     []string    `json:"hurt,omitempty"`
	// Done is the segments that were found good, as ascending pairs of first and
	// last number, while it is not complete.
	Done []uint64 `json:"done,omitempty"`
}

func verifiedName(id string) string { return verifiedPrefix + id }

// decodeVerified reads a record as untrusted input.
func decodeVerified(data []byte, id string) (*verifyRecord, error) {
	rec := new(verifyRecord)
	if err := decodeStrict(data, rec); err != nil {
		return nil, err
	}
	turns := 1
	if rec.Level == VerifySample {
		if !(rec.Sample > 0 && rec.Sample <= 1) {
			return nil, fmt.Errorf("%w: a sample of %g", ErrDamaged, rec.Sample)
		}
		turns = turnsOf(rec.Sample)
	}
	switch {
	case rec.ID != id:
		return nil, fmt.Errorf("%w: it says that it is %.40q", ErrDamaged, rec.ID)
	case rec.Level != VerifyAll && rec.Level != VerifySample && rec.Level != VerifyStructure:
		return nil, fmt.Errorf("%w: level %.40q: use a newer Lifeboat", ErrVersion, rec.Level)
	case rec.Turn < 0 || rec.Turn >= turns:
		return nil, fmt.Errorf("%w: turn %d of %d", ErrDamaged, rec.Turn, turns)
	case len(rec.Done)%2 != 0 || !slices.IsSorted(rec.Done):
		return nil, fmt.Errorf("%w: its list of segments is in disorder", ErrDamaged)
	}
	return rec, nil
}

// has reports whether a segment was found good before. It is asked of the
// record that was read, which does not change.
func (rec *verifyRecord) has(number uint64) bool {
	i, found := slices.BinarySearch(rec.Done, number)
	return found || i%2 == 1
}

// pairs turns a set of numbers, and what was there before, into ascending pairs
// of first and last.
func pairs(set map[uint64]struct{}, before []uint64) []uint64 {
	type span struct{ first, last uint64 }
	spans := make([]span, 0, len(set)+len(before)/2)
	for n := range set {
		spans = append(spans, span{n, n})
	}
	for p := range slices.Chunk(before, 2) {
		spans = append(spans, span{p[0], p[1]})
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	var out []uint64
	for _, s := range spans {
		if k := len(out); k > 0 && s.first <= out[k-1]+1 {
			out[k-1] = max(out[k-1], s.last)
			continue
		}
		out = append(out, s.first, s.last)
	}
	return out
}

// turnsOf is how many samples of that size it takes to have read everything.
func turnsOf(sample float64) int {
	if sample <= 0 {
		return 1
	}
	return int(min(math.Ceil(1/sample), 1<<20))
}

// sampled reports whether this run reads the blocks of a page of a segment's
// tables. Each page has one turn, drawn at random once and for all.
func (v *verification) sampled(number uint64, page int) bool {
	sum := blake3.Sum256(fmt.Appendf(nil, "%s %x %d", v.r.id, number, page))
	return int(binary.LittleEndian.Uint32(sum[:])%uint32(turnsOf(v.opts.Sample))) == v.rec.Turn
}

// begin decides what to go on with, and which part a sample reads.
func (v *verification) begin(ctx context.Context) error {
	now := v.r.clock().UTC().Truncate(time.Second)
	v.rec = verifyRecord{ID: newPointID(), Level: v.opts.Level, Sample: v.opts.Sample, Started: now}
	for _, p := range v.opts.Points {
		v.rec.Scope = append(v.rec.Scope, p.ID)
	}
	slices.Sort(v.rec.Scope)
	v.saved = time.Now()
	if !v.opts.Keep && !v.opts.Resume {
		return nil
	}
	before, err := v.r.verifications(ctx)
	if err != nil {
		return err
	}
	for _, old := range before {
		switch {
		case !old.like(&v.rec):
		case old.Complete:
			v.rec.Turn, v.resumed = (old.Turn+1)%turnsOf(old.Sample), nil
		case v.opts.Resume && now.Sub(old.Started) < resumeWithin:
			v.resumed = old
		}
	}
	if after := v.opts.After; after != nil && after.found != nil {
		v.rec.Turn = after.found.rec.Turn // the same part of a sample
	}
	if v.resumed != nil {
		v.rec = *v.resumed
		v.rec.Points, v.rec.Hurt = nil, nil
		v.report.Resumed = &v.resumed.Started
	}
	return nil
}

// like reports whether two runs check the same.
func (rec *verifyRecord) like(other *verifyRecord) bool {
	return rec.Level == other.Level && rec.Sample == other.Sample && slices.Equal(rec.Scope, other.Scope)
}

// verifications reads the runs that were kept, those that ended first first.
// What is damaged is left out.
func (r *Repository) verifications(ctx context.Context) ([]*verifyRecord, error) {
	var (
		mu  sync.Mutex
		out []*verifyRecord
	)
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(pointReaders)
	for info, err := range r.backend.List(ctx, verifiedPrefix) {
		if err != nil {
			_ = group.Wait()
			return nil, fmt.Errorf("list the verifications: %w", err)
		}
		id := strings.TrimPrefix(info.Name, verifiedPrefix)
		if !validID(id) {
			continue
		}
		group.Go(func() error {
			rec, err := r.getVerified(gctx, id)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case errors.Is(err, ErrDamaged), errors.Is(err, ErrVersion):
				r.log.Warn("left out the result of a verification that cannot be read", "object", info.Name, "error", err)
				return nil
			case err != nil:
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, rec)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b *verifyRecord) int {
		return cmp.Or(a.Time.Compare(b.Time), a.Started.Compare(b.Started), strings.Compare(a.ID, b.ID))
	})
	return out, nil
}

func (r *Repository) getVerified(ctx context.Context, id string) (*verifyRecord, error) {
	data, err := r.getSealed(ctx, verifiedName(id), maxVerifiedBytes)
	if err != nil {
		return nil, err
	}
	rec, err := decodeVerified(data, id)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", verifiedName(id), err)
	}
	return rec, nil
}

// verified is what the runs say of each point, and which run says it. A later
// run counts if it found damage, or is no less thorough.
func verified(runs []*verifyRecord) (map[string]*VerifiedInfo, map[string]*verifyRecord) {
	infos, by := make(map[string]*VerifiedInfo), make(map[string]*verifyRecord)
	for _, run := range runs {
		if !run.Complete {
			continue
		}
		hurt := make(map[string]struct{}, len(run.Hurt))
		for _, id := range run.Hurt {
			hurt[id] = struct{}{}
		}
		for _, id := range run.Points {
			_, bad := hurt[id]
			ok := !bad
			if have := infos[id]; have == nil || !ok || run.Level.rank() >= have.Level.rank() {
				infos[id], by[id] = &VerifiedInfo{Time: run.Time, Level: run.Level, OK: ok}, run
			}
		}
	}
	return infos, by
}

// AddVerified tells points when they were last verified, as Points does by
// itself. Not to know is no reason to fail.
func (r *Repository) AddVerified(ctx context.Context, points ...*Point) {
	runs, err := r.verifications(ctx)
	if err != nil {
		r.log.Warn("when the restore points were verified is not known", "error", err)
		return
	}
	infos, _ := verified(runs)
	for _, p := range points {
		p.Verified = infos[p.ID]
	}
}

// known reports whether a run that this one goes on with, or follows, has found
// a segment good.
func (v *verification) known(number uint64) bool {
	if v.resumed != nil && v.resumed.has(number) {
		return true
	}
	if v.opts.After == nil || v.opts.After.found == nil || v.opts.After.Level != v.opts.Level {
		return false
	}
	before := v.opts.After.found
	_, good := before.done[number]
	return good || before.known(number)
}

// passed notes that a segment is good, and now and then keeps how far it is.
func (v *verification) passed(ctx context.Context, number uint64) {
	v.mu.Lock()
	v.done[number] = struct{}{}
	due := v.opts.Keep && time.Since(v.saved) > saveEvery
	if due {
		v.saved = time.Now()
	}
	v.mu.Unlock()
	if due {
		v.save(ctx)
	}
}

// save keeps how far the run is.
func (v *verification) save(ctx context.Context) {
	v.mu.Lock()
	rec := v.rec
	if rec.Time = v.r.clock().UTC().Truncate(time.Second); !rec.Complete {
		var before []uint64
		if v.resumed != nil {
			before = v.resumed.Done
		}
		rec.Done = pairs(v.done, before)
	}
	v.mu.Unlock()
	rec.Format = recordFormat
	data, err := json.Marshal(rec)
	if err == nil {
		err = v.r.putSealed(ctx, verifiedName(rec.ID), data, backend.Replace)
	}
	if err != nil && ctx.Err() == nil {
		v.r.log.Warn("could not keep the result of the verification in the repository", "error", err)
	}
}

// keepTimeout bounds keeping how far a run is that was interrupted.
const keepTimeout = 30 * time.Second

// end keeps the outcome of the run.
func (v *verification) end(ctx context.Context, err error) {
	if !v.opts.Keep {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTimeout)
	defer cancel()
	if err != nil {
		if len(v.done) > 0 || v.resumed != nil {
			v.rec.Points = nil
			v.save(ctx)
		}
		return
	}
	v.rec.Complete, v.rec.Done = true, nil
	v.rec.Points = append(v.rec.Points, slices.Collect(maps.Keys(v.hurtPoints))...)
	slices.Sort(v.rec.Points)
	v.rec.Points = slices.Compact(v.rec.Points)
	v.rec.Hurt = slices.Sorted(maps.Keys(v.hurtPoints))
	v.save(ctx)
	if err := v.r.dropVerifications(ctx); err != nil {
		v.r.log.Warn("could not remove old results of verifications; the next one does", "error", err)
	}
}

// dropVerifications removes the runs of which nothing is known that later ones
// do not say as well.
func (r *Repository) dropVerifications(ctx context.Context) error {
	runs, err := r.verifications(ctx)
	if err != nil {
		return err
	}
	ids, err := r.pointIDs(ctx)
	if err != nil {
		return err
	}
	_, by := verified(runs)
	useful := make(map[*verifyRecord]bool)
	for _, id := range ids {
		useful[by[id]] = true
	}
	for i, run := range runs {
		later := slices.ContainsFunc(runs[i+1:], func(l *verifyRecord) bool { return l.Complete && l.like(run) })
		old := r.clock().Sub(run.Started) > resumeWithin && !run.Complete
		if useful[run] || !later && !old {
			continue // its sample's turn, or what can be resumed, counts
		}
		if err := r.backend.Remove(ctx, verifiedName(run.ID)); err != nil {
			return err
		}
	}
	return nil
}
