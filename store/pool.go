package store

import (
	"context"
	"sync"

	"lifeboat/store/internal/segment"
)

// chunkBytes is how much is read from a source at once.
const chunkBytes = 1 << 20

// chunk is a run of blocks on its way through the pipeline.
type chunk struct {
	disk *diskPipe
	run  blockRun
	buf  []byte // plaintext, whole blocks
	out  []outcome
	err  error
	done chan struct{} // gets a value when out or err is set
}

// outcome is what became of a block.
type outcome struct {
	addr   segment.Addr
	packed *segment.Packed // not in the repository: to be written
	same   bool            // the parent has the same there
}

// pool is the workers and the chunks that the disks of an ingest share: what
// bounds its memory, however many disks are added at once.
type pool struct {
	in      *Ingest
	work    chan *chunk
	free    chan *chunk // idle chunks, and nil for those not made yet
	perDisk int         // chunks that one disk may have on the way
	workers sync.WaitGroup
}

// poolDisks is for how many disks at once there are chunks to go at full speed.
const poolDisks = 2

func newPool(in *Ingest) *pool {
	perDisk := 2*in.opts.Workers + in.opts.Readers + 2
	p := &pool{in: in, perDisk: perDisk, work: make(chan *chunk), free: make(chan *chunk, poolDisks*perDisk)}
	for range cap(p.free) {
		p.free <- nil
	}
	for range in.opts.Workers {
		p.workers.Go(p.run)
	}
	return p
}

// close ends the workers. No disk is being added any more.
func (p *pool) close() {
	close(p.work)
	p.workers.Wait()
}

// get takes an idle chunk.
func (p *pool) get(ctx context.Context) (*chunk, error) {
	select {
	case c := <-p.free:
		if c == nil {
			c = &chunk{buf: make([]byte, max(chunkBytes, p.in.r.blockSize)), done: make(chan struct{}, 1)}
		}
		return c, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// put gives a chunk back.
func (p *pool) put(c *chunk) {
	for i := range c.out {
		if packed := c.out[i].packed; packed != nil {
			packed.Release()
		}
	}
	clear(c.out)
	c.disk, c.err, c.out = nil, nil, c.out[:0]
	p.free <- c
}

// run is a worker.
func (p *pool) run() {
	w := &worker{in: p.in, hasher: segment.NewHasher(p.in.r.keys), packer: segment.NewPacker()}
	for c := range p.work {
		c.err = w.process(c)
		c.done <- struct{}{}
	}
}

// worker finds out what is to be done with blocks.
type worker struct {
	in     *Ingest
	hasher *segment.Hasher
	packer *segment.Packer
}

func (w *worker) process(c *chunk) error {
	size := w.in.r.blockSize
	for i := range c.run.count {
		if err := c.disk.ctx.Err(); err != nil {
			return context.Cause(c.disk.ctx)
		}
		o, err := w.block(c.disk, c.run.first+i, c.buf[int(i)*size:int(i+1)*size])
		if err != nil {
			return err
		}
		c.out = append(c.out, o)
	}
	return nil
}

// block decides about one block: zeros, as in the parent, already in the
// repository, or new; in the order of what it costs to find out.
func (w *worker) block(d *diskPipe, block int64, plain []byte) (outcome, error) {
	ready := d.compressed(block)
	old, err := d.parentAddr(block)
	if err != nil {
		return outcome{}, err
	}
	if segment.IsZero(plain) {
		return outcome{addr: segment.Hole, same: old == segment.Hole}, nil
	}
	id := w.hasher.Identity(segment.Data, plain)
	if old.Stored() {
		// Damage there is no reason to fail: the block is stored again.
		if was, err := w.in.r.segments.Identity(d.ctx, old); err == nil && was == id {
			return outcome{addr: old, same: true}, nil
		}
	}
	if addr, ok := w.in.find(d.ctx, id); ok {
		return outcome{addr: addr, same: addr == old}, nil
	}
	if ready != nil {
		ready.ID = id
		return outcome{packed: ready}, nil
	}
	return outcome{packed: w.packer.Pack(segment.Data, id, plain)}, nil
}

// parentAddr is where the parent has the block.
func (d *diskPipe) parentAddr(block int64) (segment.Addr, error) {
	if d.parent == nil || block >= d.parentBlocks {
		return segment.Hole, nil
	}
	addr, ok := d.parent.LookupCached(block)
	if ok {
		return addr, nil
	}
	return d.parent.Lookup(d.ctx, block)
}
