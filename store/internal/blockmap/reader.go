package blockmap

import (
	"context"
	"fmt"
	"sync"

	"lifeboat/store/internal/segment"
)

// ReaderOptions configures a Reader. The zero value is useful.
type ReaderOptions struct {
	// CacheBytes bounds the memory for nodes. 0 means 32 MiB: the maps of
	// some 200 GiB of disk.
	CacheBytes int64
}

// nodeBytes is what a cached node takes, about: its size class and the cache's own.
const nodeBytes = 9472 + 128

// Reader reads trees. It is shared by all disks and safe for concurrent use.
type Reader struct {
	src   NodeSource
	cache cache
	bufs  sync.Pool // of *[MaxNodeSize]byte
}

// NewReader returns a Reader that gets nodes from src.
func NewReader(src NodeSource, o ReaderOptions) *Reader {
	if o.CacheBytes <= 0 {
		o.CacheBytes = 32 << 20
	}
	r := &Reader{src: src}
	r.cache.init(int(max(o.CacheBytes/nodeBytes, 2*MaxLevels)))
	r.bufs.New = func() any { return new([MaxNodeSize]byte) }
	return r
}

// node returns the node at addr, which is not a hole. Two that miss at once
// both read it.
func (r *Reader) node(ctx context.Context, addr segment.Addr, level int) (*node, error) {
	if n := r.cache.get(addr); n != nil {
		return n, checkLevel(n, addr, level)
	}
	buf := r.bufs.Get().(*[MaxNodeSize]byte)
	defer r.bufs.Put(buf)
	size, err := r.src.ReadFrame(ctx, addr, 0, buf[:])
	if err != nil {
		return nil, fmt.Errorf("blockmap: cannot read the level %d node at %v: %w", level, addr, err)
	}
	n := new(node)
	if err := decodeNode(n, buf[:size], level); err != nil {
		return nil, fmt.Errorf("blockmap: node at %v: %w (%w)", addr, err, segment.ErrDamaged)
	}
	r.cache.put(addr, n)
	return n, nil
}

// checkLevel keeps a node that is referred to from two levels, which no tree
// of ours has, from making a walk endless.
func checkLevel(n *node, addr segment.Addr, level int) error {
	if n.level != level {
		return fmt.Errorf("blockmap: node at %v: %w: level %d, not %d (%w)", addr, ErrNode, n.level, level, segment.ErrDamaged)
	}
	return nil
}

// Used is the number of blocks that are stored (not holes): one node is read.
func (r *Reader) Used(ctx context.Context, t Tree) (int64, error) {
	if err := t.Check(); err != nil {
		return 0, err
	}
	if t.Root == segment.Hole {
		return 0, nil
	}
	n, err := r.node(ctx, t.Root, t.Levels-1)
	if err != nil {
		return 0, err
	}
	return n.used, nil
}

// Lookup returns the address of a block. An open disk uses a [Map].
func (r *Reader) Lookup(ctx context.Context, t Tree, block int64) (segment.Addr, error) {
	if err := inside(t, block); err != nil {
		return 0, err
	}
	leaf, err := r.leaf(ctx, t, block>>fanoutBits)
	if err != nil {
		return 0, err
	}
	return leaf[block&(Fanout-1)], nil
}

func inside(t Tree, block int64) error {
	if block < 0 || block >= t.Blocks() {
		return fmt.Errorf("blockmap: block %d of %d: %w", block, t.Blocks(), ErrBlock)
	}
	return nil
}

// empty is the content of every node that is not there. Never written.
var empty entries

// leaf descends to a leaf.
func (r *Reader) leaf(ctx context.Context, t Tree, index int64) (*entries, error) {
	addr := t.Root
	for level := t.Levels - 1; addr != segment.Hole; level-- {
		n, err := r.node(ctx, addr, level)
		if err != nil {
			return nil, err
		}
		if level == 0 {
			return &n.entries, nil
		}
		addr = n.entries[index>>(fanoutBits*(level-1))&(Fanout-1)]
	}
	return &empty, nil
}

// leafCached is leaf if that needs no I/O, else nil.
func (r *Reader) leafCached(t Tree, index int64) *entries {
	addr := t.Root
	for level := t.Levels - 1; addr != segment.Hole; level-- {
		n := r.cache.get(addr)
		if n == nil || n.level != level {
			return nil
		}
		if level == 0 {
			return &n.entries
		}
		addr = n.entries[index>>(fanoutBits*(level-1))&(Fanout-1)]
	}
	return &empty
}
