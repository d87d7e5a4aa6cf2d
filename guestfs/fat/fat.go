// Package fat reads FAT12, FAT16 and FAT32 with long names: EFI system
// partitions, old Windows, removable disks.
//
// What is written where is in Microsoft's "FAT: General Overview of On-Disk
// Format" (fatgen103); where it leaves something open, what Linux does
// (fs/fat) is done.
//
// There is no journal: a volume that was in use is Dirty, and whether something
// is missing nobody can tell. There are no inodes either: a file is known by
// where its directory entry lies. Times are the guest's local ones; they are
// given as if it lived in UTC, as every other system does that does not know
// better.
package fat

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/text/encoding/charmap"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/meta"
)

const (
	fsName     = "vfat"
	bootBytes  = 512
	cacheBytes = 4 << 20
	cacheBlock = 4096
	// maxCountedFAT bounds the table that is read to count what is free, bytes.
	maxCountedFAT = 1 << 20
)

// Kinds of FAT by the width of an entry of the table, in bits.
const (
	fat12 = 12
	fat16 = 16
	fat32 = 32
)

// layout is where things are on the volume, in bytes.
type layout struct {
	bits        int
	cluster     int64
	table       int64 // the one in use
	tableSize   int64
	root        int64 // of FAT12 and FAT16
	rootSize    int64
	rootCluster uint32 // of FAT32
	data        int64  // cluster 2
	clusters    uint32 // the last one's number is clusters+1
	serial      uint32
	label       string
	inUse       bool // Linux marks the boot sector of a volume that it writes to
	info        int64
}

// FS is a FAT file system.
type FS struct {
	l     layout
	disk  disk.Image
	meta  *meta.Cache
	label string
	used  int64
	state guestfs.State
	note  string
}

var (
	_ guestfs.FS        = (*FS)(nil)
	_ guestfs.Lookuper  = (*FS)(nil)
	_ guestfs.Describer = (*FS)(nil)
)

func corrupt(format string, args ...any) error { return guestfs.Corruptf(fsName, format, args...) }

// Open reads the file system on img, which must stay open as long.
// guestfs.ErrNoFS where there is none.
func Open(ctx context.Context, img disk.Image) (*FS, error) {
	b := make([]byte, bootBytes)
	if n, err := img.ReadAt(b, 0); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, guestfs.ErrNoFS
		}
		return nil, fmt.Errorf("fat: read the boot sector: %w", err)
	}
	l, err := parseBoot(b, img.Size())
	if err != nil {
		return nil, err
	}
	f := &FS{l: l, disk: img, meta: meta.New(img, cacheBlock, cacheBytes), label: l.label}
	if err := f.describe(ctx); err != nil {
		return nil, err
	}
	return f, nil
}

// parseBoot reads the BIOS parameter block. It refuses what no formatter makes,
// because any boot sector looks a little like one.
func parseBoot(b []byte, size int64) (layout, error) {
	le := binary.LittleEndian
	sector, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, tables := int64(le.Uint16(b[14:])), int64(b[16])
	media := b[21]
	if b[510] != 0x55 || b[511] != 0xaa || sector < 512 || sector > 4096 || sector&(sector-1) != 0 ||
		perCluster == 0 || perCluster&(perCluster-1) != 0 || reserved == 0 || tables == 0 || tables > 2 ||
		media != 0xf0 && media < 0xf8 {
		return layout{}, guestfs.ErrNoFS
	}
	sectors := int64(le.Uint16(b[19:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[32:]))
	}
	rootEntries := int64(le.Uint16(b[17:]))
	l := layout{cluster: sector * perCluster, table: reserved * sector, tableSize: int64(le.Uint16(b[22:])) * sector}
	extended := 36
	if l.tableSize == 0 {
		l.bits, l.tableSize, extended = fat32, int64(le.Uint32(b[36:]))*sector, 64
		l.rootCluster, l.info = le.Uint32(b[44:]), int64(le.Uint16(b[48:]))*sector
		if rootEntries != 0 || le.Uint16(b[42:]) != 0 {
			return layout{}, guestfs.ErrNoFS
		}
		if flags := le.Uint16(b[40:]); flags&0x80 != 0 { // the tables are not mirrored
			if int64(flags&0xf) >= tables {
				return layout{}, corrupt("table %d of %d is in use", flags&0xf, tables)
			}
			l.table += int64(flags&0xf) * l.tableSize
		}
	}
	l.root, l.rootSize = reserved*sector+tables*l.tableSize, rootEntries*entrySize
	l.data = l.root + (l.rootSize+sector-1)/sector*sector
	return l.finish(b[extended:], sectors*sector, size, perCluster)
}

// finish checks the layout and reads the part of the boot sector that has moved
// in FAT32.
func (l layout) finish(b []byte, total, size, perCluster int64) (layout, error) {
	if total == 0 || l.tableSize == 0 || l.data >= total || l.bits == 0 && l.rootSize == 0 {
		return l, guestfs.ErrNoFS
	}
	if total > size {
		return l, corrupt("it is of %d bytes, and the volume of %d", total, size)
	}
	clusters := (total - l.data) / l.cluster
	if l.bits == 0 {
		l.bits = fat12
		if clusters > 4084 {
			l.bits = fat16
		}
	}
	// Formatters leave clusters at the end for which the table has no room.
	clusters = min(clusters, l.tableSize*8/int64(l.bits)-2, 1<<28-16)
	if clusters <= 0 {
		return l, guestfs.ErrNoFS
	}
	l.clusters = uint32(clusters)
	if l.bits == fat32 && !l.valid(l.rootCluster) {
		return l, corrupt("its root directory is at cluster %d of %d", l.rootCluster, clusters)
	}
	if b[2] == 0x28 || b[2] == 0x29 {
		l.serial = binary.LittleEndian.Uint32(b[3:])
	}
	if b[2] == 0x29 {
		if l.label = strings.TrimRight(oem(b[7:18]), " "); l.label == "NO NAME" {
			l.label = ""
		}
	}
	l.inUse = b[1]&1 != 0
	return l, nil
}

// oem decodes a name in the character set of the PC, of which nothing says which
// variant it is: Linux, too, takes the American one.
func oem(b []byte) string {
	out, err := charmap.CodePage437.NewDecoder().Bytes(b)
	if err != nil {
		return string(b)
	}
	return string(out)
}

// valid reports whether a cluster is one of the volume's.
func (l *layout) valid(cluster uint32) bool { return cluster >= 2 && cluster-2 < l.clusters }

// at is where a cluster begins.
func (l *layout) at(cluster uint32) int64 { return l.data + int64(cluster-2)*l.cluster }

// read reads a few bytes of metadata through the cache.
func (f *FS) read(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		if tail := f.disk.Size() / cacheBlock * cacheBlock; off >= tail {
			if n, err := f.disk.ReadAt(p, off); n < len(p) {
				return fmt.Errorf("fat: read at %d: %w", off, err)
			}
			return nil
		}
		b, err := f.meta.Block(ctx, uint64(off/cacheBlock))
		if err != nil {
			return fmt.Errorf("fat: %w", err)
		}
		n := copy(p, b[off%cacheBlock:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// entry is what the table says of a cluster.
func (f *FS) entry(ctx context.Context, cluster uint32) (uint32, error) {
	var b [4]byte
	n, off := 2, int64(cluster)*2
	switch f.l.bits {
	case fat12:
		off = int64(cluster) + int64(cluster)/2
	case fat32:
		n, off = 4, int64(cluster)*4
	}
	if err := f.read(ctx, b[:n], f.l.table+off); err != nil {
		return 0, err
	}
	v := binary.LittleEndian.Uint32(b[:])
	switch {
	case f.l.bits == fat32:
		return v & 0x0fffffff, nil
	case f.l.bits == fat12 && cluster%2 == 1:
		return v >> 4, nil
	case f.l.bits == fat12:
		return v & 0xfff, nil
	}
	return v, nil
}

// follow is the cluster after this one; io.EOF after the last.
func (f *FS) follow(ctx context.Context, cluster uint32) (uint32, error) {
	next, err := f.entry(ctx, cluster)
	if err != nil {
		return 0, err
	}
	mask := uint32(1)<<min(f.l.bits, 28) - 1
	switch {
	case next&mask >= mask&^7:
		return 0, io.EOF
	case !f.l.valid(next):
		return 0, corrupt("cluster %d is followed by %d of %d", cluster, next, f.l.clusters)
	}
	return next, nil
}

// describe finds the label, the state, and how much is in use.
func (f *FS) describe(ctx context.Context) error {
	f.state, f.used = guestfs.Clean, -1
	status, err := f.entry(ctx, 1)
	if err != nil {
		return err
	}
	clean, healthy := uint32(1<<15), uint32(1<<14) // FAT12 has no such bits
	if f.l.bits == fat32 {
		clean, healthy = 1<<27, 1<<26
	}
	switch {
	case f.l.bits != fat12 && status&healthy == 0:
		f.state, f.note = guestfs.Damaged, "the guest met errors when it used the disk"
	case f.l.bits != fat12 && status&clean == 0, f.l.inUse:
		f.state, f.note = guestfs.Dirty, "it was in use, and FAT has no journal: what the guest had not written yet is missing"
	}
	if err := f.count(ctx); err != nil {
		return err
	}
	for e, err := range f.slots(ctx, rootInode, 0) {
		if err != nil {
			f.state, f.note = guestfs.Damaged, err.Error()
			break
		}
		if e.raw[11]&(attrVolume|attrDir) == attrVolume && e.raw[11] != attrLong {
			if f.label = strings.TrimRight(oem(fixFirst(e.raw[:11])), " "); f.label == "NO NAME" {
				f.label = ""
			}
			break
		}
	}
	return nil
}

// count finds out how much is in use: from a small table, or from what FAT32
// notes of itself.
func (f *FS) count(ctx context.Context) error {
	if f.l.bits == fat32 {
		var b [bootBytes]byte
		if f.l.info == 0 || f.l.info+bootBytes > f.disk.Size() {
			return nil
		}
		if err := f.read(ctx, b[:], f.l.info); err != nil {
			return err
		}
		free := binary.LittleEndian.Uint32(b[488:])
		if string(b[:4]) == "RRaA" && string(b[484:488]) == "rrAa" && free <= f.l.clusters {
			f.used = int64(f.l.clusters-free) * f.l.cluster
			return nil
		}
	}
	if int64(f.l.clusters)*int64(f.l.bits)/8 > maxCountedFAT {
		return nil
	}
	f.used = 0
	for n := range f.l.clusters {
		v, err := f.entry(ctx, n+2)
		if err != nil {
			return err
		}
		if v != 0 {
			f.used += f.l.cluster
		}
	}
	return nil
}

// Info implements [guestfs.Describer].
func (f *FS) Info() guestfs.Info {
	return guestfs.Info{
		Type: fsName, Label: f.label, UUID: fmt.Sprintf("%04X-%04X", f.l.serial>>16, f.l.serial&0xffff),
		Size: int64(f.l.clusters) * f.l.cluster, Used: f.used, State: f.state, Note: f.note,
	}
}

// Root implements [guestfs.FS].
func (f *FS) Root() guestfs.Inode { return rootInode }
