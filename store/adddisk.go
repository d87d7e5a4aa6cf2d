package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"lifeboat/disk"
	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/segment"
)

// DiskSpec describes a disk to be added.
type DiskSpec struct {
	// Key is the disk's lasting number in its VM. With a parent, the parent's
	// disk of the same key is the one compared with.
	Key   int
	Label string
}

// Progress is how far a disk has come, in bytes.
type Progress struct {
	Done   int64 // of Total
	Total  int64 // what has to be looked at: data, in the changed areas
	Read   int64 // read from the source
	New    int64 // not in the repository before
	Stored int64 // New after compression
}

// progressEvery is how often progress is told.
const progressEvery = 100 * time.Millisecond

// diskPipe is the pipeline of one disk:
//
//	plan → read (several) → hash, compare, compress (the pool) → write, in order
//
// The order is kept by the queue: a chunk is put there when its reading begins
// and taken out at the other end when it is done. It is also what bounds the
// chunks that the disk has on the way.
type diskPipe struct {
	w      *PointWriter
	in     *Ingest
	ctx    context.Context
	cancel context.CancelCauseFunc
	src    disk.Image
	size   int64

	parent       *blockmap.Map // nil: nothing to compare with
	parentBlocks int64
	regions      []blockRun // of the disk, to be looked at

	queue chan *chunk
	read  atomic.Int64
	prog  Progress
	tell  func(Progress)
	told  time.Time
}

// AddDisk stores the content of src. Holes (see disk.Mapper) are not read.
//
// With a parent that has a disk of the same key and size, and with changed not
// nil, only the blocks that changed touches are read, and the rest is taken from
// the parent; the caller vouches that nothing else differs from that parent.
// Otherwise changed is only checked: all data of src is read, and compared with
// the parent's if there is one. So it is, too, after a change of size, when what
// reports changed areas is not to be trusted (VMware KB 2090639), and while there
// is a restore point that can't be read: perhaps it is the VM's last, and what
// changed is meant against that one. Blocks of the parent that were lost (see
// Repair) are read in any case. changed may be unsorted and overlap; areas outside src match
// ErrChangedList. Empty but not nil means that nothing changed.
//
// A source that ends early matches disk.ErrChanged, one that fails its own
// error; no room in the repository matches syscall.ENOSPC. After an error the
// point can only be aborted.
//
// progress, if not nil, is called about ten times a second and at the end, from
// one goroutine at a time.
func (w *PointWriter) AddDisk(ctx context.Context, spec DiskSpec, src disk.Image, changed []disk.Extent, progress func(Progress)) error {
	what := fmt.Sprintf("add disk %d of %s", spec.Key, w.rec.VM)
	if err := w.begin(spec.Key, src.Size()); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	ctx, stop := w.in.bind(ctx)
	defer stop()
	rec, err := w.addDisk(ctx, spec, src, w.parent, changed, progress)
	if err != nil && w.parentDamaged(ctx, spec.Key, err) {
		w.in.r.log.Warn("the map of the disk in the point before is damaged: the disk is read whole; verify the repository",
			"vm", w.rec.VM, "disk", spec.Key, "point", w.parent.ID, "error", err)
		rec, err = w.addDisk(ctx, spec, src, nil, changed, progress)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", what, err)
	}
	w.end(rec, err)
	return err
}

func (w *PointWriter) addDisk(ctx context.Context, spec DiskSpec, src disk.Image, parentPoint *pointRecord, changed []disk.Extent, progress func(Progress)) (diskRecord, error) {
	d := &diskPipe{w: w, in: w.in, src: src, size: src.Size(), tell: progress, queue: make(chan *chunk, w.in.pool.perDisk)}
	d.ctx, d.cancel = context.WithCancelCause(ctx)
	defer d.cancel(nil)
	parent, err := d.prepare(parentPoint, spec.Key, changed)
	if err != nil {
		return diskRecord{}, err
	}
	sink := &nodeSink{w: w, hasher: segment.NewHasher(w.in.r.keys), packer: segment.NewPacker()}
	builder, err := blockmap.NewBuilder(w.in.r.maps, parent, d.size, w.in.r.blockSize, sink)
	if err != nil {
		return diskRecord{}, damaged(err)
	}
	if err := d.run(builder); err != nil {
		return diskRecord{}, err
	}
	tree, err := builder.Finish(d.ctx)
	if err != nil {
		return diskRecord{}, damaged(err)
	}
	d.progress(true)
	return diskRecord{Key: spec.Key, Label: spec.Label, Size: d.size, Levels: tree.Levels, Root: textAddr(tree.Root)}, nil
}

// prepare finds the parent's disk and what of the source has to be looked at.
func (d *diskPipe) prepare(parentPoint *pointRecord, key int, changed []disk.Extent) (parent blockmap.Tree, err error) {
	shift := d.in.r.shift
	runs, err := changedRuns(changed, d.size, shift)
	if err != nil {
		return parent, err
	}
	d.regions = []blockRun{{count: blocksOf(d.size, d.in.r.blockSize)}}
	parent = parentPoint.disk(key, d.in.r.blockSize)
	if parent.BlockSize != 0 {
		if d.parent, err = d.in.r.maps.Open(parent); err != nil {
			return parent, damaged(err)
		}
		d.parentBlocks = blocksOf(parent.Size, d.in.r.blockSize)
		trust := changed != nil && parent.Size == d.size
		if trust {
			if trust, err = d.in.r.allPointsReadable(d.ctx); err != nil {
				return parent, err
			}
		}
		if trust {
			if d.regions, err = d.withLost(parent, changed, runs); err != nil {
				return parent, damaged(err)
			}
		}
	}
	for run, err := range plan(d.ctx, d.src, d.regions, shift) {
		if err != nil {
			return parent, err
		}
		if !run.hole {
			d.prog.Total += d.bytes(run)
		}
	}
	return parent, nil
}

// bytes is the length of a run, clipped to the disk.
func (d *diskPipe) bytes(r blockRun) int64 {
	return min(r.end()<<d.in.r.shift, d.size) - r.first<<d.in.r.shift
}

// run drives the pipeline and writes what comes out of it.
func (d *diskPipe) run(builder *blockmap.Builder) error {
	reads := make(chan *chunk)
	var stages sync.WaitGroup
	stages.Go(func() {
		defer close(d.queue)
		defer close(reads)
		if err := d.feed(reads); err != nil {
			d.cancel(err)
		}
	})
	for range d.in.opts.Readers {
		stages.Go(func() { d.reader(reads) })
	}
	for c := range d.queue {
		if c.buf != nil {
			<-c.done
		}
		err := c.err
		if err == nil && d.ctx.Err() == nil {
			err = d.finish(builder, c)
		}
		if err != nil {
			d.cancel(err)
		}
		if c.buf != nil {
			d.in.pool.put(c)
		}
	}
	stages.Wait()
	// Whatever failed first cancelled the rest with it.
	if cause := context.Cause(d.ctx); cause != nil {
		return cause
	}
	return nil
}

// feed cuts the plan into chunks, and puts each into the queue before it is
// handed to a reader. A run of holes is a chunk without a buffer.
func (d *diskPipe) feed(reads chan<- *chunk) error {
	perChunk := int64(max(1, chunkBytes>>d.in.r.shift))
	for run, err := range plan(d.ctx, d.src, d.regions, d.in.r.shift) {
		if err != nil {
			return err
		}
		if run.hole {
			if d.parent != nil && !d.enqueue(&chunk{disk: d, run: run}) {
				return context.Cause(d.ctx)
			}
			continue
		}
		for at := run.first; at < run.end(); {
			n := min(run.end(), at/perChunk*perChunk+perChunk) - at
			c, err := d.in.pool.get(d.ctx)
			if err != nil {
				return err
			}
			c.disk, c.run = d, blockRun{first: at, count: n}
			if !d.enqueue(c) {
				d.in.pool.put(c)
				return context.Cause(d.ctx)
			}
			reads <- c
			at += n
		}
	}
	return nil
}

func (d *diskPipe) enqueue(c *chunk) bool {
	select {
	case d.queue <- c:
		return true
	case <-d.ctx.Done():
		return false
	}
}

// reader reads chunks and hands them to the pool's workers.
func (d *diskPipe) reader(reads <-chan *chunk) {
	for c := range reads {
		if err := d.fill(c); err != nil {
			c.err = err
			d.cancel(err)
			c.done <- struct{}{}
			continue
		}
		d.in.pool.work <- c
	}
}

// fill reads a chunk's blocks; what is beyond the end of the disk is zeros.
func (d *diskPipe) fill(c *chunk) error {
	if err := d.ctx.Err(); err != nil {
		return context.Cause(d.ctx)
	}
	off, n := c.run.first<<d.in.r.shift, int(d.bytes(c.run))
	clear(c.buf[n : int(c.run.count)<<d.in.r.shift])
	got, err := d.src.ReadAt(c.buf[:n], off)
	if got == n {
		d.read.Add(int64(n))
		d.w.read.Add(int64(n))
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends at byte %d, it had %d when it was opened", disk.ErrChanged, off+int64(got), d.size)
	}
	return fmt.Errorf("read the source at %d: %w", off+int64(got), err)
}

// finish writes a chunk's new blocks and puts its addresses into the map.
func (d *diskPipe) finish(builder *blockmap.Builder, c *chunk) error {
	if c.run.hole {
		return d.finishHole(builder, c.run)
	}
	for i := range c.out {
		o, block := &c.out[i], c.run.first+int64(i)
		if o.packed != nil {
			addr, fresh, err := d.in.store(d.ctx, laneData, o.packed)
			if err != nil {
				return err
			}
			if o.addr = addr; fresh {
				d.countNew(block, o.packed.StoredLen())
			}
		}
		if o.same {
			continue
		}
		if err := builder.Set(d.ctx, block, o.addr); err != nil {
			return damaged(err)
		}
	}
	d.prog.Done += d.bytes(c.run)
	d.progress(false)
	return nil
}

func (d *diskPipe) countNew(block int64, stored int) {
	n := d.bytes(blockRun{first: block, count: 1})
	d.prog.New += n
	d.prog.Stored += int64(stored)
	d.w.fresh.Add(n)
	d.w.stored.Add(int64(stored))
}

// finishHole makes holes of what the parent has there.
func (d *diskPipe) finishHole(builder *blockmap.Builder, hole blockRun) error {
	end := min(hole.end(), d.parentBlocks)
	if hole.first >= end {
		return nil
	}
	for run, err := range d.in.r.maps.Walk(d.ctx, d.parent.Tree(), hole.first, end) {
		if err != nil {
			return damaged(err)
		}
		for i := range run.Count {
			if err := builder.Set(d.ctx, run.Block+i, segment.Hole); err != nil {
				return damaged(err)
			}
		}
	}
	return nil
}

// progress tells how far it is, if it is time to.
func (d *diskPipe) progress(last bool) {
	if d.tell == nil || !last && time.Since(d.told) < progressEvery {
		return
	}
	d.told = time.Now()
	d.prog.Read = d.read.Load()
	d.tell(d.prog)
}

// nodeSink stores the nodes of a block map.
type nodeSink struct {
	w      *PointWriter
	hasher *segment.Hasher
	packer *segment.Packer
}

// WriteNode implements blockmap.NodeSink.
func (s *nodeSink) WriteNode(ctx context.Context, node []byte) (segment.Addr, error) {
	return s.w.putBlob(ctx, laneMeta, segment.MapNode, node, s.hasher, s.packer)
}
