package s3

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/minio/minio-go/v7"

	"lifeboat/store/backend"
)

// listPage is how many objects a request lists: what S3 allows.
const listPage = 1000

// List implements [backend.Backend]. Keys that no object can be named like are
// not listed.
func (b *Bucket) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		err := backend.CheckPrefix(prefix)
		if err == nil {
			err = b.list(ctx, prefix, func(info backend.Info) bool { return yield(info, nil) })
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield(backend.Info{}, fmt.Errorf("list %q: %w", prefix, err))
		}
	}
}

var errStopped = errors.New("the consumer has stopped")

// list lists page by page. A page begins after the key that came last, so that
// it can be asked for again, and keys must ascend, so that it ends.
func (b *Bucket) list(ctx context.Context, prefix string, yield func(backend.Info) bool) error {
	after := ""
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var page []minio.ObjectInfo
		err := b.try(ctx, func(p *pulse) (err error) {
			page, err = b.listPage(p, b.key(prefix), after)
			return err
		})
		if err != nil {
			return err
		}
		for _, o := range page {
			after = o.Key
			name, below := strings.CutPrefix(o.Key, b.loc.prefix)
			if !below || !strings.HasPrefix(name, prefix) || o.Size < 0 || backend.CheckName(name) != nil {
				continue
			}
			if !yield(backend.Info{Name: name, Size: o.Size, Modified: o.LastModified}) {
				return errStopped
			}
		}
		if len(page) < listPage {
			return nil
		}
	}
}

// listPage lists the first objects after a key; fewer than listPage of them
// mean that there are no more.
func (b *Bucket) listPage(p *pulse, prefix, after string) ([]minio.ObjectInfo, error) {
	noOwner := false
	opts := minio.ListObjectsOptions{Prefix: prefix, Recursive: true, StartAfter: after, MaxKeys: listPage, FetchOwner: &noOwner}
	var page []minio.ObjectInfo
	last := after
	for o := range b.core.ListObjectsIter(p.ctx, b.loc.bucket, opts) {
		if o.Err != nil {
			return nil, o.Err
		}
		if o.Key <= last {
			return nil, answered("a listing is not in ascending order: %.200q after %.200q", o.Key, last)
		}
		p.beat()
		last = o.Key
		if page = append(page, o); len(page) == listPage {
			break
		}
	}
	if err := p.ctx.Err(); err != nil { // the iterator ends without a word
		return nil, err
	}
	return page, nil
}

// keysBelow lists keys, for what is no object.
func (b *Bucket) keysBelow(ctx context.Context, prefix string) ([]minio.ObjectInfo, error) {
	var page []minio.ObjectInfo
	err := b.try(ctx, func(p *pulse) (err error) {
		page, err = b.listPage(p, prefix, "")
		return err
	})
	return page, err
}
