package appliance

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"lifeboat/store"
)

// CopyRequest says which restore points go to another repository.
type CopyRequest struct {
	// Refs are restore points as a person names them.
	Refs []string
	// VMs are names, or patterns with * and ?, of VMs whose points are copied.
	VMs []string
	// All copies all points of all VMs.
	All bool
	// Latest, if above 0, leaves only so many of the newest points of each VM.
	Latest int

	Parallel int
	Verify   bool
	Tool     string
	Progress func(store.CopyProgress)
}

// CopyPoints copies restore points from one repository to another. What could
// not be copied is in the report, and makes it an error that matches ErrDamaged
// or ErrPartial; everything else was copied even so.
func CopyPoints(ctx context.Context, from, to *store.Repository, req CopyRequest) (*store.CopyReport, error) {
	points, err := req.choose(ctx, from)
	if err != nil {
		return nil, err
	}
	report, err := from.CopyTo(ctx, to, store.CopyOptions{
		Points: points, Parallel: req.Parallel, Verify: req.Verify, Tool: req.Tool, Progress: req.Progress,
	})
	switch {
	case errors.Is(err, store.ErrSameRepository):
		return nil, fmt.Errorf("%w: %w; name another with --to", ErrUsage, err)
	case err != nil:
		return report, fmt.Errorf("%w; what was copied stays, run it again to go on", err)
	case len(report.Failed) > 0:
		return report, failedCopies(report.Failed)
	}
	return report, nil
}

// failedCopies is the error of a copy that left points out.
func failedCopies(failed []store.CopyFailure) error {
	kind := ErrPartial
	for _, f := range failed {
		if errors.Is(f.Err, store.ErrDamaged) {
			kind = ErrDamaged
		}
	}
	return fmt.Errorf("%w: %d restore points were not copied, the first is %s of %s: %w",
		kind, len(failed), failed[0].From, failed[0].VM, failed[0].Err)
}

// choose resolves what the request names.
func (req CopyRequest) choose(ctx context.Context, repo *store.Repository) ([]*store.Point, error) {
	ways := 0
	for _, given := range []bool{len(req.Refs) > 0, len(req.VMs) > 0, req.All} {
		if given {
			ways++
		}
	}
	if ways == 0 && req.Latest > 0 {
		req.All, ways = true, 1
	}
	if ways != 1 {
		return nil, fmt.Errorf("%w: say what to copy: restore points, or --vm NAME, or --all", ErrUsage)
	}
	if len(req.Refs) > 0 {
		return resolveRefs(ctx, repo, req.Refs)
	}
	all, err := repo.Points(ctx)
	if err != nil {
		return nil, err
	}
	points := []*store.Point{}
	for _, p := range all {
		if req.All || slices.ContainsFunc(req.VMs, func(pattern string) bool { return vmMatches(pattern, p) }) {
			points = append(points, p)
		}
	}
	if len(req.VMs) > 0 && len(points) == 0 {
		return nil, fmt.Errorf("VM %q: %w: it has no restore points here", req.VMs[0], ErrNotFound)
	}
	return latestOfEach(points, req.Latest), nil
}

func resolveRefs(ctx context.Context, repo *store.Repository, refs []string) ([]*store.Point, error) {
	var points []*store.Point
	for _, ref := range refs {
		p, err := ResolvePoint(ctx, repo, ref)
		if err != nil {
			return nil, err
		}
		points = append(points, p)
	}
	return points, nil
}

// vmMatches reports whether a name, a pattern or a lasting identity means the
// VM of a point.
func vmMatches(pattern string, p *store.Point) bool {
	if pattern == p.VM || pattern == p.VMID {
		return true
	}
	ok, err := path.Match(pattern, p.VM)
	return ok && err == nil
}

// latestOfEach keeps the n newest points of each VM; n ≤ 0 keeps all. points
// are by time, ascending.
func latestOfEach(points []*store.Point, n int) []*store.Point {
	if n <= 0 {
		return points
	}
	kept := map[[2]string]int{}
	latest := []*store.Point{}
	for _, p := range slices.Backward(points) {
		vm := [2]string{p.VMID, p.VM}
		if p.VMID != "" {
			vm[1] = ""
		}
		if kept[vm]++; kept[vm] <= n {
			latest = append(latest, p)
		}
	}
	return latest
}
