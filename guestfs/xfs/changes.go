package xfs

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"sort"
	"sync"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/patch"
)

var _ guestfs.ChangeReader = (*FS)(nil)

// The B+tree of a group's inodes (xfs_inobt): its root is named by the group's
// header, its records are chunks of 64 inodes.
const (
	agiMagic    = 0x58414749 // "XAGI"
	agiRoot     = 20
	agiLevel    = 24
	inobtMagic4 = 0x49414254 // "IABT"
	inobtMagic5 = 0x49414233 // "IAB3"
	shortHead4  = 16
	shortHead5  = 56
	inobtRecord = 16
	chunkInodes = 64
)

// chunks are all chunks of inodes, by their place on the volume.
type chunks struct {
	mu    sync.Mutex
	known bool
	list  []inodeChunk
}

// inodeChunk is 64 inodes that stand together. A bit of free says that an inode is not
// in use, or is not there at all.
type inodeChunk struct {
	at    int64 // bytes on the volume
	first guestfs.Inode
	free  uint64
}

func (f *FS) inodeChunks(ctx context.Context) ([]inodeChunk, error) {
	c := &f.chunks
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known {
		return c.list, nil
	}
	w := chunkWalk{fs: f, seen: map[uint64]bool{}}
	for ag := range f.sb.agCount {
		if err := w.group(ctx, ag); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(w.list, func(a, b inodeChunk) int { return cmp.Compare(a.at, b.at) })
	c.known, c.list = true, w.list
	return c.list, nil
}

// chunkWalk goes through the trees of all groups. That no block is visited twice
// bounds it by the size of the volume, whatever the trees say.
type chunkWalk struct {
	fs   *FS
	seen map[uint64]bool
	list []inodeChunk
}

func (w *chunkWalk) group(ctx context.Context, ag uint64) error {
	s, be := w.fs.sb, binary.BigEndian
	b := make([]byte, s.sectorSize)
	if n, err := w.fs.disk.ReadAt(b, int64(ag*s.agBlocks)<<s.blockLog+2*int64(s.sectorSize)); n < len(b) {
		return fmt.Errorf("xfs: read the inodes' header of group %d: %w", ag, err)
	}
	if be.Uint32(b) != agiMagic || s.v5 && !sumOK(b, agiLayout.crc) {
		return corrupt("the inodes' header of group %d", ag)
	}
	level := int(be.Uint32(b[agiLevel:]))
	if level < 1 || level > maxLevels {
		return corrupt("the inodes of group %d are a tree of %d levels", ag, level)
	}
	return w.node(ctx, ag, uint64(be.Uint32(b[agiRoot:])), level-1)
}

func (w *chunkWalk) node(ctx context.Context, ag, block uint64, level int) error {
	s, be := w.fs.sb, binary.BigEndian
	at, ok := s.linear(ag<<s.agBlockLog|block, 1)
	if !ok || block >= s.agBlocks || w.seen[at] {
		return corrupt("the inodes of group %d: block %d is of another tree", ag, block)
	}
	w.seen[at] = true
	b, err := w.fs.meta.Block(ctx, at)
	if err != nil {
		return err
	}
	magic, head := uint32(inobtMagic4), shortHead4
	if s.v5 {
		magic, head = inobtMagic5, shortHead5
	}
	n, size := int(be.Uint16(b[6:])), inobtRecord
	if level > 0 {
		size = 8 // key and pointer
	}
	room := (len(b) - head) / size
	if be.Uint32(b) != magic || int(be.Uint16(b[4:])) != level || n > room || s.v5 && !sumOK(b, agLayout.crc) {
		return corrupt("the inodes of group %d: block %d is not of level %d of their tree", ag, block, level)
	}
	for i := range n {
		if level == 0 {
			err = w.record(ag, b[head+i*inobtRecord:])
		} else {
			err = w.node(ctx, ag, uint64(be.Uint32(b[head+4*room+4*i:])), level-1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// record reads a chunk. Those with holes tell them in 16 bits, one for four
// inodes; in the others the same bits are the high half of a small number.
func (w *chunkWalk) record(ag uint64, b []byte) error {
	s, be := w.fs.sb, binary.BigEndian
	first := guestfs.Inode(ag<<(s.agBlockLog+s.blockLog-s.inodeLog) | uint64(be.Uint32(b)))
	block, off, ok := s.inodePlace(first)
	if !ok {
		return corrupt("the inodes of group %d: a chunk at inode %d", ag, first)
	}
	c := inodeChunk{at: int64(block)<<s.blockLog + int64(off), first: first, free: be.Uint64(b[8:])}
	for i, holes := 0, be.Uint16(b[4:]); i < 16; i++ {
		if holes>>i&1 != 0 {
			c.free |= 0xf << (4 * i)
		}
	}
	w.list = append(w.list, c)
	return nil
}

// MetadataExtents implements [guestfs.ChangeReader]: the chunks of inodes.
func (f *FS) MetadataExtents(ctx context.Context) ([]disk.Extent, error) {
	list, err := f.inodeChunks(ctx)
	if err != nil {
		return nil, err
	}
	var out []disk.Extent
	for _, c := range list {
		e := disk.Extent{Offset: c.at, Length: chunkInodes << f.sb.inodeLog}
		if n := len(out); n > 0 && out[n-1].End() >= e.Offset {
			out[n-1].Length = max(out[n-1].End(), e.End()) - out[n-1].Offset
			continue
		}
		out = append(out, e)
	}
	return out, nil
}

// InodesIn implements [guestfs.ChangeReader].
func (f *FS) InodesIn(ctx context.Context, within disk.Extent) iter.Seq2[guestfs.Inode, error] {
	return func(yield func(guestfs.Inode, error) bool) {
		list, err := f.inodeChunks(ctx)
		if err != nil {
			yield(0, err)
			return
		}
		size := int64(f.sb.inodeSize)
		i := sort.Search(len(list), func(i int) bool { return list[i].at+chunkInodes*size > within.Offset })
		for ; i < len(list) && list[i].at < within.End(); i++ {
			c := list[i]
			for n := range int64(chunkInodes) {
				at := c.at + n*size
				if c.free>>n&1 != 0 || at+size <= within.Offset || at >= within.End() {
					continue
				}
				if !yield(c.first+guestfs.Inode(n), nil) {
					return
				}
			}
		}
	}
}

// Overlaid implements [guestfs.ChangeReader]. Inodes for which work was left to be
// finished read differently from how they stand there, too.
func (f *FS) Overlaid(context.Context) ([]disk.Extent, error) {
	out := patch.Replaced(f.disk)
	add := func(inode guestfs.Inode) {
		if block, off, ok := f.sb.inodePlace(inode); ok {
			out = append(out, disk.Extent{Offset: int64(block)<<f.sb.blockLog + int64(off), Length: int64(f.sb.inodeSize)})
		}
	}
	for inode := range f.remaps {
		add(inode)
	}
	for inode := range f.reowned {
		add(inode)
	}
	slices.SortFunc(out, func(a, b disk.Extent) int { return cmp.Compare(a.Offset, b.Offset) })
	return disjoint(out), nil
}

// disjoint joins ranges, in order of their beginning, that overlap or touch.
func disjoint(list []disk.Extent) []disk.Extent {
	out := list[:0]
	for _, e := range list {
		if n := len(out); n > 0 && out[n-1].End() >= e.Offset {
			out[n-1].Length = max(out[n-1].End(), e.End()) - out[n-1].Offset
			continue
		}
		out = append(out, e)
	}
	return out
}
