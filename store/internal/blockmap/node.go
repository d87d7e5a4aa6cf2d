package blockmap

import (
	"encoding/binary"
	"errors"
	"fmt"

	"lifeboat/store/internal/segment"
)

// entries are the addresses in a node: of blocks in a leaf, of nodes above.
type entries [Fanout]segment.Addr

// node is a decoded node. It is immutable once it is shared.
type node struct {
	level   int   // 0 is a leaf
	used    int64 // blocks stored below it
	entries entries
}

const nodeVersion = 1

// Operations of the encoding. Each is a varint of count<<2|operation; the last
// two are followed by a zigzag varint: the (first) address less the address
// that would continue the run before.
const (
	opHoles      = 0 // count holes
	opSequential = 1 // count addresses, each one more than the one before
	opSame       = 2 // count times one address
	opBits       = 2
)

// appendNode encodes a node. Equal nodes have equal encodings.
func appendNode(b []byte, n *node) []byte {
	b = append(b, nodeVersion, byte(n.level))
	b = binary.AppendUvarint(b, uint64(n.used))
	end := Fanout
	for end > 0 && n.entries[end-1] == segment.Hole {
		end--
	}
	var next segment.Addr
	for i := 0; i < end; {
		op, count := run(n.entries[i:end])
		b = binary.AppendUvarint(b, uint64(count)<<opBits|uint64(op))
		if op != opHoles {
			b = binary.AppendVarint(b, int64(n.entries[i]-next))
			next = n.entries[i+count-1] + 1
		}
		i += count
	}
	return b
}

// run is the longest operation that begins e.
func run(e []segment.Addr) (op, count int) {
	same, seq := 1, 1
	for same < len(e) && e[same] == e[0] {
		same++
	}
	if e[0] == segment.Hole {
		return opHoles, same
	}
	for seq < len(e) && e[seq] == e[seq-1]+1 {
		seq++
	}
	if same > seq {
		return opSame, same
	}
	return opSequential, seq
}

// ErrNode: a node is authentic and yet not one. It comes with
// segment.ErrDamaged.
var ErrNode = errors.New("malformed block map node")

// capacity is the number of blocks below one entry of a node.
func capacity(level int) int64 { return 1 << (fanoutBits * level) }

// decodeNode decodes a node that must be of the given level. It takes nothing
// on trust, and no more memory than n.
func decodeNode(n *node, b []byte, level int) error {
	if len(b) < 2 || b[0] != nodeVersion || int(b[1]) != level {
		return fmt.Errorf("%w: not version %d, level %d", ErrNode, nodeVersion, level)
	}
	used, size := binary.Uvarint(b[2:])
	if size <= 0 || used > uint64(capacity(level+1)) {
		return fmt.Errorf("%w: block count", ErrNode)
	}
	n.level, n.used = level, int64(used)
	return n.fill(b[2+size:])
}

// fill decodes the operations.
func (n *node) fill(b []byte) error {
	clear(n.entries[:])
	var next segment.Addr
	stored, i := int64(0), 0
	for len(b) > 0 {
		word, size := binary.Uvarint(b)
		count := word >> opBits
		if size <= 0 || count == 0 || count > uint64(Fanout-i) {
			return fmt.Errorf("%w: run at entry %d", ErrNode, i)
		}
		b = b[size:]
		run := n.entries[i : i+int(count)]
		i += len(run)
		op := word & (1<<opBits - 1)
		if op == opHoles {
			continue
		}
		delta, size := binary.Varint(b)
		if size <= 0 || op > opSame {
			return fmt.Errorf("%w: run before entry %d", ErrNode, i)
		}
		b = b[size:]
		if err := n.put(run, next+segment.Addr(delta), op == opSequential); err != nil {
			return err
		}
		next = run[len(run)-1] + 1
		stored += int64(count)
	}
	if n.level == 0 && stored != n.used || n.used < stored || n.used > stored*capacity(n.level) {
		return fmt.Errorf("%w: %d blocks in %d entries", ErrNode, n.used, stored)
	}
	return nil
}

// put writes one run of addresses after checking that they can be.
func (n *node) put(run []segment.Addr, first segment.Addr, sequential bool) error {
	ok := first.Stored() || n.level == 0 && first == segment.Unreadable && (!sequential || len(run) == 1)
	if !ok || sequential && first.Slot()+len(run) > segment.MaxSlots && first.Stored() {
		return fmt.Errorf("%w: address %v", ErrNode, first)
	}
	for i := range run {
		run[i] = first
		if sequential {
			first++
		}
	}
	return nil
}

// count is the number of entries that are not holes.
func (e *entries) count() int64 {
	n := int64(0)
	for _, a := range e {
		if a != segment.Hole {
			n++
		}
	}
	return n
}
