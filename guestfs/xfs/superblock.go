package xfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"strings"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// The superblock (struct xfs_dsb in the kernel's fs/xfs/libxfs/xfs_format.h):
// the first sector of every allocation group, of which the first one counts.
const (
	superMagic = "XFSB"
	superBytes = 512 // as much of it as is looked at
	sbCRC      = 224
)

// Features. A reader must know all incompatible ones.
const (
	versionMask  = 0xf
	versionLogV2 = 0x400
	versionDirV2 = 0x2000
	versionCI    = 0x4000 // names are compared without ASCII case
	versionMore  = 0x8000

	features2Lazy  = 0x2
	features2FType = 0x200

	incompatFType       = 0x1
	incompatSparse      = 0x2
	incompatMetaUUID    = 0x4
	incompatBigtime     = 0x8
	incompatNeedsRepair = 0x10
	incompatNREXT64     = 0x20
	incompatExchange    = 0x40
	incompatParent      = 0x80
	incompatMetadir     = 0x100
	incompatZoned       = 0x200
	incompatKnown       = incompatFType | incompatSparse | incompatMetaUUID | incompatBigtime | incompatNeedsRepair |
		incompatNREXT64 | incompatExchange | incompatParent

	logIncompatXattrs = 0x1
)

// superblock is what a reader needs of it, checked.
type superblock struct {
	v5          bool // with checksums, and owners in every block
	blockLog    uint
	blockSize   int
	sectorSize  int
	inodeLog    uint
	inodeSize   int
	agBlockLog  uint // bits of a block's number within its group
	agBlocks    uint64
	agCount     uint64
	blocks      uint64
	freeBlocks  uint64
	dirSize     int // bytes of a directory block
	root        guestfs.Inode
	logStart    uint64 // 0: on another device
	logBlocks   uint64
	inodeAlign  uint64 // blocks
	logV2       bool
	lazy        bool // its counters are right only after an orderly end
	ftype       bool // directories tell the type
	foldCase    bool
	needsRepair bool
	logIncompat uint32
	uuid        [16]byte
	metaUUID    [16]byte // as metadata bear it
	label       string
}

// readSuper reads the superblock of img. guestfs.ErrNoFS where there is none.
func readSuper(img disk.Image) (*superblock, error) {
	b := make([]byte, superBytes)
	if n, err := img.ReadAt(b, 0); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, guestfs.ErrNoFS
		}
		return nil, fmt.Errorf("xfs: read the superblock: %w", err)
	}
	if string(b[:4]) != superMagic {
		return nil, guestfs.ErrNoFS
	}
	s, err := parseSuper(b)
	if err != nil || !s.v5 {
		return s, err
	}
	sector := make([]byte, s.sectorSize)
	if n, err := img.ReadAt(sector, 0); n < len(sector) {
		return nil, fmt.Errorf("xfs: read the superblock: %w", err)
	}
	if !sumOK(sector, sbCRC) {
		return nil, corrupt("the superblock has a wrong checksum")
	}
	return s, nil
}

func parseSuper(b []byte) (*superblock, error) {
	be := binary.BigEndian
	version, features2 := be.Uint16(b[100:]), be.Uint32(b[200:])
	s := &superblock{
		blocks: be.Uint64(b[8:]), logStart: be.Uint64(b[48:]), root: guestfs.Inode(be.Uint64(b[56:])), agBlocks: uint64(be.Uint32(b[84:])),
		agCount: uint64(be.Uint32(b[88:])), logBlocks: uint64(be.Uint32(b[96:])), sectorSize: int(be.Uint16(b[102:])),
		inodeSize: int(be.Uint16(b[104:])), label: strings.TrimRight(string(b[108:120]), "\x00"), blockLog: uint(b[120]), inodeLog: uint(b[122]),
		agBlockLog: uint(b[124]), freeBlocks: be.Uint64(b[144:]), inodeAlign: uint64(be.Uint32(b[180:])), blockSize: int(be.Uint32(b[4:])),
		logV2: version&versionLogV2 != 0, foldCase: version&versionCI != 0,
	}
	copy(s.uuid[:], b[32:])
	s.metaUUID = s.uuid
	if version&versionMore == 0 {
		features2 = 0
	}
	s.lazy, s.ftype = features2&features2Lazy != 0, features2&features2FType != 0
	switch version & versionMask {
	case 4:
		if version&versionDirV2 == 0 {
			return nil, &guestfs.UnsupportedError{FS: fsName, What: "version 1 of directories"}
		}
	case 5:
		s.v5, s.logV2, s.lazy = true, true, true
		if err := s.features(b); err != nil {
			return nil, err
		}
	default:
		return nil, &guestfs.UnsupportedError{FS: fsName, What: fmt.Sprintf("version %d", version&versionMask)}
	}
	return s, s.check(uint(b[121]), uint(b[192]))
}

// features reads those of version 5 and refuses what this reader does not know,
// by name.
func (s *superblock) features(b []byte) error {
	incompat := binary.BigEndian.Uint32(b[216:])
	if unknown := incompat &^ incompatKnown; unknown != 0 {
		bit := unknown & -unknown
		name, ok := map[uint32]string{incompatMetadir: "a tree of metadata files (metadir)", incompatZoned: "zoned storage"}[bit]
		if !ok {
			name = fmt.Sprintf("feature %#x", bit)
		}
		return &guestfs.UnsupportedError{FS: fsName, What: name}
	}
	s.ftype = incompat&incompatFType != 0
	s.needsRepair = incompat&incompatNeedsRepair != 0
	s.logIncompat = binary.BigEndian.Uint32(b[220:])
	if incompat&incompatMetaUUID != 0 {
		copy(s.metaUUID[:], b[248:])
	}
	return nil
}

// check refuses a geometry that cannot be, so that nobody has to check again.
func (s *superblock) check(sectorLog, dirLog uint) error {
	switch {
	case s.blockLog < 9 || s.blockLog > 16 || s.blockSize != 1<<s.blockLog:
		return corrupt("blocks of %d bytes", s.blockSize)
	case sectorLog < 9 || sectorLog > 15 || s.sectorSize != 1<<sectorLog || s.sectorSize > s.blockSize:
		return corrupt("sectors of %d bytes", s.sectorSize)
	case s.inodeLog < 8 || s.inodeLog > 11 || s.inodeSize != 1<<s.inodeLog || s.inodeSize > s.blockSize:
		return corrupt("inodes of %d bytes", s.inodeSize)
	case s.blockLog+dirLog > 16 || dirLog > 16:
		return corrupt("directory blocks of 2^%d blocks", dirLog)
	case s.agBlocks == 0 || s.agBlockLog > 31 || bits.Len64(s.agBlocks-1) > int(s.agBlockLog):
		return corrupt("groups of %d blocks", s.agBlocks)
	case s.agCount == 0 || s.blocks <= (s.agCount-1)*s.agBlocks || s.blocks > s.agCount*s.agBlocks || s.blocks > 1<<46:
		return corrupt("%d blocks in %d groups of %d", s.blocks, s.agCount, s.agBlocks)
	}
	s.dirSize = s.blockSize << dirLog
	return nil
}

// linear is where on the volume a block is, in blocks: its number is the group's
// above agBlockLog bits of a number within the group. ok is false unless n blocks
// from there are in one group.
func (s *superblock) linear(block, n uint64) (at uint64, ok bool) {
	ag, within := block>>s.agBlockLog, block&(1<<s.agBlockLog-1)
	if ag >= s.agCount || within >= s.agBlocks || n > s.agBlocks-within {
		return 0, false
	}
	at = ag*s.agBlocks + within
	return at, at < s.blocks && n <= s.blocks-at
}

// inodePlace is where an inode is: block and offset. Its number is its block's
// and its place there.
func (s *superblock) inodePlace(n guestfs.Inode) (block uint64, offset int, ok bool) {
	perBlockLog := s.blockLog - s.inodeLog
	block, ok = s.linear(uint64(n)>>perBlockLog, 1)
	return block, int(uint64(n)&(1<<perBlockLog-1)) << s.inodeLog, ok
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sum is the checksum of a structure whose own field, of four bytes at crcAt,
// counts as zeros.
func sum(b []byte, crcAt int) uint32 {
	c := crc32.Update(0, castagnoli, b[:crcAt])
	c = crc32.Update(c, castagnoli, []byte{0, 0, 0, 0})
	return crc32.Update(c, castagnoli, b[crcAt+4:])
}

// sumOK verifies it. The field is little-endian, unlike all others.
func sumOK(b []byte, crcAt int) bool { return binary.LittleEndian.Uint32(b[crcAt:]) == sum(b, crcAt) }

func corrupt(format string, args ...any) error { return guestfs.Corruptf(fsName, format, args...) }
