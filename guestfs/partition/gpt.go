package partition

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"unicode/utf16"

	"lifeboat/disk"
)

// Offsets in a GPT header (UEFI specification, table 5.5) and in an entry
// (table 5.6). Integers are little-endian.
const (
	gptMagic      = "EFI PART"
	gptMinHeader  = 92
	gptHeaderSize = 12
	gptHeaderCRC  = 16
	gptMyLBA      = 24
	gptBackupLBA  = 32
	gptDiskGUID   = 56
	gptEntriesLBA = 72
	gptEntryCount = 80
	gptEntrySize  = 84
	gptEntriesCRC = 88

	entryID    = 16
	entryFirst = 32
	entryLast  = 40
	entryFlags = 48
	entryName  = 56
	entryMin   = 128
	entryMax   = 4096

	flagLegacyBoot = 1 << 2
)

// gptHeader is a header that its checksum has proved.
type gptHeader struct {
	guid       string
	entriesLBA uint64
	count      int
	entrySize  int
	entriesCRC uint32
}

// readGPT reads the primary table, or else the backup at the end of the disk.
func readGPT(ctx context.Context, img disk.Image) (*Table, error) {
	var problems []error
	for _, sector := range sectorSizes {
		places := []int64{1, img.Size()/sector - 1}
		if at, ok := backupLBA(img, sector); ok {
			places = append(places, at) // the disk has grown since
		}
		for i, lba := range places {
			t, err := readGPTAt(ctx, img, sector, lba)
			switch {
			case err == nil:
				if i > 0 {
					t.note("the primary GPT is damaged; the backup at sector %d was used", lba)
				}
				return t, nil
			case ctx.Err() != nil:
				return nil, context.Cause(ctx)
			case !errors.Is(err, errNoGPT) && !errors.Is(err, io.ErrUnexpectedEOF):
				problems = append(problems, err)
			}
		}
	}
	if len(problems) == 0 {
		return nil, corrupt("its MBR announces a GPT and there is none")
	}
	return nil, errors.Join(problems...)
}

var errNoGPT = errors.New("there is no GPT header here")

// backupLBA is where a primary header, right or not, says that its backup is.
func backupLBA(img disk.Image, sector int64) (int64, bool) {
	h, err := read(img, sector, 512)
	if err != nil || string(h[:8]) != gptMagic {
		return 0, false
	}
	lba := binary.LittleEndian.Uint64(h[gptBackupLBA:])
	return int64(lba), lba > 1 && lba < uint64(img.Size()/sector)
}

func readGPTAt(ctx context.Context, img disk.Image, sector, lba int64) (*Table, error) {
	h, err := readGPTHeader(img, sector, lba)
	if err != nil {
		return nil, err
	}
	if h.entriesLBA > uint64(img.Size()/sector) {
		return nil, corrupt("the entries of the GPT at sector %d lie outside the disk", lba)
	}
	t := &Table{Scheme: GPT, ID: h.guid, SectorSize: sector}
	sum := crc32.NewIEEE()
	var parts []Partition
	entry := make([]byte, h.entrySize)
	for i := range h.count {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		off := int64(h.entriesLBA)*sector + int64(i)*int64(h.entrySize)
		if n, err := img.ReadAt(entry, off); n < len(entry) {
			return nil, fmt.Errorf("read entry %d of the GPT: %w", i+1, errors.Join(err, io.ErrUnexpectedEOF))
		}
		sum.Write(entry) // never fails
		if p, ok := parseGPTEntry(entry, i+1, sector); ok {
			parts = append(parts, p)
		}
	}
	if sum.Sum32() != h.entriesCRC {
		return nil, corrupt("the entries of the GPT at sector %d have a wrong checksum", lba)
	}
	for _, p := range parts {
		t.add(p, img.Size())
	}
	return t, nil
}

func readGPTHeader(img disk.Image, sector, lba int64) (*gptHeader, error) {
	b, err := read(img, lba*sector, int(min(sector, 512)))
	if err != nil {
		return nil, err
	}
	if string(b[:8]) != gptMagic {
		return nil, errNoGPT
	}
	le := binary.LittleEndian
	size := le.Uint32(b[gptHeaderSize:])
	if size < gptMinHeader || size > uint32(len(b)) {
		return nil, corrupt("a GPT header of %d bytes at sector %d", size, lba)
	}
	want := le.Uint32(b[gptHeaderCRC:])
	clear(b[gptHeaderCRC : gptHeaderCRC+4])
	if crc32.ChecksumIEEE(b[:size]) != want || le.Uint64(b[gptMyLBA:]) != uint64(lba) {
		return nil, corrupt("the GPT header at sector %d has a wrong checksum", lba)
	}
	h := &gptHeader{
		guid: guid(b[gptDiskGUID:]), entriesLBA: le.Uint64(b[gptEntriesLBA:]), entriesCRC: le.Uint32(b[gptEntriesCRC:]),
	}
	count, entrySize := le.Uint32(b[gptEntryCount:]), le.Uint32(b[gptEntrySize:])
	if count > maxPartitions || entrySize < entryMin || entrySize > entryMax || entrySize%8 != 0 {
		return nil, corrupt("a GPT of %d entries of %d bytes", count, entrySize)
	}
	h.count, h.entrySize = int(count), int(entrySize)
	return h, nil
}

// parseGPTEntry reports false for an entry that is not used.
func parseGPTEntry(b []byte, number int, sector int64) (Partition, bool) {
	kind := guid(b)
	if kind == "00000000-0000-0000-0000-000000000000" {
		return Partition{}, false
	}
	first, last := binary.LittleEndian.Uint64(b[entryFirst:]), binary.LittleEndian.Uint64(b[entryLast:])
	p := Partition{
		Number: number, Type: kind, ID: guid(b[entryID:]), Label: label(b[entryName:entryMin]),
		Active: binary.LittleEndian.Uint64(b[entryFlags:])&flagLegacyBoot != 0,
	}
	const maxLBA = 1 << 50 // times a sector it still is an int64
	if first <= last && last < maxLBA {
		p.Start, p.Size = int64(first)*sector, int64(last-first+1)*sector
	}
	return p, true // of no size: noted as outside the disk
}

// label is a UTF-16LE string that ends at the first zero.
func label(b []byte) string {
	var units []uint16
	for i := 0; i+1 < len(b); i += 2 {
		u := binary.LittleEndian.Uint16(b[i:])
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}

// guid spells a GUID, whose first three fields are little-endian.
func guid(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08X-%04X-%04X-%X-%X", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}
