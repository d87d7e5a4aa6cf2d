package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"

	"lifeboat/store/backend"
	"lifeboat/store/internal/dedupe"
	"lifeboat/store/internal/segment"
)

// RebuildOptions says how to rebuild. The zero value is good.
type RebuildOptions struct {
	// Progress, if not nil, hears of the segments read, from one goroutine.
	Progress func(done, total int64)
}

// RebuildReport is what a rebuild found and made.
type RebuildReport struct {
	Points        int      `json:"points"`         // that can be read
	DamagedPoints []string `json:"damaged_points"` // IDs; `verify` says more
	Segments      int64    `json:"segments"`
	Blobs         int64    `json:"blobs"` // entries of the new index
	// Claim is the highest claim: segment numbers up to its own were given out.
	Claim uint64 `json:"claim"`
	// ClaimRestored says that the claims were lost, and that this one was made
	// so that no number is given out twice.
	ClaimRestored bool `json:"claim_restored"`
}

// Rebuild makes anew what the repository is missing beside its restore points,
// its segments and one key: the knowledge which segment numbers were given out,
// and the dedupe index. What else there is (the list of the condemned, results
// of verifications, boot traces) comes back by itself. RestoreHeader comes
// before it where the header is lost.
//
// Nothing that is there is removed or replaced but the index, so a rebuild may
// be interrupted and run again. No backup should be running.
func (r *Repository) Rebuild(ctx context.Context, opts RebuildOptions) (*RebuildReport, error) {
	report := &RebuildReport{DamagedPoints: []string{}}
	recs, err := r.pointRecords(ctx, func(id string, err error) {
		r.log.Error("a restore point cannot be read", "point", id, "error", err)
		report.DamagedPoints = append(report.DamagedPoints, id)
	})
	if err != nil {
		return nil, fmt.Errorf("rebuild: %w", err)
	}
	report.Points = len(recs)
	// The claim first: until it is there, a writer could take numbers that are
	// in use.
	if err := r.restoreClaim(ctx, recs, report); err != nil {
		return nil, fmt.Errorf("rebuild the claims: %w", err)
	}
	if err := r.rebuildIndex(ctx, report, opts.Progress); err != nil {
		return nil, fmt.Errorf("rebuild the dedupe index: %w", damaged(err))
	}
	return report, nil
}

// claimsSkipped is how many claims are left out when the highest one is lost:
// those after the last that left a trace may have been given out as well, and
// what they named be remembered somewhere (in a cache, by a suspended process).
const claimsSkipped = 1 << 16

// restoreClaim makes sure that the highest claim is not below any number that
// was ever given out and left a trace: in a segment's name, or in a point.
func (r *Repository) restoreClaim(ctx context.Context, recs []*pointRecord, report *RebuildReport) error {
	claims, err := r.listClaims(ctx)
	if err != nil {
		return err
	}
	var there uint64
	for _, c := range claims {
		there = max(there, c.number)
	}
	used := uint64(0)
	for _, rec := range recs {
		used = max(used, rec.Claim, rec.Through/rangeSize)
	}
	for number, err := range r.segmentNumbers(ctx) {
		if err != nil {
			return err
		}
		report.Segments++
		used = max(used, number/rangeSize)
	}
	if used > maxClaim {
		return fmt.Errorf("%w: a restore point or a segment has a number beyond all claims", ErrDamaged)
	}
	if report.Claim = there; used <= there {
		return nil
	}
	used = min(used+claimsSkipped, maxClaim)
	report.Claim, report.ClaimRestored = used, true
	err = r.putClaim(ctx, claimRecord{Number: used, Kind: claimWriter, Closed: true, LeaseMS: r.lease.Milliseconds()}, backend.Exclusive)
	if errors.Is(err, fs.ErrExist) {
		return nil // a rebuild beside this one made it
	}
	return err
}

// segmentNumbers yields the number of each segment object.
func (r *Repository) segmentNumbers(ctx context.Context) iter.Seq2[uint64, error] {
	return func(yield func(uint64, error) bool) {
		for info, err := range r.backend.List(ctx, "segments/") {
			if err != nil {
				yield(0, fmt.Errorf("list the segments: %w", err))
				return
			}
			if number, _, err := segment.ParseName(info.Name); err == nil && !yield(number, nil) {
				return
			}
		}
	}
}

func (r *Repository) rebuildIndex(ctx context.Context, report *RebuildReport, progress func(done, total int64)) error {
	index, err := dedupe.Open(ctx, r.backend, r.keys, dedupe.Options{Logger: r.log, Now: r.clock})
	if err != nil {
		return err
	}
	defer index.Close()
	var last uint64 // blobs come segment by segment
	var done int64
	counted := func(yield func(dedupe.Entry, error) bool) {
		for e, err := range r.allBlobs(ctx) {
			if err == nil {
				report.Blobs++
			}
			if number := e.Addr.Segment(); err == nil && number != last {
				last, done = number, done+1
				if progress != nil {
					progress(min(done, report.Segments), report.Segments)
				}
			}
			if !yield(e, err) {
				return
			}
		}
	}
	return index.Rebuild(ctx, counted)
}

// ErrClaimsLost: the claims are gone, so that it is not known which segment
// numbers are in use.
var ErrClaimsLost = errors.New("the repository's claims are lost: run `lifeboat rebuild` before anything is written to it")

// claimsLost fails with ErrClaimsLost where there is no claim although something
// was written before. It is asked when the claims are listed and there is none,
// which is so once in the life of a repository.
func (r *Repository) claimsLost(ctx context.Context) error {
	for _, prefix := range []string{pointPrefix, "segments/"} {
		for _, err := range r.backend.List(ctx, prefix) {
			if err != nil {
				return fmt.Errorf("look for what was written before: %w", err)
			}
			return ErrClaimsLost
		}
	}
	return nil
}
