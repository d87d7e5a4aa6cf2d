// Package blockmap maps the blocks of a disk to the addresses of their content.
package blockmap

import (
	"context"
	"errors"
	"iter"

	"lifeboat/store/internal/segment"
)

// Fanout is the number of addresses in a node.
const Fanout = 1024

// MaxNodeSize bounds an encoded node, in bytes: it fits one frame.
const MaxNodeSize = segment.FrameSize

// Tree is the map of one disk: what a restore point keeps of it.
type Tree struct {
	Size      int64        // bytes
	BlockSize int          // bytes, a power of two
	Levels    int          // levels of nodes, see LevelsFor
	Root      segment.Addr // 0: the whole disk is zeros
}

// Run is a run of blocks that are stored: Block+i is at Addr+i, for 0 ≤ i < Count.
// Runs of Unreadable blocks have Count 1 each.
type Run struct {
	Block int64
	Count int64
	Addr  segment.Addr
}

// Range is a run of blocks.
type Range struct {
	Block int64
	Count int64
}

// NodeSource reads nodes. *segment.Reader is one.
type NodeSource interface {
	ReadFrame(ctx context.Context, addr segment.Addr, frame int, dst []byte) (int, error)
}

// NodeSink stores an encoded node (at most MaxNodeSize bytes, valid only
// during the call) as a blob of kind segment.MapNode and returns its address;
// equal nodes may get the same address.
type NodeSink interface {
	WriteNode(ctx context.Context, node []byte) (segment.Addr, error)
}

// ReaderOptions configures a Reader. The zero value is useful.
type ReaderOptions struct {
	// CacheBytes bounds the memory for nodes. 0 means 32 MiB.
	CacheBytes int64
}

// Reader reads trees. It is shared by all disks and safe for concurrent use.
type Reader struct{}

var errSkeleton = errors.New("blockmap: not there yet")

// NewReader returns a Reader that gets nodes from src.
func NewReader(src NodeSource, o ReaderOptions) *Reader { return &Reader{} }

// Open returns the fast view of one tree that an open disk keeps.
func (r *Reader) Open(t Tree) (*Map, error) { return nil, errSkeleton }

// Used is the number of blocks that are stored (not holes): one node is read.
func (r *Reader) Used(ctx context.Context, t Tree) (int64, error) { return 0, errSkeleton }

// Walk yields the stored blocks in [from, to) in ascending order. Holes are
// left out; empty subtrees cost nothing. After an error the sequence ends.
func (r *Reader) Walk(ctx context.Context, t Tree, from, to int64) iter.Seq2[Run, error] {
	return func(yield func(Run, error) bool) { yield(Run{}, errSkeleton) }
}

// Diff yields the blocks whose addresses differ between a and b, in ascending
// order, merged into ranges; what lies beyond the smaller disk compares as holes.
func (r *Reader) Diff(ctx context.Context, a, b Tree) iter.Seq2[Range, error] {
	return func(yield func(Range, error) bool) { yield(Range{}, errSkeleton) }
}

// Node is what Visit shows of a node.
type Node struct {
	Addr    segment.Addr
	Level   int            // 0 is a leaf
	Block   int64          // first block that it covers
	Entries []segment.Addr // children, or data addresses in a leaf; read only; nil with Err
	Err     error          // the node cannot be read
}

// Visit shows the nodes of a tree top down. Below a node for which visit
// returns false it does not go (shared subtrees seen before). A node that
// cannot be read is shown with Err set and the rest goes on.
func (r *Reader) Visit(ctx context.Context, t Tree, visit func(Node) bool) error { return errSkeleton }

// Map is a tree with direct pointers to the leaves used last. It holds no
// resources. Safe for concurrent use.
type Map struct{}

// Tree is the tree that the map was opened on.
func (m *Map) Tree() Tree { return Tree{} }

// Lookup returns the address of a block.
func (m *Map) Lookup(ctx context.Context, block int64) (segment.Addr, error) { return 0, errSkeleton }

// LookupCached is Lookup if that needs no I/O. A block outside the disk is false.
func (m *Map) LookupCached(block int64) (segment.Addr, bool) { return 0, false }

// Builder makes a new tree, from nothing or from a parent. One goroutine.
type Builder struct{}

// NewBuilder starts a tree of a disk of size bytes. Blocks that are not Set
// keep the address that they have in parent (the zero Tree: holes). r reads
// the parent's nodes and may be nil where there is none.
func NewBuilder(r *Reader, parent Tree, size int64, blockSize int, sink NodeSink) (*Builder, error) {
	return nil, errSkeleton
}

// Set gives a block its address. Blocks come in ascending order.
func (b *Builder) Set(ctx context.Context, block int64, addr segment.Addr) error { return errSkeleton }

// Finish writes what is left and returns the tree.
func (b *Builder) Finish(ctx context.Context) (Tree, error) { return Tree{}, errSkeleton }

// LevelsFor is the number of levels of a tree of a disk of size bytes, at least 1.
func LevelsFor(size int64, blockSize int) int { return 1 }
