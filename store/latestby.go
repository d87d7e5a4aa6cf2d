package store

import (
	"context"
	"fmt"
)

// LatestBy returns the newest restore point of the VM with that lasting
// identity, whatever the VM was called when the point was made, or ErrNotFound.
// Points that were made under no identity are nobody's: a name alone never makes
// one VM another's past.
func (r *Repository) LatestBy(ctx context.Context, vmID string) (*Point, error) {
	points, err := r.Points(ctx)
	if err != nil {
		return nil, err
	}
	for i := len(points) - 1; i >= 0 && vmID != ""; i-- {
		if points[i].VMID == vmID {
			return points[i], nil
		}
	}
	return nil, fmt.Errorf("a restore point of the VM with the ID %q: %w", vmID, ErrNotFound)
}
