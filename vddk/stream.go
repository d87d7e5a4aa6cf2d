package vddk

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"lifeboat/disk"
)

// A streamOptimized VMDK, as a lease exports it, is written front to back:
// header, descriptor, then a sector-aligned sequence of compressed grains (each
// with its place on the disk), grain tables, the grain directory, a footer and
// an end marker. Source: VMware, "Virtual Disk Format 5.0", §"Stream-Optimized
// Compressed Sparse Extents". Numbers are little-endian.
//
// streamReader takes one apart as it comes. It does not believe in an end that
// it was not shown: without footer and end marker, or if the tables that came
// with the grains name others than those that came, the stream was cut or
// tampered with, and that is an error.
type streamReader struct {
	in       *bufio.Reader
	pos      int64 // bytes of the stream taken so far
	capacity int64 // of the disk, bytes
	grain    int64 // bytes
	perTable int64 // grains

	next    int64  // grains below it have passed, in the disk's order
	present bitmap // grains that came
	tables  map[uint32][]uint64
	checked bool // the grain directory came and fits
	footer  bool
}

// grain is one compressed piece of the disk.
type grain struct {
	off  int64  // on the disk, bytes
	data []byte // zlib
}

const (
	streamMagic   = "KDMV"
	streamFlags   = 1<<16 | 1<<17 // compressed, with markers
	streamDeflate = 1

	markerEnd       = 0
	markerTable     = 1
	markerDirectory = 2
	markerFooter    = 3

	maxGrain    = 1 << 20 // bytes
	maxOverhead = 1 << 17 // sectors
	maxTable    = 4096    // entries
	grainHead   = 12      // bytes of a marker before a grain's data
)

func newStreamReader(r io.Reader) (*streamReader, error) {
	s := &streamReader{in: bufio.NewReaderSize(r, requestBytes), tables: map[uint32][]uint64{}}
	var h [disk.SectorSize]byte
	if err := s.full(h[:]); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	capacity, size, overhead, err := parseStreamHeader(h[:])
	if err != nil {
		return nil, err
	}
	s.capacity, s.grain = capacity, size
	s.perTable = int64(binary.LittleEndian.Uint32(h[44:]))
	if s.perTable == 0 || s.perTable > maxTable || s.perTable%128 != 0 {
		return nil, streamError("grain tables of %d entries", s.perTable)
	}
	return s, s.skip((overhead - 1) * disk.SectorSize)
}

// parseStreamHeader takes from a header, or a footer, what matters here.
func parseStreamHeader(h []byte) (capacity, grainSize, overhead int64, err error) {
	le := binary.LittleEndian
	sectors, grainSectors, over := le.Uint64(h[12:]), le.Uint64(h[20:]), le.Uint64(h[64:])
	switch {
	case string(h[:4]) != streamMagic:
		return 0, 0, 0, streamError("it begins with %q", h[:4])
	case le.Uint32(h[8:])&streamFlags != streamFlags || le.Uint16(h[77:]) != streamDeflate:
		return 0, 0, 0, streamError("it is not compressed with markers (flags %#x, algorithm %d)", le.Uint32(h[8:]), le.Uint16(h[77:]))
	case sectors == 0 || sectors > 1<<50/disk.SectorSize:
		return 0, 0, 0, streamError("a disk of %d sectors", sectors)
	case grainSectors == 0 || grainSectors&(grainSectors-1) != 0 || grainSectors > maxGrain/disk.SectorSize:
		return 0, 0, 0, streamError("grains of %d sectors", grainSectors)
	case over == 0 || over > maxOverhead:
		return 0, 0, 0, streamError("%d sectors before the first grain", over)
	}
	return int64(sectors) * disk.SectorSize, int64(grainSectors) * disk.SectorSize, int64(over), nil
}

func streamError(format string, args ...any) error {
	return fmt.Errorf("the exported disk is not a streamOptimized VMDK as it has to be: %s: %w", fmt.Sprintf(format, args...), disk.ErrFormat)
}

// full fills p. A stream never just ends.
func (s *streamReader) full(p []byte) error {
	n, err := io.ReadFull(s.in, p)
	s.pos += int64(n)
	return s.cut(err)
}

func (s *streamReader) cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: the export ended after %d bytes, before its end marker", ErrLost, s.pos)
	}
	return err
}

func (s *streamReader) skip(n int64) error {
	got, err := s.in.Discard(int(n))
	s.pos += int64(got)
	return s.cut(err)
}

// read returns the next grain, its data in buf, which is grown as needed. At
// the stream's proper end the error is io.EOF.
func (s *streamReader) read(buf []byte) (grain, error) {
	for {
		var marker [disk.SectorSize]byte
		if err := s.full(marker[:]); err != nil {
			return grain{}, err
		}
		value, size := binary.LittleEndian.Uint64(marker[:]), int64(binary.LittleEndian.Uint32(marker[8:]))
		if size > 0 {
			return s.grainData(value, size, marker[grainHead:], buf)
		}
		switch kind := binary.LittleEndian.Uint32(marker[grainHead:]); kind {
		case markerEnd:
			if !s.footer || !s.checked {
				return grain{}, streamError("the end comes before the grain directory and the footer")
			}
			return grain{}, io.EOF
		case markerTable, markerDirectory, markerFooter:
			if err := s.metadata(kind, value); err != nil {
				return grain{}, err
			}
		default:
			return grain{}, streamError("a marker of type %d", kind)
		}
	}
}

// grainData takes a grain, the beginning of which came with its marker.
func (s *streamReader) grainData(lba uint64, size int64, begin, buf []byte) (grain, error) {
	if lba > uint64(s.capacity)/disk.SectorSize || size > 2*s.grain+disk.SectorSize {
		return grain{}, streamError("a grain of %d bytes for sector %d", size, lba)
	}
	off := int64(lba) * disk.SectorSize
	n := off / s.grain
	if off%s.grain != 0 || off >= s.capacity || n < s.next || s.checked {
		return grain{}, streamError("a grain for offset %d after that for %d", off, (s.next-1)*s.grain)
	}
	s.next = n + 1
	s.present.set(n)
	rest := int64(len(begin))
	whole := rest // up to the end of a sector
	if size > rest {
		whole += (size - rest + disk.SectorSize - 1) / disk.SectorSize * disk.SectorSize
	}
	buf = append(buf[:0], begin...)
	buf = slices.Grow(buf, int(whole-rest))[:whole]
	if err := s.full(buf[rest:]); err != nil {
		return grain{}, err
	}
	return grain{off: off, data: buf[:size]}, nil
}

// bitmap is a set of grains. Its memory grows with the highest one, a bit each.
type bitmap []uint64

func (b *bitmap) set(n int64) {
	for int64(len(*b)) <= n/64 {
		*b = append(*b, 0)
	}
	(*b)[n/64] |= 1 << (n % 64)
}

func (b bitmap) has(n int64) bool { return b.word(n/64)>>(n%64)&1 != 0 }

// word is the 64 bits from 64·i on.
func (b bitmap) word(i int64) uint64 {
	if i >= int64(len(b)) {
		return 0
	}
	return b[i]
}

func (s *streamReader) metadata(kind uint32, sectors uint64) error {
	var length int64
	switch kind {
	case markerTable:
		length = s.perTable * 4
	case markerDirectory:
		length = 4 * s.tableCount()
	case markerFooter:
		length = disk.SectorSize
	}
	whole := (length + disk.SectorSize - 1) / disk.SectorSize
	if sectors != uint64(whole) {
		return streamError("metadata of type %d with %d sectors, not %d", kind, sectors, whole)
	}
	at := uint32(s.pos / disk.SectorSize)
	if kind == markerDirectory {
		return s.directory(length, whole*disk.SectorSize)
	}
	b := make([]byte, whole*disk.SectorSize)
	if err := s.full(b); err != nil {
		return err
	}
	if kind == markerFooter {
		capacity, size, _, err := parseStreamHeader(b)
		if err == nil && (capacity != s.capacity || size != s.grain) {
			err = streamError("the footer is that of another disk")
		}
		s.footer = err == nil
		return err
	}
	if int64(len(s.tables)) == s.tableCount() {
		return streamError("more than %d grain tables", len(s.tables))
	}
	bits := make([]uint64, s.perTable/64)
	for i := range s.perTable {
		if binary.LittleEndian.Uint32(b[4*i:]) != 0 {
			bits[i/64] |= 1 << (i % 64)
		}
	}
	s.tables[at] = bits
	return nil
}

func (s *streamReader) tableCount() int64 {
	span := s.grain * s.perTable
	return (s.capacity + span - 1) / span
}

// directory takes the grain directory, sector by sector, and compares what the
// tables in it name with what came.
func (s *streamReader) directory(length, whole int64) error {
	var sector [disk.SectorSize]byte
	for at := int64(0); at < whole; at += disk.SectorSize {
		if err := s.full(sector[:]); err != nil {
			return err
		}
		for i := int64(0); i < disk.SectorSize && at+i < length; i += 4 {
			if err := s.checkTable((at+i)/4, binary.LittleEndian.Uint32(sector[i:])); err != nil {
				return err
			}
		}
	}
	s.checked = true
	s.tables = nil
	return nil
}

func (s *streamReader) checkTable(index int64, at uint32) error {
	table, ok := s.tables[at]
	if at != 0 && !ok {
		return streamError("grain table %d is not where the directory says", index)
	}
	for i := range s.perTable / 64 {
		var said uint64
		if at != 0 {
			said = table[i]
		}
		if said != s.present.word(index*s.perTable/64+i) {
			return streamError("the grains of table %d are not those that came", index)
		}
	}
	return nil
}
