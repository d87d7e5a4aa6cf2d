package s3

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/minio/minio-go/v7"

	"lifeboat/store/backend"
)

// What a probe of the bucket's versioning found.
const (
	versionsUnknown = iota
	versionsNo
	versionsKept
)

// maxVersions bounds the versions of one object that are removed in one go.
const maxVersions = 10_000

// maxReplaced bounds what is remembered of versions that were replaced.
const maxReplaced = 4096

// Remove implements [backend.Backend]. In a bucket that keeps versions, a plain
// removal would only hide the object, and its space would never be free again:
// there all versions go, the oldest first, so that none that was replaced comes
// to light again. One that is locked stays, and the error matches
// fs.ErrPermission.
func (b *Bucket) Remove(ctx context.Context, name string) error {
	if err := backend.CheckName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := b.remove(ctx, name); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

func (b *Bucket) remove(ctx context.Context, name string) error {
	kept, err := b.keepsVersions(ctx)
	if err != nil {
		return err
	}
	if !kept {
		return b.removeVersion(ctx, b.key(name), "")
	}
	versions, err := b.versionsOf(ctx, b.key(name))
	if err != nil {
		return err
	}
	for _, v := range versions {
		if err := b.removeVersion(ctx, b.key(name), v); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bucket) removeVersion(ctx context.Context, key, version string) error {
	err := b.try(ctx, func(p *pulse) error {
		return b.core.RemoveObject(p.ctx, b.loc.bucket, key, minio.RemoveObjectOptions{VersionID: version})
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// versionsOf lists an object's versions and markers of removal, oldest first.
func (b *Bucket) versionsOf(ctx context.Context, key string) ([]string, error) {
	var versions []string
	err := b.try(ctx, func(p *pulse) error {
		versions = nil
		opts := minio.ListObjectsOptions{Prefix: key, Recursive: true, WithVersions: true}
		for o := range b.core.ListObjectsIter(p.ctx, b.loc.bucket, opts) {
			switch {
			case o.Err != nil:
				return o.Err
			case o.Key > key || len(versions) == maxVersions:
				return nil
			case o.Key == key:
				versions = append(versions, o.VersionID)
			}
			p.beat()
		}
		return p.ctx.Err()
	})
	slices.Reverse(versions) // they come newest first
	return versions, err
}

// keepsVersions reports whether the bucket keeps what is replaced or removed. A
// server that does not say so, or not to us, is taken not to.
func (b *Bucket) keepsVersions(ctx context.Context) (bool, error) {
	b.mu.Lock()
	known := b.versioned
	b.mu.Unlock()
	if known != versionsUnknown {
		return known == versionsKept, nil
	}
	var conf minio.BucketVersioningConfiguration
	err := b.try(ctx, func(p *pulse) (err error) {
		conf, err = b.core.GetBucketVersioning(p.ctx, b.loc.bucket)
		if err != nil && codeOf(err) != "" && !judge(err).retry && codeOf(err) != minio.NoSuchBucket {
			b.log.Debug("whether the bucket keeps versions is not known", "error", err)
			return nil
		}
		return err
	})
	if err != nil {
		return false, err
	}
	known = versionsNo
	if conf.Enabled() || conf.Suspended() {
		known = versionsKept
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.versioned = known
	return known == versionsKept, nil
}

// noteVersion remembers the version that a Replace wrote, and removes the one
// that this process wrote before it: a claim is replaced every few minutes.
func (b *Bucket) noteVersion(ctx context.Context, name string, mode backend.Mode, version string) {
	if mode != backend.Replace || version == "" || version == "null" {
		return
	}
	b.mu.Lock()
	before := b.replaced[name]
	if len(b.replaced) >= maxReplaced {
		clear(b.replaced) // what is forgotten goes when the object does
	}
	b.replaced[name] = version
	b.mu.Unlock()
	if before == "" || before == version {
		return
	}
	if err := b.removeVersion(ctx, b.key(name), before); err != nil {
		b.log.Debug("a version that was replaced stays", "object", name, "error", err)
	}
}
