package lvm

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sort"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/meta"
)

// A thin volume is mapped block by block to a data volume that it shares with
// others, by the device mapper's thin target. Its metadata are B-trees on a volume
// of their own (drivers/md/dm-thin-metadata.c and persistent-data/dm-btree.h in
// Linux), which are never written in place: what the superblock names is whole at
// every instant, as after a power cut.
//
// Numbers are little-endian, blocks of metadata 4 KiB.
const (
	thinBlock     = 4096
	thinCache     = 2 << 20 // bytes
	thinMagic     = 27022010
	thinSuperSalt = 160774
	thinNodeSalt  = 121107
	thinHeader    = 32 // of a node
	thinInternal  = 1
	thinLeaf      = 2
	thinMaxDepth  = 16
	thinTimeBits  = 24

	thinNeedsCheck = 1 << 0
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// thinSum is the kernel's checksum of a block whose first four bytes hold it.
func thinSum(b []byte, salt uint32) uint32 { return ^crc32.Checksum(b[4:], castagnoli) ^ salt }

// thin says where a thin volume is.
type thin struct {
	device         uint64
	metadata, data *layout
	size, chunk    int64 // bytes
}

// thinOf reads what the metadata of the group say of a thin volume. ok is false
// where it is none.
func (g *group) thinOf(lv *section) (t *thin, ok bool, err error) {
	segments, err := g.sortedSegments(lv)
	if err != nil || len(segments) != 1 || segments[0].str("type") != "thin" {
		return nil, false, err
	}
	s := segments[0]
	t = &thin{}
	count, err := s.num("extent_count")
	if err != nil {
		return nil, true, err
	}
	if count <= 0 || count > maxVolume/g.extent {
		return nil, true, corrupt("a thin volume of %d extents", count)
	}
	t.size = count * g.extent
	device, err := s.num("device_id")
	if err != nil {
		return t, true, err
	}
	t.device = uint64(device)
	if s.str("external_origin") != "" {
		return t, true, &guestfs.UnsupportedError{FS: "lvm", What: "a thin volume with an external origin"}
	}
	return t, true, g.thinPool(t, s.str("thin_pool"))
}

// thinPool finds the volumes of a pool.
func (g *group) thinPool(t *thin, name string) error {
	pool := g.lvs[name]
	if pool == nil {
		return corrupt("the thin pool %.100q is not described", name)
	}
	segments, err := g.sortedSegments(pool)
	if err != nil {
		return err
	}
	if len(segments) != 1 || segments[0].str("type") != "thin-pool" {
		return corrupt("%.100q is no thin pool", name)
	}
	s := segments[0]
	chunk, err := s.num("chunk_size")
	if err != nil {
		return err
	}
	if chunk <= 0 || chunk > maxExtent/sector {
		return corrupt("a thin pool with chunks of %d sectors", chunk)
	}
	t.chunk = chunk * sector
	if t.metadata, err = g.layoutOf(s.str("metadata"), 1); err != nil {
		return err
	}
	t.data, err = g.layoutOf(s.str("pool"), 1)
	return err
}

// open reads the superblock and finds the volume's tree.
func (t *thin) open(ctx context.Context) (disk.Image, error) {
	metadata := disk.Assemble(ctx, t.metadata.size, t.metadata.piece)
	p := &thinTree{ctx: ctx, blocks: meta.New(metadata, thinBlock, thinCache), thin: t, data: disk.Assemble(ctx, t.data.size, t.data.piece)}
	b, err := p.blocks.Block(ctx, 0)
	if err != nil {
		return nil, fmt.Errorf("lvm: read the thin pool's superblock: %w", err)
	}
	le := binary.LittleEndian
	switch {
	case le.Uint64(b[32:]) != thinMagic || le.Uint32(b) != thinSum(b, thinSuperSalt):
		return nil, corrupt("the thin pool's superblock has a wrong checksum")
	case le.Uint32(b[4:])&thinNeedsCheck != 0:
		return nil, corrupt("the thin pool says of itself that it needs repair (thin_check)")
	case int64(le.Uint32(b[336:]))*sector != t.chunk:
		return nil, corrupt("the thin pool has chunks of %d sectors, and its group says %d bytes", le.Uint32(b[336:]), t.chunk)
	}
	root, _, found, err := p.find(le.Uint64(b[320:]), t.device)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, corrupt("the thin pool has no volume %d", t.device)
	}
	p.root = root.value
	return disk.Assemble(ctx, t.size, p.piece), nil
}

// thinTree is the mapping of an open thin volume.
type thinTree struct {
	ctx    context.Context
	blocks *meta.Cache
	thin   *thin
	data   disk.Image
	root   uint64
}

// thinEntry is an entry of a leaf, with those behind it.
type thinEntry struct {
	value  uint64
	values []byte // from the entry on
	keys   []byte
}

// node reads a node and checks it.
func (p *thinTree) node(number uint64) (kind uint32, keys, values []byte, err error) {
	b, err := p.blocks.Block(p.ctx, number)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("lvm: the thin pool's metadata: %w", err)
	}
	le := binary.LittleEndian
	entries, limit := le.Uint32(b[16:]), le.Uint32(b[20:])
	kind = le.Uint32(b[4:])
	const perNode = (thinBlock - thinHeader) / 16
	if le.Uint32(b) != thinSum(b, thinNodeSalt) || le.Uint64(b[8:]) != number || le.Uint32(b[24:]) != 8 ||
		entries > limit || limit > perNode || kind != thinInternal && kind != thinLeaf {
		return 0, nil, nil, corrupt("block %d of the thin pool's metadata is no node of a tree", number)
	}
	keys = b[thinHeader : thinHeader+8*entries]
	values = b[thinHeader+8*limit:][:8*entries]
	return kind, keys, values, nil
}

// find looks a key up. Where it is not there, next is the key that comes behind
// it, as far as one node can tell, or one that is surely not behind it.
func (p *thinTree) find(root, key uint64) (e thinEntry, next uint64, found bool, err error) {
	le := binary.LittleEndian
	next = 1<<64 - 1
	for range thinMaxDepth {
		kind, keys, values, err := p.node(root)
		if err != nil {
			return e, 0, false, err
		}
		n := len(keys) / 8
		i := sort.Search(n, func(i int) bool { return le.Uint64(keys[8*i:]) > key })
		if i < n {
			next = min(next, le.Uint64(keys[8*i:]))
		}
		if i == 0 {
			return e, next, false, nil
		}
		i--
		if kind == thinInternal {
			root = le.Uint64(values[8*i:])
			continue
		}
		e = thinEntry{value: le.Uint64(values[8*i:]), keys: keys[8*i:], values: values[8*i:]}
		return e, next, le.Uint64(keys[8*i:]) == key, nil
	}
	return e, 0, false, corrupt("a tree of the thin pool's metadata has no leaves")
}

// piece implements what disk.Assemble asks.
func (p *thinTree) piece(off int64) (disk.Piece, error) {
	chunk := p.thin.chunk
	key := uint64(off / chunk)
	e, next, found, err := p.find(p.root, key)
	if err != nil {
		return disk.Piece{}, err
	}
	out := disk.Piece{Offset: int64(key) * chunk}
	if !found {
		blocks := min(max(next, key+1)-key, uint64((p.thin.size-out.Offset+chunk-1)/chunk))
		out.Length = int64(blocks) * chunk
		return out, nil
	}
	le := binary.LittleEndian
	at, n := e.value>>thinTimeBits, uint64(1)
	for 8*n+8 <= uint64(len(e.keys)) && le.Uint64(e.keys[8*n:]) == key+n && le.Uint64(e.values[8*n:])>>thinTimeBits == at+n {
		n++
	}
	if at > uint64(p.data.Size()/chunk) || n > uint64(p.data.Size()/chunk)-at {
		return out, corrupt("chunk %d of a thin volume is at %d of %d", key, at, p.data.Size()/chunk)
	}
	out.Length, out.From, out.At = int64(n)*chunk, p.data, int64(at)*chunk
	return out, nil
}

// isPool reports whether a volume is a pool: nothing that anybody could read.
func isPool(lv *section) bool {
	s := lv.sections["segment1"]
	return s != nil && s.str("type") == "thin-pool"
}
