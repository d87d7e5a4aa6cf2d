package vddk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"lifeboat/disk"
)

// nfcPort reads a disk from the export of a lease, which comes once, from front
// to back, compressed. Readers want any place at any time: so what comes is
// unpacked into a sparse temporary file without a name, and a read waits until
// what it asks for has come. The file takes as much room as the disk holds data.
//
// (A window that moves along would take less, and would fail whoever looks at
// the partition table first and comes back to it. This is the last rung: it has
// to work.)
//
// level is how much of the disk is in the file: it rises grain by grain in the
// order of the stream, however the workers that unpack overtake each other, and
// reaches the end of the disk only when the stream's end was found in order. mu
// guards level, failure and present; moved is signalled when one of them
// changes.
type nfcPort struct {
	file   *os.File
	length int64
	grain  int64 // bytes
	opts   Options
	cancel context.CancelCauseFunc
	done   chan struct{} // the stream is not read any more

	mu      sync.Mutex
	moved   *sync.Cond
	level   int64
	failure error
	present bitmap // grains below level that hold data
}

func openNFC(ctx context.Context, req Request, opts Options) (port, error) {
	if req.Lease == nil {
		return nil, unavailable("the disk cannot be exported")
	}
	lease, err := req.Lease.Export(ctx)
	if err != nil {
		return nil, fmt.Errorf("lease to export the disk: %w", err)
	}
	p, err := startNFC(ctx, lease, req, opts)
	if err != nil {
		return nil, errors.Join(err, endLease(ctx, lease, err))
	}
	return p, nil
}

// endLease completes or aborts a lease even if ctx has ended.
func endLease(ctx context.Context, lease Lease, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := lease.Close(ctx, why); err != nil {
		return fmt.Errorf("end the lease: %w", err)
	}
	return nil
}

func startNFC(ctx context.Context, lease Lease, req Request, opts Options) (*nfcPort, error) {
	body, err := lease.Disk(ctx, req.Key)
	if err != nil {
		return nil, fmt.Errorf("export disk %d: %w", req.Key, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	in := &watchedReader{ctx: ctx, body: body, limiter: opts.Limiter, patience: opts.Timeout, cancel: cancel}
	stop := context.AfterFunc(ctx, func() { body.Close() })
	stream, err := newStreamReader(in)
	if err == nil && stream.capacity != req.Size {
		err = fmt.Errorf("%w: %d bytes and not %d", ErrSize, stream.capacity, req.Size)
	}
	var file *os.File
	if err == nil {
		file, err = spool(opts.Spool, stream.capacity)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		cancel(err)
		if stop() {
			body.Close()
		}
		return nil, err
	}
	p := &nfcPort{file: file, length: stream.capacity, grain: stream.grain, opts: opts, cancel: cancel, done: make(chan struct{})}
	p.moved = sync.NewCond(&p.mu)
	go func() {
		defer close(p.done)
		defer body.Close()
		err := p.receive(ctx, stream, lease)
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		p.finish(err, endLease(ctx, lease, err))
		cancel(err)
	}()
	return p, nil
}

// spool makes a temporary file of size bytes that has no name.
func spool(dir string, size int64) (*os.File, error) {
	f, err := os.CreateTemp(dir, "lifeboat-spool-*")
	if err != nil {
		return nil, fmt.Errorf("temporary file for the disk: %w", err)
	}
	if err := errors.Join(os.Remove(f.Name()), f.Truncate(size)); err != nil {
		f.Close()
		return nil, fmt.Errorf("temporary file for the disk: %w", err)
	}
	return f, nil
}

// spoolJob is a grain on its way into the file.
type spoolJob struct {
	grain
	done chan struct{}
}

// receive takes the whole stream, unpacks it on all cores and raises the level.
func (p *nfcPort) receive(ctx context.Context, stream *streamReader, lease Lease) error {
	workers := runtime.GOMAXPROCS(0)
	group, ctx := errgroup.WithContext(ctx)
	jobs, ordered := make(chan *spoolJob), make(chan *spoolJob, 4*workers)
	free := make(chan []byte, 6*workers)
	group.Go(func() error {
		defer close(jobs)
		defer close(ordered)
		return p.parse(ctx, stream, free, jobs, ordered)
	})
	for range workers {
		u := &unpacker{file: p.file, out: make([]byte, stream.grain), length: p.length}
		group.Go(func() error {
			for job := range jobs {
				if err := u.unpack(job.grain); err != nil {
					return err
				}
				close(job.done)
			}
			return nil
		})
	}
	group.Go(func() error { return p.raise(ctx, ordered, free, lease) })
	return group.Wait()
}

// parse cuts the stream into grains.
func (p *nfcPort) parse(ctx context.Context, stream *streamReader, free <-chan []byte, jobs, ordered chan<- *spoolJob) error {
	for {
		var buf []byte
		select {
		case buf = <-free:
		default:
		}
		g, err := stream.read(buf)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		job := &spoolJob{g, make(chan struct{})}
		for _, ch := range []chan<- *spoolJob{ordered, jobs} {
			select {
			case ch <- job:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// raise raises the level as grains get into the file, in their order. The end
// of the disk is not reached here: see finish.
func (p *nfcPort) raise(ctx context.Context, ordered <-chan *spoolJob, free chan<- []byte, lease Lease) error {
	percent := -1
	for job := range ordered {
		select {
		case <-job.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		select {
		case free <- job.data:
		default:
		}
		p.mu.Lock()
		p.present.set(job.off / p.grain)
		// The last byte waits for the stream's end, so that nobody has read
		// all of the disk before that was found in order.
		p.level = min(job.off+p.grain, p.length-1)
		p.moved.Broadcast()
		p.mu.Unlock()
		if now := int(job.off / (p.length/100 + 1)); now > percent {
			percent = now
			lease.Progress(now)
		}
	}
	return nil
}

// finish ends the reception, well or not.
func (p *nfcPort) finish(err, leaseErr error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.moved.Broadcast()
	if err != nil {
		p.failure = lost(err)
		return
	}
	if leaseErr != nil { // all is here: the host will let go of it in time
		p.opts.Logger.Warn("the lease was not completed", "error", leaseErr)
	}
	p.level = p.length
}

func (p *nfcPort) transport() string { return NFC }
func (p *nfcPort) size() int64       { return p.length }
func (p *nfcPort) limitsItself()     {}

// await returns when the disk is there up to end.
func (p *nfcPort) await(ctx context.Context, end int64) error {
	stop := context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.moved.Broadcast()
	})
	defer stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.level < end && p.failure == nil && ctx.Err() == nil {
		p.moved.Wait()
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case p.failure != nil: // even of what is there: the stream was not sound
		return p.failure
	}
	return nil
}

func (p *nfcPort) read(ctx context.Context, b []byte, off int64) error {
	if err := p.await(ctx, off+int64(len(b))); err != nil {
		return err
	}
	_, err := p.file.ReadAt(b, off)
	return err
}

// extents yields what is known and waits for the rest.
func (p *nfcPort) extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		for off := within.Offset; off < within.End(); {
			// In steps, so that reading begins while the export goes on.
			to := min(within.End(), off+nfcStep)
			if err := p.await(ctx, to); err != nil {
				yield(disk.Extent{}, err)
				return
			}
			for _, e := range p.known(off, to) {
				if !yield(e, nil) {
					return
				}
				off = e.End()
			}
		}
	}
}

// nfcStep is how much of the map is waited for at once, bytes.
const nfcStep = 64 << 20

// known are the runs in [from, to), which is below the level.
func (p *nfcPort) known(from, to int64) []disk.Extent {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []disk.Extent
	for off := from; off < to; {
		end := min((off/p.grain+1)*p.grain, to)
		hole := !p.present.has(off / p.grain)
		if last := len(found) - 1; last >= 0 && found[last].Hole == hole {
			found[last].Length += end - off
		} else {
			found = append(found, disk.Extent{Offset: off, Length: end - off, Hole: hole})
		}
		off = end
	}
	return found
}

func (p *nfcPort) close() error {
	p.cancel(os.ErrClosed)
	<-p.done
	return p.file.Close()
}
