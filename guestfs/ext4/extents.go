package ext4

import (
	"context"
	"encoding/binary"
	"sort"

	"lifeboat/disk"
)

// Extent trees (struct ext4_extent_header, ext4_extent and ext4_extent_idx): a
// node has a header and entries of 12 bytes; the root is in the inode.
const (
	extentMagic   = 0xf30a
	extentEntry   = 12
	maxDepth      = 5
	maxExtentLen  = 1 << 15 // beyond it: not written yet, reads as zeros
	endOfFile     = 1 << 32 // logical block behind the last one there can be
	maxHoleBlocks = 1 << 20 // a hole is told in pieces, so that sizes stay small
)

// node is one node of an extent tree, checked.
type node struct {
	depth   int
	entries []byte
}

func (n *node) len() int { return len(n.entries) / extentEntry }

func (n *node) at(i int) []byte { return n.entries[i*extentEntry : (i+1)*extentEntry] }

// first is the logical block that an entry begins with.
func (n *node) first(i int) uint64 { return uint64(binary.LittleEndian.Uint32(n.at(i))) }

func (f *FS) parseNode(in *inode, b []byte, depth int) (*node, error) {
	le := binary.LittleEndian
	count, limit, got := int(le.Uint16(b[2:])), int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
	if le.Uint16(b) != extentMagic || count > limit || limit > len(b)/extentEntry-1 || got > maxDepth || depth >= 0 && got != depth {
		return nil, corrupt("inode %d: a node of its extents (magic %#x, %d of %d entries, depth %d)", in.number, le.Uint16(b), count, limit, got)
	}
	if f.sb.checksums && len(b) > blockBytes {
		end := extentEntry * (1 + limit)
		if end+4 > len(b) || crc(f.inodeSeed(in), b[:end]) != le.Uint32(b[end:]) {
			return nil, corrupt("inode %d: a node of its extents has a wrong checksum", in.number)
		}
	}
	return &node{depth: got, entries: b[extentEntry : extentEntry*(1+count)]}, nil
}

// extentPiece finds the piece of a file that contains off.
func (f *FS) extentPiece(ctx context.Context, in *inode, off int64) (disk.Piece, error) {
	logical := uint64(off) / uint64(f.sb.blockSize)
	n, err := f.parseNode(in, in.block(), -1)
	if err != nil {
		return disk.Piece{}, err
	}
	next := uint64(endOfFile) // where what follows begins
	for {
		i := sort.Search(n.len(), func(i int) bool { return n.first(i) > logical })
		if i < n.len() {
			next = min(next, n.first(i))
		}
		if i == 0 {
			return f.hole(logical, next), nil
		}
		if n.depth == 0 {
			return f.leafPiece(in, n.at(i-1), logical, next)
		}
		e := n.at(i - 1)
		child := uint64(binary.LittleEndian.Uint32(e[4:])) | uint64(binary.LittleEndian.Uint16(e[8:]))<<32
		b, err := f.block(ctx, child)
		if err != nil {
			return disk.Piece{}, err
		}
		if n, err = f.parseNode(in, b, n.depth-1); err != nil {
			return disk.Piece{}, err
		}
	}
}

// leafPiece is an extent, or the hole behind it.
func (f *FS) leafPiece(in *inode, e []byte, logical, next uint64) (disk.Piece, error) {
	le := binary.LittleEndian
	first, length := uint64(le.Uint32(e)), uint64(le.Uint16(e[4:]))
	physical := uint64(le.Uint32(e[8:])) | uint64(le.Uint16(e[6:]))<<32
	unwritten := length > maxExtentLen
	if unwritten {
		length -= maxExtentLen
	}
	if length == 0 || first+length > next {
		return disk.Piece{}, corrupt("inode %d: an extent of %d blocks at %d, before one at %d", in.number, length, first, next)
	}
	if logical >= first+length {
		return f.hole(logical, next), nil
	}
	return f.piece(in, first, length, physical, unwritten)
}

func (f *FS) piece(in *inode, first, length, physical uint64, zeros bool) (disk.Piece, error) {
	size := int64(f.sb.blockSize)
	p := disk.Piece{Offset: int64(first) * size, Length: int64(length) * size}
	if zeros {
		return p, nil
	}
	if physical == 0 || physical > f.sb.blocks || length > f.sb.blocks-physical {
		return p, corrupt("inode %d: %d blocks at %d of %d", in.number, length, physical, f.sb.blocks)
	}
	p.From, p.At = f.disk, int64(physical)*size
	return p, nil
}

// hole is nothing from a logical block to the next extent.
func (f *FS) hole(logical, next uint64) disk.Piece {
	size := int64(f.sb.blockSize)
	return disk.Piece{Offset: int64(logical) * size, Length: int64(min(max(next, logical+1)-logical, maxHoleBlocks)) * size}
}

// indirectPiece finds a piece through the block map of ext2 and ext3: twelve
// blocks, and then trees of one, two and three levels. Neighbours that are
// together on the volume are one piece.
func (f *FS) indirectPiece(ctx context.Context, in *inode, off int64) (disk.Piece, error) {
	logical := uint64(off) / uint64(f.sb.blockSize)
	table, index, missing, err := f.mapBlock(ctx, in, logical)
	if err != nil {
		return disk.Piece{}, err
	}
	le := binary.LittleEndian
	if table == nil {
		return f.hole(logical, logical+missing), nil
	}
	physical := uint64(le.Uint32(table[4*index:]))
	n := 1
	for index+n < len(table)/4 {
		next := uint64(le.Uint32(table[4*(index+n):]))
		if physical == 0 && next != 0 || physical != 0 && next != physical+uint64(n) {
			break
		}
		n++
	}
	return f.piece(in, logical, uint64(n), physical, physical == 0)
}

const directBlocks = 12

// mapBlock finds the table of block numbers that says where a logical block is,
// and its place there. Where there is none, all of a tree is a hole, of which
// missing blocks are left.
func (f *FS) mapBlock(ctx context.Context, in *inode, logical uint64) (table []byte, index int, missing uint64, err error) {
	if logical < directBlocks {
		return in.block()[:4*directBlocks], int(logical), 0, nil
	}
	perBlock := uint64(f.sb.blockSize / 4)
	rest, span := logical-directBlocks, perBlock
	for level := range 3 {
		if rest >= span {
			rest -= span
			span *= perBlock
			continue
		}
		at := uint64(binary.LittleEndian.Uint32(in.block()[4*(directBlocks+level):]))
		for {
			if at == 0 {
				return nil, 0, span - rest, nil
			}
			b, err := f.block(ctx, at)
			if err != nil {
				return nil, 0, 0, err
			}
			span /= perBlock
			i := int(rest / span)
			rest %= span
			if span == 1 {
				return b, i, 0, nil
			}
			at = uint64(binary.LittleEndian.Uint32(b[4*i:]))
		}
	}
	return nil, 0, 0, corrupt("inode %d: block %d is beyond what its map can hold", in.number, logical)
}
