package store

import (
	"context"
	"fmt"
	"sync/atomic"

	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/segment"
)

// Marking finds out what points need: the addresses of all blocks and nodes that
// can be reached from them, as bits. Nodes that several points share are read
// once, and a leaf says in a few bytes that it needs a thousand blocks in a row.

// markReaders is how many nodes are read at the same time, for storage that takes
// long to answer.
const markReaders = 16

// markOptions says how to mark. The zero value is good.
type markOptions struct {
	// readers is how many nodes are read at once; 0 means markReaders.
	readers int
	// known is what was marked before and is left out: nodes that are there are
	// not gone below. The set itself may be known.
	known *addrBits
	// nodes, if not nil, counts the nodes read.
	nodes *atomic.Int64
	// bad hears of a node that cannot be read and decides whether to go on; nil
	// ends it with an error that says whose it is.
	bad func(rec *pointRecord, disk int, err error) error
}

// mark adds to set what the points need.
func (r *Repository) mark(ctx context.Context, recs []*pointRecord, set *addrBits, o markOptions) error {
	type owner struct {
		rec  *pointRecord
		disk int
	}
	var trees []blockmap.Tree
	var owners []owner
	for _, rec := range recs {
		for _, a := range rec.configBlocks() {
			set.add(a)
		}
		for i, d := range rec.Disks {
			trees = append(trees, d.tree(r.blockSize))
			owners = append(owners, owner{rec, i})
		}
	}
	if o.readers <= 0 {
		o.readers = markReaders
	}
	return r.maps.Mark(ctx, trees, blockmap.MarkOptions{
		Workers: o.readers, Nodes: o.nodes,
		New: func() blockmap.Marker { return &bitsMarker{set: set, known: o.known} },
		Bad: func(tree int, _ segment.Addr, err error) error {
			of := owners[tree]
			if o.bad != nil {
				return o.bad(of.rec, of.disk, err)
			}
			return fmt.Errorf("what disk %d of point %s needs is not known: %w; verify the repository", of.disk, of.rec.ID, damaged(err))
		},
	})
}

// bitsMarker marks in a set. It remembers where the segments are that it met
// last, since neighbours in a disk are mostly neighbours in a few segments.
type bitsMarker struct {
	set   *addrBits
	known *addrBits // or nil
	near  [markNear]struct {
		number uint64
		bits   *segmentBits
	}
}

const markNear = 256

func (m *bitsMarker) bitsOf(number uint64) *segmentBits {
	n := &m.near[number%markNear]
	if n.number != number {
		n.number, n.bits = number, m.set.make(number)
	}
	return n.bits
}

// Node implements blockmap.Marker.
func (m *bitsMarker) Node(a segment.Addr) bool {
	if m.known != nil && m.known.has(a) {
		return false
	}
	return m.bitsOf(a.Segment()).set(a.Slot()/64, 1<<(a.Slot()%64)) != 0
}

// Blocks implements blockmap.Marker.
func (m *bitsMarker) Blocks(first segment.Addr, count int) {
	m.bitsOf(first.Segment()).setRun(first.Slot(), count)
}
