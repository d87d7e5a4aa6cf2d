package s3

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/minio/minio-go/v7"
)

// firstAttempts is how often a server that never answered is tried: a wrong
// name or port is told soon.
const firstAttempts = 3

// pulse ends a request in which nothing moves.
type pulse struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

func newPulse(ctx context.Context, limit time.Duration) *pulse {
	p := &pulse{limit: limit}
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	p.timer = time.AfterFunc(limit, func() { p.cancel(errStalled) })
	return p
}

// beat says that something moved.
func (p *pulse) beat() { p.timer.Reset(p.limit) }

// stop ends the watch.
func (p *pulse) stop() {
	p.timer.Stop()
	p.cancel(nil)
}

// cause is err, or why the request was ended from here.
func (p *pulse) cause(err error) error {
	if err != nil && errors.Is(context.Cause(p.ctx), errStalled) {
		return errStalled
	}
	return err
}

// once tries a request once.
func (b *Bucket) once(ctx context.Context, limit time.Duration, do func(p *pulse) error) error {
	p := newPulse(ctx, limit)
	defer p.stop()
	err := p.cause(do(p))
	if answer := (minio.ErrorResponse{}); err == nil || errors.As(err, &answer) {
		b.reached.Store(true)
	}
	return err
}

// try tries a request until it succeeds, is refused for good, or enough is
// enough. What it returns is explained.
func (b *Bucket) try(ctx context.Context, do func(p *pulse) error) error {
	for n := 1; ; n++ {
		err := b.once(ctx, b.opts.Stall, do)
		if err == nil {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if !b.again(err, n) {
			return b.explain(err)
		}
		if err := b.pause(ctx, n); err != nil {
			return err
		}
	}
}

// again reports whether to try once more after the nth try failed.
func (b *Bucket) again(err error, n int) bool {
	limit := b.opts.Attempts
	if !b.reached.Load() {
		limit = min(limit, firstAttempts)
	}
	return judge(err).retry && n < limit
}

// pause waits before the try after the nth: twice as long each time, and never
// exactly, so that many who were turned away together do not come back so.
func (b *Bucket) pause(ctx context.Context, n int) error {
	d := 80 * b.opts.Pause
	if n < 8 {
		d = min(d, b.opts.Pause<<(n-1))
	}
	timer := time.NewTimer(d/2 + rand.N(d/2))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
