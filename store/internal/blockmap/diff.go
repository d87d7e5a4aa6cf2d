package blockmap

import (
	"context"
	"fmt"
	"iter"

	"lifeboat/store/internal/segment"
)

// Range is a run of blocks.
type Range struct {
	Block int64
	Count int64
}

// Diff yields the blocks whose addresses differ between a and b, in ascending
// order, merged into ranges; what lies beyond the smaller disk compares as
// holes. Two addresses may differ and the content not: two writers stored it at
// the same time. After an error the sequence ends.
func (r *Reader) Diff(ctx context.Context, a, b Tree) iter.Seq2[Range, error] {
	return func(yield func(Range, error) bool) {
		d := differ{r: r, yield: yield}
		if err := sameBlocks(a, b); err != nil {
			yield(Range{}, err)
			return
		}
		top := max(a.Levels, b.Levels)
		if d.pair(ctx, subtree{a.Root, top - a.Levels}, subtree{b.Root, top - b.Levels}, top-1, 0) && d.run.Count > 0 {
			yield(d.run, nil)
		}
	}
}

func sameBlocks(a, b Tree) error {
	if err := a.Check(); err != nil {
		return err
	}
	if err := b.Check(); err != nil {
		return err
	}
	if a.BlockSize != b.BlockSize {
		return fmt.Errorf("blockmap: blocks of %d and %d bytes cannot be compared: %w", a.BlockSize, b.BlockSize, ErrTree)
	}
	return nil
}

// subtree is a node, or, so that trees of different depth can be compared, the
// first child of lift nodes that are otherwise empty.
type subtree struct {
	addr segment.Addr
	lift int
}

type differ struct {
	r     *Reader
	run   Range // not yielded yet
	yield func(Range, error) bool
}

// children are the subtrees below s.
func (d *differ) children(ctx context.Context, s subtree, level int) (*entries, error) {
	if s.addr == segment.Hole {
		return &empty, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n, err := d.r.node(ctx, s.addr, level)
	if err != nil {
		return nil, err
	}
	return &n.entries, nil
}

// pair compares two subtrees of one level and reports whether to go on.
func (d *differ) pair(ctx context.Context, a, b subtree, level int, base int64) bool {
	if a == b || a.addr == segment.Hole && b.addr == segment.Hole {
		return true
	}
	if a.lift > 0 || b.lift > 0 {
		return d.lifted(ctx, a, b, level, base)
	}
	ea, err := d.children(ctx, a, level)
	if err != nil {
		return d.fail(err)
	}
	eb, err := d.children(ctx, b, level)
	if err != nil {
		return d.fail(err)
	}
	for i := range ea {
		if ea[i] == eb[i] {
			continue
		}
		at := base + int64(i)*capacity(level)
		if level == 0 && !d.block(at) || level > 0 && !d.pair(ctx, subtree{ea[i], 0}, subtree{eb[i], 0}, level-1, at) {
			return false
		}
	}
	return true
}

// lifted is pair where one side begins deeper.
func (d *differ) lifted(ctx context.Context, a, b subtree, level int, base int64) bool {
	for i := range int64(Fanout) {
		ca, err := d.child(ctx, a, level, i)
		if err != nil {
			return d.fail(err)
		}
		cb, err := d.child(ctx, b, level, i)
		if err != nil {
			return d.fail(err)
		}
		if !d.pair(ctx, ca, cb, level-1, base+i*capacity(level)) {
			return false
		}
	}
	return true
}

func (d *differ) child(ctx context.Context, s subtree, level int, i int64) (subtree, error) {
	if s.lift > 0 {
		if i > 0 {
			return subtree{}, nil
		}
		return subtree{s.addr, s.lift - 1}, nil
	}
	e, err := d.children(ctx, s, level)
	if err != nil {
		return subtree{}, err
	}
	return subtree{addr: e[i]}, nil
}

func (d *differ) fail(err error) bool {
	if d.run.Count == 0 || d.yield(d.run, nil) {
		d.yield(Range{}, err)
	}
	return false
}

func (d *differ) block(block int64) bool {
	if d.run.Count > 0 && block == d.run.Block+d.run.Count {
		d.run.Count++
		return true
	}
	done := d.run
	d.run = Range{Block: block, Count: 1}
	return done.Count == 0 || d.yield(done, nil)
}
