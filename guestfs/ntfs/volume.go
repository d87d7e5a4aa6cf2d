package ntfs

import (
	"context"
	"encoding/binary"
	"errors"
	"math/bits"
	"unicode"

	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/wtf8"
)

// volumeDirty is the flag of $Volume by which the next boot runs chkdsk.
const volumeDirty = 1

// volume is what $Volume says.
type volume struct {
	label        string
	major, minor byte
	flags        uint16
}

func (f *FS) readVolume(ctx context.Context) (v volume, err error) {
	r, err := f.record(ctx, recordVolume)
	if err != nil {
		return v, err
	}
	n, err := f.nodeOf(ctx, r)
	if err != nil {
		return v, err
	}
	name, err := n.find(ctx, attrVolumeName, "")
	if err != nil {
		return v, err
	}
	if name != nil && name.resident {
		v.label = wtf8.DecodeBytes(name.value())
	}
	info, err := n.find(ctx, attrVolumeInfo, "")
	if err != nil {
		return v, err
	}
	if info == nil || !info.resident || len(info.value()) < 12 {
		return v, corrupt("it does not say which version of NTFS this is")
	}
	b := info.value()
	v.major, v.minor, v.flags = b[8], b[9], binary.LittleEndian.Uint16(b[10:])
	if v.major > 3 || v.major == 0 {
		return v, unsupported("version %d.%d", v.major, v.minor)
	}
	return v, nil
}

// contentOf is the unnamed content of a file of the file system itself.
func (f *FS) contentOf(ctx context.Context, number uint64) (*stream, error) {
	r, err := f.record(ctx, number)
	if err != nil {
		return nil, err
	}
	n, err := f.nodeOf(ctx, r)
	if err != nil {
		return nil, err
	}
	a, err := n.find(ctx, attrData, "")
	if err != nil {
		return nil, err
	}
	if a == nil || a.resident {
		return nil, corrupt("record %d has no content", number)
	}
	return n.stream(a)
}

// countUsed counts the bits of $Bitmap, one a cluster, in bytes of the volume;
// -1 where that would take long.
func (f *FS) countUsed() int64 {
	const limit = 64 << 20 // bytes of bitmap: 2 TiB in clusters of 4 KiB
	ctx := context.Background()
	s, err := f.contentOf(ctx, recordBitmap)
	if err != nil || s.size > limit || s.size < (f.geo.clusters+7)/8 {
		return -1
	}
	img := s.image(ctx)
	defer img.Close()
	used, left := int64(0), f.geo.clusters
	b := make([]byte, 1<<20)
	for off := int64(0); left > 0; off += int64(len(b)) {
		b = b[:min(int64(len(b)), (left+7)/8)]
		if n, _ := img.ReadAt(b, off); n < len(b) {
			return -1
		}
		if over := int64(len(b))*8 - left; over > 0 { // what no cluster belongs to
			b[len(b)-1] &= 0xff >> over
		}
		used += popcount(b)
		left -= int64(len(b)) * 8
	}
	return used * f.geo.cluster
}

func popcount(b []byte) (n int64) {
	for ; len(b) >= 8; b = b[8:] {
		n += int64(bits.OnesCount64(binary.LittleEndian.Uint64(b)))
	}
	for _, c := range b {
		n += int64(bits.OnesCount8(c))
	}
	return n
}

// upcaseTable is how the volume compares names: each unit of UTF-16 is taken for
// another one.
type upcaseTable [1 << 16]uint16

// readUpcase reads $UpCase. A volume whose table is damaged is compared by
// Unicode's: no more is lost than some names that differ in strange letters.
func (f *FS) readUpcase(ctx context.Context) (*upcaseTable, error) {
	t := &upcaseTable{}
	s, err := f.contentOf(ctx, recordUpCase)
	if err != nil && !errors.Is(err, guestfs.ErrCorrupt) {
		return nil, err
	}
	if err == nil && s.size == 2*int64(len(t)) {
		b, err := readAll(s.image(ctx), s.size)
		if err != nil {
			return nil, err
		}
		for i := range t {
			t[i] = binary.LittleEndian.Uint16(b[2*i:])
		}
		if t['a'] == 'A' && t['A'] == 'A' {
			return t, nil
		}
	}
	f.damaged("its table of upper-case letters is damaged")
	for i := range t {
		t[i] = uint16(i)
		if up := unicode.ToUpper(rune(i)); up < 1<<16 {
			t[i] = uint16(up)
		}
	}
	return t, nil
}
