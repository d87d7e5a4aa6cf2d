package blockmap

import (
	"context"
	"fmt"

	"lifeboat/store/internal/segment"
)

// Builder makes a new tree, from nothing or from a parent. It is for one
// goroutine and holds one node a level. After an error it is of no more use.
//
// Invariants: path[l] for l from some level up to the top are the open nodes on
// the way to the block set last, each the child of the one above; what lies
// left of them is finished. An open node's used counts what its entries hold;
// counted is what its parent believes until it is closed.
type Builder struct {
	r      *Reader
	sink   NodeSink
	parent Tree
	tree   Tree
	blocks int64
	shrunk bool // the parent has blocks beyond our end
	last   int64

	started bool
	path    []openNode
	buf     []byte
}

type openNode struct {
	node
	open    bool
	dirty   bool
	index   int64 // among the nodes of its level
	addr    segment.Addr
	counted int64
}

// NewBuilder starts a tree of a disk of size bytes. Blocks that are not Set
// keep the address that they have in parent (the zero Tree: holes); the disk
// may be larger or smaller than it. r reads the parent's nodes and may be nil
// where there is none.
func NewBuilder(r *Reader, parent Tree, size int64, blockSize int, sink NodeSink) (*Builder, error) {
	t := Tree{Size: size, BlockSize: blockSize, Levels: LevelsFor(size, blockSize)}
	if err := t.Check(); err != nil {
		return nil, err
	}
	if parent == (Tree{}) {
		parent = Tree{BlockSize: blockSize, Levels: 1}
	}
	if err := sameBlocks(parent, t); err != nil {
		return nil, err
	}
	b := &Builder{r: r, sink: sink, parent: parent, tree: t, blocks: t.Blocks(), last: -1, path: make([]openNode, t.Levels)}
	b.shrunk = parent.Blocks() > b.blocks && parent.Root != segment.Hole
	return b, nil
}

// start makes the parent's root the root of a tree of our depth.
func (b *Builder) start(ctx context.Context) error {
	if b.started {
		return nil
	}
	b.started = true
	parent := b.parent
	b.tree.Root = parent.Root
	for level := parent.Levels - 1; level >= b.tree.Levels && b.tree.Root != segment.Hole; level-- {
		n, err := b.r.node(ctx, b.tree.Root, level)
		if err != nil {
			return err
		}
		b.tree.Root = n.entries[0]
	}
	if b.tree.Levels <= parent.Levels || parent.Root == segment.Hole {
		return nil
	}
	used, err := b.r.Used(ctx, parent)
	if err != nil {
		return err
	}
	for level := parent.Levels; level < b.tree.Levels; level++ {
		p := &b.path[level]
		p.open, p.dirty, p.level = true, true, level
	}
	lowest := &b.path[parent.Levels]
	lowest.entries[0], lowest.used = parent.Root, used
	return nil
}

// Set gives a block its address: Hole, Unreadable or one in a segment. Blocks
// come in ascending order.
func (b *Builder) Set(ctx context.Context, block int64, addr segment.Addr) error {
	if block <= b.last || block >= b.blocks {
		return fmt.Errorf("blockmap: block %d of %d set after block %d: %w", block, b.blocks, b.last, ErrBlock)
	}
	if !addr.Stored() && addr != segment.Hole && addr != segment.Unreadable {
		return fmt.Errorf("blockmap: block %d cannot be at %v", block, addr)
	}
	if err := b.start(ctx); err != nil {
		return err
	}
	if err := b.seek(ctx, block); err != nil {
		return err
	}
	b.last = block
	leaf := &b.path[0]
	e := &leaf.entries[block&(Fanout-1)]
	if *e == addr {
		return nil
	}
	if *e == segment.Hole {
		leaf.used++
	}
	if addr == segment.Hole {
		leaf.used--
	}
	*e, leaf.dirty = addr, true
	return nil
}

// Finish writes what is left and returns the tree.
func (b *Builder) Finish(ctx context.Context) (Tree, error) {
	if b.blocks == 0 {
		b.tree.Root = segment.Hole
		return b.tree, nil
	}
	if err := b.start(ctx); err != nil {
		return Tree{}, err
	}
	if b.shrunk {
		// Opening the nodes at the new end cuts off what lies beyond it.
		if err := b.seek(ctx, b.blocks-1); err != nil {
			return Tree{}, err
		}
	}
	for level := range b.path {
		if err := b.close(ctx, level); err != nil {
			return Tree{}, err
		}
	}
	return b.tree, nil
}

// seek makes path lead to block.
func (b *Builder) seek(ctx context.Context, block int64) error {
	for level := range b.path {
		p := &b.path[level]
		if p.open && p.index == block>>(fanoutBits*(level+1)) {
			break
		}
		if err := b.close(ctx, level); err != nil {
			return err
		}
	}
	for level := len(b.path) - 1; level >= 0; level-- {
		if b.path[level].open {
			continue
		}
		if err := b.open(ctx, level, block>>(fanoutBits*(level+1))); err != nil {
			return err
		}
	}
	return nil
}

// open loads a node of the level, whose parent is open.
func (b *Builder) open(ctx context.Context, level int, index int64) error {
	p := &b.path[level]
	addr := b.tree.Root
	if level+1 < len(b.path) {
		addr = b.path[level+1].entries[index&(Fanout-1)]
	}
	if addr == segment.Hole {
		*p = openNode{node: node{level: level}, open: true, index: index}
		return nil
	}
	n, err := b.r.node(ctx, addr, level)
	if err != nil {
		return err
	}
	*p = openNode{node: *n, open: true, index: index, addr: addr, counted: n.used}
	return b.trim(ctx, p)
}

// trim cuts off the entries of an open node that lie beyond the end of the
// disk. A child that the end goes through is trimmed when it is opened.
func (b *Builder) trim(ctx context.Context, p *openNode) error {
	span := capacity(p.level)
	base := p.index * span * Fanout
	if !b.shrunk || base+span*Fanout <= b.blocks {
		return nil
	}
	keep := (b.blocks - base + span - 1) / span
	for i := keep; i < Fanout; i++ {
		addr := p.entries[i]
		if addr == segment.Hole {
			continue
		}
		gone := int64(1)
		if p.level > 0 {
			n, err := b.r.node(ctx, addr, p.level-1)
			if err != nil {
				return err
			}
			gone = n.used
		}
		p.entries[i] = segment.Hole
		p.used -= gone
		p.dirty = true
	}
	return nil
}

// close finishes an open node and enters it in its parent.
func (b *Builder) close(ctx context.Context, level int) error {
	p := &b.path[level]
	if !p.open {
		return nil
	}
	p.open = false
	addr := p.addr
	if p.dirty {
		var err error
		if addr, err = b.write(ctx, p); err != nil {
			return err
		}
	}
	if level+1 == len(b.path) {
		b.tree.Root = addr
		return nil
	}
	up := &b.path[level+1]
	up.used += p.used - p.counted
	if e := &up.entries[p.index&(Fanout-1)]; *e != addr {
		*e, up.dirty = addr, true
	}
	return nil
}

func (b *Builder) write(ctx context.Context, p *openNode) (segment.Addr, error) {
	if p.entries == empty {
		return segment.Hole, nil
	}
	b.buf = appendNode(b.buf[:0], &p.node)
	addr, err := b.sink.WriteNode(ctx, b.buf)
	if err != nil {
		return 0, fmt.Errorf("blockmap: cannot write a level %d node: %w", p.level, err)
	}
	if !addr.Stored() {
		return 0, fmt.Errorf("blockmap: a node cannot be at %v", addr)
	}
	return addr, nil
}
