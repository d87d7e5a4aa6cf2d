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

// SetLabel adds a label to the point, or replaces it: what the maker learned
// while its disks were added. It fails after Commit and Abort.
func (w *PointWriter) SetLabel(name, value string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return fmt.Errorf("label a point: it is %w", ErrClosed)
	}
	labels := make(map[string]string, len(w.rec.Labels)+1)
	for k, v := range w.rec.Labels {
		labels[k] = v
	}
	labels[name] = value
	w.rec.Labels = labels
	return nil
}
