package s3

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"lifeboat/store/backend"
)

var _ backend.Locker = (*Bucket)(nil)

// ErrNoLock: the bucket cannot lock objects.
var ErrNoLock = errors.New("the bucket cannot lock objects")

// LockSupport implements [backend.Locker]: the bucket must have been made with
// object lock.
func (b *Bucket) LockSupport(ctx context.Context) error {
	var enabled string
	err := b.try(ctx, func(p *pulse) (err error) {
		enabled, _, _, _, err = b.core.GetObjectLockConfig(p.ctx, b.loc.bucket)
		if isNoLock(err) {
			enabled, err = "", nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("ask whether %s locks objects: %w", b.loc.bucket, err)
	}
	if enabled != "Enabled" {
		return fmt.Errorf("%w: %s was made without object lock; make a bucket with it (and versioning), and copy the repository there", ErrNoLock, b.loc.bucket)
	}
	return nil
}

// Lock implements [backend.Locker], in compliance mode: nobody, the bucket's
// owner included, can shorten it. S3 counts in seconds; a part of one counts as
// a whole.
func (b *Bucket) Lock(ctx context.Context, name string, until time.Time) error {
	now, err := b.LockedUntil(ctx, name)
	if err != nil {
		return err
	}
	if until = until.UTC().Add(time.Second - 1).Truncate(time.Second); !until.After(now) {
		return nil
	}
	mode := minio.Compliance
	err = b.try(ctx, func(p *pulse) error {
		return b.core.PutObjectRetention(p.ctx, b.loc.bucket, b.key(name), minio.PutObjectRetentionOptions{Mode: &mode, RetainUntilDate: &until})
	})
	if err != nil {
		return fmt.Errorf("lock %s: %w", name, err)
	}
	return nil
}

// LockedUntil implements [backend.Locker]. A lock in governance mode does not
// count: its owner can take it away.
func (b *Bucket) LockedUntil(ctx context.Context, name string) (time.Time, error) {
	if err := backend.CheckName(name); err != nil {
		return time.Time{}, err
	}
	info, err := b.stat(ctx, b.key(name))
	if err != nil {
		return time.Time{}, fmt.Errorf("ask how long %s is locked: %w", name, err)
	}
	// The answer to HEAD says it, to who may know; servers agree on its headers
	// more than on the answer to GetObjectRetention.
	value := info.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date")
	if value == "" || !strings.EqualFold(info.Metadata.Get("X-Amz-Object-Lock-Mode"), string(minio.Compliance)) {
		return time.Time{}, nil
	}
	until, err := time.Parse(time.RFC3339, value)
	if err != nil {
		return time.Time{}, fmt.Errorf("ask how long %s is locked: %w", name, err)
	}
	return until, nil
}

// isNoLock reports the answers of servers about a bucket without object lock,
// an object without retention, and by a server that knows neither.
func isNoLock(err error) bool {
	switch codeOf(err) {
	case "NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "ObjectLockConfigurationNotFound",
		"InvalidBucketObjectLockConfiguration", "InvalidRequest", "NotImplemented", "MethodNotAllowed":
		return true
	}
	return false
}
