// Package blockmap maps the blocks of a disk to the addresses of their content.
//
// A map is a tree of nodes with 1024 addresses each. A leaf maps 1024 blocks
// (64 MiB of a disk with 64 KiB blocks), a disk of 62 TiB has three levels. A
// node is a blob in a segment, deduplicated by its content like any other, and
// never changes. An empty subtree is address 0 and costs nothing, so that the
// map of a sparse disk is as large as what it holds.
//
// An incremental restore point starts from its parent's tree and writes only
// the nodes on the way to a changed block ([Builder]); all others are shared by
// address. That makes comparing two points cheap as well: equal addresses are
// equal content, and [Reader.Diff] does not go below them.
//
// Each node states how many blocks are stored below it, so that the space a
// disk takes is known from its root.
package blockmap

import (
	"context"
	"errors"
	"fmt"

	"lifeboat/store/internal/segment"
)

const (
	fanoutBits = 10
	// Fanout is the number of addresses in a node.
	Fanout = 1 << fanoutBits
	// MaxNodeSize bounds an encoded node, in bytes: it fits one frame.
	MaxNodeSize = segment.FrameSize
	// MaxLevels is the depth of the largest tree: 2^50 blocks.
	MaxLevels = 5
)

// Tree is the map of one disk: what a restore point keeps of it. The zero Tree
// is that of no disk.
type Tree struct {
	Size      int64        // bytes
	BlockSize int          // bytes, a power of two
	Levels    int          // levels of nodes, LevelsFor(Size, BlockSize)
	Root      segment.Addr // 0: the whole disk is zeros
}

// Blocks is the number of blocks of the disk, the last one perhaps in part.
func (t Tree) Blocks() int64 { return blocks(t.Size, t.BlockSize) }

func blocks(size int64, blockSize int) int64 {
	if size <= 0 || blockSize <= 0 {
		return 0
	}
	return (size-1)/int64(blockSize) + 1
}

// LevelsFor is the number of levels of the tree of a disk of size bytes, at
// least 1.
func LevelsFor(size int64, blockSize int) int {
	levels := 1
	for n := (blocks(size, blockSize) - 1) >> fanoutBits; n > 0; n >>= fanoutBits {
		levels++
	}
	return levels
}

// ErrTree: what a tree states about itself cannot be.
var ErrTree = errors.New("impossible block map")

// Check reports whether the tree can be one: a restore point's JSON may state
// anything.
func (t Tree) Check() error {
	switch {
	case t.Size < 0 || t.BlockSize <= 0 || t.BlockSize&(t.BlockSize-1) != 0:
		return fmt.Errorf("blockmap: %d bytes in blocks of %d: %w", t.Size, t.BlockSize, ErrTree)
	case t.Levels != LevelsFor(t.Size, t.BlockSize) || t.Levels > MaxLevels:
		return fmt.Errorf("blockmap: %d levels for %d bytes in blocks of %d: %w", t.Levels, t.Size, t.BlockSize, ErrTree)
	case t.Root != segment.Hole && !t.Root.Stored():
		return fmt.Errorf("blockmap: root at %v: %w", t.Root, ErrTree)
	}
	return nil
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
