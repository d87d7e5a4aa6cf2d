package appliance

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"

	"lifeboat/guestfs"
)

// The file of an index: 8 bytes that name the format, 4 bytes CRC-32C of the rest
// (little-endian), and a zstd frame with:
//
//	uvarint n, n bytes    indexMeta as JSON
//	uvarint n             rows, each of
//	  uvarint             volume
//	  uvarint, uvarint    inode, inode of the directory
//	  uvarint, bytes      name
//	  uvarint             mode
//	  varint, varint      size, modification time in seconds
//	  uvarint             nanoseconds of it
//	  uvarint, uvarint    first point; last point + 1, or 0: it is there still
//
// It is written beside the old one and takes its place when it is complete.
const (
	indexMagic    = "LBFIDX1\n"
	indexHead     = len(indexMagic) + 4
	maxIndexBytes = 4 << 30 // decoded
)

var errIndex = errors.New("the index of files is damaged")

func castagnoliSum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func writeIndex(path string, x *fileIndex) error {
	meta, err := json.Marshal(x.meta)
	if err != nil {
		return err
	}
	b := binary.AppendUvarint(nil, uint64(len(meta)))
	b = append(b, meta...)
	b = binary.AppendUvarint(b, uint64(len(x.rows)))
	for i := range x.rows {
		b = x.rows[i].append(b)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return err
	}
	defer enc.Close()
	out := enc.EncodeAll(b, make([]byte, indexHead, indexHead+len(b)/2))
	copy(out, indexMagic)
	binary.LittleEndian.PutUint32(out[len(indexMagic):], castagnoliSum(out[indexHead:]))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".index-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(out)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write the index of files: %w", err)
	}
	return os.Rename(f.Name(), path)
}

func (r *indexRow) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(r.volume))
	b = binary.AppendUvarint(b, uint64(r.inode))
	b = binary.AppendUvarint(b, uint64(r.dir))
	b = binary.AppendUvarint(b, uint64(len(r.name)))
	b = append(b, r.name...)
	b = binary.AppendUvarint(b, uint64(r.mode))
	b = binary.AppendVarint(b, r.size)
	b = binary.AppendVarint(b, r.sec)
	b = binary.AppendUvarint(b, uint64(r.nsec))
	b = binary.AppendUvarint(b, uint64(r.first))
	return binary.AppendUvarint(b, uint64(r.last+1))
}

func readIndex(path string) (*fileIndex, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	x, err := parseIndex(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; `lifeboat files index rebuild` makes a new one", path, err)
	}
	return x, nil
}

func parseIndex(b []byte) (*fileIndex, error) {
	if len(b) < indexHead || string(b[:len(indexMagic)]) != indexMagic {
		return nil, fmt.Errorf("%w, or of another version", errIndex)
	}
	if castagnoliSum(b[indexHead:]) != binary.LittleEndian.Uint32(b[len(indexMagic):]) {
		return nil, fmt.Errorf("%w: wrong checksum", errIndex)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxIndexBytes), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	body, err := dec.DecodeAll(b[indexHead:], nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errIndex, err)
	}
	return decodeIndex(body)
}

// indexDecoder reads numbers; after one that is not there, all are 0.
type indexDecoder struct {
	b   []byte
	all string // the same, so that names need not be copied one by one
	at  int
	bad bool
}

func (d *indexDecoder) number(limit uint64) uint64 {
	v, n := binary.Uvarint(d.b[d.at:])
	if n <= 0 || v > limit {
		d.bad = true
		return 0
	}
	d.at += n
	return v
}

func (d *indexDecoder) signed() int64 {
	v, n := binary.Varint(d.b[d.at:])
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.at += n
	return v
}

func (d *indexDecoder) text() string {
	n := int(d.number(uint64(len(d.b) - d.at)))
	if d.bad || n > len(d.b)-d.at {
		d.bad = true
		return ""
	}
	d.at += n
	return d.all[d.at-n : d.at]
}

func decodeIndex(body []byte) (*fileIndex, error) {
	d := &indexDecoder{b: body, all: string(body)}
	x := &fileIndex{}
	if err := json.Unmarshal([]byte(d.text()), &x.meta); err != nil || d.bad {
		return nil, fmt.Errorf("%w: its head", errIndex)
	}
	const rowBytes = 10
	n := d.number(uint64(len(body)) / rowBytes)
	x.rows = make([]indexRow, 0, n)
	points, volumes := uint64(len(x.meta.Points)), uint64(len(x.meta.Volumes))
	for range n {
		r := indexRow{
			volume: int(d.number(volumes)), inode: guestfs.Inode(d.number(math.MaxUint64)), dir: guestfs.Inode(d.number(math.MaxUint64)), name: d.text(),
			mode: uint32(d.number(math.MaxUint32)), size: d.signed(), sec: d.signed(), nsec: int32(d.number(1e9)),
			first: int(d.number(points)), last: int(d.number(points)) - 1,
		}
		if d.bad || r.volume >= int(volumes) || r.first >= int(points) || r.last != alive && r.last < r.first {
			return nil, fmt.Errorf("%w: row %d", errIndex, len(x.rows))
		}
		x.rows = append(x.rows, r)
	}
	if d.bad || d.at != len(body) {
		return nil, fmt.Errorf("%w: its end", errIndex)
	}
	return x, nil
}
