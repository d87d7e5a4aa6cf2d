package s3

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/minio/minio-go/v7"

	"lifeboat/store/backend"
)

// nonceKey is where an object carries its writer's number: user metadata, the
// header X-Amz-Meta-Lifeboat-Write.
const nonceKey = "Lifeboat-Write"

// smallBuffer is how much a writer takes before it gets the memory of a whole
// part, in bytes.
const smallBuffer = 256 << 10

// writer writes one object. What does not fill a part is sent when it is
// committed; what does goes out as parts of a multipart upload.
type writer struct {
	b     *Bucket
	ctx   context.Context // of Create: for parts that are sent before Commit
	name  string
	mode  backend.Mode
	nonce string
	buf   []byte  // not sent yet; at most a part
	up    *upload // nil until a part is full
	spent bool
}

var errSpent = errors.New("the writer has been committed or aborted")

// Create implements [backend.Backend]. It sends nothing.
func (b *Bucket) Create(ctx context.Context, name string, mode backend.Mode) (backend.Writer, error) {
	if err := backend.CheckName(name); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return b.newWriter(ctx, name, mode), nil
}

func (b *Bucket) newWriter(ctx context.Context, name string, mode backend.Mode) *writer {
	var nonce [16]byte
	rand.Read(nonce[:]) // never fails (crypto/rand)
	return &writer{b: b, ctx: ctx, name: name, mode: mode, nonce: hex.EncodeToString(nonce[:])}
}

// Write implements [io.Writer]. It waits while as many parts are on their way
// as may be.
func (w *writer) Write(p []byte) (int, error) {
	if w.spent {
		return 0, fmt.Errorf("write %s: %w", w.name, errSpent)
	}
	n := 0
	for n < len(p) {
		if len(w.buf) == w.b.opts.PartSize {
			if err := w.sendPart(); err != nil {
				return n, fmt.Errorf("write %s: %w", w.name, err)
			}
		}
		m := min(len(p)-n, w.b.opts.PartSize-len(w.buf))
		w.grow(m)
		w.buf = append(w.buf, p[n:n+m]...)
		n += m
	}
	return n, nil
}

// grow makes room for n bytes more: little by little for what is small, a whole
// part for what is not.
func (w *writer) grow(n int) {
	if len(w.buf)+n <= max(cap(w.buf), smallBuffer) || cap(w.buf) >= w.b.opts.PartSize {
		return
	}
	part := (*w.b.parts.Get().(*[]byte))[:0]
	w.buf = append(part, w.buf...)
}

// release gives the memory of a part back.
func (b *Bucket) release(buf []byte) {
	if cap(buf) >= b.opts.PartSize {
		b.parts.Put(&buf)
	}
}

// sendPart hands the buffer to the upload, which it begins if there is none.
func (w *writer) sendPart() error {
	if w.up == nil {
		up, err := w.b.startUpload(w.ctx, w.name, w.options())
		if err != nil {
			return err
		}
		w.up = up
	}
	buf := w.buf
	w.buf = nil
	return w.up.send(buf)
}

// options are what goes with the object.
func (w *writer) options() minio.PutObjectOptions {
	return minio.PutObjectOptions{
		ContentType:  "application/octet-stream",
		UserMetadata: map[string]string{nonceKey: w.nonce},
	}
}

// condition adds If-None-Match where it is wanted and kept.
func (w *writer) condition(opts minio.PutObjectOptions) minio.PutObjectOptions {
	if w.mode == backend.Exclusive && w.b.exclusive.Load() != exclusiveNo {
		opts.SetMatchETagExcept("*")
	}
	return opts
}

// Commit implements [backend.Writer]. An error that matches
// [backend.ErrUncertain] means that the answer was lost, and that it could not
// be found out later whether the object is this writer's.
func (w *writer) Commit(ctx context.Context) error {
	if w.spent {
		return fmt.Errorf("commit %s: %w", w.name, errSpent)
	}
	err := w.publish(ctx)
	if err != nil {
		w.Abort()
		return fmt.Errorf("commit %s: %w", w.name, err)
	}
	w.spent = true
	w.b.release(w.buf)
	w.buf = nil
	if w.up != nil {
		w.up.cancel(nil)
	}
	return nil
}

func (w *writer) publish(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if w.up != nil {
		if len(w.buf) > 0 {
			if err := w.sendPart(); err != nil {
				return err
			}
		}
		if err := w.up.wait(ctx); err != nil {
			return err
		}
	}
	if err := w.checkFree(ctx); err != nil {
		return err
	}
	if w.up != nil {
		// Joining the parts may take a server minutes, in which it says nothing.
		return w.settle(ctx, max(w.b.opts.Stall, 5*time.Minute), func(p *pulse) (string, error) {
			return w.up.complete(p, w.condition(minio.PutObjectOptions{}))
		})
	}
	return w.put(ctx, w.b.opts.Stall)
}

// put sends an object that is not larger than a part.
func (w *writer) put(ctx context.Context, limit time.Duration) error {
	sum := sha256Hex(w.buf)
	return w.settle(ctx, limit, func(p *pulse) (string, error) {
		body := newBody(p, w.buf)
		defer body.end()
		info, err := w.b.core.PutObject(p.ctx, w.b.loc.bucket, w.b.key(w.name), body, int64(len(w.buf)), "", sum, w.condition(w.options()))
		return info.VersionID, err
	})
}

// Abort implements [backend.Writer].
func (w *writer) Abort() {
	if w.spent {
		return
	}
	w.spent = true
	w.b.release(w.buf)
	w.buf = nil
	if w.up != nil {
		w.up.abort()
	}
}
