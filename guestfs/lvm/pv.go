package lvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// Where the parts of a physical volume are (LVM2, lib/format_text/layout.h). All
// integers are little-endian.
const (
	sector       = 512
	labelSectors = 4 // the label is in one of the first sectors
	labelMagic   = "LABELONE"
	labelType    = "LVM2 001"

	labelNumber = 8  // u64: the sector that the label is in
	labelCRC    = 16 // u32: of the rest of the sector
	labelOffset = 20 // u32: of the PV header, from the start of the sector
	labelKind   = 24

	pvUUID  = 0  // 32 characters
	pvSize  = 32 // u64, bytes
	pvAreas = 40 // pairs of offset and size: data areas, 0, metadata areas, 0

	mdaMagic   = " LVM2 x[5A%r0N*>"
	mdaHeader  = 512
	mdaCRC     = 0
	mdaMagicAt = 4
	mdaStart   = 24 // u64
	mdaSize    = 32 // u64
	mdaRaw     = 40 // offset u64, size u64, checksum u32, flags u32: the text

	rawIgnored = 1

	// lvmCRC is what LVM's checksums begin with; they are CRC-32 without the
	// inversions at both ends.
	lvmCRC = 0xf597a6cf

	maxMDA   = 1 << 30
	maxAreas = 16
)

func checksum(p []byte) uint32 { return ^crc32.Update(^uint32(lvmCRC), crc32.IEEETable, p) }

// physical is a physical volume.
type physical struct {
	uuid string // as LVM prints it
	img  disk.Image
	vg   *section // of the newest metadata on it, nil where it has none
	name string   // of the volume group
	seq  int64
}

// probe reads the label of a physical volume and the metadata on it.
// guestfs.ErrNoFS where there is no label.
func probe(img disk.Image) (*physical, error) {
	head := make([]byte, labelSectors*sector)
	if n, err := img.ReadAt(head, 0); n < len(head) {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, guestfs.ErrNoFS
		}
		return nil, err
	}
	for i := range labelSectors {
		s := head[i*sector : (i+1)*sector]
		if string(s[:len(labelMagic)]) != labelMagic || string(s[labelKind:labelKind+len(labelType)]) != labelType {
			continue
		}
		le := binary.LittleEndian
		if le.Uint64(s[labelNumber:]) != uint64(i) || le.Uint32(s[labelCRC:]) != checksum(s[labelOffset:]) {
			return nil, corrupt("the label in sector %d has a wrong checksum", i)
		}
		return readPV(img, s)
	}
	return nil, guestfs.ErrNoFS
}

// readPV reads the header of a physical volume from the sector of its label.
func readPV(img disk.Image, s []byte) (*physical, error) {
	off := binary.LittleEndian.Uint32(s[labelOffset:])
	if off < labelKind || off > sector-pvAreas {
		return nil, corrupt("a header at %d", off)
	}
	h := s[off:]
	pv := &physical{img: img, uuid: spellUUID(h[pvUUID : pvUUID+32])}
	areas := h[pvAreas:]
	_, areas = readAreas(areas) // of data: pe_start in the metadata says the same
	mdas, _ := readAreas(areas)
	var problem error
	for _, a := range mdas {
		if err := pv.readMDA(a); err != nil {
			problem = err
		}
	}
	if pv.vg == nil && problem != nil {
		return nil, problem
	}
	return pv, nil
}

type area struct{ offset, size uint64 }

// readAreas reads a list of areas and what follows it.
func readAreas(b []byte) ([]area, []byte) {
	var list []area
	for len(b) >= 16 {
		a := area{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
		b = b[16:]
		if a.offset == 0 {
			break
		}
		if len(list) < maxAreas {
			list = append(list, a)
		}
	}
	return list, b
}

// readMDA takes the metadata of one area, if it is newer than what is known.
func (pv *physical) readMDA(a area) error {
	if a.offset > uint64(pv.img.Size()) {
		return corrupt("a metadata area at %d, behind the end", a.offset)
	}
	h := make([]byte, mdaHeader)
	if n, err := pv.img.ReadAt(h, int64(a.offset)); n < len(h) {
		return fmt.Errorf("lvm: read a metadata area: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	le := binary.LittleEndian
	if !bytes.Equal(h[mdaMagicAt:mdaMagicAt+len(mdaMagic)], []byte(mdaMagic)) || le.Uint32(h[mdaCRC:]) != checksum(h[mdaMagicAt:]) {
		return corrupt("the header of the metadata area at %d has a wrong checksum", a.offset)
	}
	raw := h[mdaRaw:]
	off, size, sum, flags := le.Uint64(raw), le.Uint64(raw[8:]), le.Uint32(raw[16:]), le.Uint32(raw[20:])
	mda := le.Uint64(h[mdaSize:])
	if off == 0 || size == 0 || flags&rawIgnored != 0 {
		return nil // a physical volume that belongs to no group, or says nothing of it
	}
	if le.Uint64(h[mdaStart:]) != a.offset || mda > maxMDA || mda <= mdaHeader || off < mdaHeader || off >= mda || size > mda-mdaHeader || size > maxText {
		return corrupt("the metadata at %d+%d do not fit their area of %d bytes", off, size, mda)
	}
	text, err := pv.ring(int64(a.offset), int64(mda), int64(off), int64(size))
	if err != nil {
		return err
	}
	if checksum(text) != sum {
		return corrupt("the metadata have a wrong checksum")
	}
	return pv.take(string(text))
}

// ring reads from the circular buffer behind the area's header.
func (pv *physical) ring(start, mda, off, size int64) ([]byte, error) {
	text := make([]byte, size)
	first := min(size, mda-off)
	for _, part := range []struct {
		p  []byte
		at int64
	}{{text[:first], start + off}, {text[first:], start + mdaHeader}} {
		if n, err := pv.img.ReadAt(part.p, part.at); n < len(part.p) {
			return nil, fmt.Errorf("lvm: read the metadata: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
	}
	return text, nil
}

func (pv *physical) take(text string) error {
	top, err := parseText(text)
	if err != nil {
		return err
	}
	if len(top.order) == 0 {
		return corrupt("its metadata describe no volume group")
	}
	name := top.order[0] // there is but one
	vg := top.sections[name]
	seq, err := vg.num("seqno")
	if err != nil {
		return err
	}
	if pv.vg == nil || seq > pv.seq {
		pv.vg, pv.name, pv.seq = vg, name, seq
	}
	return nil
}

// spellUUID puts the dashes in.
func spellUUID(b []byte) string {
	var parts [][]byte
	for _, n := range []int{6, 4, 4, 4, 4, 4, 6} {
		parts = append(parts, b[:n])
		b = b[n:]
	}
	return string(slices.Clone(bytes.Join(parts, []byte("-"))))
}

func corrupt(format string, args ...any) error { return guestfs.Corruptf("lvm", format, args...) }
