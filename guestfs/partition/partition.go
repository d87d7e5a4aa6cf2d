// Package partition reads partition tables: GPT (UEFI specification, chapter 5),
// MBR with logical partitions, and disks without any.
package partition

import (
	"context"
	"errors"
	"fmt"
	"io"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// Scheme is the kind of a partition table.
type Scheme string

// The kinds. None means that the disk as a whole may be a volume.
const (
	GPT  Scheme = "gpt"
	MBR  Scheme = "mbr"
	None Scheme = "none"
)

// Table is what a disk is divided into.
type Table struct {
	Scheme     Scheme      `json:"scheme"`
	ID         string      `json:"id,omitempty"` // GUID of the disk, or the MBR's signature as 8 hex digits
	SectorSize int64       `json:"sector_size"`  // bytes that an LBA counts
	Partitions []Partition `json:"partitions"`   // by number
	// Notes say what is wrong with the table and was put up with.
	Notes []string `json:"notes,omitempty"`
}

// Partition is one of them. Number is what Linux calls it: on an MBR 1 to 4 are
// primary, and logical ones begin at 5.
type Partition struct {
	Number int    `json:"number"`
	Start  int64  `json:"start"`           // bytes from the beginning of the disk
	Size   int64  `json:"size"`            // bytes
	Type   string `json:"type"`            // GUID in capitals, or the MBR's type as two hex digits
	ID     string `json:"id,omitempty"`    // GUID of the partition; MBR: as Linux makes a PARTUUID
	Label  string `json:"label,omitempty"` // GPT only
	Active bool   `json:"active,omitempty"`
}

// The sizes of an LBA that are tried, in this order.
var sectorSizes = [...]int64{512, 4096}

// maxPartitions bounds what is read of a table.
const maxPartitions = 1024

// Read reads the partition table of a disk. A disk that has none is a Table
// with Scheme None; errors come from the disk, or are guestfs.ErrCorrupt where
// there is a table that cannot be understood.
func Read(ctx context.Context, img disk.Image) (*Table, error) {
	first, err := read(img, 0, 512)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return &Table{Scheme: None, SectorSize: 512}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the first sector: %w", err)
	}
	mbr := parseMBR(first)
	// A GPT hides behind an MBR that protects it. Without one, a GPT is what an
	// earlier use of the disk left.
	if mbr == nil || !mbr.protective() {
		if mbr == nil || !mbr.plausible(img.Size()) {
			return &Table{Scheme: None, SectorSize: 512}, nil
		}
		return mbr.table(ctx, img)
	}
	table, err := readGPT(ctx, img)
	if err != nil {
		return nil, err
	}
	return table, nil
}

// read reads n bytes at off; a disk that ends before is io.ErrUnexpectedEOF.
func read(img disk.Image, off int64, n int) ([]byte, error) {
	if off < 0 || off > img.Size()-int64(n) {
		return nil, io.ErrUnexpectedEOF
	}
	p := make([]byte, n)
	if m, err := img.ReadAt(p, off); m < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return p, nil
}

// add takes a partition in, cut to the disk.
func (t *Table) add(p Partition, diskSize int64) {
	switch {
	case p.Size <= 0 || p.Start < 0 || p.Start >= diskSize:
		t.note("partition %d lies outside the disk", p.Number)
		return
	case p.Size > diskSize-p.Start:
		t.note("partition %d ends %d bytes behind the end of the disk", p.Number, p.Size-(diskSize-p.Start))
		p.Size = diskSize - p.Start
	}
	t.Partitions = append(t.Partitions, p)
}

func (t *Table) note(format string, args ...any) {
	if len(t.Notes) < 32 {
		t.Notes = append(t.Notes, fmt.Sprintf(format, args...))
	}
}

func corrupt(format string, args ...any) error {
	return guestfs.Corruptf("partition table", format, args...)
}
