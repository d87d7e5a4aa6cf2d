// Package iso9660 reads ISO 9660 (ECMA-119) with the Rock Ridge and Joliet
// extensions: installation discs, cloud-init's configuration drives, what is in
// a virtual CD drive.
//
// Rock Ridge (IEEE P1282 over SUSP, P1281) is preferred, then Joliet, then the
// plain names in lower case and without their version, as the kernel does. What
// is on a disc is never in use, so there is nothing to replay.
//
// A file is known by where its directory record lies.
package iso9660

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf16"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/meta"
)

const (
	fsName     = "iso9660"
	sectorSize = 2048
	cacheBytes = 4 << 20

	firstDescriptor = 16 // sectors
	maxDescriptors  = 64

	descPrimary   = 1
	descSecondary = 2
	descEnd       = 255

	rootRecordAt = 156
)

// names is which of the names of a disc are shown.
type names int

const (
	plain names = iota
	joliet
	rockRidge
)

// FS is the file system of a disc.
type FS struct {
	disk  disk.Image
	meta  *meta.Cache // sectors
	block int64       // logical block, bytes
	size  int64
	root  guestfs.Inode
	kind  names
	skip  int // bytes in front of each record's system use entries
	label string
	uuid  string
	note  string
}

var (
	_ guestfs.FS        = (*FS)(nil)
	_ guestfs.Describer = (*FS)(nil)
)

func corrupt(format string, args ...any) error { return guestfs.Corruptf(fsName, format, args...) }

// Open reads the file system on img, which must stay open as long.
// guestfs.ErrNoFS where there is none.
func Open(ctx context.Context, img disk.Image) (*FS, error) {
	f := &FS{disk: img, meta: meta.New(img, sectorSize, cacheBytes)}
	primary, secondary, err := f.descriptors(ctx)
	if err != nil {
		return nil, err
	}
	if err := f.volume(primary.data, img.Size()); err != nil {
		return nil, err
	}
	f.root = guestfs.Inode(primary.at + rootRecordAt)
	found, err := f.findRockRidge(ctx)
	switch {
	case err != nil:
		return nil, err
	case found:
		f.kind = rockRidge
	case secondary.data != nil:
		f.kind, f.root = joliet, guestfs.Inode(secondary.at+rootRecordAt)
		if b := secondary.data[40:72]; strings.TrimSpace(ucs2(b)) != "" {
			f.label = strings.TrimSpace(ucs2(b))
		}
	}
	if _, err := f.record(ctx, f.root); err != nil {
		return nil, fmt.Errorf("the root directory: %w", err)
	}
	return f, nil
}

// descriptor is a volume descriptor and where it stands.
type descriptor struct {
	at   int64
	data []byte
}

// descriptors finds the primary volume descriptor, and Joliet's.
func (f *FS) descriptors(ctx context.Context) (primary, secondary descriptor, err error) {
	for n := range int64(maxDescriptors) {
		b, err := f.meta.Block(ctx, uint64(firstDescriptor+n))
		if errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return primary, secondary, fmt.Errorf("iso9660: read the volume descriptors: %w", err)
		}
		if string(b[1:6]) != "CD001" {
			break
		}
		d := descriptor{(firstDescriptor + n) * sectorSize, b}
		switch {
		case b[0] == descPrimary && primary.data == nil:
			primary = d
		case b[0] == descSecondary && secondary.data == nil && isJoliet(b[88:120]):
			secondary = d
		}
		if b[0] == descEnd {
			break
		}
	}
	if primary.data == nil {
		return primary, secondary, guestfs.ErrNoFS
	}
	return primary, secondary, nil
}

// isJoliet recognises the escape sequences of UCS-2 (levels 1 to 3).
func isJoliet(escapes []byte) bool {
	s := string(escapes)
	return strings.Contains(s, "%/@") || strings.Contains(s, "%/C") || strings.Contains(s, "%/E")
}

// volume reads what the primary descriptor says.
func (f *FS) volume(b []byte, size int64) error {
	le := binary.LittleEndian
	f.block = int64(le.Uint16(b[128:]))
	if f.block != 512 && f.block != 1024 && f.block != sectorSize {
		return corrupt("logical blocks of %d bytes", f.block)
	}
	f.size = int64(le.Uint32(b[80:])) * f.block
	if f.size > size {
		f.note = fmt.Sprintf("the disc is cut off: %d of %d bytes are there", size, f.size)
	}
	f.label = strings.TrimRight(string(b[40:72]), " \x00")
	date := b[813:829]
	if allDigits(b[830:846]) && (b[830] != '0' || b[831] != '0') {
		date = b[830:846]
	}
	if allDigits(date) {
		s := string(date)
		f.uuid = strings.Join([]string{s[:4], s[4:6], s[6:8], s[8:10], s[10:12], s[12:14], s[14:16]}, "-")
	}
	return nil
}

func allDigits(b []byte) bool {
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// Info implements [guestfs.Describer].
func (f *FS) Info() guestfs.Info {
	info := guestfs.Info{Type: fsName, Label: f.label, UUID: f.uuid, Size: f.size, Used: f.size, State: guestfs.Clean, Note: f.note}
	if f.note != "" {
		info.State = guestfs.Damaged
	}
	return info
}

// Root implements [guestfs.FS].
func (f *FS) Root() guestfs.Inode { return f.root }

// read reads n bytes of metadata.
func (f *FS) read(ctx context.Context, off, n int64) ([]byte, error) {
	if n < 0 || off < 0 || off+n > f.disk.Size()/sectorSize*sectorSize {
		return nil, corrupt("%d bytes at %d of %d", n, off, f.disk.Size())
	}
	if off/sectorSize == (off+n-1)/sectorSize {
		b, err := f.meta.Block(ctx, uint64(off/sectorSize))
		if err != nil {
			return nil, fmt.Errorf("iso9660: %w", err)
		}
		return b[off%sectorSize : off%sectorSize+n], nil
	}
	out := make([]byte, 0, n)
	for n > 0 {
		b, err := f.meta.Block(ctx, uint64(off/sectorSize))
		if err != nil {
			return nil, fmt.Errorf("iso9660: %w", err)
		}
		part := b[off%sectorSize:]
		part = part[:min(n, int64(len(part)))]
		out, off, n = append(out, part...), off+int64(len(part)), n-int64(len(part))
	}
	return out, nil
}

// ucs2 decodes Joliet's big-endian names.
func ucs2(b []byte) string {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.BigEndian.Uint16(b[2*i:])
	}
	return strings.TrimRight(string(utf16.Decode(units)), "\x00")
}

// shortTime decodes the seven bytes of a directory record: the zone is in
// quarters of an hour.
func shortTime(b []byte) time.Time {
	if b[1] == 0 {
		return time.Time{}
	}
	t := time.Date(1900+int(b[0]), time.Month(b[1]), int(b[2]), int(b[3]), int(b[4]), int(b[5]), 0, time.UTC)
	return t.Add(-time.Duration(int8(b[6])) * 15 * time.Minute)
}

// longTime decodes seventeen digits: to the hundredth of a second.
func longTime(b []byte) time.Time {
	if !allDigits(b[:16]) {
		return time.Time{}
	}
	n := func(from, to int) (v int) {
		for _, c := range b[from:to] {
			v = v*10 + int(c-'0')
		}
		return v
	}
	if n(4, 6) == 0 {
		return time.Time{}
	}
	t := time.Date(n(0, 4), time.Month(n(4, 6)), n(6, 8), n(8, 10), n(10, 12), n(12, 14), n(14, 16)*int(10*time.Millisecond), time.UTC)
	return t.Add(-time.Duration(int8(b[16])) * 15 * time.Minute)
}
