package disk

import (
	"fmt"
	"log/slog"
	"strings"
)

// The qcow2 format is specified in QEMU's docs/interop/qcow2.txt; names here
// follow it. All numbers are big endian.
const (
	qcow2Magic = "QFI\xfb"

	qcow2V2Header    = 72
	qcow2V3Header    = 104
	qcow2MaxHeader   = 4096
	qcow2MinCluster  = 9  // bits
	qcow2MaxCluster  = 21 // bits
	qcow2MaxL1       = 32 << 20
	qcow2MaxName     = 1023
	qcow2SubMin      = 14 // cluster bits from which subclusters are possible
	qcow2Subclusters = 32

	qcow2Zlib = 0
	qcow2Zstd = 1

	qcow2ExtEnd           = 0
	qcow2ExtBackingFormat = 0xe2792aca
	qcow2ExtFeatureNames  = 0x6803f857
	qcow2ExtDataFile      = 0x44415441
)

// Incompatible feature bits.
const (
	qcow2Dirty    = 1 << 0
	qcow2Corrupt  = 1 << 1
	qcow2DataFile = 1 << 2
	qcow2Compress = 1 << 3
	qcow2ExtL2    = 1 << 4
)

// qcow2Header is what a reader needs of the header and its extensions.
type qcow2Header struct {
	version       uint32
	clusterBits   uint
	size          int64
	l1Entries     int64
	l1Offset      int64
	incompatible  uint64
	compression   uint8
	backing       string
	backingFormat Format
	featureNames  map[int]string // of incompatible bits
}

// qcow2Parser reads one header, and knows how to complain about it.
type qcow2Parser struct {
	host *hostFile
	h    qcow2Header
}

func (p *qcow2Parser) bad(where, format string, args ...any) error {
	return &FormatError{Path: p.host.name, Format: FormatQCOW2, Where: where, What: fmt.Sprintf(format, args...), Err: ErrFormat}
}

func (p *qcow2Parser) unsupported(what string) error {
	return &FormatError{
		Path: p.host.name, Format: FormatQCOW2, Where: "header", Err: ErrUnsupported,
		What: what + "; convert the image with qemu-img convert first",
	}
}

func parseQCOW2(host *hostFile, log *slog.Logger) (*qcow2Header, error) {
	p := &qcow2Parser{host: host}
	b, err := host.readUpTo(make([]byte, qcow2MaxHeader), 0)
	if err != nil {
		return nil, err
	}
	if len(b) < qcow2V2Header {
		return nil, p.bad("header", "the file has only %d bytes", len(b))
	}
	if err := p.fixed(b); err != nil {
		return nil, err
	}
	length := int64(qcow2V2Header)
	if p.h.version == 3 {
		if length, err = p.v3(b); err != nil {
			return nil, err
		}
	}
	if err := p.extensions(length); err != nil {
		return nil, err
	}
	if err := p.features(log); err != nil {
		return nil, err
	}
	if err := p.backingName(b); err != nil {
		return nil, err
	}
	return &p.h, p.geometry()
}

func (p *qcow2Parser) fixed(b []byte) error {
	h := &p.h
	if string(b[:4]) != qcow2Magic {
		return p.bad("header", "the magic number is missing")
	}
	h.version = be32(b[4:])
	if h.version != 2 && h.version != 3 {
		return p.unsupported(fmt.Sprintf("version %d (2 and 3 are known)", h.version))
	}
	bits := be32(b[20:])
	if bits < qcow2MinCluster || bits > qcow2MaxCluster {
		return p.bad("header", "a cluster size of 2^%d bytes (2^%d to 2^%d are possible)", bits, qcow2MinCluster, qcow2MaxCluster)
	}
	h.clusterBits = uint(bits)
	size := be64(b[24:])
	if size > 1<<62 {
		return p.bad("header", "a size of %d bytes", size)
	}
	h.size = int64(size)
	if method := be32(b[32:]); method != 0 {
		return p.unsupported(fmt.Sprintf("the image is encrypted (method %d)", method))
	}
	h.l1Entries = int64(be32(b[36:]))
	l1 := be64(b[40:])
	if l1 > 1<<62 {
		return p.bad("header", "the L1 table is at %d", l1)
	}
	h.l1Offset = int64(l1)
	return nil
}

// v3 reads what version 3 added and returns the header's length.
func (p *qcow2Parser) v3(b []byte) (int64, error) {
	if len(b) < qcow2V3Header {
		return 0, p.bad("header", "the file has only %d bytes", len(b))
	}
	p.h.incompatible = be64(b[72:])
	length := int64(be32(b[100:]))
	if length < qcow2V3Header || length > int64(len(b)) || length > 1<<p.h.clusterBits {
		return 0, p.bad("header", "a header length of %d bytes", length)
	}
	if length > qcow2V3Header {
		p.h.compression = b[104]
	}
	return length, nil
}

// extensions reads the header extensions: between the header and the backing
// file's name or the end of the first cluster.
func (p *qcow2Parser) extensions(at int64) error {
	b, err := p.host.readUpTo(make([]byte, 1<<p.h.clusterBits), 0)
	if err != nil {
		return err
	}
	if name := int64(be64(b[8:])); name > 0 && name < int64(len(b)) {
		b = b[:name]
	}
	for at+8 <= int64(len(b)) {
		kind, length := be32(b[at:]), int64(be32(b[at+4:]))
		at += 8
		if kind == qcow2ExtEnd {
			return nil
		}
		if length > int64(len(b))-at {
			return p.bad("header extension", "%#x at %d has %d bytes, which do not fit", kind, at-8, length)
		}
		p.extension(kind, b[at:at+length])
		at += (length + 7) &^ 7
	}
	return nil
}

func (p *qcow2Parser) extension(kind uint32, body []byte) {
	switch kind {
	case qcow2ExtBackingFormat:
		p.h.backingFormat = Format(body)
	case qcow2ExtDataFile:
		p.h.incompatible |= qcow2DataFile
	case qcow2ExtFeatureNames:
		p.h.featureNames = map[int]string{}
		const incompatible, entry = 0, 48
		for ; len(body) >= entry; body = body[entry:] {
			if body[0] == incompatible {
				p.h.featureNames[int(body[1])] = strings.TrimRight(string(body[2:entry]), "\x00")
			}
		}
	}
}

// features refuses what would be read wrongly. An image that was not closed
// properly (dirty), or was found damaged while it was written (corrupt), is
// read as QEMU does: the mapping tables count, the reference counts do not.
func (p *qcow2Parser) features(log *slog.Logger) error {
	h := &p.h
	if h.incompatible&qcow2DataFile != 0 {
		return p.unsupported("the data is in an external data file")
	}
	if h.incompatible&qcow2Compress == 0 && h.compression != qcow2Zlib {
		return p.bad("header", "compression type %d without its feature bit", h.compression)
	}
	if h.compression != qcow2Zlib && h.compression != qcow2Zstd {
		return p.unsupported(fmt.Sprintf("compression type %d", h.compression))
	}
	for bit := range 64 {
		if h.incompatible>>bit&1 == 1 && bit > 4 {
			return p.unsupported(fmt.Sprintf("incompatible feature bit %d %q", bit, h.featureNames[bit]))
		}
	}
	if h.incompatible&qcow2ExtL2 != 0 && h.clusterBits < qcow2SubMin {
		return p.bad("header", "extended L2 entries with clusters of 2^%d bytes", h.clusterBits)
	}
	if h.incompatible&qcow2Dirty != 0 {
		log.Warn("disk image was not closed properly; reading it as it is", "file", p.host.name)
	}
	if h.incompatible&qcow2Corrupt != 0 {
		log.Warn("disk image is marked corrupt; reading it as it is", "file", p.host.name, "next", "qemu-img check")
	}
	return nil
}

func (p *qcow2Parser) backingName(b []byte) error {
	off, length := be64(b[8:]), int64(be32(b[16:]))
	if off == 0 {
		return nil
	}
	if length > qcow2MaxName || length == 0 {
		return p.bad("header", "the backing file's name has %d bytes (1 to %d are possible)", length, qcow2MaxName)
	}
	name := make([]byte, length)
	if off > 1<<p.h.clusterBits || int64(off)+length > 1<<p.h.clusterBits {
		return p.bad("header", "the backing file's name is at %d, outside the first cluster", off)
	}
	if err := p.host.readFull(name, int64(off)); err != nil {
		return err
	}
	p.h.backing = string(name)
	return nil
}

// geometry checks that the L1 table lies in the file and covers the size.
func (p *qcow2Parser) geometry() error {
	h := &p.h
	if h.l1Entries*8 > qcow2MaxL1 {
		return p.bad("header", "an L1 table of %d entries", h.l1Entries)
	}
	perL1 := int64(1) << (h.clusterBits + h.l2Bits())
	if need := (h.size-1)/perL1 + 1; h.size > 0 && h.l1Entries < need {
		return p.bad("header", "an L1 table of %d entries for %d bytes, which need %d", h.l1Entries, h.size, need)
	}
	if h.l1Offset&(1<<h.clusterBits-1) != 0 {
		return p.bad("header", "the L1 table at %d is not at a cluster's start", h.l1Offset)
	}
	if end := h.l1Offset + h.l1Entries*8; h.l1Entries > 0 && end > p.host.size {
		return p.bad("header", "the L1 table ends at %d, the file at %d", end, p.host.size)
	}
	return nil
}

// entryBits is log2 of the size of an L2 entry in bytes.
func (h *qcow2Header) entryBits() uint {
	if h.incompatible&qcow2ExtL2 != 0 {
		return 4
	}
	return 3
}

// l2Bits is log2 of the number of entries in an L2 table.
func (h *qcow2Header) l2Bits() uint { return h.clusterBits - h.entryBits() }
