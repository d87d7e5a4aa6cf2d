package blockmap

import (
	"context"

	"lifeboat/store/internal/segment"
)

// VisitNew is Visit for the nodes of t that old does not have in the same place:
// what a point refers to beyond the point before it. It costs what differs. Trees
// of different depth have nothing in common, and a node of old that cannot be
// read counts as one that is not there.
func (r *Reader) VisitNew(ctx context.Context, old, t Tree, visit func(Node) error) error {
	if err := sameBlocks(old, t); err != nil {
		return err
	}
	if old.Levels != t.Levels {
		old.Root = segment.Hole
	}
	return r.visitNew(ctx, old.Root, Node{Addr: t.Root, Level: t.Levels - 1}, visit)
}

func (r *Reader) visitNew(ctx context.Context, old segment.Addr, v Node, visit func(Node) error) error {
	if v.Addr == segment.Hole || v.Addr == old {
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
	was := &empty
	if old != segment.Hole {
		if n, err := r.node(ctx, old, v.Level); err == nil {
			was = &n.entries
		}
	}
	for i, a := range n.entries {
		child := Node{Addr: a, Level: v.Level - 1, Block: v.Block + int64(i)*capacity(v.Level)}
		if err := r.visitNew(ctx, was[i], child, visit); err != nil {
			return err
		}
	}
	return nil
}
