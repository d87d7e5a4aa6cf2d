package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Format is the file format of a disk image.
type Format string

// The formats that [Open] reads.
const (
	FormatRaw   Format = "raw"
	FormatQCOW2 Format = "qcow2"
	FormatVMDK  Format = "vmdk"
)

// Described is implemented by images that come from a file of some format, as
// all that [Open] returns do.
type Described interface {
	// Format is the format of the file that was opened, not of those under it.
	Format() Format
}

// FormatError says what is wrong with an image file, or what in it we refuse.
// It matches ErrFormat or ErrUnsupported.
type FormatError struct {
	Path   string // the file, as it was named
	Format Format
	Where  string // the place in the file: "header", "L1 entry 12", "line 7"
	What   string // what was found there and, where one can act, what to do
	Err    error  // ErrFormat or ErrUnsupported
}

// Error implements error.
func (e *FormatError) Error() string {
	return fmt.Sprintf("%s: %s %s: %s: %v", e.Path, e.Format, e.Where, e.What, e.Err)
}

// Unwrap makes errors.Is see ErrFormat or ErrUnsupported.
func (e *FormatError) Unwrap() error { return e.Err }

// sniffLen is how much of a file's start is looked at to recognise it, bytes.
const sniffLen = 4096

// recognise tells the format of a file from its first bytes. Everything that
// has no known signature is raw. Formats that we know and do not read are
// refused by name: taken as raw they would be backed up without complaint and
// boot nothing.
func recognise(head []byte) (f Format, refused string) {
	switch {
	case bytes.HasPrefix(head, []byte(qcow2Magic)):
		return FormatQCOW2, ""
	case bytes.HasPrefix(head, []byte(vmdkSparseMagic)), looksLikeDescriptor(head):
		return FormatVMDK, ""
	}
	for _, known := range []struct {
		at              int
		signature, name string
	}{
		{0, "COWD", "a vmfsSparse (redo log) VMDK extent"},
		{0, "\xbe\xba\xfe\xca\x00\x00\x00\x00", "a seSparse VMDK extent"},
		{0, "vhdxfile", "a VHDX image"},
		{0, "conectix", "a VHD image"},
		{0, "QED\x00", "a QED image"},
		{0, "WithoutFreeSpace", "a Parallels image"},
		{0, "WithouFreSpacExt", "a Parallels image"},
		{64, "\x7f\x10\xda\xbe", "a VirtualBox VDI image"},
	} {
		if known.at < len(head) && bytes.HasPrefix(head[known.at:], []byte(known.signature)) {
			return "", known.name
		}
	}
	return FormatRaw, ""
}

// Decoders of the two byte orders; the caller has checked the length.
func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }
func be64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }
func le16(b []byte) uint16 { return binary.LittleEndian.Uint16(b) }
func le32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
func le64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }
