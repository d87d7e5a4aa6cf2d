package partition

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"lifeboat/disk"
)

// Offsets in a master boot record.
const (
	mbrSignature = 440
	mbrEntries   = 446
	mbrEntrySize = 16
	mbrMagic     = 510
)

// Types of MBR entries with a meaning here.
const (
	typeExtended      = 0x05 // CHS
	typeExtendedLBA   = 0x0f
	typeExtendedLinux = 0x85
	typeProtective    = 0xee
)

// bootRecord is a sector that ends in 55 AA: an MBR, or the boot record of a
// logical partition.
type bootRecord struct {
	signature uint32
	entries   [4]mbrEntry
}

type mbrEntry struct {
	status  byte // 0x80: active
	kind    byte // 0: unused
	start   uint32
	sectors uint32
}

func (e mbrEntry) extended() bool {
	return e.kind == typeExtended || e.kind == typeExtendedLBA || e.kind == typeExtendedLinux
}

// parseMBR returns nil where there is no boot record.
func parseMBR(sector []byte) *bootRecord {
	if !bytes.Equal(sector[mbrMagic:mbrMagic+2], []byte{0x55, 0xaa}) {
		return nil
	}
	r := &bootRecord{signature: binary.LittleEndian.Uint32(sector[mbrSignature:])}
	for i := range r.entries {
		e := sector[mbrEntries+i*mbrEntrySize:]
		r.entries[i] = mbrEntry{e[0], e[4], binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])}
	}
	return r
}

func (r *bootRecord) protective() bool {
	for _, e := range r.entries {
		if e.kind == typeProtective {
			return true
		}
	}
	return false
}

// plausible tells an MBR from the boot sector of a file system, which ends in
// 55 AA too and has code where the entries are: as the kernel does, by the
// status bytes; and by whether any partition begins on the disk.
func (r *bootRecord) plausible(diskSize int64) bool {
	used := false
	for _, e := range r.entries {
		if e.status&0x7f != 0 {
			return false
		}
		if e.kind == 0 || e.sectors == 0 {
			continue
		}
		if e.start == 0 || int64(e.start)*512 >= diskSize {
			return false
		}
		used = true
	}
	return used
}

func (r *bootRecord) table(ctx context.Context, img disk.Image) (*Table, error) {
	t := &Table{Scheme: MBR, ID: fmt.Sprintf("%08x", r.signature), SectorSize: 512}
	for i, e := range r.entries {
		if e.kind == 0 || e.sectors == 0 || e.extended() {
			continue
		}
		t.add(t.partition(i+1, e, int64(e.start)), img.Size())
	}
	for _, e := range r.entries {
		if e.extended() && e.sectors != 0 {
			if err := t.logical(ctx, img, int64(e.start)); err != nil {
				return nil, err
			}
			break // Linux, too, follows one extended partition only
		}
	}
	return t, nil
}

func (t *Table) partition(number int, e mbrEntry, start int64) Partition {
	return Partition{
		Number: number, Start: start * 512, Size: int64(e.sectors) * 512, Type: fmt.Sprintf("%02x", e.kind),
		ID: fmt.Sprintf("%s-%02x", t.ID, number), Active: e.status == 0x80,
	}
}

// logical follows the chain of boot records in an extended partition, which
// begins at sector first. Each holds a logical partition, relative to itself,
// and a link to the next, relative to first. A chain that comes back to where
// it was ends there.
func (t *Table) logical(ctx context.Context, img disk.Image, first int64) error {
	const firstLogical = 5
	seen := map[int64]bool{}
	at, number := first, firstLogical
	for len(seen) < maxPartitions {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if seen[at] {
			t.note("the chain of logical partitions comes back to sector %d", at)
			return nil
		}
		seen[at] = true
		sector, err := read(img, at*512, 512)
		if err != nil {
			t.note("the boot record of a logical partition at sector %d cannot be read: %v", at, err)
			return nil
		}
		r := parseMBR(sector)
		if r == nil {
			t.note("there is no boot record of a logical partition at sector %d", at)
			return nil
		}
		next := int64(-1)
		for i, e := range r.entries {
			switch {
			case e.kind == 0 || e.sectors == 0:
			case e.extended():
				if next < 0 {
					next = first + int64(e.start)
				}
			case i < 2: // the other two have no meaning
				t.add(t.partition(number, e, at+int64(e.start)), img.Size())
				number++
			}
		}
		if next < 0 {
			return nil
		}
		at = next
	}
	t.note("there are more than %d logical partitions", maxPartitions)
	return nil
}
