package ntfs

import (
	"context"
	"encoding/binary"
	"fmt"

	"lifeboat/disk"
)

// An index is a B-tree: its root is a resident attribute, the other nodes are
// blocks of a stream. A node is a list of entries in ascending order; an entry
// may have a child, whose entries come before it, and the last one is nothing
// but that.
const (
	indexHeader = 16 // offset of first entry, bytes in use, room, flags
	entryHeader = 16
	entryChild  = 1
	entryLast   = 2

	// maxDepth bounds a tree: one of a thousand million entries has six levels.
	maxDepth = 32
)

// index is one index of a file or directory.
type index struct {
	fs        *FS
	number    uint64 // of the base record
	name      string
	root      []byte // its entries
	blockSize int64
	unit      int64      // bytes that the number of a child counts
	blocks    disk.Image // nil: all is in the root
}

type blockKey struct {
	record uint64
	index  string
	vcn    int64
}

// index opens the index of a name ("$I30": of file names); nil where there is
// none.
func (n *node) index(ctx context.Context, name string) (*index, error) {
	a, err := n.find(ctx, attrIndexRoot, name)
	if err != nil || a == nil {
		return nil, err
	}
	if !a.resident || len(a.value()) < indexHeader+16 {
		return nil, corrupt("record %d: the root of index %q", n.base.number, name)
	}
	b := a.value()
	ix := &index{fs: n.fs, number: n.base.number, name: name, blockSize: int64(binary.LittleEndian.Uint32(b[8:]))}
	if ix.blockSize < stride || ix.blockSize > maxRecord || !powerOfTwo(ix.blockSize) {
		return nil, corrupt("record %d: an index of blocks of %d bytes", n.base.number, ix.blockSize)
	}
	if ix.unit = n.fs.geo.cluster; ix.unit > ix.blockSize {
		ix.unit = stride
	}
	if ix.root, err = ix.entries(b[16:]); err != nil {
		return nil, err
	}
	alloc, err := n.find(ctx, attrIndexAlloc, name)
	if err != nil || alloc == nil {
		return ix, err
	}
	if alloc.resident {
		return nil, corrupt("record %d: the blocks of index %q", n.base.number, name)
	}
	s, err := n.stream(alloc)
	if err != nil {
		return nil, err
	}
	ix.blocks = s.image(ctx)
	return ix, nil
}

// entries is the list of a node, whose header b begins with.
func (ix *index) entries(b []byte) ([]byte, error) {
	le := binary.LittleEndian
	first, used := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:]))
	if first < indexHeader || first%8 != 0 || used > uint64(len(b)) || first+entryHeader > used {
		return nil, corrupt("record %d: a node of index %q: %d bytes, entries from %d", ix.number, ix.name, used, first)
	}
	return b[first:used], nil
}

// block reads the entries of the node with a number.
func (ix *index) block(vcn int64) ([]byte, error) {
	key := blockKey{ix.number, ix.name, vcn}
	if b, ok := ix.fs.blocks.get(key); ok {
		return b, nil
	}
	if ix.blocks == nil || vcn < 0 || vcn > ix.blocks.Size()/ix.unit || vcn*ix.unit > ix.blocks.Size()-ix.blockSize {
		return nil, corrupt("record %d: block %d of index %q does not exist", ix.number, vcn, ix.name)
	}
	b := make([]byte, ix.blockSize)
	if n, err := ix.blocks.ReadAt(b, vcn*ix.unit); n < len(b) {
		return nil, fmt.Errorf("record %d: read block %d of index %q: %w", ix.number, vcn, ix.name, unexpected(err))
	}
	if string(b[:4]) != "INDX" {
		return nil, corrupt("record %d: block %d of index %q begins with %q", ix.number, vcn, ix.name, b[:4])
	}
	if err := unfix(b); err != nil {
		return nil, fmt.Errorf("record %d: block %d of index %q: %w", ix.number, vcn, ix.name, err)
	}
	if got := int64(binary.LittleEndian.Uint64(b[16:])); got != vcn {
		return nil, corrupt("record %d: block %d of index %q says that it is block %d", ix.number, vcn, ix.name, got)
	}
	entries, err := ix.entries(b[24:])
	if err == nil {
		ix.fs.blocks.put(key, entries)
	}
	return entries, err
}

// entry is an entry of an index, checked to lie in its node.
type entry struct {
	raw []byte
	at  uint64 // of the entry: a cookie, never 0
}

func (e *entry) flags() uint16 { return binary.LittleEndian.Uint16(e.raw[12:]) }
func (e *entry) last() bool    { return e.flags()&entryLast != 0 }
func (e *entry) ref() uint64   { return binary.LittleEndian.Uint64(e.raw) }

// key is what the index is ordered by.
func (e *entry) key() []byte {
	return e.raw[entryHeader : entryHeader+binary.LittleEndian.Uint16(e.raw[10:])]
}

// data is the value of an entry of an index that is not of names.
func (e *entry) data() []byte {
	le := binary.LittleEndian
	at, n := int(le.Uint16(e.raw)), int(le.Uint16(e.raw[2:]))
	if at+n > len(e.raw) {
		return nil
	}
	return e.raw[at : at+n]
}

func (e *entry) child() (vcn int64, ok bool) {
	if e.flags()&entryChild == 0 {
		return 0, false
	}
	return int64(binary.LittleEndian.Uint64(e.raw[len(e.raw)-8:])), true
}

// level is a node on the way from the root to where a cursor stands.
type level struct {
	entries []byte
	base    uint64 // of the cookies of its entries
	off     int
	below   bool // the child of the entry at off was visited
}

// cookieShift leaves room for the places of a node of 64 KiB, in eighths.
const cookieShift = 13

// cursor walks an index in order.
type cursor struct {
	ix    *index
	stack []level
	seen  map[int64]bool // a tree visits no node twice
}

func (ix *index) cursor() *cursor {
	return &cursor{ix: ix, stack: []level{{entries: ix.root}}, seen: map[int64]bool{}}
}

// entry is the one that a level stands at.
func (c *cursor) entry(l *level) (*entry, error) {
	le := binary.LittleEndian
	b := l.entries[min(l.off, len(l.entries)):]
	if len(b) < entryHeader {
		return nil, corrupt("record %d: a node of index %q has no end", c.ix.number, c.ix.name)
	}
	length, keyLen, flags := int(le.Uint16(b[8:])), int(le.Uint16(b[10:])), le.Uint16(b[12:])
	room := length - entryHeader
	if flags&entryChild != 0 {
		room -= 8
	}
	if length%8 != 0 || length > len(b) || room < 0 || flags&entryLast == 0 && keyLen > room {
		return nil, corrupt("record %d: index %q: an entry of %d bytes, key of %d", c.ix.number, c.ix.name, length, keyLen)
	}
	return &entry{raw: b[:length], at: l.base + uint64(l.off)/8 + 1}, nil
}

// down goes to a child.
func (c *cursor) down(vcn int64) error {
	if c.seen[vcn] || len(c.stack) >= maxDepth {
		return corrupt("record %d: index %q goes round in circles", c.ix.number, c.ix.name)
	}
	c.seen[vcn] = true
	b, err := c.ix.block(vcn)
	if err != nil {
		return err
	}
	c.stack = append(c.stack, level{entries: b, base: (uint64(vcn) + 1) << cookieShift})
	return nil
}

// next is the entry after the one before; nil at the end.
func (c *cursor) next() (*entry, error) {
	for len(c.stack) > 0 {
		l := &c.stack[len(c.stack)-1]
		e, err := c.entry(l)
		if err != nil {
			return nil, err
		}
		if vcn, ok := e.child(); ok && !l.below {
			l.below = true
			if err := c.down(vcn); err != nil {
				return nil, err
			}
			continue
		}
		if e.last() {
			c.stack = c.stack[:len(c.stack)-1]
			continue
		}
		l.off += len(e.raw)
		l.below = false
		return e, nil
	}
	return nil, nil
}

// seek goes to the first entry for which before is false. It must be true for
// all entries before that one, and only for those.
func (c *cursor) seek(before func(*entry) (bool, error)) error {
	for {
		l := &c.stack[len(c.stack)-1]
		e, err := c.entry(l)
		if err != nil {
			return err
		}
		if !e.last() {
			less, err := before(e)
			if err != nil {
				return err
			}
			if less {
				l.off += len(e.raw)
				continue
			}
		}
		vcn, ok := e.child()
		if !ok {
			return nil
		}
		l.below = true
		if err := c.down(vcn); err != nil {
			return err
		}
	}
}

// close ends reads of the index.
func (ix *index) close() {
	if ix.blocks != nil {
		ix.blocks.Close()
	}
}

// at is the entry with a cookie.
func (ix *index) at(cookie uint64) (*entry, error) {
	c := ix.cursor()
	l := &c.stack[0]
	if block := (cookie - 1) >> cookieShift; block > 0 {
		b, err := ix.block(int64(block - 1))
		if err != nil {
			return nil, err
		}
		*l = level{entries: b, base: block << cookieShift}
	}
	for {
		e, err := c.entry(l)
		if err != nil || e.at == cookie {
			return e, err
		}
		if e.last() || e.at > cookie {
			return nil, corrupt("record %d: index %q has no entry %d", ix.number, ix.name, cookie)
		}
		l.off += len(e.raw)
	}
}
