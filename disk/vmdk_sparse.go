package disk

import (
	"fmt"
)

// The hosted sparse extent of VMware's "Virtual Disk Format 5.0". All numbers
// are little endian, all places in sectors.
const (
	vmdkSparseMagic = "KDMV"

	vmdkGDAtEnd       = ^uint64(0)
	vmdkFlagZeroGrain = 1 << 2
	vmdkFlagCompress  = 1 << 16
	vmdkFlagMarkers   = 1 << 17
	vmdkDeflate       = 1

	vmdkMarkerEOS    = 0
	vmdkMarkerFooter = 3

	vmdkMaxGrain  = 32768 // sectors
	vmdkMaxGTEs   = 512
	vmdkMaxGD     = 512 << 20 // bytes; 62 TB with grains of 64 KiB need 8 MB
	vmdkZeroGrain = 1         // a grain table entry, with vmdkFlagZeroGrain
	vmdkMarkerLen = 12        // of a grain: u64 LBA, u32 length
)

// sparse is the mapping of a sparse extent: grain directory → grain tables →
// grains.
type sparse struct {
	host     *hostFile
	tables   *pageCache
	clusters *pageCache
	codecs   *codecs

	flags      uint32
	capacity   int64 // bytes
	grain      int64 // bytes, a power of two
	perTable   int64 // entries of a grain table
	directory  table
	descOffset uint64 // sectors
	descSize   uint64 // sectors
}

func openSparse(o *opener, host *hostFile) (*sparse, error) {
	s := &sparse{host: host, tables: o.tables, clusters: o.clusters, codecs: o.codecs}
	header := make([]byte, SectorSize)
	if host.size < SectorSize {
		return nil, s.bad("header", "the file has only %d bytes", host.size)
	}
	if err := host.readFull(header, 0); err != nil {
		return nil, err
	}
	if string(header[:4]) != vmdkSparseMagic {
		if _, refused := recognise(header); refused != "" {
			return nil, s.unsupported(refused)
		}
		return nil, s.bad("header", "the magic number of a sparse extent is missing")
	}
	// A stream is written before it is known where its directory will be: the
	// header that counts is then in the footer.
	s.descOffset, s.descSize = le64(header[28:]), le64(header[36:])
	if le64(header[56:]) == vmdkGDAtEnd {
		footer, err := s.footer()
		if err != nil {
			return nil, err
		}
		header = footer
	}
	return s, s.parse(header)
}

func (s *sparse) bad(where, format string, args ...any) error {
	return &FormatError{Path: s.host.name, Format: FormatVMDK, Where: where, What: fmt.Sprintf(format, args...), Err: ErrFormat}
}

func (s *sparse) unsupported(what string) error {
	return &FormatError{
		Path: s.host.name, Format: FormatVMDK, Where: "sparse extent", Err: ErrUnsupported,
		What: what + "; convert the disk with vmkfstools or qemu-img first",
	}
}

// footer is the header copy in the last three sectors of a stream: footer
// marker, header, end-of-stream marker.
func (s *sparse) footer() ([]byte, error) {
	b := make([]byte, 3*SectorSize)
	if s.host.size < 4*SectorSize {
		return nil, s.bad("footer", "the file has only %d bytes", s.host.size)
	}
	if err := s.host.readFull(b, s.host.size-int64(len(b))); err != nil {
		return nil, err
	}
	marker, header, end := b[:SectorSize], b[SectorSize:2*SectorSize], b[2*SectorSize:]
	if le64(marker) != 1 || le32(marker[8:]) != 0 || le32(marker[12:]) != vmdkMarkerFooter ||
		le64(end) != 0 || le32(end[8:]) != 0 || le32(end[12:]) != vmdkMarkerEOS {
		return nil, s.bad("footer", "its markers are missing from the end of the file: the stream was cut")
	}
	if string(header[:4]) != vmdkSparseMagic || le64(header[56:]) == vmdkGDAtEnd {
		return nil, s.bad("footer", "it has no header with the place of the grain directory")
	}
	return header, nil
}

func (s *sparse) parse(h []byte) error {
	if version := le32(h[4:]); version < 1 || version > 3 {
		return s.unsupported(fmt.Sprintf("version %d (1 to 3 are known)", version))
	}
	s.flags = le32(h[8:])
	capacity, grain := le64(h[12:]), le64(h[20:])
	entries, directory := int64(le32(h[44:])), le64(h[56:])
	if capacity > maxSectorCount {
		return s.bad("header", "a capacity of %d sectors", capacity)
	}
	if grain == 0 || grain&(grain-1) != 0 || grain > vmdkMaxGrain {
		return s.bad("header", "a grain of %d sectors (a power of two up to %d is possible)", grain, vmdkMaxGrain)
	}
	if entries == 0 || entries > vmdkMaxGTEs {
		return s.bad("header", "grain tables of %d entries (up to %d are possible)", entries, vmdkMaxGTEs)
	}
	s.capacity, s.grain, s.perTable = int64(capacity)*SectorSize, int64(grain)*SectorSize, entries
	if s.flags&vmdkFlagCompress != 0 {
		if algorithm := le16(h[77:]); algorithm != vmdkDeflate {
			return s.unsupported(fmt.Sprintf("compression algorithm %d", algorithm))
		}
		if s.flags&vmdkFlagMarkers == 0 {
			return s.unsupported("compressed grains without markers")
		}
		if s.grain > maxCluster {
			return s.bad("header", "a compressed grain of %d bytes (up to %d are possible)", s.grain, maxCluster)
		}
	}
	span := s.grain * s.perTable
	length := (s.capacity + span - 1) / span * 4
	if length > vmdkMaxGD || directory > uint64(s.host.size)/SectorSize || length > s.host.size-int64(directory)*SectorSize {
		return s.bad("header", "a grain directory of %d bytes at sector %d does not fit into the file of %d bytes", length, directory, s.host.size)
	}
	s.directory = table{s.host, s.tables, int64(directory) * SectorSize, length}
	return nil
}

// descriptor is the text embedded in the extent; nil if there is none.
func (s *sparse) descriptor() ([]byte, error) {
	if s.descOffset == 0 || s.descSize == 0 {
		return nil, nil
	}
	sectors := uint64(s.host.size) / SectorSize
	if s.descSize > maxDescriptor/SectorSize || s.descOffset > sectors || s.descSize > sectors-s.descOffset {
		return nil, s.bad("header", "a descriptor of %d sectors at sector %d", s.descSize, s.descOffset)
	}
	text := make([]byte, s.descSize*SectorSize)
	return text, s.host.readFull(text, int64(s.descOffset)*SectorSize)
}

// at implements mapping.
func (s *sparse) at(off, limit int64) (piece, error) {
	span := s.grain * s.perTable
	limit = min(limit, span-off%span)
	index := off / span
	page, start, err := s.directory.page(index * 4)
	if err != nil {
		return piece{}, fmt.Errorf("grain directory entry %d: %w", index, err)
	}
	at := int64(le32(page[index*4-start:])) * SectorSize
	if at == 0 {
		return piece{kind: absent, off: off, length: limit}, nil
	}
	if at > s.host.size-s.perTable*4 {
		return piece{}, s.bad("grain directory", "entry %d: a grain table at %d, the file ends at %d", index, at, s.host.size)
	}
	t := table{s.host, s.tables, at, s.perTable * 4}
	entry := off % span / s.grain
	if page, start, err = t.page(entry * 4); err != nil {
		return piece{}, fmt.Errorf("grain table at %d: %w", at, err)
	}
	return s.join(page[entry*4-start:], off, limit), nil
}

// join is the piece from off on, over as many of the table entries in page as
// continue it.
func (s *sparse) join(page []byte, off, limit int64) piece {
	pc := s.grainAt(le32(page), off)
	for pc.length < limit && pc.kind != compressed {
		if page = page[4:]; len(page) == 0 {
			break
		}
		more := s.grainAt(le32(page), off+pc.length)
		if more.kind != pc.kind || (pc.kind == data && more.host != pc.host+pc.length) {
			break
		}
		pc.length += more.length
	}
	pc.length = min(pc.length, limit)
	return pc
}

// grainAt is the grain that contains off, from off to its end, given its entry.
func (s *sparse) grainAt(entry uint32, off int64) piece {
	inGrain := off & (s.grain - 1)
	pc := piece{off: off, length: s.grain - inGrain}
	switch {
	case entry == 0:
		pc.kind = absent
	case entry == vmdkZeroGrain && s.flags&vmdkFlagZeroGrain != 0:
		pc.kind = zeros
	case s.flags&vmdkFlagCompress != 0:
		pc.kind, pc.entry = compressed, uint64(entry)
	default:
		pc.kind, pc.host = data, int64(entry)*SectorSize+inGrain
	}
	return pc
}

// readPiece implements mapping.
func (s *sparse) readPiece(pc piece, p []byte) error {
	if pc.kind == data {
		if pc.host > s.host.size-int64(len(p)) {
			return s.bad("grain", "offset %d: data up to %d is expected, the file ends at %d: it was cut", pc.off, pc.host+int64(len(p)), s.host.size)
		}
		return s.host.readFull(p, pc.host)
	}
	inside := pc.off & (s.grain - 1)
	if inside == 0 && int64(len(p)) == s.grain {
		return s.decompress(pc, p)
	}
	key := pageKey{s.host, int64(pc.entry) * SectorSize, s.grain}
	whole, err := s.clusters.get(s.host.ctx, key, func() ([]byte, error) {
		b := make([]byte, s.grain)
		return b, s.decompress(pc, b)
	})
	if err != nil {
		return err
	}
	copy(p, whole[inside:])
	return nil
}

// decompress unpacks the grain that pc is (part of) into dst. The grain's
// length is in the marker before it; half a grain is read on the guess that it
// is enough, which saves most grains a second read.
func (s *sparse) decompress(pc piece, dst []byte) error {
	at := int64(pc.entry) * SectorSize
	buf := s.codecs.buffer(2*s.grain + vmdkMarkerLen)
	defer s.codecs.release(buf)
	src, err := s.host.readUpTo((*buf)[:max(s.grain/2, SectorSize)], at)
	if err != nil {
		return fmt.Errorf("grain of offset %d: %w", pc.off, err)
	}
	if len(src) < vmdkMarkerLen {
		return s.bad("grain", "offset %d: the marker at %d is cut", pc.off, at)
	}
	lba, length := le64(src), int64(le32(src[8:]))
	if want := uint64(pc.off&^(s.grain-1)) / SectorSize; lba != want {
		return s.bad("grain", "offset %d: the marker at %d is that of sector %d, not %d", pc.off, at, lba, want)
	}
	if length == 0 || length > 2*s.grain {
		return s.bad("grain", "offset %d: %d bytes compressed for %d", pc.off, length, s.grain)
	}
	if have := int64(len(src)); have < vmdkMarkerLen+length {
		src = (*buf)[:vmdkMarkerLen+length]
		if at+int64(len(src)) > s.host.size {
			return s.bad("grain", "offset %d: %d bytes at %d are cut by the file's end", pc.off, length, at)
		}
		if err := s.host.readFull(src[have:], at+have); err != nil {
			return err
		}
	}
	n, err := s.codecs.unzlib(dst, src[vmdkMarkerLen:vmdkMarkerLen+length])
	if err != nil {
		return s.bad("grain", "offset %d, %d bytes at %d: %v", pc.off, length, at, err)
	}
	if wanted := min(s.grain, s.capacity-pc.off&^(s.grain-1)); int64(n) < wanted {
		return s.bad("grain", "offset %d: %d bytes of %d", pc.off, n, wanted)
	}
	clear(dst[n:])
	return nil
}
