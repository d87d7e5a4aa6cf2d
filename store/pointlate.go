package store

import (
	"context"
	"fmt"
	"maps"
)

// What the maker of a point learns only while its disks are added.

// SetLabel adds a label to the point, or replaces it: what the maker learned
// while its disks were added. It fails after Commit and Abort.
func (w *PointWriter) SetLabel(name, value string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return fmt.Errorf("label a point: it is %w", ErrClosed)
	}
	labels := maps.Clone(w.rec.Labels) // the caller's
	if labels == nil {
		labels = map[string]string{}
	}
	labels[name] = value
	w.rec.Labels = labels
	return nil
}

// AddConfig keeps further files with the point, as PointSpec.Config does; call it
// between Begin and Commit, and not from two goroutines at once. After an error
// the point can only be aborted.
func (w *PointWriter) AddConfig(ctx context.Context, files map[string][]byte) error {
	w.mu.Lock()
	ended, have := w.ended, len(w.rec.Config)
	w.mu.Unlock()
	if ended {
		return fmt.Errorf("add configuration files: the point is %w", ErrClosed)
	}
	if err := (PointSpec{VM: w.rec.VM, VMID: w.rec.VMID, Config: files}).check(); err != nil {
		return err
	}
	if have+len(files) > maxConfigFiles {
		return fmt.Errorf("add configuration files: %d are more than fit", have+len(files))
	}
	for _, c := range w.rec.Config {
		if _, twice := files[c.Name]; twice {
			return fmt.Errorf("add configuration files: there is a %q already", c.Name)
		}
	}
	ctx, stop := w.in.bind(ctx)
	defer stop()
	return w.addConfig(ctx, files)
}
