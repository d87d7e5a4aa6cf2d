package vddk

import (
	"context"
	"encoding/binary"
	"fmt"

	"lifeboat/disk"
)

// Deltas of ESXi, as they are on VMFS and NFS. VMFSSPARSE ("COWD") is described
// in VMware, "Virtual Disk Format 5.0", §"ESX Server Sparse Extents"; SESPARSE
// has no public description: its layout is what QEMU's block/vmdk.c knows of
// it, and we refuse what that refuses. Both are a directory of tables of grains.
// Numbers are little-endian, places in files are in sectors.
//
// Only frozen deltas are ever read here, those that a snapshot stands on: the
// host does not change them.

// sparseTables finds what of a delta is where in its file.
type sparseTables struct {
	file     *ahead // the file's bytes, as far as they are tables
	size     int64  // of the file, bytes
	length   int64  // of the disk, bytes
	grain    int64  // bytes
	perTable int64  // grains
	dirAt    int64  // the directory, in the file
	entries  int64  // of it
	format   sparseFormat
}

// sparseFormat is what the two kinds of delta do not have in common.
type sparseFormat interface {
	width() int64 // bytes of an entry
	// table is where a table is in the file, given its directory entry; 0 if
	// there is none.
	table(entry uint64) (int64, error)
	// grain is what a table's entry says. at is the place in the file, bytes.
	grain(entry uint64) (kind runKind, at int64, err error)
}

type runKind int

const (
	runParent runKind = iota // as below this layer
	runZero
	runData
)

// sparseRun is a run of a layer of one kind, in a row in the file if it is data.
type sparseRun struct {
	kind   runKind
	length int64
	at     int64
}

func sparseError(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), disk.ErrFormat)
}

// tables reads the header of a delta of length bytes.
func (p *folderPort) tables(ctx context.Context, kind, path string, size, length int64) (*sparseTables, error) {
	t := &sparseTables{size: size, length: length}
	t.file = newAhead(size, func(b []byte, off int64) error { return p.fetch(ctx, path, off, b) }, func() bool { return ctx.Err() != nil })
	header := make([]byte, 4*disk.SectorSize)
	if size < int64(len(header)) {
		return nil, sparseError("%s has only %d bytes", path, size)
	}
	if err := t.file.read(ctx, header, 0); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	parse := t.parseCOWD
	if kind == "SESPARSE" {
		parse = t.parseSE
	}
	if err := parse(ctx, header); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	span := t.grain * t.perTable
	if need := (length + span - 1) / span; t.entries < need {
		return nil, sparseError("%s: a directory of %d entries, %d are needed", path, t.entries, need)
	}
	if t.dirAt < 0 || t.entries > (size-t.dirAt)/t.format.width() {
		return nil, sparseError("%s: the directory does not fit into the file", path)
	}
	return t, nil
}

// read reads n entries from at.
func (t *sparseTables) read(ctx context.Context, at, n int64) ([]byte, error) {
	b := make([]byte, n*t.format.width())
	if at < 0 || at > t.size-int64(len(b)) {
		return nil, sparseError("a table at %d of %d bytes", at, t.size)
	}
	return b, t.file.read(ctx, b, at)
}

func (t *sparseTables) value(b []byte, i int64) uint64 {
	if t.format.width() == 8 {
		return binary.LittleEndian.Uint64(b[8*i:])
	}
	return uint64(binary.LittleEndian.Uint32(b[4*i:]))
}

// run is the run from off on, at most limit bytes: what is in one table, of one
// kind, and in a row.
func (t *sparseTables) run(ctx context.Context, off, limit int64) (sparseRun, error) {
	span := t.grain * t.perTable
	limit = min(limit, span-off%span)
	b, err := t.read(ctx, t.dirAt+off/span*t.format.width(), 1)
	if err != nil {
		return sparseRun{}, err
	}
	table, err := t.format.table(t.value(b, 0))
	if err != nil || table == 0 {
		return sparseRun{kind: runParent, length: limit}, err
	}
	first, inside := off%span/t.grain, off%t.grain
	count := (inside + limit + t.grain - 1) / t.grain
	if b, err = t.read(ctx, table+first*t.format.width(), count); err != nil {
		return sparseRun{}, err
	}
	var r sparseRun
	for i := range count {
		kind, at, err := t.format.grain(t.value(b, i))
		if err != nil {
			return r, err
		}
		if kind == runData && (at <= 0 || at > t.size-min(t.grain, t.length-(off-inside+i*t.grain))) {
			return r, sparseError("a grain at %d of %d bytes", at, t.size)
		}
		if i == 0 {
			r = sparseRun{kind: kind, length: t.grain - inside, at: at + inside}
			continue
		}
		if kind != r.kind || kind == runData && at != r.at+r.length {
			break
		}
		r.length += t.grain
	}
	r.length = min(r.length, limit)
	return r, nil
}

// cowd is VMFSSPARSE.
type cowd struct{}

const cowdTable = 4096 // entries

func (t *sparseTables) parseCOWD(_ context.Context, h []byte) error {
	le := binary.LittleEndian
	version, sectors, grain := le.Uint32(h[4:]), le.Uint32(h[12:]), le.Uint32(h[16:])
	switch {
	case string(h[:4]) != "COWD" || version != 1:
		return sparseError("it begins with %q, version %d", h[:4], version)
	case int64(sectors) != t.length/disk.SectorSize:
		return sparseError("it is for a disk of %d sectors", sectors)
	case grain == 0 || grain > maxGrain/disk.SectorSize:
		return sparseError("grains of %d sectors", grain)
	}
	t.grain, t.perTable, t.format = int64(grain)*disk.SectorSize, cowdTable, cowd{}
	t.dirAt, t.entries = int64(le.Uint32(h[20:]))*disk.SectorSize, int64(le.Uint32(h[24:]))
	return nil
}

func (cowd) width() int64 { return 4 }

func (cowd) table(entry uint64) (int64, error) { return int64(entry) * disk.SectorSize, nil }

func (cowd) grain(entry uint64) (runKind, int64, error) {
	switch entry {
	case 0:
		return runParent, 0, nil
	case 1: // a grain of zeros in the formats of other products, the header in this one
		return 0, 0, sparseError("a grain in the header")
	}
	return runData, int64(entry) * disk.SectorSize, nil
}

// seSparse is SESPARSE.
type seSparse struct {
	tablesAt, grainsAt int64 // in the file, bytes
}

const (
	seMagic         = 0xcafebabe
	seVersion       = 2<<32 | 1
	seVolatileMagic = 0xcafecafe
	seGrain         = 8  // sectors
	seTable         = 64 // sectors
	seEntries       = seTable * disk.SectorSize / 8
)

func (t *sparseTables) parseSE(ctx context.Context, h []byte) error {
	field := func(i int) uint64 { return binary.LittleEndian.Uint64(h[8*i:]) }
	const limit = 1 << 50 / disk.SectorSize
	for _, i := range []int{10, 16, 17, 18, 24} { // places and sizes that are used
		if field(i) > limit {
			return sparseError("field %d of the header is %d", i, field(i))
		}
	}
	switch {
	case field(0) != seMagic || field(1) != seVersion:
		return sparseError("it begins with %#x, version %#x", field(0), field(1))
	case int64(field(2)) != t.length/disk.SectorSize:
		return sparseError("it is for a disk of %d sectors", field(2))
	case field(3) != seGrain || field(4) != seTable || field(5) != 0:
		return sparseError("grains of %d sectors, tables of %d, flags %#x", field(3), field(4), field(5))
	}
	var v [32]byte
	at := int64(field(10)) * disk.SectorSize
	if at > t.size-int64(len(v)) {
		return sparseError("its second header at %d", at)
	}
	if err := t.file.read(ctx, v[:], at); err != nil {
		return err
	}
	if magic := binary.LittleEndian.Uint64(v[:]); magic != seVolatileMagic {
		return sparseError("its second header begins with %#x", magic)
	}
	if binary.LittleEndian.Uint64(v[24:]) != 0 {
		return fmt.Errorf("its journal has to be replayed, which a host does when the VM is next switched on: %w", disk.ErrUnsupported)
	}
	t.grain, t.perTable = seGrain*disk.SectorSize, seEntries
	t.dirAt, t.entries = int64(field(16))*disk.SectorSize, int64(field(17))*disk.SectorSize/8
	t.format = seSparse{tablesAt: int64(field(18)) * disk.SectorSize, grainsAt: int64(field(24)) * disk.SectorSize}
	return nil
}

func (seSparse) width() int64 { return 8 }

// table: the highest four bits are 1 and the lower half is the table's number.
func (f seSparse) table(entry uint64) (int64, error) {
	switch {
	case entry == 0:
		return 0, nil
	case entry>>32 != 1<<28:
		return 0, sparseError("a directory entry %#x", entry)
	}
	return f.tablesAt + int64(entry&0xffffffff)*seTable*disk.SectorSize, nil
}

// grain: the highest four bits say what it is. The number of a grain that is
// data is in two parts: its lowest 12 bits are bits 48 to 59 of the entry.
func (f seSparse) grain(entry uint64) (runKind, int64, error) {
	switch value := entry & (1<<60 - 1); entry >> 60 {
	case 0:
		if value == 0 {
			return runParent, 0, nil
		}
	case 1, 2: // the guest has freed it, or it was zeroed
		return runZero, 0, nil
	case 3:
		number := value>>48 | value&(1<<48-1)<<12
		if number < 1<<40 {
			return runData, f.grainsAt + int64(number)*seGrain*disk.SectorSize, nil
		}
	}
	return 0, 0, sparseError("a table entry %#x", entry)
}
