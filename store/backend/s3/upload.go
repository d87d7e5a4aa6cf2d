package s3

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
)

// maxParts is how many parts S3 allows.
const maxParts = 10_000

// upload is a multipart upload. Its parts are sent by goroutines that end with
// wait or abort.
type upload struct {
	b    *Bucket
	name string
	id   string

	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	n      int // parts handed over; of the writer's goroutine

	mu   sync.Mutex
	done []minio.CompletePart
}

func (b *Bucket) startUpload(ctx context.Context, name string, opts minio.PutObjectOptions) (*upload, error) {
	u := &upload{b: b, name: name}
	err := b.try(ctx, func(p *pulse) (err error) {
		u.id, err = b.core.NewMultipartUpload(p.ctx, b.loc.bucket, b.key(name), opts)
		return err
	})
	if err != nil {
		return nil, err
	}
	u.ctx, u.cancel = context.WithCancelCause(ctx)
	return u, nil
}

// send sends a part as soon as there is room for one more on its way. The
// memory is the upload's from here on. An error may be that of an earlier part.
func (u *upload) send(part []byte) error {
	if u.n++; u.n > maxParts {
		return fmt.Errorf("the object is larger than %d parts of %d bytes", maxParts, u.b.opts.PartSize)
	}
	select {
	case u.b.uploads <- struct{}{}:
	case <-u.ctx.Done():
		return context.Cause(u.ctx)
	}
	number := u.n
	u.wg.Go(func() {
		defer func() { <-u.b.uploads }()
		if err := u.sendOne(number, part); err != nil {
			u.cancel(fmt.Errorf("part %d: %w", number, err))
		}
		u.b.release(part)
	})
	return nil
}

func (u *upload) sendOne(number int, data []byte) error {
	sum := sha256Hex(data)
	var part minio.ObjectPart
	err := u.b.try(u.ctx, func(p *pulse) (err error) {
		body := newBody(p, data)
		defer body.end()
		part, err = u.b.core.PutObjectPart(p.ctx, u.b.loc.bucket, u.b.key(u.name), u.id, number,
			body, int64(len(data)), minio.PutObjectPartOptions{Sha256Hex: sum})
		if err == nil && part.ETag == "" {
			err = answered("a part has no ETag")
		}
		return err
	})
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.done = append(u.done, minio.CompletePart{PartNumber: number, ETag: part.ETag})
	return nil
}

// wait waits until all parts are there.
func (u *upload) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { u.cancel(ctx.Err()) })
	defer stop()
	u.wg.Wait()
	if err := context.Cause(u.ctx); err != nil {
		return err
	}
	slices.SortFunc(u.done, func(a, b minio.CompletePart) int { return cmp.Compare(a.PartNumber, b.PartNumber) })
	return nil
}

// complete joins the parts to the object.
func (u *upload) complete(p *pulse, opts minio.PutObjectOptions) (version string, err error) {
	info, err := u.b.core.CompleteMultipartUpload(p.ctx, u.b.loc.bucket, u.b.key(u.name), u.id, u.done, opts)
	return info.VersionID, err
}

// abortLimit bounds how long an abort takes after Ctrl-C; what it leaves, the
// next sweep removes.
const abortLimit = 10 * time.Second

var errAborted = errors.New("the writer was aborted")

// abort drops the parts.
func (u *upload) abort() {
	u.cancel(errAborted)
	u.wg.Wait()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.ctx), abortLimit)
	defer cancel()
	if err := u.b.abortUpload(ctx, u.b.key(u.name), u.id); err != nil {
		u.b.log.Warn("an unfinished upload is left for the next sweep", "object", u.name, "error", err)
	}
}

// abortUpload drops an upload; one that is not there is dropped already.
func (b *Bucket) abortUpload(ctx context.Context, key, id string) error {
	return b.try(ctx, func(p *pulse) error {
		err := b.core.AbortMultipartUpload(p.ctx, b.loc.bucket, key, id)
		if codeOf(err) == "NoSuchUpload" || codeOf(err) == minio.NoSuchKey {
			return nil
		}
		return err
	})
}

// body is what a request sends. Each read by the transport is a beat. A
// transport may read on after its request has ended, so end makes sure that it
// does not while the memory is used for something else.
type body struct {
	beat *pulse

	mu   sync.Mutex
	rest *bytes.Reader // nil after end
}

var _ io.ReadSeeker = (*body)(nil)

func newBody(p *pulse, data []byte) *body { return &body{beat: p, rest: bytes.NewReader(data)} }

func (b *body) Read(p []byte) (int, error) {
	b.beat.beat()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rest == nil {
		return 0, errAborted
	}
	return b.rest.Read(p)
}

// Seek implements [io.Seeker].
func (b *body) Seek(offset int64, whence int) (int64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rest == nil {
		return 0, errAborted
	}
	return b.rest.Seek(offset, whence)
}

func (b *body) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rest = nil
}

func sha256Hex(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
