package ext4

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
	"strings"

	"lifeboat/guestfs"
)

// The superblock (struct ext4_super_block in the kernel's fs/ext4/ext4.h).
const (
	superOffset = 1024
	superSize   = 1024
	superMagic  = 0xef53
)

// Features. A reader must know all incompatible ones; of the read-only
// compatible ones it needs none, by their definition, but to check checksums.
const (
	compatHasJournal   = 0x4
	compatSparseSuper2 = 0x200
	compatFastCommit   = 0x400

	incompatCompression = 0x1
	incompatFiletype    = 0x2
	incompatRecover     = 0x4
	incompatJournalDev  = 0x8
	incompatMetaBG      = 0x10
	incompatExtents     = 0x40
	incompat64Bit       = 0x80
	incompatMMP         = 0x100
	incompatFlexBG      = 0x200
	incompatEAInode     = 0x400
	incompatDirdata     = 0x1000
	incompatCsumSeed    = 0x2000
	incompatLargedir    = 0x4000
	incompatInlineData  = 0x8000
	incompatEncrypt     = 0x10000
	incompatCasefold    = 0x20000

	incompatKnown = incompatFiletype | incompatRecover | incompatMetaBG | incompatExtents | incompat64Bit | incompatMMP | incompatFlexBG |
		incompatEAInode | incompatCsumSeed | incompatLargedir | incompatInlineData | incompatEncrypt | incompatCasefold

	roSparseSuper  = 0x1
	roHugeFile     = 0x8
	roMetadataCsum = 0x400
)

// Bits of s_state.
const (
	stateClean = 0x1
	stateError = 0x2
)

// superblock is what a reader needs of it, checked.
type superblock struct {
	inodes, blocks, freeBlocks uint64
	firstData                  uint64
	blockSize                  int
	blocksPerGroup, perGroup   uint64 // perGroup: inodes
	inodeSize                  int
	compat, incompat, roCompat uint32
	descSize                   int
	firstMetaBG                uint64
	backupGroups               [2]uint64
	journalInode               uint32
	state                      uint16
	uuid                       [16]byte
	label                      string
	seed                       uint32 // of all metadata checksums
	groups                     uint64
	checksums                  bool
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc is the kernel's crc32c(): it inverts at neither end.
func crc(seed uint32, p []byte) uint32 { return ^crc32.Update(^seed, castagnoli, p) }

// parseSuper reads a superblock. guestfs.ErrNoFS where there is none.
func parseSuper(b []byte, size int64) (*superblock, error) {
	le := binary.LittleEndian
	if le.Uint16(b[56:]) != superMagic {
		return nil, guestfs.ErrNoFS
	}
	s := &superblock{
		inodes: uint64(le.Uint32(b[0:])), blocks: uint64(le.Uint32(b[4:])), freeBlocks: uint64(le.Uint32(b[12:])), firstData: uint64(le.Uint32(b[20:])),
		blocksPerGroup: uint64(le.Uint32(b[32:])), perGroup: uint64(le.Uint32(b[40:])), inodeSize: 128, descSize: 32,
		compat: le.Uint32(b[92:]), incompat: le.Uint32(b[96:]), roCompat: le.Uint32(b[100:]),
		firstMetaBG: uint64(le.Uint32(b[260:])), journalInode: le.Uint32(b[224:]), state: le.Uint16(b[58:]),
		backupGroups: [2]uint64{uint64(le.Uint32(b[588:])), uint64(le.Uint32(b[592:]))},
	}
	copy(s.uuid[:], b[104:])
	s.label = strings.TrimRight(string(b[120:136]), "\x00")
	if le.Uint32(b[76:]) > 0 { // revision
		s.inodeSize = int(le.Uint16(b[88:]))
	} else {
		s.compat, s.incompat, s.roCompat = 0, 0, 0
	}
	if err := s.known(); err != nil {
		return nil, err
	}
	s.checksums = s.roCompat&roMetadataCsum != 0
	if s.checksums && crc(^uint32(0), b[:1020]) != le.Uint32(b[1020:]) {
		return nil, corrupt("the superblock has a wrong checksum")
	}
	s.seed = crc(^uint32(0), s.uuid[:])
	if s.incompat&incompatCsumSeed != 0 {
		s.seed = le.Uint32(b[624:])
	}
	if s.incompat&incompat64Bit != 0 {
		s.blocks |= uint64(le.Uint32(b[336:])) << 32
		s.freeBlocks |= uint64(le.Uint32(b[344:])) << 32
		s.descSize = int(le.Uint16(b[254:]))
	}
	return s, s.check(le.Uint32(b[24:]), size)
}

// known refuses what this reader does not know, by name.
func (s *superblock) known() error {
	names := map[uint32]string{incompatCompression: "e2compr compression", incompatJournalDev: "a volume that is another's journal", incompatDirdata: "dirdata"}
	if unknown := s.incompat &^ incompatKnown; unknown != 0 {
		bit := unknown & -unknown
		name, ok := names[bit]
		if !ok {
			name = fmt.Sprintf("feature %#x", bit)
		}
		return &guestfs.UnsupportedError{FS: fsName, What: name}
	}
	return nil
}

// check refuses a geometry that cannot be, so that nobody has to check again.
func (s *superblock) check(logBlock uint32, size int64) error {
	if logBlock > 6 {
		return corrupt("a block size of 2^%d KiB", logBlock)
	}
	s.blockSize = 1024 << logBlock
	switch {
	case s.inodeSize < 128 || s.inodeSize > s.blockSize || bits.OnesCount(uint(s.inodeSize)) != 1:
		return corrupt("inodes of %d bytes", s.inodeSize)
	case s.descSize < 32 || s.descSize > s.blockSize || bits.OnesCount(uint(s.descSize)) != 1 || s.incompat&incompat64Bit != 0 && s.descSize < 64:
		return corrupt("group descriptors of %d bytes", s.descSize)
	case s.blocksPerGroup == 0 || s.perGroup == 0 || s.perGroup > uint64(8*s.blockSize):
		return corrupt("groups of %d blocks and %d inodes", s.blocksPerGroup, s.perGroup)
	case s.firstData > 1 || s.blocks <= s.firstData || s.blocks > 1<<48:
		return corrupt("%d blocks, of which the first is %d", s.blocks, s.firstData)
	case size/int64(s.blockSize) < int64(min(s.blocks, 16)):
		return corrupt("the volume is too small for a file system")
	}
	s.groups = (s.blocks - s.firstData + s.blocksPerGroup - 1) / s.blocksPerGroup
	if s.inodes == 0 || s.inodes > s.groups*s.perGroup {
		return corrupt("%d inodes in %d groups", s.inodes, s.groups)
	}
	return nil
}

// hasSuper reports whether a group begins with a copy of the superblock.
func (s *superblock) hasSuper(group uint64) bool {
	if group == 0 {
		return true
	}
	if s.compat&compatSparseSuper2 != 0 {
		return group == s.backupGroups[0] || group == s.backupGroups[1]
	}
	if group == 1 || s.roCompat&roSparseSuper == 0 {
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}

// descBlock is where the descriptor of a group is: block and offset.
func (s *superblock) descBlock(group uint64) (block uint64, offset int) {
	perBlock := uint64(s.blockSize / s.descSize)
	meta, index := group/perBlock, int(group%perBlock)
	if s.incompat&incompatMetaBG == 0 || meta < s.firstMetaBG {
		return s.firstData + 1 + meta, index * s.descSize
	}
	first := meta * perBlock
	block = s.firstData + first*s.blocksPerGroup
	if s.hasSuper(first) {
		block++
	}
	return block, index * s.descSize
}

// name is ext2, ext3 or ext4, as blkid tells them apart.
func (s *superblock) name() string {
	const ext3Incompat = incompatFiletype | incompatRecover | incompatMetaBG
	const ext3RO = 0x7 // sparse_super, large_file, btree_dir
	switch {
	case s.incompat&^ext3Incompat != 0 || s.roCompat&^ext3RO != 0:
		return "ext4"
	case s.compat&compatHasJournal != 0:
		return "ext3"
	}
	return "ext2"
}

func corrupt(format string, args ...any) error { return guestfs.Corruptf(fsName, format, args...) }
