package store

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
)

// HoldToRead holds points while they are read, as [Repository.Hold] does; where
// the repository cannot be written, they are read all the same, and a line is
// logged. release ends the hold.
func (r *Repository) HoldToRead(ctx context.Context, points []*Point, purpose string) (release func(), err error) {
	hold, err := r.Hold(ctx, points, HoldOptions{Purpose: purpose})
	switch {
	case err == nil:
		return func() {
			if err := hold.Close(); err != nil {
				r.log.Warn("could not end a hold on restore points; it runs out by itself", "purpose", purpose, "error", err)
			}
		}, nil
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		r.log.Info("read without a hold, because the repository cannot be written: do not forget these points and prune meanwhile",
			"purpose", purpose, "error", err)
		return func() {}, nil
	}
	return nil, err
}
