package ntfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/wtf8"
)

// Records that are known by their numbers, and attributes by theirs.
const (
	recordMFT     = 0
	recordLogFile = 2
	recordVolume  = 3
	recordRoot    = 5
	recordBitmap  = 6
	recordSecure  = 9
	recordUpCase  = 10
	firstUser     = 16 // what has a lower number is the file system's own
	mirrored      = 4  // records of which $MFTMirr has a copy

	attrStandard   = 0x10
	attrList       = 0x20
	attrFileName   = 0x30
	attrSecurity   = 0x50
	attrVolumeName = 0x60
	attrVolumeInfo = 0x70
	attrData       = 0x80
	attrIndexRoot  = 0x90
	attrIndexAlloc = 0xa0
	attrBitmap     = 0xb0
	attrReparse    = 0xc0
	attrEnd        = 0xffffffff

	recordInUse = 1
	recordDir   = 2

	numberMask = 1<<48 - 1
)

// record is a record of the MFT, its update sequence undone.
type record struct {
	number uint64
	raw    []byte
}

func (r *record) flags() uint16    { return binary.LittleEndian.Uint16(r.raw[22:]) }
func (r *record) sequence() uint16 { return binary.LittleEndian.Uint16(r.raw[16:]) }
func (r *record) base() uint64     { return binary.LittleEndian.Uint64(r.raw[32:]) }
func (r *record) ref() guestfs.Inode {
	return guestfs.Inode(r.number | uint64(r.sequence())<<48)
}

// parseRecord checks a record and undoes its update sequence, in place.
func parseRecord(number uint64, b []byte) (*record, error) {
	if string(b[:4]) != "FILE" {
		return nil, corrupt("record %d begins with %q", number, b[:4])
	}
	if err := unfix(b); err != nil {
		return nil, fmt.Errorf("record %d: %w", number, err)
	}
	le := binary.LittleEndian
	r := &record{number: number, raw: b}
	if first, used := int(le.Uint16(b[20:])), le.Uint32(b[24:]); first < 42 || first%8 != 0 || uint64(used) > uint64(len(b)) || first > int(used) {
		return nil, corrupt("record %d: %d bytes in use, attributes from %d", number, used, first)
	}
	return r, nil
}

// attr is an attribute as it stands in a record, or the first part of one.
type attr struct {
	kind     uint32
	name     string
	flags    uint16
	id       uint16
	resident bool
	raw      []byte
}

const (
	flagCompressed = 0x00ff // the method; 1 is LZNT1
	flagEncrypted  = 0x4000
	flagSparse     = 0x8000
)

func (a *attr) u64(at int) uint64 { return binary.LittleEndian.Uint64(a.raw[at:]) }

// lowest and highest are the clusters of the file that a non-resident attribute
// tells about.
func (a *attr) lowest() int64  { return int64(a.u64(16)) }
func (a *attr) highest() int64 { return int64(a.u64(24)) }

// mapping is the mapping pairs.
func (a *attr) mapping() []byte {
	return a.raw[a.mappingAt():]
}

// value is the content of a resident attribute.
func (a *attr) value() []byte {
	le := binary.LittleEndian
	at := int(le.Uint16(a.raw[20:]))
	return a.raw[at : at+int(le.Uint32(a.raw[16:]))]
}

// size is that of the content in bytes.
func (a *attr) size() int64 {
	if a.resident {
		return int64(len(a.value()))
	}
	return int64(a.u64(48))
}

// allocated is how many bytes of the volume the content takes.
func (a *attr) allocated() int64 {
	switch {
	case a.resident:
		return 0
	case a.flags&(flagCompressed|flagSparse) != 0 && len(a.raw) >= 72 && a.mappingAt() >= 72:
		return max(0, int64(a.u64(64)))
	}
	return max(0, int64(a.u64(40)))
}

func (a *attr) mappingAt() int { return int(binary.LittleEndian.Uint16(a.raw[32:])) }

// attrs reads the attributes of a record, each checked to lie inside it.
func (r *record) attrs(yield func(*attr) bool) error {
	le := binary.LittleEndian
	used := r.raw[:le.Uint32(r.raw[24:])]
	for off := int(le.Uint16(used[20:])); ; {
		if off+4 > len(used) {
			return corrupt("record %d: its attributes have no end", r.number)
		}
		if le.Uint32(used[off:]) == attrEnd {
			return nil
		}
		a, err := r.attr(used[off:])
		if err != nil {
			return err
		}
		if !yield(a) {
			return nil
		}
		off += len(a.raw)
	}
}

func (r *record) attr(b []byte) (*attr, error) {
	const residentHeader, header = 24, 64
	le := binary.LittleEndian
	if len(b) < residentHeader {
		return nil, corrupt("record %d: an attribute is cut off", r.number)
	}
	a := &attr{kind: le.Uint32(b), flags: le.Uint16(b[12:]), id: le.Uint16(b[14:]), resident: b[8] == 0}
	length, nameLen, nameAt := le.Uint32(b[4:]), 2*int(b[9]), int(le.Uint16(b[10:]))
	if length < residentHeader || length%8 != 0 || uint64(length) > uint64(len(b)) || nameLen > 0 && nameAt+nameLen > int(length) {
		return nil, corrupt("record %d: attribute %#x of %d bytes, name of %d at %d", r.number, a.kind, length, nameLen, nameAt)
	}
	a.raw = b[:length:length]
	if nameLen > 0 {
		a.name = wtf8.DecodeBytes(a.raw[nameAt : nameAt+nameLen])
	}
	if a.resident {
		if at, n := uint64(le.Uint16(b[20:])), uint64(le.Uint32(b[16:])); at+n > uint64(length) {
			return nil, corrupt("record %d: attribute %#x: a value of %d bytes at %d of %d", r.number, a.kind, n, at, length)
		}
		return a, nil
	}
	if length < header || a.mappingAt() > int(length) || a.mappingAt() < header {
		return nil, corrupt("record %d: attribute %#x: a header of %d bytes, or no runs", r.number, a.kind, length)
	}
	if low, high := a.lowest(), a.highest(); low < 0 || low > maxVCN || high < low-1 || high > maxVCN {
		return nil, corrupt("record %d: attribute %#x: clusters %d to %d", r.number, a.kind, low, high)
	}
	if size, init, all := int64(a.u64(48)), int64(a.u64(56)), int64(a.u64(40)); a.lowest() == 0 && (size < 0 || init < 0 || all < 0) {
		return nil, corrupt("record %d: attribute %#x: a size of %d bytes", r.number, a.kind, size)
	}
	return a, nil
}

// record reads a record by number, whatever it is used for.
func (f *FS) record(ctx context.Context, number uint64) (*record, error) {
	if number >= f.records {
		return nil, fmt.Errorf("ntfs: record %d of %d: %w", number, f.records, fs.ErrNotExist)
	}
	const per = mftBlock
	at := number * uint64(f.geo.recordSize)
	block, err := f.mft.Block(ctx, at/per)
	if err != nil {
		return nil, fmt.Errorf("record %d: %w", number, err)
	}
	b := append([]byte(nil), block[at%per:at%per+uint64(f.geo.recordSize)]...)
	r, err := parseRecord(number, b)
	if err != nil && number < mirrored {
		return f.mirror(number, err)
	}
	return r, err
}

// mirror reads one of the first records from their copy.
func (f *FS) mirror(number uint64, cause error) (*record, error) {
	if f.geo.mirr == 0 {
		return nil, cause
	}
	b := make([]byte, f.geo.recordSize)
	if n, err := f.disk.ReadAt(b, f.geo.mirr*f.geo.cluster+int64(number)*int64(len(b))); n < len(b) {
		return nil, errors.Join(cause, fmt.Errorf("read its copy: %w", err))
	}
	r, err := parseRecord(number, b)
	if err != nil {
		return nil, errors.Join(cause, fmt.Errorf("its copy: %w", err))
	}
	return r, nil
}
