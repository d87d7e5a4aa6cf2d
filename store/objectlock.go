package store

import (
	"context"
	"errors"

	"lifeboat/store/backend"
)

// ObjectLock says why the storage itself does not keep immutable points from
// being removed; nil means that it does (S3 object lock).
func (r *Repository) ObjectLock(ctx context.Context) error {
	l, ok := r.backend.(backend.Locker)
	if !ok {
		return errors.New("this storage cannot lock objects")
	}
	return l.LockSupport(ctx)
}
