package disk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"sync"

	"github.com/klauspost/compress/zlib"
)

// VMDKOptions are the choices of [WriteVMDK] and [WriteFlatVMDK]. The zero
// value is good.
type VMDKOptions struct {
	// Descriptor gives adapter type, content ID and the like. Its Size and
	// File are filled in: File is "disk.vmdk" in a stream, where readers do not
	// look at it.
	Descriptor DescriptorSpec
	Progress   func(done, total int64) // bytes of the disk; nil = none
}

// The shape of what we write: VMware's and QEMU's defaults.
const (
	vmdkWGrain      = 64 << 10
	vmdkWTable      = 512
	vmdkWDescSize   = 20  // sectors
	vmdkWOverhead   = 128 // sectors before the first grain
	vmdkMarkerTable = 1
	vmdkMarkerGD    = 2
)

// WriteVMDK writes the content of img to w as a streamOptimized VMDK, the
// format of OVF packages: compressed, and written front to back. Holes and
// grains of zeros are left out. The size is rounded up to sectors. A stream can
// have 2 TiB (compressed); beyond that it fails with ErrUnsupported.
func WriteVMDK(ctx context.Context, w io.Writer, img Image, opts VMDKOptions) error {
	s := &streamWriter{out: bufio.NewWriterSize(w, batchSize), tableIndex: -1}
	if err := s.write(ctx, img, opts); err != nil {
		return fmt.Errorf("write streamOptimized vmdk: %w", err)
	}
	return nil
}

// WriteFlatVMDK writes the content of img as a pair: the descriptor, and flat
// with the bytes as [WriteRaw] writes them. The descriptor names flat by the
// last part of its name, and is written last.
func WriteFlatVMDK(ctx context.Context, descriptor io.Writer, flat *os.File, img Image, opts VMDKOptions) error {
	spec := opts.Descriptor
	spec.Size, spec.File = img.Size(), filepath.Base(flat.Name())
	d := NewDescriptor(spec)
	text, err := d.Encode()
	if err != nil {
		return err
	}
	if err := WriteRaw(ctx, flat, img, opts.Progress); err != nil {
		return err
	}
	if d.Size() > img.Size() {
		if err := flat.Truncate(d.Size()); err != nil {
			return fmt.Errorf("write flat vmdk: %w", err)
		}
	}
	if _, err := descriptor.Write(text); err != nil {
		return fmt.Errorf("write vmdk descriptor: %w", err)
	}
	return nil
}

// streamWriter writes
//
//	header, descriptor | grains … grain table | grains … grain table | … | grain directory | footer
//
// each grain and table behind a marker. It keeps the directory and one grain
// table in memory.
type streamWriter struct {
	out        *bufio.Writer
	pos        int64 // bytes written
	directory  []uint32
	table      [vmdkWTable]uint32
	tableIndex int64 // the table that table is; -1 = none yet
}

func (s *streamWriter) write(ctx context.Context, img Image, opts VMDKOptions) error {
	const span = vmdkWGrain * vmdkWTable
	capacity := (img.Size() + SectorSize - 1) / SectorSize
	s.directory = make([]uint32, (capacity*SectorSize+span-1)/span)
	if len(s.directory)*4 > vmdkMaxGD {
		return fmt.Errorf("a disk of %d bytes: %w", img.Size(), ErrUnsupported)
	}
	if err := s.start(capacity, opts.Descriptor); err != nil {
		return err
	}
	packers := sync.Pool{New: func() any { return newZlibWriter() }}
	c := copier{img: img, unit: vmdkWGrain, progress: opts.Progress, emit: s.emit}
	c.work = func(b *batch) error {
		z := packers.Get().(*zlib.Writer)
		defer packers.Put(z)
		return zlibPack(z, b)
	}
	if err := c.run(ctx); err != nil {
		return err
	}
	return s.finish(capacity)
}

// vmdkLevel is zlib's level: on system disks it packs half as fast again as the
// default, into 8 % more.
const vmdkLevel = 2

func newZlibWriter() *zlib.Writer {
	z, err := zlib.NewWriterLevel(io.Discard, vmdkLevel)
	if err != nil {
		panic("disk: zlib level: " + err.Error()) // a constant: cannot happen
	}
	return z
}

func zlibPack(z *zlib.Writer, b *batch) error {
	out := bytes.NewBuffer(b.packed)
	ends := make([]int, 0, len(b.units))
	for i := range b.units {
		z.Reset(out)
		if _, err := z.Write(b.units[i].data); err != nil {
			return err
		}
		if err := z.Close(); err != nil {
			return err
		}
		ends = append(ends, out.Len())
	}
	// Only now: the buffer may have moved while it grew.
	b.packed = out.Bytes()
	from := 0
	for i, end := range ends {
		b.units[i].packed = b.packed[from:end:end]
		from = end
	}
	return nil
}

func (s *streamWriter) start(capacity int64, spec DescriptorSpec) error {
	spec.Size, spec.File, spec.CreateType = capacity*SectorSize, "disk.vmdk", CreateStreamOptimized
	d := NewDescriptor(spec)
	d.Extents[0].Type = ExtentSparse
	text, err := d.Encode()
	if err != nil {
		return err
	}
	if len(text) > vmdkWDescSize*SectorSize {
		return fmt.Errorf("the descriptor has %d bytes, %d have room", len(text), vmdkWDescSize*SectorSize)
	}
	if err := s.sectors(streamHeader(capacity, vmdkGDAtEnd)); err != nil {
		return err
	}
	head := make([]byte, (vmdkWOverhead-1)*SectorSize)
	copy(head, text)
	return s.sectors(head)
}

// streamHeader is the header of the file, and of its footer.
func streamHeader(capacity int64, directory uint64) []byte {
	h := make([]byte, SectorSize)
	copy(h, vmdkSparseMagic)
	put := binary.LittleEndian
	put.PutUint32(h[4:], 3)
	put.PutUint32(h[8:], 1|vmdkFlagCompress|vmdkFlagMarkers)
	put.PutUint64(h[12:], uint64(capacity))
	put.PutUint64(h[20:], vmdkWGrain/SectorSize)
	put.PutUint64(h[28:], 1)
	put.PutUint64(h[36:], vmdkWDescSize)
	put.PutUint32(h[44:], vmdkWTable)
	put.PutUint64(h[56:], directory)
	put.PutUint64(h[64:], vmdkWOverhead)
	copy(h[73:], "\n \r\n") // shows a transfer that mangled line ends
	put.PutUint16(h[77:], vmdkDeflate)
	return h
}

func (s *streamWriter) emit(b *batch) error {
	for _, u := range b.units {
		grain := u.off / vmdkWGrain
		if index := grain / vmdkWTable; index != s.tableIndex {
			if err := s.flushTable(); err != nil {
				return err
			}
			s.tableIndex = index
		}
		marker := binary.LittleEndian.AppendUint64(nil, uint64(u.off/SectorSize))
		marker = binary.LittleEndian.AppendUint32(marker, uint32(len(u.packed)))
		at, err := s.sector()
		if err != nil {
			return err
		}
		s.table[grain%vmdkWTable] = at
		if err := s.sectors(marker, u.packed); err != nil {
			return err
		}
	}
	return nil
}

// sector is the number of the next sector, which has to fit into 32 bits.
func (s *streamWriter) sector() (uint32, error) {
	n := s.pos / SectorSize
	if n > math.MaxUint32 {
		return 0, fmt.Errorf("the compressed disk exceeds 2 TiB, the most that the format can have; use a flat vmdk: %w", ErrUnsupported)
	}
	return uint32(n), nil
}

// sectors writes the parts one after another, filled up to whole sectors.
func (s *streamWriter) sectors(parts ...[]byte) error {
	for _, p := range parts {
		n, err := s.out.Write(p)
		s.pos += int64(n)
		if err != nil {
			return err
		}
	}
	fill := -s.pos & (SectorSize - 1)
	s.pos += fill
	return writeZeros(s.out, fill)
}

// marker announces what follows: count sectors of a kind of metadata.
func (s *streamWriter) marker(count int, kind uint32) error {
	m := binary.LittleEndian.AppendUint64(nil, uint64(count))
	m = binary.LittleEndian.AppendUint32(m, 0)
	return s.sectors(binary.LittleEndian.AppendUint32(m, kind))
}

func (s *streamWriter) metadata(kind uint32, entries []uint32) (at uint32, err error) {
	b := make([]byte, 0, len(entries)*4)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint32(b, e)
	}
	if err := s.marker((len(b)+SectorSize-1)/SectorSize, kind); err != nil {
		return 0, err
	}
	if at, err = s.sector(); err != nil {
		return 0, err
	}
	return at, s.sectors(b)
}

func (s *streamWriter) flushTable() (err error) {
	if s.tableIndex < 0 {
		return nil
	}
	s.directory[s.tableIndex], err = s.metadata(vmdkMarkerTable, s.table[:])
	clear(s.table[:])
	return err
}

func (s *streamWriter) finish(capacity int64) error {
	if err := s.flushTable(); err != nil {
		return err
	}
	at, err := s.metadata(vmdkMarkerGD, s.directory)
	if err != nil {
		return err
	}
	if err := s.marker(1, vmdkMarkerFooter); err != nil {
		return err
	}
	if err := s.sectors(streamHeader(capacity, uint64(at))); err != nil {
		return err
	}
	if err := s.marker(0, vmdkMarkerEOS); err != nil {
		return err
	}
	return s.out.Flush()
}
