package xfs

import (
	"context"
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/meta"
)

// TestRemaps: what intents announce, over what an inode says, is what doing one
// after the other block by block makes of it.
func TestRemaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 40
		model := map[uint64]uint64{} // block of the file → of the volume
		var base []extent
		for at := uint64(0); at < size; {
			at += rapid.Uint64Range(0, 5).Draw(t, "hole")
			e := extent{off: at, start: 1000 + 100*at, count: rapid.Uint64Range(1, 8).Draw(t, "count")}
			base = append(base, e)
			for i := range e.count {
				model[at+i] = e.start + i
			}
			at += e.count
		}
		var ops []remap
		for i := range rapid.IntRange(0, 6).Draw(t, "intents") {
			op := remap{extent: extent{off: rapid.Uint64Range(0, size).Draw(t, "at"), start: uint64(100_000 * (i + 1)), count: rapid.Uint64Range(1, 12).Draw(t, "blocks")}}
			op.unmap = rapid.Bool().Draw(t, "out")
			for j := range op.count {
				delete(model, op.off+j)
				if !op.unmap {
					model[op.off+j] = op.start + j
				}
			}
			ops = append(ops, op)
		}
		for block := uint64(0); block < 2*size; {
			var e extent
			next := uint64(endOfFile)
			for _, b := range base {
				if b.off <= block && block < b.off+b.count {
					e = b
				} else if b.off > block {
					next = min(next, b.off)
				}
			}
			e, next = applyRemaps(ops, e, next, block)
			if e.count > 0 && (block < e.off || block >= e.off+e.count) || next <= block {
				t.Fatalf("block %d: %+v, next %d", block, e, next)
			}
			end := next
			if e.count > 0 {
				end = e.off + e.count
			}
			for ; block < min(end, 2*size); block++ {
				want, ok := model[block]
				if ok != (e.count > 0) || ok && want != e.start+block-e.off {
					t.Fatalf("block %d: %+v, want %d, %v", block, e, want, ok)
				}
			}
		}
	})
}

// FuzzInode reads an inode of version 2, and what it points to, from bytes.
func FuzzInode(f *testing.F) {
	const block = 512
	in := make([]byte, 4*block)
	be := binary.BigEndian
	be.PutUint16(in, inMagic)
	be.PutUint16(in[inMode:], 0o100644)
	in[inVersion], in[inFormat], in[inAttrFormat] = 2, formatExtents, formatExtents
	be.PutUint32(in[inLinks:], 1)
	be.PutUint32(in[inExtents:], 1)
	in[inForkOff] = 12
	f.Add(in)
	dir := append([]byte{}, in...)
	be.PutUint16(dir[inMode:], 0o040755)
	dir[inFormat] = formatLocal
	be.PutUint64(dir[inSize:], 20)
	copy(dir[oldCore:], "\x01\x00\x00\x00\x00\x40\x01\x00\x10a\x00\x00\x00\x41")
	f.Add(dir)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 2*block {
			return
		}
		data = append(append(make([]byte, block), data...), make([]byte, 64*block)...)[:64*block] // inode 0 is none
		sb := &superblock{
			blockLog: 9, blockSize: block, sectorSize: 512, inodeLog: 9, inodeSize: block, agBlockLog: 6, agBlocks: 64, agCount: 1, blocks: 64,
			dirSize: block, root: 1,
		}
		img := disk.Bytes(t.Context(), data)
		fsys := &FS{sb: sb, disk: img, meta: meta.New(img, block, 1<<16)}
		for n := guestfs.Inode(1); n < 3; n++ {
			a, err := fsys.Stat(context.Background(), n)
			if err == nil {
				_ = fsys.touch(t.Context(), n, a)
			}
			total := 0
			for e, err := range fsys.ReadDir(t.Context(), n, 0) {
				if total++; err != nil || total > 1000 {
					break
				}
				_, _ = fsys.Lookup(t.Context(), n, e.Name)
			}
		}
	})
}
