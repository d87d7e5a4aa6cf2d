// Package exfat reads exFAT, as specified in Microsoft's "exFAT file system
// specification", revision 1.00: large removable disks, and what is shared
// between systems.
//
// There is no journal: a volume that was in use is Dirty. There are no inodes
// either: a file is known by where its set of directory entries lies.
package exfat

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/chain"
	"lifeboat/guestfs/internal/meta"
	"lifeboat/guestfs/internal/wtf8"
)

const (
	fsName     = "exfat"
	bootBytes  = 512
	backupAt   = 12 // sectors: the second copy of the boot region
	cacheBytes = 4 << 20
	cacheBlock = 4096
	// maxBitmap bounds the bitmap that is read to count what is used, bytes.
	maxBitmap = 16 << 20

	volumeDirty  = 1 << 1
	mediaFailure = 1 << 2
)

// layout is where things are on the volume, in bytes.
type layout struct {
	sector, cluster  int64
	table, tableSize int64
	heap             int64 // cluster 2
	clusters         uint32
	root             uint32
	serial           uint32
	flags            uint16
}

// FS is an exFAT file system.
type FS struct {
	l     layout
	disk  disk.Image
	meta  *meta.Cache
	upper []uint16
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
// guestfs.ErrNoFS where there is none. Where the boot region is damaged its
// copy is used.
func Open(ctx context.Context, img disk.Image) (*FS, error) {
	l, note, err := readBoot(img)
	if err != nil {
		return nil, err
	}
	f := &FS{l: l, disk: img, meta: meta.New(img, cacheBlock, cacheBytes), state: guestfs.Clean, used: -1, note: note}
	switch {
	case note != "" || l.flags&mediaFailure != 0:
		f.state = guestfs.Damaged
		if note == "" {
			f.note = "the guest met errors when it used the disk"
		}
	case l.flags&volumeDirty != 0:
		f.state, f.note = guestfs.Dirty, "it was in use, and exFAT has no journal: what the guest had not written yet is missing"
	}
	if err := f.system(ctx); err != nil {
		return nil, err
	}
	return f, nil
}

// readBoot reads the boot region, or its copy; note says why the copy.
func readBoot(img disk.Image) (l layout, note string, err error) {
	b := make([]byte, bootBytes)
	if n, err := img.ReadAt(b, 0); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			return l, "", guestfs.ErrNoFS
		}
		return l, "", fmt.Errorf("exfat: read the boot sector: %w", err)
	}
	l, err = bootRegion(img, b, 0)
	if err == nil || !errors.Is(err, guestfs.ErrCorrupt) && !errors.Is(err, guestfs.ErrNoFS) {
		return l, "", err
	}
	for shift := 9; shift <= 12; shift++ { // the sector size is not known then
		at := int64(backupAt) << shift
		if n, _ := img.ReadAt(b, at); n < len(b) {
			break
		}
		if second, err2 := bootRegion(img, b, at); err2 == nil && second.sector == 1<<shift {
			return second, "the boot region is damaged; its copy is in use", nil
		}
	}
	return l, "", err
}

// bootRegion checks the boot sector b and the checksum over its region at at.
func bootRegion(img disk.Image, b []byte, at int64) (layout, error) {
	le := binary.LittleEndian
	if string(b[3:11]) != "EXFAT   " || b[510] != 0x55 || b[511] != 0xaa {
		return layout{}, guestfs.ErrNoFS
	}
	sectorShift, clusterShift := b[108], b[109]
	if sectorShift < 9 || sectorShift > 12 || clusterShift > 25-sectorShift {
		return layout{}, corrupt("sectors of 2^%d bytes, clusters of 2^%d sectors", sectorShift, clusterShift)
	}
	l := layout{
		sector: 1 << sectorShift, cluster: 1 << (sectorShift + clusterShift),
		table: int64(le.Uint32(b[80:])) << sectorShift, tableSize: int64(le.Uint32(b[84:])) << sectorShift,
		heap: int64(le.Uint32(b[88:])) << sectorShift, clusters: le.Uint32(b[92:]), root: le.Uint32(b[96:]),
		serial: le.Uint32(b[100:]), flags: le.Uint16(b[106:]),
	}
	if tables := b[110]; tables != 1 && tables != 2 {
		return l, corrupt("%d tables", tables)
	} else if tables == 2 && l.flags&1 != 0 {
		l.table += l.tableSize
	}
	region := make([]byte, 12*l.sector)
	if n, err := img.ReadAt(region, at); n < len(region) {
		return l, fmt.Errorf("exfat: read the boot region: %w", err)
	}
	var sum uint32
	for i, c := range region[:11*l.sector] {
		if i != 106 && i != 107 && i != 112 { // flags and how full it is change
			sum = bits.RotateLeft32(sum, -1) + uint32(c)
		}
	}
	if le.Uint32(region[11*l.sector:]) != sum {
		return l, corrupt("the boot region has a wrong checksum")
	}
	end := l.heap + int64(l.clusters)*l.cluster
	switch {
	case l.clusters == 0 || int64(l.clusters)+2 > l.tableSize/4 || l.table+l.tableSize > l.heap || l.heap > img.Size():
		return l, corrupt("%d clusters, a table of %d bytes at %d, data from %d", l.clusters, l.tableSize, l.table, l.heap)
	case end > img.Size():
		return l, corrupt("it is of %d bytes, and the volume of %d", end, img.Size())
	case !l.valid(l.root):
		return l, corrupt("its root directory is at cluster %d of %d", l.root, l.clusters)
	}
	return l, nil
}

func (l *layout) valid(cluster uint32) bool { return cluster >= 2 && cluster-2 < l.clusters }
func (l *layout) at(cluster uint32) int64   { return l.heap + int64(cluster-2)*l.cluster }

// read reads a few bytes of metadata through the cache.
func (f *FS) read(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		if off >= f.disk.Size()/cacheBlock*cacheBlock {
			if n, err := f.disk.ReadAt(p, off); n < len(p) {
				return fmt.Errorf("exfat: read at %d: %w", off, err)
			}
			return nil
		}
		b, err := f.meta.Block(ctx, uint64(off/cacheBlock))
		if err != nil {
			return fmt.Errorf("exfat: %w", err)
		}
		n := copy(p, b[off%cacheBlock:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// follow is the cluster after this one; io.EOF after the last.
func (f *FS) follow(ctx context.Context, cluster uint32) (uint32, error) {
	var b [4]byte
	if err := f.read(ctx, b[:], f.l.table+int64(cluster)*4); err != nil {
		return 0, err
	}
	next := binary.LittleEndian.Uint32(b[:])
	switch {
	case next == 0xffffffff:
		return 0, io.EOF
	case !f.l.valid(next):
		return 0, corrupt("cluster %d is followed by %d of %d", cluster, next, f.l.clusters)
	}
	return next, nil
}

// stream is an allocation: a run of clusters, or a list of them. What lies
// behind valid was never written and reads as zeros.
type stream struct {
	first       uint32
	size, valid int64
	contiguous  bool
}

// open is the content of a stream.
func (f *FS) open(ctx context.Context, s stream) (disk.Image, error) {
	if s.size == 0 {
		return disk.Bytes(ctx, nil), nil
	}
	count := (s.size + f.l.cluster - 1) / f.l.cluster
	if s.size < 0 || s.valid < 0 || s.valid > s.size || count > int64(f.l.clusters) || !f.l.valid(s.first) {
		return nil, corrupt("%d of %d bytes at cluster %d", s.valid, s.size, s.first)
	}
	if s.contiguous && count > int64(f.l.clusters-(s.first-2)) {
		return nil, corrupt("%d clusters at %d of %d", count, s.first, f.l.clusters)
	}
	list := chain.New(fsName, s.first, uint64(count), f.follow)
	return disk.Assemble(ctx, s.size, func(off int64) (disk.Piece, error) {
		switch {
		case off >= s.valid:
			return disk.Piece{Offset: s.valid, Length: s.size - s.valid}, nil
		case s.contiguous:
			return disk.Piece{Length: s.valid, From: f.disk, At: f.l.at(s.first)}, nil
		}
		n := off / f.l.cluster
		cluster, run, err := list.Run(ctx, uint64(n))
		if err != nil {
			return disk.Piece{}, err
		}
		run = min(run, uint64(f.l.clusters-(cluster-2)))
		start := n * f.l.cluster
		return disk.Piece{Offset: start, Length: min(int64(run)*f.l.cluster, s.valid-start), From: f.disk, At: f.l.at(cluster)}, nil
	}), nil
}

// system reads what stands in the root directory about the volume itself: its
// label, which clusters are in use, and which letters are the same but for case.
func (f *FS) system(ctx context.Context) error {
	for s, err := range f.slots(ctx, rootDir, 0) {
		if err != nil {
			f.state, f.note = guestfs.Damaged, err.Error()
			break
		}
		le := binary.LittleEndian
		where := stream{first: le.Uint32(s.raw[20:]), size: int64(le.Uint64(s.raw[24:]) &^ (1 << 63))}
		where.valid = where.size
		switch s.raw[0] {
		case typeLabel:
			f.label = wtf8.DecodeBytes(s.raw[2 : 2+2*min(11, int(s.raw[1]))])
		case typeBitmap:
			if s.raw[1]&1 == byte(f.l.flags&1) {
				if err := f.count(ctx, where); err != nil {
					return err
				}
			}
		case typeUpcase:
			if err := f.loadUpper(ctx, where, le.Uint32(s.raw[4:])); err != nil {
				f.state, f.note = guestfs.Damaged, err.Error()
			}
		}
	}
	return nil
}

// count adds up the bitmap of clusters in use.
func (f *FS) count(ctx context.Context, s stream) error {
	if s.size < int64(f.l.clusters+7)/8 || s.size > maxBitmap {
		return nil
	}
	img, err := f.open(ctx, s)
	if err != nil {
		f.state, f.note = guestfs.Damaged, err.Error()
		return nil
	}
	defer img.Close()
	b := make([]byte, (f.l.clusters+7)/8)
	if n, err := img.ReadAt(b, 0); n < len(b) {
		return fmt.Errorf("exfat: read the bitmap of clusters: %w", err)
	}
	if rest := f.l.clusters % 8; rest != 0 {
		b[len(b)-1] &= 1<<rest - 1
	}
	n := 0
	for _, c := range b {
		n += bits.OnesCount8(c)
	}
	f.used = int64(n) * f.l.cluster
	return nil
}

// loadUpper reads the table that makes letters upper case: it is compressed, in
// that 0xffff and a number stand for that many letters that are their own.
func (f *FS) loadUpper(ctx context.Context, s stream, want uint32) error {
	if s.size > 2<<16 || s.size%2 != 0 {
		return corrupt("a table of upper case letters of %d bytes", s.size)
	}
	img, err := f.open(ctx, s)
	if err != nil {
		return err
	}
	defer img.Close()
	b := make([]byte, s.size)
	if n, err := img.ReadAt(b, 0); n < len(b) {
		return fmt.Errorf("exfat: read the table of upper case letters: %w", err)
	}
	var sum uint32
	for _, c := range b {
		sum = bits.RotateLeft32(sum, -1) + uint32(c)
	}
	if sum != want {
		return corrupt("the table of upper case letters has a wrong checksum")
	}
	f.upper = make([]uint16, 0, 1<<16)
	for i := 0; i+1 < len(b) && len(f.upper) < 1<<16; i += 2 {
		u := binary.LittleEndian.Uint16(b[i:])
		if u != 0xffff || i+3 >= len(b) {
			f.upper = append(f.upper, u)
			continue
		}
		i += 2
		for n := binary.LittleEndian.Uint16(b[i:]); n > 0 && len(f.upper) < 1<<16; n-- {
			f.upper = append(f.upper, uint16(len(f.upper)))
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
