package blockmap

import (
	"context"
	"iter"

	"lifeboat/store/internal/segment"
)

// Run is a run of blocks that are stored: Block+i is at Addr+i, for 0 ≤ i <
// Count, in one segment. A block marked Unreadable is a run by itself.
type Run struct {
	Block int64
	Count int64
	Addr  segment.Addr
}

// Walk yields the stored blocks in [from, to) (clipped to the disk) in
// ascending order. Holes are left out; empty subtrees cost nothing. After an
// error the sequence ends.
func (r *Reader) Walk(ctx context.Context, t Tree, from, to int64) iter.Seq2[Run, error] {
	return func(yield func(Run, error) bool) {
		if err := t.Check(); err != nil {
			yield(Run{}, err)
			return
		}
		w := walker{r: r, from: max(from, 0), to: min(to, t.Blocks()), yield: yield}
		if w.from >= w.to {
			return
		}
		if w.node(ctx, t.Root, t.Levels-1, 0) && w.run.Count > 0 {
			yield(w.run, nil)
		}
	}
}

type walker struct {
	r        *Reader
	from, to int64
	run      Run // not yielded yet
	yield    func(Run, error) bool
}

// node walks below a node whose first block is base, and reports whether to go
// on.
func (w *walker) node(ctx context.Context, addr segment.Addr, level int, base int64) bool {
	if addr == segment.Hole {
		return true
	}
	n, err := w.load(ctx, addr, level)
	if err != nil {
		// What was found so far is right, and comes first.
		if w.run.Count == 0 || w.yield(w.run, nil) {
			w.yield(Run{}, err)
		}
		return false
	}
	span := capacity(level)
	first := max(0, w.from-base) / span
	for i := first; i < Fanout && base+i*span < w.to; i++ {
		if n.entries[i] == segment.Hole {
			continue
		}
		if level == 0 && !w.block(base+i, n.entries[i]) || level > 0 && !w.node(ctx, n.entries[i], level-1, base+i*span) {
			return false
		}
	}
	return true
}

func (w *walker) load(ctx context.Context, addr segment.Addr, level int) (*node, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return w.r.node(ctx, addr, level)
}

// block adds a block to the run, or yields the run and starts another.
func (w *walker) block(block int64, addr segment.Addr) bool {
	run := &w.run
	if run.Count > 0 && block == run.Block+run.Count && addr == run.Addr+segment.Addr(run.Count) && addr.Stored() {
		run.Count++
		return true
	}
	done := *run
	*run = Run{Block: block, Count: 1, Addr: addr}
	return done.Count == 0 || w.yield(done, nil)
}

// Node is what Visit shows of a node.
type Node struct {
	Addr    segment.Addr
	Level   int            // 0 is a leaf
	Block   int64          // first block that it covers
	Entries []segment.Addr // children, or data addresses in a leaf; read only; nil with Err
	Err     error          // the node cannot be read
}

// Blocks is the number of blocks that the node covers, those beyond the end of
// the disk included.
func (n Node) Blocks() int64 { return capacity(n.Level + 1) }

// Visit shows the nodes of a tree top down, left to right. Before a node is
// read, enter is asked with its address; where it says no, the node and all
// below it are left out (a subtree shared with a tree seen before). A node that
// cannot be read is shown with Err set, and the rest goes on. Visit ends early
// when visit returns an error, and with it.
func (r *Reader) Visit(ctx context.Context, t Tree, enter func(segment.Addr) bool, visit func(Node) error) error {
	if err := t.Check(); err != nil {
		return err
	}
	return r.visit(ctx, Node{Addr: t.Root, Level: t.Levels - 1}, enter, visit)
}

func (r *Reader) visit(ctx context.Context, v Node, enter func(segment.Addr) bool, visit func(Node) error) error {
	if v.Addr == segment.Hole || !enter(v.Addr) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := r.node(ctx, v.Addr, v.Level)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		v.Err = err
		return visit(v)
	}
	v.Entries = n.entries[:]
	if err := visit(v); err != nil || v.Level == 0 {
		return err
	}
	for i, a := range n.entries {
		child := Node{Addr: a, Level: v.Level - 1, Block: v.Block + int64(i)*capacity(v.Level)}
		if err := r.visit(ctx, child, enter, visit); err != nil {
			return err
		}
	}
	return nil
}
