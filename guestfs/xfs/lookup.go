package xfs

import (
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/bits"
	"sort"

	"lifeboat/guestfs"
)

// The index of a large directory: from byte 2^35 of it on, either one leaf, or a
// B+tree by hash whose root is the first block. Attributes that are too many for
// an inode stand in the leaves of such a tree, too.
const (
	nodeMagic4  = 0xfebe
	nodeMagic5  = 0x3ebe
	leaf1Magic4 = 0xd2f1 // the only leaf
	leaf1Magic5 = 0x3df1
	leafMagic4  = 0xd2ff
	leafMagic5  = 0x3dff

	daHeader4 = 16
	daHeader5 = 64
	daDepth   = 5 // XFS_DA_NODE_MAXDEPTH
)

// daBlock is a block of the index of a directory or of attributes.
type daBlock struct {
	b       []byte
	magic   uint16
	next    uint64 // its neighbour in the file, 0: none
	count   int
	entries []byte
}

// Lookup implements [guestfs.Lookuper].
func (f *FS) Lookup(ctx context.Context, dir guestfs.Inode, name string) (guestfs.Dirent, error) {
	in, err := f.directory(ctx, dir)
	if err != nil {
		return guestfs.Dirent{}, err
	}
	var found guestfs.Dirent
	match := func(e guestfs.Dirent) bool { // reports whether to go on
		if f.same(e.Name, name) {
			found = e
		}
		return found.Inode == 0
	}
	if in.content().format == formatLocal || f.sb.foldCase {
		err = f.readDir(ctx, dir, 0, match)
	} else {
		err = f.hashed(ctx, in, name, match)
	}
	if err == nil && found.Inode == 0 {
		err = fmt.Errorf("%q: %w", name, fs.ErrNotExist)
	}
	return found, err
}

// same compares names as the guest does.
func (f *FS) same(a, b string) bool {
	if !f.sb.foldCase || len(a) != len(b) {
		return a == b
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// hashed hands over the entries whose names have the hash of name.
func (f *FS) hashed(ctx context.Context, in *inode, name string, yield func(guestfs.Dirent) bool) error {
	k, hash := in.content(), hashName(name)
	if in.size() == int64(f.sb.dirSize) {
		b, err := f.dirBlock(ctx, in, k, 0)
		if err != nil {
			return err
		}
		index, err := f.index(in, b)
		if err != nil {
			return err
		}
		if index != nil {
			_, err = f.named(ctx, in, k, index, hash, yield)
			return err
		}
	}
	leaf, err := f.descend(ctx, in, k, hash)
	for steps := int64(0); err == nil && leaf != nil && steps <= in.size()/int64(f.sb.dirSize); steps++ {
		var more bool
		if more, err = f.named(ctx, in, k, leaf.entries, hash, yield); !more || leaf.next == 0 || err != nil {
			return err
		}
		leaf, err = f.daBlock(ctx, in, k, leaf.next, uint64(f.sb.dirSize)>>f.sb.blockLog)
	}
	return err
}

// descend finds the first leaf of the index that may hold a hash; nil where there
// is no index.
func (f *FS) descend(ctx context.Context, in *inode, k fork, hash uint32) (*daBlock, error) {
	be := binary.BigEndian
	size := uint64(f.sb.dirSize) >> f.sb.blockLog
	d, err := f.daBlock(ctx, in, k, dirIndexOffset>>f.sb.blockLog, size)
	for depth := 0; err == nil && d != nil && d.isNode(); depth++ {
		i := sort.Search(d.count, func(i int) bool { return be.Uint32(d.entries[8*i:]) >= hash })
		if i == d.count {
			return nil, nil // beyond the highest hash
		}
		if depth > daDepth {
			return nil, corrupt("directory %d: its index is too deep", in.number)
		}
		d, err = f.daBlock(ctx, in, k, uint64(be.Uint32(d.entries[8*i+4:])), size)
	}
	return d, err
}

func (d *daBlock) isNode() bool { return d.magic == nodeMagic4 || d.magic == nodeMagic5 }

// daBlock reads a block of an index, of n blocks of the volume; nil where there
// is none.
func (f *FS) daBlock(ctx context.Context, in *inode, k fork, block, n uint64) (*daBlock, error) {
	b, at, err := f.blocks(ctx, in, k, block, n)
	if err != nil || b == nil {
		return nil, err
	}
	be := binary.BigEndian
	d := &daBlock{b: b, magic: be.Uint16(b[8:]), next: uint64(be.Uint32(b))}
	header, magics := daHeader4, []uint16{nodeMagic4, leaf1Magic4, leafMagic4, attrMagic4}
	if f.sb.v5 {
		header, magics = daHeader5, []uint16{nodeMagic5, leaf1Magic5, leafMagic5, attrMagic5}
	}
	known := false
	for _, m := range magics {
		known = known || d.magic == m
	}
	if !known {
		return nil, corrupt("inode %d: block %d of the index of its %s has the magic %#x", in.number, block, k.name, d.magic)
	}
	if err := f.verify(b, daLayout, at, in.number); err != nil {
		return nil, err
	}
	if d.magic == attrMagic4 || d.magic == attrMagic5 {
		return d, nil // its entries are another's business
	}
	d.count = int(be.Uint16(b[header-4:]))
	if f.sb.v5 {
		d.count = int(be.Uint16(b[header-8:]))
	}
	if d.count > (len(b)-header)/8 {
		return nil, corrupt("inode %d: %d entries in block %d of the index of its %s", in.number, d.count, block, k.name)
	}
	d.entries = b[header : header+8*d.count]
	return d, nil
}

// named hands over the entries that an index has for a hash, and reports whether
// there may be more behind it.
func (f *FS) named(ctx context.Context, in *inode, k fork, index []byte, hash uint32, yield func(guestfs.Dirent) bool) (bool, error) {
	be := binary.BigEndian
	n := len(index) / dirIndexEntry
	for i := sort.Search(n, func(i int) bool { return be.Uint32(index[8*i:]) >= hash }); i < n; i++ {
		if be.Uint32(index[8*i:]) != hash {
			return false, nil
		}
		at := int64(be.Uint32(index[8*i+4:])) * 8
		if at == 0 {
			continue // of a name that went
		}
		if at >= in.size() {
			return false, corrupt("directory %d: its index tells of an entry at %d", in.number, at)
		}
		base := at &^ int64(f.sb.dirSize-1)
		b, err := f.dirBlock(ctx, in, k, base)
		if err != nil {
			return false, err
		}
		if e, _, err := f.entry(in, b, int(at-base), base); err != nil || !yield(e) {
			return false, err
		}
	}
	return true, nil
}

// hashName is the hash of a name (xfs_da_hashname): four bytes at a time, of
// which each has seven bits of its own, rotated in.
func hashName(name string) uint32 {
	var h uint32
	for ; len(name) >= 4; name = name[4:] {
		h = uint32(name[0])<<21 ^ uint32(name[1])<<14 ^ uint32(name[2])<<7 ^ uint32(name[3]) ^ bits.RotateLeft32(h, 28)
	}
	switch len(name) {
	case 3:
		return uint32(name[0])<<14 ^ uint32(name[1])<<7 ^ uint32(name[2]) ^ bits.RotateLeft32(h, 21)
	case 2:
		return uint32(name[0])<<7 ^ uint32(name[1]) ^ bits.RotateLeft32(h, 14)
	case 1:
		return uint32(name[0]) ^ bits.RotateLeft32(h, 7)
	}
	return h
}
