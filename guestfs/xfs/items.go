package xfs

import (
	"bytes"
	"context"
	"encoding/binary"
)

// A buffer's item tells which 128-byte chunks of a buffer changed, and to what:
// type 2, regions 2, flags 2, sectors 2, place 8, words of the bit map 4, bit map.
const (
	bufferInodes = 0x1 // only the list of unlinked inodes counts: no reader needs it
	bufferCancel = 0x2
	bufferQuota  = 0x4 | 0x8 | 0x10

	chunk      = 128
	maxSectors = 128 // XFS_MAX_BLOCKSIZE
)

// bufferItem is the head of one.
type bufferItem struct {
	place place
	flags uint16
	bits  []byte
}

func (r *recovery) buffer(it item) (b bufferItem, err error) {
	le := binary.LittleEndian
	p := it.regions[0]
	if len(p) < 20 {
		return b, corrupt("an item of a buffer in its log is of %d bytes", len(p))
	}
	b = bufferItem{flags: le.Uint16(p[4:]), place: place{at: int64(le.Uint64(p[8:])), count: int(le.Uint16(p[6:]))}}
	words := int64(le.Uint32(p[16:]))
	if words*4 > int64(len(p)-20) {
		return b, corrupt("an item of a buffer in its log has %d words", words)
	}
	b.bits = p[20 : 20+4*words]
	return b, r.checkPlace(b.place)
}

func (r *recovery) checkPlace(p place) error {
	if end := int64(r.f.sb.blocks) << r.f.sb.blockLog / sector; p.at < 0 || p.count == 0 || p.count > maxSectors || p.at > end-int64(p.count) {
		return corrupt("its log changes %d sectors at %d of %d", p.count, p.at, end)
	}
	return nil
}

// buffers replays a buffer that is not freed later and is not newer than the
// transaction.
func (r *recovery) buffers(_ context.Context, t *transaction, it item) error {
	if it.kind() != itemBuffer {
		return nil
	}
	b, err := r.buffer(it)
	if err != nil || b.flags&(bufferCancel|bufferInodes|bufferQuota) != 0 || r.cancelled[b.place] > 0 {
		return err
	}
	if len(it.regions) < it.total {
		return corrupt("an item of a buffer in its log has %d regions of %d", len(it.regions), it.total)
	}
	now, err := r.load(b.place)
	if err != nil {
		return err
	}
	if lsn := r.age(now); lsn != 0 && lsn >= t.lsn {
		return nil
	}
	if err := apply(now, b.bits, it.regions[1:]); err != nil {
		return err
	}
	r.seal(now)
	r.store(b.place)
	return nil
}

// apply copies regions to where the bits say. Runs of bits may be cut into several
// regions, at borders of chunks.
func apply(b, bits []byte, regions [][]byte) error {
	set := func(i int) bool { return bits[i/8]&(1<<(i%8)) != 0 }
	for i := 0; i < 8*len(bits); {
		if !set(i) {
			i++
			continue
		}
		n := 1
		for i+n < 8*len(bits) && set(i+n) {
			n++
		}
		if len(regions) == 0 || len(regions[0]) < chunk {
			return corrupt("an item of a buffer in its log lacks a region")
		}
		n = min(n, len(regions[0])/chunk)
		if (i+n)*chunk > len(b) {
			return corrupt("an item of a buffer in its log is longer than the buffer")
		}
		copy(b[i*chunk:(i+n)*chunk], regions[0])
		regions = regions[1:]
		i += n
	}
	return nil
}

// layoutOf recognises what a buffer holds.
func (f *FS) layoutOf(b []byte) (layout, bool) {
	be := binary.BigEndian
	switch be.Uint32(b) {
	case 0x41423342, 0x41423343, 0x49414233, 0x46494233, 0x524d4233, 0x52334643: // free space, inodes, reverse map, references
		return agLayout, true
	case bmapMagic5:
		return bmapLayout, true
	case 0x58414746:
		return agfLayout, true
	case 0x58414749:
		return agiLayout, true
	case 0x5841464c:
		return agflLayout, true
	case dirMagic5, dirOneMagic5, 0x58444633: // the last: free space of directories
		return dirLayout, true
	case linkMagic:
		return farLayout, true
	case 0x58465342:
		if f.sb.metaUUID != f.sb.uuid {
			return sbMeta, true
		}
		return sbLayout, true
	}
	switch be.Uint16(b[8:]) {
	case nodeMagic5, leaf1Magic5, leafMagic5, attrMagic5:
		return daLayout, true
	}
	return layout{}, false
}

// age is the place in the log of the last change that a buffer holds; 0 where it
// does not tell.
func (r *recovery) age(b []byte) uint64 {
	l, ok := r.f.layoutOf(b)
	if !r.f.sb.v5 || !ok || !bytes.Equal(b[l.uuid:l.uuid+16], r.f.sb.metaUUID[:]) {
		return 0
	}
	if lsn := binary.BigEndian.Uint64(b[l.lsn:]); lsn != ^uint64(0) {
		return lsn
	}
	return 0
}

// seal sets the checksum of a buffer that was changed, as its writer would have:
// what is in the log has that of the last time it was written.
func (r *recovery) seal(b []byte) {
	if !r.f.sb.v5 {
		return
	}
	if l, ok := r.f.layoutOf(b); ok {
		sealAt(b, l.crc)
		return
	}
	size := r.f.sb.inodeSize
	if binary.BigEndian.Uint16(b) != inMagic {
		return
	}
	for ; len(b) >= size; b = b[size:] {
		if binary.BigEndian.Uint16(b) == inMagic {
			sealAt(b[:size], inCRC)
		}
	}
}

func sealAt(b []byte, crcAt int) { binary.LittleEndian.PutUint32(b[crcAt:], sum(b, crcAt)) }

// create makes a chunk of inodes that are free (struct xfs_icreate_log; this one
// is big-endian).
func (r *recovery) create(p []byte) error {
	if len(p) < 28 {
		return corrupt("an item in its log that creates inodes is of %d bytes", len(p))
	}
	be, sb := binary.BigEndian, r.f.sb
	ag, block, count, size, blocks := uint64(be.Uint32(p[4:])), uint64(be.Uint32(p[8:])), int(be.Uint32(p[12:])), int(be.Uint32(p[16:])), uint64(be.Uint32(p[20:]))
	number := ag<<sb.agBlockLog | block
	at, ok := sb.linear(number, blocks)
	if !ok || block >= 1<<sb.agBlockLog || size != sb.inodeSize || count == 0 || count > 64 || uint64(count)<<sb.inodeLog != blocks<<sb.blockLog {
		return corrupt("its log creates %d inodes of %d bytes in %d blocks at %d", count, size, blocks, number)
	}
	cluster := r.cluster()
	for i := uint64(0); i < blocks; i += cluster {
		if r.cancelled[place{int64(at+i) << sb.blockLog / sector, int(cluster << sb.blockLog / sector)}] > 0 {
			return nil
		}
	}
	first := number << (sb.blockLog - sb.inodeLog)
	for i := range count {
		in := make([]byte, size)
		be.PutUint16(in, inMagic)
		in[inVersion] = 2
		copy(in[inGeneration:], p[24:28])
		be.PutUint32(in[inUnlinked:], ^uint32(0))
		if sb.v5 {
			in[inVersion] = 3
			be.PutUint64(in[inNumber:], first+uint64(i))
			copy(in[inUUID:], sb.metaUUID[:])
			sealAt(in, inCRC)
		}
		if err := r.put(int64(at)<<sb.blockLog+int64(i)<<sb.inodeLog, in); err != nil {
			return err
		}
	}
	return nil
}

// cluster is how many blocks of inodes are one buffer (xfs_inode_geometry).
func (r *recovery) cluster() uint64 {
	sb := r.f.sb
	bytes := uint64(8192)
	if sb.v5 {
		if larger := bytes * uint64(sb.inodeSize) / 256; sb.inodeAlign >= larger>>sb.blockLog {
			bytes = larger
		}
	}
	return max(1, bytes>>sb.blockLog)
}
