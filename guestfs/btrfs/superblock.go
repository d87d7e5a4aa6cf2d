package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// The superblock (struct btrfs_super_block in the kernel's include/uapi/linux/
// btrfs_tree.h): 64 KiB into every device.
const (
	superOffset = 64 << 10
	superSize   = 4096
	superMagic  = "_BHRfS_M"
	sumBytes    = 32 // room for a checksum, whatever its kind

	sbFSID       = 32
	sbBytenr     = 48
	sbMagic      = 64
	sbGeneration = 72
	sbRoot       = 80
	sbChunkRoot  = 88
	sbLogRoot    = 96
	sbTotal      = 112
	sbUsed       = 120
	sbDevices    = 136
	sbSector     = 144
	sbNode       = 148
	sbSysSize    = 160
	sbChunkGen   = 164
	sbIncompat   = 188
	sbSumKind    = 196
	sbRootLevel  = 198
	sbChunkLevel = 199
	sbLogLevel   = 200
	sbDevice     = 201 // of this device: number 8, …
	sbLabel      = 299
	sbMetaUUID   = 571
	sbSys        = 811 // keys and chunks of the chunk tree
	sysMax       = 2048
	labelBytes   = 256
)

// Features. All are incompatible for who does not know them.
const (
	incompatMetaUUID    = 1 << 10
	incompatZoned       = 1 << 12
	incompatExtentTree2 = 1 << 13
	incompatStripeTree  = 1 << 14
	incompatSimpleQuota = 1 << 16
	incompatKnown       = 1<<12 - 1 | incompatSimpleQuota // everything up to RAID1 of three and four copies
)

// superblock is what a reader needs of it, checked.
type superblock struct {
	fsid, metaUUID [16]byte
	generation     uint64
	root           pointer
	chunkRoot      pointer
	logRoot        pointer
	total, used    int64
	devices        uint64
	device         uint64 // the number of the one that this was read from
	sectorSize     int
	nodeSize       int
	sum            sumKind
	sys            []byte
	label          string
}

// readSuper reads the superblock of a device. guestfs.ErrNoFS where there is none.
func readSuper(img disk.Image) (*superblock, error) {
	b := make([]byte, superSize)
	if n, err := img.ReadAt(b, superOffset); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, guestfs.ErrNoFS
		}
		return nil, fmt.Errorf("btrfs: read the superblock: %w", err)
	}
	if string(b[sbMagic:sbMagic+len(superMagic)]) != superMagic {
		return nil, guestfs.ErrNoFS
	}
	return parseSuper(b)
}

func parseSuper(b []byte) (*superblock, error) {
	le := binary.LittleEndian
	s := &superblock{
		generation: le.Uint64(b[sbGeneration:]), total: int64(min(le.Uint64(b[sbTotal:]), 1<<62)), used: int64(min(le.Uint64(b[sbUsed:]), 1<<62)),
		devices: le.Uint64(b[sbDevices:]), device: le.Uint64(b[sbDevice:]), sectorSize: int(le.Uint32(b[sbSector:])), nodeSize: int(le.Uint32(b[sbNode:])),
		label: strings.TrimRight(string(b[sbLabel:sbLabel+labelBytes]), "\x00"),
	}
	s.root = pointer{at: le.Uint64(b[sbRoot:]), level: int(b[sbRootLevel]), generation: s.generation}
	s.chunkRoot = pointer{at: le.Uint64(b[sbChunkRoot:]), level: int(b[sbChunkLevel]), generation: le.Uint64(b[sbChunkGen:])}
	// The log is of the transaction that was not committed.
	s.logRoot = pointer{at: le.Uint64(b[sbLogRoot:]), level: int(b[sbLogLevel]), generation: s.generation + 1}
	copy(s.fsid[:], b[sbFSID:])
	s.metaUUID = s.fsid
	incompat := le.Uint64(b[sbIncompat:])
	if incompat&incompatMetaUUID != 0 {
		copy(s.metaUUID[:], b[sbMetaUUID:])
	}
	var ok bool
	if s.sum, ok = sumKinds[le.Uint16(b[sbSumKind:])]; !ok {
		return nil, &guestfs.UnsupportedError{FS: fsName, What: fmt.Sprintf("checksum %d", le.Uint16(b[sbSumKind:]))}
	}
	if !s.sum.ok(b[sumBytes:], b) {
		return nil, corrupt("the superblock has a wrong checksum")
	}
	if err := knownFeatures(incompat); err != nil {
		return nil, err
	}
	n := le.Uint32(b[sbSysSize:])
	if n > sysMax {
		return nil, corrupt("%d bytes of chunks in the superblock", n)
	}
	s.sys = b[sbSys : sbSys+n]
	return s, s.check(le.Uint64(b[sbBytenr:]))
}

// knownFeatures refuses what this reader does not know, by name.
func knownFeatures(incompat uint64) error {
	unknown := incompat &^ incompatKnown
	if unknown == 0 {
		return nil
	}
	bit := unknown & -unknown
	name, ok := map[uint64]string{incompatZoned: "zoned storage", incompatExtentTree2: "extent tree v2", incompatStripeTree: "the RAID stripe tree"}[bit]
	if !ok {
		name = fmt.Sprintf("feature %#x", bit)
	}
	return &guestfs.UnsupportedError{FS: fsName, What: name}
}

func (s *superblock) check(at uint64) error {
	power := func(n, low, high int) bool { return n >= low && n <= high && bits.OnesCount(uint(n)) == 1 }
	switch {
	case at != superOffset:
		return corrupt("the superblock says that it stands at %d", at)
	case !power(s.sectorSize, 4096, 64<<10):
		return corrupt("sectors of %d bytes", s.sectorSize)
	case !power(s.nodeSize, s.sectorSize, 64<<10):
		return corrupt("nodes of %d bytes", s.nodeSize)
	case s.devices == 0 || s.devices > 1024:
		return corrupt("%d devices", s.devices)
	}
	return nil
}

func corrupt(format string, args ...any) error { return guestfs.Corruptf(fsName, format, args...) }
