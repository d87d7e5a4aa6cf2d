package appliance

import (
	"context"
	"errors"
	"fmt"

	"lifeboat/store"
)

// VerifyRequest says what to verify, how, and what to do about damage.
type VerifyRequest struct {
	// Refs are restore points as a person names them, VMs names or patterns with
	// * and ?. Neither means the whole repository.
	Refs, VMs []string
	// Options but Points, Keep and After.
	Options store.VerifyOptions
	// Repair mends what is damaged. From is where to fetch from what is not here
	// any more; nil: what cannot be found here is marked as lost.
	Repair bool
	From   *store.Repository
	// Repairing, if not nil, hears how many segments are mended.
	Repairing func(done, total int)
}

// VerifyResult is the outcome. Its JSON is the report's, with what the repair
// did.
type VerifyResult struct {
	*store.Report
	// Repair is what was mended; nil where nothing was to be.
	Repair *store.RepairReport `json:"repair,omitempty"`
	// Before is how many places were damaged before the repair.
	Before int `json:"damages_before_repair,omitempty"`
}

// Verify checks a repository, repairs it if asked to, and keeps the result in
// it. Damage that is left is an error that matches ErrDamaged, and comes with
// the result.
func Verify(ctx context.Context, repo *store.Repository, req VerifyRequest) (*VerifyResult, error) {
	opts := req.Options
	opts.Keep = true
	if len(req.Refs) > 0 || len(req.VMs) > 0 {
		var err error
		if opts.Points, err = (CopyRequest{Refs: req.Refs, VMs: req.VMs}).choose(ctx, repo); err != nil {
			return nil, err
		}
	}
	report, err := repo.Verify(ctx, opts)
	if err != nil {
		return nil, resumable(err)
	}
	result := &VerifyResult{Report: report}
	if req.Repair && !report.OK() {
		result.Before = len(report.Damages) + report.MoreDamages
		result.Repair, err = repo.Repair(ctx, report, store.RepairOptions{From: req.From, Progress: req.Repairing})
		if err != nil {
			return result, err
		}
		opts.Resume, opts.After = false, report
		if result.Report, err = repo.Verify(ctx, opts); err != nil {
			return result, fmt.Errorf("after the repair: %w", err)
		}
	}
	if !result.OK() {
		return result, fmt.Errorf("%w: %d places; %s", ErrDamaged, len(result.Damages)+result.MoreDamages, result.remedy(req))
	}
	return result, nil
}

// resumable says how to go on with a verification that was interrupted.
func resumable(err error) error {
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%w; the same command with --resume goes on where it was", err)
	}
	return err
}

// remedy says what to do about damage. The index, the header and claims can be
// made anew; data only from a copy, or by a backup that finds it again.
func (r *VerifyResult) remedy(req VerifyRequest) string {
	hurts, lost := false, true
	for _, d := range r.Damages {
		hurts = hurts || len(d.Hurts) > 0
		lost = lost && d.Lost
	}
	switch {
	case r.Repair != nil && hurts:
		return "what is left was found nowhere and is an I/O error at these places only; the next backup of the VM stores it again, or repair with another --from"
	case lost:
		return "a repair has marked them; the next backup of the VM stores them again if they are still there, or repair with --from a copy"
	case hurts && req.From == nil:
		return "`lifeboat verify --repair --from URL` fetches what is damaged from a copy; without one, `--repair` marks it, and the next backup of the VM stores it again"
	}
	return "no restore point is hurt; `lifeboat verify --repair` makes anew what can be, the next backup mends claims"
}
