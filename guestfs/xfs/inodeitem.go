package xfs

import (
	"encoding/binary"

	"lifeboat/guestfs"
)

// inodeItem is the head of an inode's item.
type inodeItem struct {
	fields uint32
	number guestfs.Inode
	place  place
	offset int
	dev    uint32
}

// What an inode's item holds (XFS_ILOG_*).
const (
	logContentData  = 0x002
	logContentExt   = 0x004
	logContentRoot  = 0x008
	logDevice       = 0x010
	logAttrData     = 0x040
	logAttrExt      = 0x080
	logAttrRoot     = 0x100
	logContentOwner = 0x200
	logAttrOwner    = 0x400
	logContent      = logContentData | logContentExt | logContentRoot
	logAttr         = logAttrData | logAttrExt | logAttrRoot
)

// parseInodeItem reads the head of an inode's item, as 64-bit kernels write it or,
// without padding, 32-bit ones.
func (r *recovery) parseInodeItem(p []byte) (h inodeItem, err error) {
	const long, short = 56, 52
	if len(p) != long && len(p) != short {
		return h, corrupt("an item of an inode in its log is of %d bytes", len(p))
	}
	le := binary.LittleEndian
	h.fields = le.Uint32(p[4:])
	p = p[len(p)-40:]
	h.number, h.dev = guestfs.Inode(le.Uint64(p)), le.Uint32(p[8:])
	h.place = place{at: int64(le.Uint64(p[24:])), count: int(int32(le.Uint32(p[32:])))}
	h.offset = int(int32(le.Uint32(p[36:])))
	if h.place.count < 0 || h.offset < 0 || h.offset%r.f.sb.inodeSize != 0 || h.offset+r.f.sb.inodeSize > h.place.count*sector {
		return h, corrupt("an item in its log says that inode %d is at %d of %d sectors", h.number, h.offset, h.place.count)
	}
	return h, r.checkPlace(h.place)
}

// inode replays an inode, unless its buffer was freed later, or what is on the
// volume is newer. The item holds the core, and then those of the forks that
// changed.
func (r *recovery) inode(t *transaction, it item) error {
	h, err := r.parseInodeItem(it.regions[0])
	if err != nil || r.cancelled[h.place] > 0 {
		return err
	}
	// Of the buffer, only the sectors with this inode are of interest.
	p := place{at: h.place.at + int64(h.offset/sector), count: (h.offset%sector + r.f.sb.inodeSize + sector - 1) / sector}
	buffer, err := r.load(p)
	if err != nil {
		return err
	}
	in := &inode{number: h.number, raw: buffer[h.offset%sector:][:r.f.sb.inodeSize]}
	if in.u16(0) != inMagic {
		return corrupt("its log changes inode %d, which is none", h.number)
	}
	if h.fields&(logContentOwner|logAttrOwner) != 0 {
		r.reowned[h.number] = true
	}
	if len(it.regions) < 2 || len(it.regions[1]) < inUnlinked || r.f.sb.v5 && len(it.regions[1]) < core {
		return corrupt("its log has no core for inode %d", h.number)
	}
	logged := it.regions[1]
	if version := logged[inVersion]; binary.LittleEndian.Uint16(logged) != inMagic || r.f.sb.v5 != (version == 3) {
		return corrupt("its log changes inode %d to version %d", h.number, version)
	}
	if r.newer(in, logged, t.lsn) {
		return nil
	}
	in.set(logged, t.lsn)
	if err := r.forks(in, h, it.regions[2:]); err != nil {
		return err
	}
	if r.f.sb.v5 {
		sealAt(in.raw, inCRC)
	}
	r.store(p)
	return nil
}

// newer reports whether an inode on the volume is newer than one in the log: by
// its place in the log or, before version 3, by a counter that wraps around.
func (r *recovery) newer(in *inode, logged []byte, lsn uint64) bool {
	if r.f.sb.v5 {
		at := in.u64(inLSN)
		return at != 0 && at != ^uint64(0) && at > lsn
	}
	const highest = 0xffff
	now, then := in.u16(inFlushIter), binary.LittleEndian.Uint16(logged[inFlushIter:])
	return then < now && (now != highest || then >= highest/2)
}

// set makes the core of an inode what the log has, in the byte order of the
// machine that wrote it. The list of unlinked inodes is not in it.
func (in *inode) set(logged []byte, lsn uint64) {
	swap := func(at, n int) {
		for i := range n {
			in.raw[at+i] = logged[at+n-1-i]
		}
	}
	le := binary.LittleEndian
	version := logged[inVersion]
	nrext64 := version == 3 && le.Uint64(logged[inFlags2:])&flag2NREXT64 != 0
	bigtime := version == 3 && le.Uint64(logged[inFlags2:])&flag2Bigtime != 0
	stamp := func(at int) {
		if bigtime {
			swap(at, 8)
			return
		}
		swap(at, 4)
		swap(at+4, 4)
	}
	for _, field := range [][2]int{
		{0, 2},
		{inMode, 2},
		{inUID, 4},
		{inGID, 4},
		{inLinks, 4},
		{20, 2},
		{22, 2},
		{inSize, 8},
		{inBlocks, 8},
		{72, 4},
		{inExtents, 4},
		{inAttrExtents, 2},
		{84, 4},
		{88, 2},
		{inFlags, 2},
		{inGeneration, 4},
	} {
		swap(field[0], field[1])
	}
	in.raw[inVersion], in.raw[inFormat], in.raw[inForkOff], in.raw[inAttrFormat] = version, logged[inFormat], logged[inForkOff], logged[inAttrFormat]
	clear(in.raw[inOldLinks : inOldLinks+2])
	clear(in.raw[inBigExtents : inBigExtents+8])
	stamp(inAtime)
	stamp(inMtime)
	stamp(inCtime)
	if version != 3 {
		return
	}
	if nrext64 {
		swap(inBigExtents, 8)
	}
	swap(104, 8) // change count
	swap(inFlags2, 8)
	swap(128, 4) // extent size for copies on write
	clear(in.raw[132:144])
	stamp(inCrtime)
	swap(inNumber, 8)
	copy(in.raw[inUUID:], logged[inUUID:core])
	binary.BigEndian.PutUint64(in.raw[inLSN:], lsn)
}

// forks replays those that changed.
func (r *recovery) forks(in *inode, h inodeItem, regions [][]byte) error {
	if in.coreBytes()+8*int(in.raw[inForkOff]) >= len(in.raw) {
		return corrupt("its log says that the attributes of inode %d begin at %d", h.number, 8*int(in.raw[inForkOff]))
	}
	content := in.content().data
	if h.fields&logDevice != 0 {
		binary.BigEndian.PutUint32(content, h.dev)
	}
	var attributes []byte
	if k, ok := in.attributes(); ok {
		attributes = k.data
	}
	for _, k := range []struct {
		any, root uint32
		to        []byte
	}{{logContent, logContentRoot, content}, {logAttr, logAttrRoot, attributes}} {
		if h.fields&k.any == 0 {
			continue
		}
		if len(regions) == 0 {
			return corrupt("its log lacks a region of inode %d", h.number)
		}
		from := regions[0]
		regions = regions[1:]
		ok := len(from) <= len(k.to)
		if h.fields&k.root != 0 {
			ok = r.root(k.to, from)
		} else if ok {
			copy(k.to, from)
		}
		if !ok {
			return corrupt("its log holds %d bytes for %d of inode %d", len(from), len(k.to), h.number)
		}
	}
	return nil
}

// root turns the root of a B+tree as it stands in memory, a block with a header,
// into one as it stands in an inode.
func (r *recovery) root(to, from []byte) bool {
	header := bmapHeader4
	if r.f.sb.v5 {
		header = bmapHeader5
	}
	if len(from) < header || len(to) < 4 {
		return false
	}
	be := binary.BigEndian
	n, hold, room := int(be.Uint16(from[6:])), (len(from)-header)/16, (len(to)-4)/16
	if n > hold || n > room {
		return false
	}
	copy(to, from[4:8]) // level and number of entries
	copy(to[4:], from[header:header+8*n])
	copy(to[4+8*room:], from[header+8*hold:header+8*hold+8*n])
	return true
}

// put replaces bytes of the volume.
func (r *recovery) put(at int64, data []byte) error {
	p := place{at: at / sector, count: int((at+int64(len(data))+sector-1)/sector - at/sector)}
	b, err := r.load(p)
	if err != nil {
		return err
	}
	copy(b[at%sector:], data)
	r.store(p)
	return nil
}
