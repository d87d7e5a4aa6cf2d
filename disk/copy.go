package disk

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
)

// batchSize is what one worker reads of a disk at a time, bytes. It is a
// multiple of every writer's unit.
const batchSize = 1 << 20

// batch is a piece of a disk on its way to a writer.
type batch struct {
	off    int64
	buf    []byte // padded with zeros to whole units
	units  []unit // those that hold something, ascending
	packed []byte // what packer made of them, back to back
	done   chan struct{}
}

// unit is a piece of a batch that is not all zeros.
type unit struct {
	off  int64  // on the disk
	data []byte // its content
	// packed is the compressed content; nil: not compressed.
	packed []byte
}

// minWorkers is how many batches are read at once at least: a disk that is far
// away has to be asked for several to come at its full speed.
const minWorkers = 8

// copier moves what a disk holds to a writer: holes are not read, units of
// zeros are dropped, work is done on all cores and ahead of the writer, and emit
// sees the batches in order. Memory is bounded by two batches for each worker.
type copier struct {
	img      Image
	unit     int64              // granularity of zeros; divides batchSize
	work     func(*batch) error // on a worker, in any order; may be nil
	emit     func(*batch) error // in ascending order, one at a time; may be nil
	progress func(done, total int64)

	buffers sync.Pool // of *batch
}

func (c *copier) run(ctx context.Context) error {
	workers := max(2*runtime.GOMAXPROCS(0), minWorkers)
	group, ctx := errgroup.WithContext(ctx)
	jobs := make(chan *batch)
	ordered := make(chan *batch, 2*workers)
	group.Go(func() error {
		defer close(jobs)
		defer close(ordered)
		return c.produce(ctx, jobs, ordered)
	})
	for range workers {
		group.Go(func() error {
			for b := range jobs {
				if err := c.process(b); err != nil {
					return err
				}
				close(b.done)
			}
			return nil
		})
	}
	group.Go(func() error { return c.consume(ctx, ordered) })
	if err := group.Wait(); err != nil {
		return err
	}
	c.report(c.img.Size())
	return nil
}

// produce cuts the data of the disk into batches: aligned to units, and at
// multiples of batchSize.
func (c *copier) produce(ctx context.Context, jobs, ordered chan<- *batch) error {
	next := int64(0) // units before it were handed out
	for ext, err := range Extents(ctx, c.img, Whole(c.img)) {
		if err != nil {
			return err
		}
		if ext.Hole {
			continue
		}
		end := (ext.End() + c.unit - 1) / c.unit * c.unit
		for at := max(next, ext.Offset/c.unit*c.unit); at < end; {
			to := min(end, (at/batchSize+1)*batchSize)
			if err := c.hand(ctx, at, to, jobs, ordered); err != nil {
				return err
			}
			at, next = to, to
		}
	}
	return nil
}

func (c *copier) hand(ctx context.Context, from, to int64, jobs, ordered chan<- *batch) error {
	b, ok := c.buffers.Get().(*batch)
	if !ok {
		b = &batch{buf: make([]byte, batchSize)}
	}
	b.off, b.buf, b.done = from, b.buf[:to-from], make(chan struct{})
	b.units, b.packed = b.units[:0], b.packed[:0]
	for _, ch := range []chan<- *batch{ordered, jobs} {
		select {
		case ch <- b:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// process reads a batch and finds the units that hold something.
func (c *copier) process(b *batch) error {
	n := min(int64(len(b.buf)), c.img.Size()-b.off)
	clear(b.buf[n:])
	if got, err := c.img.ReadAt(b.buf[:n], b.off); int64(got) < n {
		return fmt.Errorf("read %d bytes at %d: %w", n, b.off, noEOF(err))
	}
	for at := int64(0); at < int64(len(b.buf)); at += c.unit {
		if content := b.buf[at : at+c.unit]; !isZero(content) {
			b.units = append(b.units, unit{off: b.off + at, data: content})
		}
	}
	if c.work == nil {
		return nil
	}
	return c.work(b)
}

// noEOF: an image that ends before its Size has changed under us.
func noEOF(err error) error {
	if err == io.EOF || err == nil {
		return ErrChanged
	}
	return err
}

func (c *copier) consume(ctx context.Context, ordered <-chan *batch) error {
	for b := range ordered {
		select {
		case <-b.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if c.emit != nil {
			if err := c.emit(b); err != nil {
				return err
			}
		}
		c.report(min(b.off+int64(len(b.buf)), c.img.Size()))
		b.buf = b.buf[:batchSize]
		c.buffers.Put(b)
	}
	return nil
}

func (c *copier) report(done int64) {
	if c.progress != nil {
		c.progress(done, c.img.Size())
	}
}

// isZero compares with memequal, which the standard library has in assembly
// for every processor: a slice is all zeros if its first byte is, and each
// byte equals the one before it.
func isZero(p []byte) bool {
	return len(p) == 0 || (p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1]))
}
