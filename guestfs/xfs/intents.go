package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"lifeboat/guestfs"
)

// A change that takes several transactions is announced by an intent, and done
// when a later transaction says so. Mounting finishes what was announced and not
// done. Of extents to be freed, the reverse map and the counts of references no
// reader sees anything. Extents that are to be mapped into a file, or out of it,
// are: they are put over what the file's inode says. What else there is (logged
// attributes, exchanged extents) is announced rarely, and makes the volume Dirty.
const (
	intentHead = 16 // type 2, regions 2, number 4 or nothing, ID 8
	mapBytes   = 32 // owner 8, block 8, place in the file 8, count 4, flags 4

	maxRemaps    = 256 // of one file: the kernel has a few at most
	mapTypeMask  = 0xff
	mapIn        = 1
	mapOut       = 2
	mapAttribute = 1 << 31
	mapUnwritten = 1 << 30
	mapRealtime  = 1 << 29
)

// intent is one that was not done yet.
type intent struct {
	kind  uint16
	order int
	data  []byte
}

// intentKey is how its end names it.
type intentKey struct {
	kind uint16
	id   uint64
}

// remap is a run of blocks that is to be mapped into a file, or out of it.
type remap struct {
	extent
	unmap bool
}

func (r *recovery) begin(it item) error {
	p := it.regions[0]
	if len(p) < intentHead+8 {
		return corrupt("an intent of %d bytes in its log", len(p))
	}
	if len(r.intents) >= maxIntents || len(p) > maxIntentBytes {
		return fmt.Errorf("it holds %d intents, one of %d bytes: %w", len(r.intents)+1, len(p), errUnsupported)
	}
	r.begun++
	r.intents[intentKey{it.kind(), binary.LittleEndian.Uint64(p[8:])}] = intent{kind: it.kind(), order: r.begun, data: bytes.Clone(p)}
	return nil
}

func (r *recovery) done(it item) error {
	p := it.regions[0]
	if len(p) < intentHead {
		return corrupt("the end of an intent is of %d bytes in its log", len(p))
	}
	delete(r.intents, intentKey{it.kind() - 1, binary.LittleEndian.Uint64(p[8:])})
	return nil
}

// finish does what was announced, in the order in which it was.
func (f *FS) finish(intents map[intentKey]intent) {
	le := binary.LittleEndian
	for _, in := range slices.SortedFunc(maps.Values(intents), func(a, b intent) int { return a.order - b.order }) {
		if in.kind == itemAttr && hidden(in.data) {
			continue
		}
		if in.kind != itemMap {
			f.unfinished("a change of inode %d", le.Uint64(in.data[intentHead:]))
			continue
		}
		n := min(int64(le.Uint32(in.data[4:])), int64(len(in.data)-intentHead)/mapBytes)
		for i := range n {
			p := in.data[intentHead+i*mapBytes:]
			owner, flags := guestfs.Inode(le.Uint64(p)), le.Uint32(p[28:])
			kind := flags & mapTypeMask
			if flags&(mapAttribute|mapRealtime) != 0 || kind != mapIn && kind != mapOut || len(f.remaps[owner]) >= maxRemaps {
				f.unfinished("a map of inode %d", uint64(owner))
				continue
			}
			if f.remaps == nil {
				f.remaps = map[guestfs.Inode][]remap{}
			}
			f.remaps[owner] = append(f.remaps[owner], remap{
				extent: extent{off: le.Uint64(p[16:]), start: le.Uint64(p[8:]), count: uint64(le.Uint32(p[24:])), unwritten: flags&mapUnwritten != 0},
				unmap:  kind == mapOut,
			})
		}
	}
}

// hidden reports whether a change of attributes is of what a file keeps of its
// names, which nobody sees: ID 8, inode 8, kind of change 4.
func hidden(p []byte) bool {
	const first, last = 4, 6 // XFS_ATTRI_OP_FLAGS_PPTR_*
	if len(p) < 28 {
		return false
	}
	kind := binary.LittleEndian.Uint32(p[24:]) & 0xff
	return kind >= first && kind <= last
}

func (f *FS) unfinished(format string, args ...any) {
	if f.state != guestfs.Dirty {
		f.state, f.note = guestfs.Dirty, join(f.note, "its log announces "+fmt.Sprintf(format, args...)+" that this reader cannot finish")
	}
}

// applyRemaps puts what was announced over what was found for a block: the extent
// e, or a hole up to next. The latest announcement counts; one that lies beside
// the block is where the answer ends.
func applyRemaps(ops []remap, e extent, next, block uint64) (extent, uint64) {
	from, to := uint64(0), uint64(endOfFile)
	for i := len(ops) - 1; i >= 0; i-- {
		op := ops[i]
		end := op.off + op.count
		switch {
		case op.count == 0 || op.off >= endOfFile || op.count > maxCount:
		case end <= block:
			from = max(from, end)
		case op.off > block:
			to = min(to, op.off)
		default:
			e, next = op.extent, end
			if op.unmap {
				e = extent{}
			}
			i = 0
		}
	}
	next = min(next, to)
	if e.count == 0 {
		return e, next
	}
	if skip := max(from, e.off) - e.off; skip > 0 {
		e.off, e.start, e.count = e.off+skip, e.start+skip, e.count-skip
	}
	e.count = min(e.count, to-e.off)
	return e, max(next, e.off+e.count)
}
