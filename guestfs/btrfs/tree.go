package btrfs

import (
	"bytes"
	"container/list"
	"context"
	"encoding/binary"
	"sort"
	"sync"
)

// Trees are of nodes of nodeSize: a header of 101 bytes (checksum 32, file system
// 16, own address 8, flags 8, UUID 16, generation 8, owner 8, number of items 4,
// level 1), and in a leaf items of key 17, offset 4 and size 4, whose data fill it
// from the end; in any other node keys, addresses and generations of children.
const (
	nodeHeader = 101
	keyBytes   = 17
	itemBytes  = 25
	childBytes = 33
	maxLevel   = 8

	nodeFSID       = 32
	nodeAt         = 48
	nodeGeneration = 80
	nodeOwner      = 88
	nodeCount      = 96
	nodeLevel      = 100
)

// key is what items are sorted by.
type key struct {
	id     uint64
	kind   byte
	offset uint64
}

func parseKey(b []byte) key {
	le := binary.LittleEndian
	return key{le.Uint64(b), b[8], le.Uint64(b[9:])}
}

func (k key) less(o key) bool {
	if k.id != o.id {
		return k.id < o.id
	}
	if k.kind != o.kind {
		return k.kind < o.kind
	}
	return k.offset < o.offset
}

// before is the key in front of another; ok is false for the first.
func (k key) before() (key, bool) {
	switch {
	case k.offset > 0:
		return key{k.id, k.kind, k.offset - 1}, true
	case k.kind > 0:
		return key{k.id, k.kind - 1, ^uint64(0)}, true
	case k.id > 0:
		return key{k.id - 1, 0xff, ^uint64(0)}, true
	}
	return k, false
}

// item is an item of a leaf. Its data are not to be changed.
type item struct {
	key
	data []byte
}

// after is the key behind another; the last one is its own.
func (k key) after() key {
	switch {
	case k.offset < ^uint64(0):
		return key{k.id, k.kind, k.offset + 1}
	case k.kind < 0xff:
		return key{k.id, k.kind + 1, 0}
	case k.id < ^uint64(0):
		return key{k.id + 1, 0, 0}
	}
	return k
}

// pointer is where a node is, and what it must be.
type pointer struct {
	at         uint64
	generation uint64
	level      int
	first      *key // nil for roots
}

// node is a node, checked.
type node struct {
	b     []byte
	level int
	n     int
}

func (n *node) key(i int) key {
	if n.level == 0 {
		return parseKey(n.b[nodeHeader+i*itemBytes:])
	}
	return parseKey(n.b[nodeHeader+i*childBytes:])
}

func (n *node) item(i int) item {
	p := n.b[nodeHeader+i*itemBytes:]
	off, size := binary.LittleEndian.Uint32(p[keyBytes:]), binary.LittleEndian.Uint32(p[keyBytes+4:])
	return item{parseKey(p), n.b[nodeHeader+off:][:size]}
}

func (n *node) child(i int) pointer {
	p := n.b[nodeHeader+i*childBytes+keyBytes:]
	k := n.key(i)
	return pointer{at: binary.LittleEndian.Uint64(p), generation: binary.LittleEndian.Uint64(p[8:]), level: n.level - 1, first: &k}
}

// after is the place of the first key that is greater.
func (n *node) after(k key) int {
	return sort.Search(n.n, func(i int) bool { return k.less(n.key(i)) })
}

// nodes reads nodes and keeps the latest. Safe for concurrent use. mu is never held
// during I/O.
type nodes struct {
	v   *volume
	sb  *superblock
	max int

	mu    sync.Mutex
	kept  map[uint64]*list.Element
	order list.List // of *kept, latest in front
}

type kept struct {
	at         uint64
	generation uint64
	node       *node
}

func newNodes(v *volume, sb *superblock, limit int) *nodes {
	return &nodes{v: v, sb: sb, max: max(16, limit/sb.nodeSize), kept: map[uint64]*list.Element{}}
}

// read reads a node, whichever copy of it is good.
func (c *nodes) read(ctx context.Context, p pointer) (*node, error) {
	if n := c.get(p); n != nil {
		return n, n.begins(p)
	}
	var first error
	for mirror := range c.v.copies(p.at) {
		b := make([]byte, c.sb.nodeSize)
		err := c.v.read(ctx, b, p.at, mirror)
		if err == nil {
			var n *node
			if n, err = c.check(b, p); err == nil {
				c.put(p, n)
				return n, n.begins(p)
			}
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// begins checks that a node begins with the key that its parent has for it. So no
// node is the child of two, and no tree larger than the volume.
func (n *node) begins(p pointer) error {
	if p.first != nil && (n.n == 0 || n.key(0) != *p.first) {
		return corrupt("the node at %d does not begin with the key that its parent has", p.at)
	}
	return nil
}

// check verifies that b is the node that p means.
func (c *nodes) check(b []byte, p pointer) (*node, error) {
	le := binary.LittleEndian
	n := &node{b: b, level: int(b[nodeLevel]), n: int(le.Uint32(b[nodeCount:]))}
	switch {
	case !c.sb.sum.ok(b[sumBytes:], b):
		return nil, corrupt("the node at %d has a wrong checksum", p.at)
	case le.Uint64(b[nodeAt:]) != p.at || !bytes.Equal(b[nodeFSID:nodeFSID+16], c.sb.metaUUID[:]):
		return nil, corrupt("the node at %d says that it is at %d of file system %x", p.at, le.Uint64(b[nodeAt:]), b[nodeFSID:nodeFSID+16])
	case n.level != p.level || n.level >= maxLevel:
		return nil, corrupt("the node at %d is of level %d, not %d", p.at, n.level, p.level)
	case le.Uint64(b[nodeGeneration:]) != p.generation:
		return nil, corrupt("the node at %d is of transaction %d, not %d", p.at, le.Uint64(b[nodeGeneration:]), p.generation)
	}
	size := itemBytes
	if n.level > 0 {
		size = childBytes
	}
	if n.n > (len(b)-nodeHeader)/size || n.n < 0 || n.level > 0 && n.n == 0 {
		return nil, corrupt("the node at %d has %d items", p.at, n.n)
	}
	for i := range n.n {
		if i > 0 && !n.key(i-1).less(n.key(i)) {
			return nil, corrupt("the node at %d has keys out of order", p.at)
		}
		if n.level > 0 {
			continue
		}
		q := b[nodeHeader+i*itemBytes+keyBytes:]
		if end := int64(le.Uint32(q)) + int64(le.Uint32(q[4:])); end > int64(len(b)-nodeHeader) || int64(le.Uint32(q)) < int64(n.n*itemBytes) {
			return nil, corrupt("the node at %d: item %d lies outside it", p.at, i)
		}
	}
	return n, nil
}

func (c *nodes) get(p pointer) *node {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.kept[p.at]
	if e == nil {
		return nil
	}
	k := e.Value.(*kept)
	if k.generation != p.generation || k.node.level != p.level {
		return nil // whoever asks will be told what is wrong
	}
	c.order.MoveToFront(e)
	return k.node
}

func (c *nodes) put(p pointer, n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept[p.at] != nil {
		return
	}
	c.kept[p.at] = c.order.PushFront(&kept{p.at, p.generation, n})
	if len(c.kept) > c.max {
		last := c.order.Remove(c.order.Back()).(*kept)
		delete(c.kept, last.at)
	}
}

// tree is a tree as it is on the volume.
type tree struct {
	nodes *nodes
	root  pointer
}

// floor finds the last item whose key is not greater; ok is false where there is
// none.
func (t tree) floor(ctx context.Context, k key) (it item, ok bool, err error) {
	p := t.root
	for {
		n, err := t.nodes.read(ctx, p)
		if err != nil {
			return it, false, err
		}
		i := n.after(k)
		if i == 0 {
			return it, false, nil
		}
		if n.level == 0 {
			return n.item(i - 1), true, nil
		}
		p = n.child(i - 1)
	}
}

// scan hands over the items from a key on, in order, until yield reports false.
func (t tree) scan(ctx context.Context, from key, yield func(item) bool) error {
	_, err := t.scanNode(ctx, t.root, from, yield)
	return err
}

func (t tree) scanNode(ctx context.Context, p pointer, from key, yield func(item) bool) (more bool, err error) {
	n, err := t.nodes.read(ctx, p)
	if err != nil {
		return false, err
	}
	i := n.after(from)
	if i > 0 && (n.level > 0 || !n.key(i-1).less(from)) {
		i--
	}
	for ; i < n.n; i++ {
		if n.level > 0 {
			if more, err := t.scanNode(ctx, n.child(i), from, yield); err != nil || !more {
				return false, err
			}
		} else if !yield(n.item(i)) {
			return false, nil
		}
	}
	return true, nil
}
