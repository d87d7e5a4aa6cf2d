package disk

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The VMDK descriptor is specified in VMware's "Virtual Disk Format 5.0".

// Limits of a descriptor. A real one has a few hundred bytes; a disk of 62 TB
// in files of 2 GB has 31,744 extents.
const (
	maxDescriptor  = 4 << 20
	maxExtents     = 32768
	maxSectorCount = 1 << 53 // so that bytes stay far below 2^63
	maxDDBEntries  = 1024
)

// NoParent is the ParentCID of a disk that stands alone.
const NoParent = 0xffffffff

// Create types of VMDKs.
const (
	CreateVMFS              = "vmfs"
	CreateMonolithicSparse  = "monolithicSparse"
	CreateMonolithicFlat    = "monolithicFlat"
	CreateStreamOptimized   = "streamOptimized"
	CreateTwoGBExtentSparse = "twoGbMaxExtentSparse"
	CreateTwoGBExtentFlat   = "twoGbMaxExtentFlat"
)

// Extent types of VMDKs.
const (
	ExtentFlat   = "FLAT"
	ExtentVMFS   = "VMFS"
	ExtentSparse = "SPARSE"
	ExtentZero   = "ZERO"
)

// Descriptor is the text that says what a VMDK consists of. The zero value has
// no extents; see [NewDescriptor] for one that ESXi takes.
type Descriptor struct {
	Encoding       string // as in the text; "" = UTF-8
	CID            uint32 // content ID: changes when the content does
	ParentCID      uint32 // NoParent, or the CID that the parent must have
	CreateType     string // CreateVMFS, …
	ParentFileName string // parentFileNameHint
	Extents        []DescriptorExtent
	// DDB is the disk data base: keys without "ddb.", as "adapterType".
	DDB map[string]string
}

// DescriptorExtent is one line of a descriptor's extent list.
type DescriptorExtent struct {
	Access  string // "RW", "RDONLY" or "NOACCESS"; "" = RW
	Sectors int64  // its length, in sectors of 512 bytes
	Type    string // ExtentFlat, …
	File    string // name of the file; none for ExtentZero
	Offset  int64  // flat extents: where it begins in the file, in sectors
}

// Size is the size of the disk in bytes.
func (d *Descriptor) Size() int64 {
	var sectors int64
	for _, e := range d.Extents {
		sectors += e.Sectors
	}
	return sectors * SectorSize
}

// DescriptorSpec is what [NewDescriptor] needs to know. Only Size and File are
// obligatory.
type DescriptorSpec struct {
	Size        int64  // bytes; rounded up to sectors
	File        string // the flat file beside the descriptor, as "vm-flat.vmdk"
	CreateType  string // "" = vmfs
	AdapterType string // "" = lsilogic; or ide, buslogic, pvscsi
	CID         uint32 // 0 = 0xfffffffe, which VMware gives new disks
	UUID        string // ddb.uuid, as "60 00 C2 9…"; "" = none
	HWVersion   int    // ddb.virtualHWVersion; 0 = 13 (ESXi 6.5)
	Thick       bool   // leave out ddb.thinProvisioned
}

// NewDescriptor describes one disk in one flat file.
func NewDescriptor(s DescriptorSpec) *Descriptor {
	if s.CreateType == "" {
		s.CreateType = CreateVMFS
	}
	if s.AdapterType == "" {
		s.AdapterType = "lsilogic"
	}
	if s.CID == 0 {
		s.CID = 0xfffffffe
	}
	if s.HWVersion == 0 {
		s.HWVersion = 13
	}
	kind := ExtentFlat
	if s.CreateType == CreateVMFS {
		kind = ExtentVMFS
	}
	sectors := (s.Size + SectorSize - 1) / SectorSize
	d := &Descriptor{CID: s.CID, ParentCID: NoParent, CreateType: s.CreateType, DDB: ddb(s, sectors)}
	d.Extents = []DescriptorExtent{{Access: "RW", Sectors: sectors, Type: kind, File: s.File}}
	return d
}

func ddb(s DescriptorSpec, sectors int64) map[string]string {
	heads, perTrack := int64(255), int64(63)
	if s.AdapterType == "ide" {
		heads = 16
	}
	cylinders := sectors / (heads * perTrack)
	if s.AdapterType == "ide" {
		cylinders = min(cylinders, 16383)
	}
	m := map[string]string{
		"adapterType":        s.AdapterType,
		"geometry.cylinders": strconv.FormatInt(cylinders, 10),
		"geometry.heads":     strconv.FormatInt(heads, 10),
		"geometry.sectors":   strconv.FormatInt(perTrack, 10),
		"virtualHWVersion":   strconv.Itoa(s.HWVersion),
	}
	if !s.Thick {
		m["thinProvisioned"] = "1"
	}
	if s.UUID != "" {
		m["uuid"] = s.UUID
	}
	return m
}

// Encode writes the descriptor as text. The format has no escapes, so a value
// that holds a quotation mark or a control character is an error.
func (d *Descriptor) Encode() ([]byte, error) {
	w := &descriptorWriter{}
	encoding := d.Encoding
	if encoding == "" {
		encoding = "UTF-8"
	}
	w.line("# Disk DescriptorFile")
	w.line("version=1")
	w.line("encoding=%s", w.quote("encoding", encoding))
	w.line("CID=%08x", d.CID)
	w.line("parentCID=%08x", d.ParentCID)
	w.line("createType=%s", w.quote("createType", d.CreateType))
	if d.ParentFileName != "" {
		w.line("parentFileNameHint=%s", w.quote("parentFileNameHint", d.ParentFileName))
	}
	w.line("\n# Extent description")
	for _, e := range d.Extents {
		w.extent(e)
	}
	w.line("\n# The Disk Data Base\n#DDB\n")
	for _, key := range slices.Sorted(maps.Keys(d.DDB)) {
		if !plainKey(key) {
			w.errs = append(w.errs, fmt.Errorf("ddb key %q: only letters, digits, '.', '-' and '_' are possible", key))
			continue
		}
		w.line("ddb.%s = %s", key, w.quote("ddb."+key, d.DDB[key]))
	}
	if err := errors.Join(w.errs...); err != nil {
		return nil, fmt.Errorf("vmdk descriptor: %w", err)
	}
	return w.Bytes(), nil
}

type descriptorWriter struct {
	bytes.Buffer
	errs []error
}

func (w *descriptorWriter) line(format string, args ...any) {
	fmt.Fprintf(w, format, args...)
	w.WriteByte('\n')
}

// quote puts a value into the quotation marks that cannot occur in it.
func (w *descriptorWriter) quote(what, value string) string {
	if !utf8.ValidString(value) || strings.ContainsFunc(value, func(r rune) bool { return r == '"' || unicode.IsControl(r) }) {
		w.errs = append(w.errs, fmt.Errorf("%s %q: quotation marks, control characters and broken UTF-8 cannot be written", what, value))
	}
	return `"` + value + `"`
}

func (w *descriptorWriter) extent(e DescriptorExtent) {
	access := e.Access
	if access == "" {
		access = "RW"
	}
	if !plainKey(access) || !plainKey(e.Type) || e.Sectors <= 0 || e.Sectors > maxSectorCount || e.Offset < 0 {
		w.errs = append(w.errs, fmt.Errorf("extent %+v cannot be written", e))
		return
	}
	switch e.Type {
	case ExtentZero:
		w.line("%s %d %s", access, e.Sectors, e.Type)
	case ExtentFlat:
		w.line("%s %d %s %s %d", access, e.Sectors, e.Type, w.quote("extent", e.File), e.Offset)
	default:
		w.line("%s %d %s %s", access, e.Sectors, e.Type, w.quote("extent", e.File))
	}
}

func plainKey(key string) bool {
	return key != "" && !strings.ContainsFunc(key, func(r rune) bool {
		return r > unicode.MaxASCII || (!unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("._-", r))
	})
}
