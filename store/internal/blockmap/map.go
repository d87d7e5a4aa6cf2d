package blockmap

import (
	"context"
	"errors"
	"sync/atomic"

	"lifeboat/store/internal/segment"
)

// ErrBlock: the block lies outside the disk.
var ErrBlock = errors.New("no such block")

// mapLeaves is the number of direct pointers to leaves in a Map: 16 GiB of a
// disk with 64 KiB blocks, at most 2 MiB of nodes kept from being freed.
const mapLeaves = 256

// Map is a tree with direct pointers to the leaves used last, for a disk that
// is open. It holds no resources. Safe for concurrent use.
type Map struct {
	r      *Reader
	t      Tree
	blocks uint64
	leaves []atomic.Pointer[leafRef] // by leaf index modulo its length
}

type leafRef struct {
	index   int64
	entries *entries
}

// Open returns the fast view of one tree that an open disk keeps.
func (r *Reader) Open(t Tree) (*Map, error) {
	if err := t.Check(); err != nil {
		return nil, err
	}
	n := 1
	for n < mapLeaves && int64(n)<<fanoutBits < t.Blocks() {
		n *= 2
	}
	return &Map{r: r, t: t, blocks: uint64(t.Blocks()), leaves: make([]atomic.Pointer[leafRef], n)}, nil
}

// Tree is the tree that the map was opened on.
func (m *Map) Tree() Tree { return m.t }

// LookupCached is Lookup if that needs no I/O. A block outside the disk is
// false.
func (m *Map) LookupCached(block int64) (segment.Addr, bool) {
	if uint64(block) >= m.blocks {
		return 0, false
	}
	index := block >> fanoutBits
	if ref := m.leaves[index&int64(len(m.leaves)-1)].Load(); ref != nil && ref.index == index {
		return ref.entries[block&(Fanout-1)], true
	}
	return m.lookupShared(block)
}

// lookupShared looks in the Reader's cache.
func (m *Map) lookupShared(block int64) (segment.Addr, bool) {
	e := m.r.leafCached(m.t, block>>fanoutBits)
	if e == nil {
		return 0, false
	}
	return m.keep(block, e), true
}

// keep remembers the leaf that holds block and returns the block's address.
func (m *Map) keep(block int64, e *entries) segment.Addr {
	index := block >> fanoutBits
	m.leaves[index&int64(len(m.leaves)-1)].Store(&leafRef{index: index, entries: e})
	return e[block&(Fanout-1)]
}

// Lookup returns the address of a block.
func (m *Map) Lookup(ctx context.Context, block int64) (segment.Addr, error) {
	if a, ok := m.LookupCached(block); ok {
		return a, nil
	}
	if err := inside(m.t, block); err != nil {
		return 0, err
	}
	e, err := m.r.leaf(ctx, m.t, block>>fanoutBits)
	if err != nil {
		return 0, err
	}
	return m.keep(block, e), nil
}
