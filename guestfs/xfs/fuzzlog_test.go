package xfs

import (
	"encoding/binary"
	"testing"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/meta"
)

// logOf is a log of one record with one transaction of items.
func logOf(items ...[]byte) []byte {
	be, le := binary.BigEndian, binary.LittleEndian
	var data []byte
	op := func(flags byte, region []byte) {
		data = be.AppendUint32(data, 7)
		data = be.AppendUint32(data, uint32(len(region)))
		data = append(data, clientTransaction, flags, 0, 0)
		data = append(data, region...)
	}
	op(opStart, nil)
	head := make([]byte, transactionHead)
	le.PutUint32(head, transactionMagic)
	op(0, head)
	for _, region := range items {
		op(0, region)
	}
	op(opCommit, nil)
	ops := len(items) + 3
	data = append(data, make([]byte, -len(data)&(sector-1))...)
	b := make([]byte, sector)
	be.PutUint32(b, recordMagic)
	be.PutUint32(b[recCycle:], 1)
	be.PutUint32(b[recVersion:], 2)
	be.PutUint32(b[recLen:], uint32(len(data)))
	be.PutUint64(b[recLSN:], 1<<32)
	be.PutUint64(b[recTail:], 1<<32)
	be.PutUint32(b[recOps:], uint32(ops))
	be.PutUint32(b[recFormat:], littleEndian)
	be.PutUint32(b[recSize:], maxRecordV1)
	for i := 0; i < len(data); i += sector {
		copy(b[recCycles+4*(i/sector):], data[i:i+4])
		be.PutUint32(data[i:], 1)
	}
	return append(b, data...)
}

// FuzzLog replays a log of bytes. A record without a checksum is taken as it is.
func FuzzLog(f *testing.F) {
	const block, logBlock, logBlocks = 512, 64, 128
	le := binary.LittleEndian
	head := make([]byte, 24) // a buffer: its second chunk changes
	le.PutUint16(head, itemBuffer)
	le.PutUint16(head[2:], 2)
	le.PutUint16(head[6:], 1)
	le.PutUint64(head[8:], 16)
	le.PutUint32(head[16:], 1)
	head[20] = 2
	f.Add(logOf(head, make([]byte, chunk)))
	inodeHead, inodeCore := make([]byte, 56), make([]byte, inUnlinked)
	le.PutUint16(inodeHead, itemInode)
	le.PutUint16(inodeHead[2:], 3)
	le.PutUint32(inodeHead[4:], 1|logContentData)
	le.PutUint64(inodeHead[16:], 17)
	le.PutUint64(inodeHead[40:], 17)
	le.PutUint32(inodeHead[48:], 1)
	le.PutUint16(inodeCore, inMagic)
	le.PutUint16(inodeCore[inMode:], 0o100644)
	inodeCore[inVersion], inodeCore[inFormat] = 2, formatLocal
	f.Add(logOf(inodeHead, inodeCore, make([]byte, 16)))
	f.Fuzz(func(t *testing.T, log []byte) {
		data := make([]byte, 256*block)
		binary.BigEndian.PutUint16(data[17*block:], inMagic)
		data[17*block+inVersion] = 2
		copy(data[logBlock*block:(logBlock+logBlocks)*block], log)
		img := disk.Bytes(t.Context(), data)
		for _, v5 := range []bool{false, true} {
			sb := &superblock{
				v5: v5, blockLog: 9, blockSize: block, sectorSize: 512, inodeLog: 9, inodeSize: block, agBlockLog: 8, agBlocks: 256, agCount: 1, blocks: 256,
				dirSize: block, root: 17, logStart: logBlock, logBlocks: logBlocks, logV2: true,
			}
			fsys := &FS{sb: sb, disk: img, meta: meta.New(img, block, 1<<16), state: guestfs.Clean}
			l := &xlog{img: img, base: logBlock * block, size: logBlocks, v2: true}
			tail, head, err := l.tail(t.Context())
			if err != nil || tail == head {
				continue
			}
			r, err := fsys.passes(t.Context(), l, tail, head)
			if err == nil {
				fsys.finish(r.intents)
			}
		}
	})
}

// TestSyntheticLog: the seeds of the fuzzing do what they are meant to.
func TestSyntheticLog(t *testing.T) {
	data := make([]byte, 64*sector)
	copy(data, logOf([]byte{0x36, 0x12, 1, 0, 0, 0, 0, 0}))
	l := &xlog{img: disk.Bytes(t.Context(), data), size: 64, v2: true}
	tail, head, err := l.tail(t.Context())
	if err != nil || tail != 0 || head != 2 {
		t.Fatalf("tail %d, head %d, %v", tail, head, err)
	}
	var items []item
	if err := l.run(t.Context(), tail, head, func(x *transaction) error { items = x.items; return nil }); err != nil || len(items) != 1 || items[0].kind() != itemFree {
		t.Errorf("%+v, %v", items, err)
	}
}
