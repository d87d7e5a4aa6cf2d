package store

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"lifeboat/store/backend"
	"lifeboat/store/internal/segment"
)

// IngestOptions says how to write. The zero value is good.
type IngestOptions struct {
	// Workers is how many goroutines hash and compress; 0 means one per CPU.
	Workers int
	// Readers is how many reads of one disk are under way at the same time; 0
	// means 4.
	Readers int
	// Tool is the version recorded in the points.
	Tool string

	commits int // full segments on their way to the disk at once; 0 means 2
}

const defaultReaders = 4

// Ingest is one writer's stay in the repository: it holds a claim and the
// dedupe index, and makes any number of points, one after the other or at the
// same time. Its memory is bounded whatever the size of the disks.
type Ingest struct {
	r      *Repository
	opts   IngestOptions
	ctx    context.Context
	cancel context.CancelCauseFunc
	index  *blobIndex
	app    *appender
	pool   *pool
	renew  sync.WaitGroup

	// mu guards what follows and is taken after app.mu where both are held.
	mu     sync.Mutex
	claim  *claim
	active map[*PointWriter]struct{}
	closed bool

	listed backend.Info // the list of the condemned that was read last; under app.mu
}

// NewIngest announces a writer, after sweeping what dead ones left. ctx governs
// everything the ingest does: when it ends, all of it fails, and Close cleans
// up. It starts the goroutines that hash and compress, and one that renews the
// claim; Close ends them.
func (r *Repository) NewIngest(ctx context.Context, opts IngestOptions) (*Ingest, error) {
	if opts.Workers <= 0 {
		opts.Workers = runtime.GOMAXPROCS(0)
	}
	if opts.Readers <= 0 {
		opts.Readers = defaultReaders
	}
	if opts.commits <= 0 {
		opts.commits = segmentCommits
	}
	c, err := r.takeClaim(ctx, claimWriter)
	if err != nil {
		return nil, fmt.Errorf("begin a backup: %w", err)
	}
	giveUp := func(err error) (*Ingest, error) {
		return nil, fmt.Errorf("begin a backup: %w", errors.Join(err, c.close(context.WithoutCancel(ctx))))
	}
	if err := r.sweep(ctx, c.rec.Number); err != nil {
		return giveUp(err)
	}
	index, err := r.openIndex(ctx)
	if err != nil {
		return giveUp(err)
	}
	in := &Ingest{r: r, opts: opts, index: index, claim: c, active: make(map[*PointWriter]struct{})}
	in.ctx, in.cancel = context.WithCancelCause(ctx)
	if err := in.respect(in.ctx); err != nil {
		return giveUp(errors.Join(err, index.close()))
	}
	in.app = newAppender(r, c.record(), opts.commits)
	in.pool = newPool(in)
	in.startRenewal(c)
	return in, nil
}

// startRenewal keeps c alive as long as the ingest lives.
func (in *Ingest) startRenewal(c *claim) {
	in.renew.Go(func() { c.renew(in.ctx, in.cancel) })
}

// Close ends the writer's stay: points in progress are aborted, what they wrote
// is removed and the claim is given up. It does its work also when the ingest's
// context has ended. No method of a PointWriter may be running.
func (in *Ingest) Close() error {
	in.mu.Lock()
	if in.closed {
		in.mu.Unlock()
		return nil
	}
	in.closed = true
	fenced := errors.Is(context.Cause(in.ctx), ErrFenced)
	in.mu.Unlock()

	in.cancel(ErrClosed)
	in.renew.Wait()
	in.pool.close()

	ctx, cancel := context.WithTimeout(context.WithoutCancel(in.ctx), closeTimeout)
	defer cancel()
	in.app.mu.Lock()
	defer in.app.mu.Unlock()
	err := in.app.drop(ctx)
	if !fenced && err == nil {
		err = in.claim.close(ctx)
	}
	err = errors.Join(err, in.index.close())
	if err != nil {
		return fmt.Errorf("end the backup: %w; the next one sweeps what is left", err)
	}
	return nil
}

// closeTimeout bounds the clean-up when the backend does not answer any more.
const closeTimeout = 5 * time.Minute

// store writes a blob that is not in the repository yet, and returns where it
// is and whether it was written. Segments are shared by all points of the
// ingest, so what ctx cancels is only the wish to write.
func (in *Ingest) store(ctx context.Context, l lane, p *segment.Packed) (segment.Addr, bool, error) {
	in.app.mu.Lock()
	defer in.app.mu.Unlock()
	if ctx.Err() != nil {
		return 0, false, context.Cause(ctx)
	}
	ctx = in.ctx
	addr, fresh, err := in.app.append(ctx, l, p)
	if errors.Is(err, errRangeFull) {
		if err = in.nextClaim(ctx); err == nil {
			addr, fresh, err = in.app.append(ctx, l, p)
		}
	}
	if err == nil && len(in.app.pending) >= maxPending {
		err = in.checkpoint(ctx)
	}
	return addr, fresh, err
}

// find looks for a blob in the repository.
func (in *Ingest) find(ctx context.Context, id segment.Identity) (segment.Addr, bool) {
	if addr, ok := in.app.find(id); ok {
		return addr, true
	}
	return in.index.lookup(ctx, id)
}

// checkpoint makes what was written so far stay, whatever becomes of the point,
// and known to the dedupe index. in.app.mu is held.
func (in *Ingest) checkpoint(ctx context.Context) error {
	through, err := in.app.flush(ctx)
	if err != nil {
		return err
	}
	if err := in.keep(ctx, through, ""); err != nil {
		return in.app.fail(err)
	}
	in.publish(ctx)
	return nil
}

// keep records in the claim that its segments up to through stay, and, if next
// is not empty, the ID of the next point.
func (in *Ingest) keep(ctx context.Context, through uint64, next string) error {
	err := in.claim.update(ctx, func(c *claimRecord) {
		if through >= c.first() {
			c.Kept = max(c.Kept, through)
		}
		if next != "" {
			c.Pending = next
		}
		in.describe(c)
	})
	if err == nil {
		in.app.written = nil
	}
	return err
}

// publish moves the pending blobs to the dedupe index. Without them there the
// repository is whole, and stores some blocks twice: so an error is only
// logged. in.app.mu is held.
func (in *Ingest) publish(ctx context.Context) {
	if err := in.index.publish(ctx, in.app.pending); err != nil {
		in.r.log.Warn("could not add to the dedupe index: blocks of this backup may be stored again by the next", "error", err)
	}
	in.app.forgetPending()
}

// nextClaim moves on to another range of segment numbers. in.app.mu is held.
func (in *Ingest) nextClaim(ctx context.Context) error {
	if err := in.checkpoint(ctx); err != nil {
		return err
	}
	next, err := in.r.takeClaimWith(ctx, claimWriter, in.describe)
	if err != nil {
		return in.app.fail(err)
	}
	in.mu.Lock()
	old := in.claim
	in.claim = next
	in.mu.Unlock()
	in.startRenewal(next)
	in.app.next, in.app.last = next.rec.first(), next.rec.last()
	if err := old.close(ctx); err != nil {
		in.r.log.Warn("could not close a used-up claim; a later backup does", "error", err)
	}
	return nil
}
