package ntfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

const (
	bootSize = 512
	// stride is how far apart the two bytes are that guard a record against torn
	// writes, whatever the size of a sector.
	stride = 512

	maxCluster = 2 << 20
	maxRecord  = 64 << 10
)

// geometry is what the boot sector says, checked.
type geometry struct {
	cluster    int64  // bytes
	clusters   int64  // of the volume
	mft, mirr  int64  // cluster
	recordSize int    // of a record of the MFT, bytes
	blockSize  int    // of an index, bytes
	serial     uint64 // of the volume
}

// readGeometry reads the boot sector, or its copy at the end of the volume where
// it is damaged. guestfs.ErrNoFS where neither is one.
func readGeometry(img disk.Image) (g *geometry, fromCopy bool, err error) {
	first, err := readBoot(img, 0)
	if err != nil {
		return nil, false, err
	}
	g, err = parseBoot(first, img.Size())
	if err == nil {
		return g, false, nil
	}
	last, readErr := readBoot(img, (img.Size()/bootSize-1)*bootSize)
	if readErr != nil {
		return nil, false, err
	}
	if g, copyErr := parseBoot(last, img.Size()); copyErr == nil {
		return g, true, nil
	}
	return nil, false, err
}

func readBoot(img disk.Image, at int64) ([]byte, error) {
	if img.Size() < 2*bootSize {
		return nil, guestfs.ErrNoFS
	}
	b := make([]byte, bootSize)
	if n, err := img.ReadAt(b, at); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, guestfs.ErrNoFS
		}
		return nil, fmt.Errorf("ntfs: read the boot sector: %w", err)
	}
	return b, nil
}

// parseBoot reads a boot sector and refuses a geometry that cannot be, so that
// nobody has to check again.
func parseBoot(b []byte, size int64) (*geometry, error) {
	le := binary.LittleEndian
	if string(b[3:11]) != "NTFS    " || le.Uint16(b[510:]) != 0xaa55 {
		return nil, guestfs.ErrNoFS
	}
	sector, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	if perCluster > 128 { // what does not fit in the byte is a power of two
		shift := 256 - perCluster
		if shift > 31 {
			return nil, corrupt("clusters of 2^%d sectors", shift)
		}
		perCluster = 1 << shift
	}
	if sector < 256 || sector > 4096 || !powerOfTwo(sector) || !powerOfTwo(perCluster) || sector*perCluster < bootSize || sector*perCluster > maxCluster {
		return nil, corrupt("clusters of %d sectors of %d bytes", perCluster, sector)
	}
	g := &geometry{cluster: sector * perCluster, serial: le.Uint64(b[72:])}
	sectors := le.Uint64(b[40:])
	if sectors == 0 || sectors > uint64(1<<62/sector) {
		return nil, corrupt("a volume of %d sectors", sectors)
	}
	g.clusters = int64(sectors) / perCluster
	var ok bool
	if g.recordSize, ok = g.size(int8(b[64])); !ok {
		return nil, corrupt("records of size %d", int8(b[64]))
	}
	if g.blockSize, ok = g.size(int8(b[68])); !ok {
		return nil, corrupt("index blocks of size %d", int8(b[68]))
	}
	mft, mirr := le.Uint64(b[48:]), le.Uint64(b[56:])
	if mft == 0 || mft >= uint64(g.clusters) || size/g.cluster <= int64(mft) {
		return nil, corrupt("the MFT is at cluster %d of %d", mft, g.clusters)
	}
	if g.mft = int64(mft); mirr < uint64(g.clusters) {
		g.mirr = int64(mirr)
	}
	return g, nil
}

// size decodes a size in clusters, or the power of two of a size in bytes.
func (g *geometry) size(n int8) (int, bool) {
	var size int64
	switch {
	case n > 0:
		size = int64(n) * g.cluster
	case n > -31 && n < 0:
		size = 1 << -n
	}
	return int(size), size >= stride && size <= maxRecord && powerOfTwo(size)
}

func powerOfTwo(n int64) bool { return bits.OnesCount64(uint64(n)) == 1 }

// unfix checks the update sequence of a record and puts back the bytes that it
// had taken the place of: the last two of every 512. A record that was torn, or
// whose parts are of different times, is found this way.
func unfix(b []byte) error {
	le := binary.LittleEndian
	at, count := int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
	if count != len(b)/stride+1 || at < 8 || at%2 != 0 || at+2*count > len(b) {
		return corrupt("an update sequence of %d at %d", count, at)
	}
	number := le.Uint16(b[at:])
	for i := 1; i < count; i++ {
		end := b[i*stride-2 : i*stride]
		if le.Uint16(end) != number {
			return corrupt("torn: part %d is of another time", i)
		}
		copy(end, b[at+2*i:])
	}
	return nil
}

// fix is the reverse of unfix, with the update sequence number as it is.
func fix(b []byte) {
	le := binary.LittleEndian
	at, count := int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
	for i := 1; i < count; i++ {
		end := b[i*stride-2 : i*stride]
		copy(b[at+2*i:at+2*i+2], end)
		copy(end, b[at:at+2])
	}
}

func corrupt(format string, args ...any) error { return guestfs.Corruptf(fsName, format, args...) }
