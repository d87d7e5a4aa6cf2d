package blockmap

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"lifeboat/store/internal/segment"
)

// Marker hears of every address that trees refer to, once or a few times. One
// Marker is for one goroutine; several that write to one set must do so
// atomically.
type Marker interface {
	// Node takes note of a node and reports whether it was new. If not, what is
	// below it is left out, because somebody has gone or will go there.
	Node(addr segment.Addr) bool
	// Blocks takes note of blocks at count consecutive addresses of one segment.
	Blocks(first segment.Addr, count int)
}

// MarkOptions says how Mark goes about it. New is required.
type MarkOptions struct {
	// Workers is how many nodes are read at the same time; 0 means 1.
	Workers int
	// New makes a Marker for one of the workers.
	New func() Marker
	// Bad hears of a node that cannot be read, of the tree with that index among
	// those given, and decides whether to go on; nil ends the walk with the error.
	// It is called by several goroutines.
	Bad func(tree int, addr segment.Addr, err error) error
	// Nodes, if not nil, counts the nodes that were read.
	Nodes *atomic.Int64
}

// markBatch is how many nodes a worker takes at a time.
const markBatch = 32

// Mark tells markers of everything that the trees refer to. A node is read at
// most once, whatever number of trees share it, and the addresses in a leaf are
// told in the runs in which it has them, without being taken apart. Memory is
// bounded by the number of trees and workers.
func (r *Reader) Mark(ctx context.Context, trees []Tree, o MarkOptions) error {
	q := &markQueue{}
	q.wake.L = &q.mu
	first := o.New()
	for i, t := range trees {
		if err := t.Check(); err != nil {
			return err
		}
		if t.Root != segment.Hole && first.Node(t.Root) {
			q.jobs = append(q.jobs, markJob{tree: i, level: t.Levels - 1, nodes: []segment.Addr{t.Root}})
		}
	}
	stop := context.AfterFunc(ctx, func() { q.fail(context.Cause(ctx)) })
	defer stop()
	var workers sync.WaitGroup
	for i := range max(o.Workers, 1) {
		m := first
		if i > 0 {
			m = o.New()
		}
		workers.Go(func() {
			w := markWorker{r: r, q: q, m: m, o: &o}
			w.run(ctx)
		})
	}
	workers.Wait()
	return q.err
}

// markJob is some nodes of one level of one tree, to be read. They are marked
// already.
type markJob struct {
	tree  int
	level int
	nodes []segment.Addr
}

// markQueue is a stack of jobs, so that trees are gone through in depth and few
// jobs wait.
type markQueue struct {
	mu   sync.Mutex
	wake sync.Cond
	jobs []markJob
	busy int // workers at a job, which may become more jobs
	err  error
}

// next ends the worker's job, if it had one, and gives it another; false when all
// is done.
func (q *markQueue) next(had bool) (markJob, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if had {
		q.busy--
	}
	for len(q.jobs) == 0 && q.busy > 0 && q.err == nil {
		q.wake.Wait()
	}
	if len(q.jobs) == 0 || q.err != nil {
		q.wake.Broadcast()
		return markJob{}, false
	}
	j := q.jobs[len(q.jobs)-1]
	q.jobs = q.jobs[:len(q.jobs)-1]
	q.busy++
	return j, true
}

func (q *markQueue) push(jobs []markJob) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.jobs = append(q.jobs, jobs...)
	q.wake.Broadcast()
}

func (q *markQueue) fail(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
	}
	q.wake.Broadcast()
}

type markWorker struct {
	r    *Reader
	q    *markQueue
	m    Marker
	o    *MarkOptions
	buf  [MaxNodeSize]byte
	node node
}

func (w *markWorker) run(ctx context.Context) {
	j, ok := w.q.next(false)
	for ok {
		for _, addr := range j.nodes {
			err := w.visit(ctx, j, addr)
			if err != nil && ctx.Err() == nil && w.o.Bad != nil {
				err = w.o.Bad(j.tree, addr, err)
			}
			if err != nil {
				w.q.fail(err)
				return
			}
		}
		if w.o.Nodes != nil {
			w.o.Nodes.Add(int64(len(j.nodes)))
		}
		j, ok = w.q.next(true)
	}
}

// visit reads one node and marks what it refers to. Nodes do not go through the
// Reader's cache: a walk over everything would only wash out what disks need.
func (w *markWorker) visit(ctx context.Context, j markJob, addr segment.Addr) error {
	size, err := w.r.src.ReadFrame(ctx, addr, 0, w.buf[:])
	if err != nil {
		return fmt.Errorf("blockmap: cannot read the level %d node at %v: %w", j.level, addr, err)
	}
	if j.level == 0 {
		err = markLeaf(w.m, w.buf[:size])
	} else if err = decodeNode(&w.node, w.buf[:size], j.level); err == nil {
		w.children(j)
	}
	if err != nil {
		return fmt.Errorf("blockmap: node at %v: %w (%w)", addr, err, segment.ErrDamaged)
	}
	return nil
}

// children makes jobs of the nodes below w.node that are new.
func (w *markWorker) children(j markJob) {
	var jobs []markJob
	var nodes []segment.Addr
	for _, a := range w.node.entries {
		if a == segment.Hole || !w.m.Node(a) {
			continue
		}
		if nodes = append(nodes, a); len(nodes) == markBatch {
			jobs = append(jobs, markJob{tree: j.tree, level: j.level - 1, nodes: nodes})
			nodes = nil
		}
	}
	if len(nodes) > 0 {
		jobs = append(jobs, markJob{tree: j.tree, level: j.level - 1, nodes: nodes})
	}
	if len(jobs) > 0 {
		w.q.push(jobs)
	}
}

// markLeaf marks the blocks of an encoded leaf. It refuses what decodeNode
// refuses; what came before the mistake has been marked then.
func markLeaf(m Marker, b []byte) error {
	if len(b) < 2 || b[0] != nodeVersion || b[1] != 0 {
		return fmt.Errorf("%w: not version %d, level 0", ErrNode, nodeVersion)
	}
	used, size := binary.Uvarint(b[2:])
	if size <= 0 || used > Fanout {
		return fmt.Errorf("%w: block count", ErrNode)
	}
	b = b[2+size:]
	var next segment.Addr
	stored, at := 0, 0
	for len(b) > 0 {
		word, size := binary.Uvarint(b)
		count := word >> opBits
		if size <= 0 || count == 0 || count > uint64(Fanout-at) {
			return fmt.Errorf("%w: run at entry %d", ErrNode, at)
		}
		b = b[size:]
		at += int(count)
		op := word & (1<<opBits - 1)
		if op == opHoles {
			continue
		}
		delta, size := binary.Varint(b)
		if size <= 0 || op > opSame {
			return fmt.Errorf("%w: run before entry %d", ErrNode, at)
		}
		b = b[size:]
		first, length := next+segment.Addr(delta), int(count)
		if op == opSame {
			length = 1
		}
		switch {
		case first.Stored() && first.Slot()+length <= segment.MaxSlots:
			m.Blocks(first, length)
		case first != segment.Unreadable || length > 1:
			return fmt.Errorf("%w: address %v", ErrNode, first)
		}
		next = first + segment.Addr(length)
		stored += int(count)
	}
	if stored != int(used) {
		return fmt.Errorf("%w: %d blocks in %d entries", ErrNode, used, stored)
	}
	return nil
}
