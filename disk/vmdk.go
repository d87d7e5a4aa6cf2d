package disk

import (
	"errors"
	"fmt"
	"sort"
)

// openVMDK opens a VMDK by its descriptor, which is a file of its own or is
// embedded in a sparse extent.
func openVMDK(o *opener, host *hostFile, n node, head []byte) (layer, error) {
	v := &vmdkOpener{opener: o, host: host, node: n}
	if !looksLikeDescriptor(head) {
		return v.monolithic()
	}
	if host.size > maxDescriptor {
		return nil, v.bad("descriptor", "%d bytes of text (at most %d are possible)", host.size, maxDescriptor)
	}
	text := make([]byte, host.size)
	if err := host.readFull(text, 0); err != nil {
		return nil, err
	}
	d, err := v.parse(text)
	if err != nil {
		return nil, err
	}
	if err := v.refuse(d); err != nil {
		return nil, err
	}
	below, err := v.parent(d)
	if err != nil {
		return nil, err
	}
	l, err := v.extents(d, below)
	return vmdkDisk{l, d.CID}, err
}

// vmdkDisk is a whole VMDK. A child of it checks the content ID.
type vmdkDisk struct {
	layer
	cid uint32
}

type vmdkOpener struct {
	*opener
	host *hostFile
	node node
}

func (v *vmdkOpener) bad(where, format string, args ...any) error {
	return &FormatError{Path: v.host.name, Format: FormatVMDK, Where: where, What: fmt.Sprintf(format, args...), Err: ErrFormat}
}

func (v *vmdkOpener) unsupported(where, format string, args ...any) error {
	return &FormatError{
		Path: v.host.name, Format: FormatVMDK, Where: where, Err: ErrUnsupported,
		What: fmt.Sprintf(format, args...) + "; convert the disk with vmkfstools or qemu-img first",
	}
}

func (v *vmdkOpener) parse(text []byte) (*Descriptor, error) {
	d, err := ParseDescriptor(text)
	var fe *FormatError
	if errors.As(err, &fe) {
		fe.Path = v.host.name
		fe.Where = "descriptor " + fe.Where
	}
	return d, err
}

// refuse names what we do not read.
func (v *vmdkOpener) refuse(d *Descriptor) error {
	for i, e := range d.Extents {
		where := fmt.Sprintf("extent %d", i)
		switch e.Type {
		case ExtentFlat, ExtentVMFS, ExtentZero, ExtentSparse:
		case "VMFSSPARSE", "SESPARSE", "VMFSRDM", "VMFSRAW":
			return v.unsupported(where, "type %s", e.Type)
		default:
			return v.unsupported(where, "unknown type %.20q", e.Type)
		}
		if e.Access == "NOACCESS" {
			return v.unsupported(where, "access NOACCESS")
		}
	}
	return nil
}

// monolithic opens a sparse extent that holds its own descriptor. The extent
// line in it names the file itself, by a name it may have lost by now.
func (v *vmdkOpener) monolithic() (layer, error) {
	s, err := openSparse(v.opener, v.host)
	if err != nil {
		return nil, err
	}
	text, err := s.descriptor()
	if err != nil {
		return nil, err
	}
	if text == nil {
		// An extent of a split disk, opened alone, is a disk too, if a short one.
		return &over{length: s.capacity, tables: s}, nil
	}
	d, err := v.parse(text)
	if err != nil {
		return nil, err
	}
	if len(d.Extents) != 1 || d.Extents[0].Type != ExtentSparse {
		return nil, v.unsupported("embedded descriptor", "%d extents, the first of type %.20q", len(d.Extents), d.Extents[0].Type)
	}
	below, err := v.parent(d)
	if err != nil {
		return nil, err
	}
	return vmdkDisk{&over{length: s.capacity, tables: s, below: below}, d.CID}, nil
}

// parent opens the disk that d is a delta of; nil if it stands alone.
func (v *vmdkOpener) parent(d *Descriptor) (layer, error) {
	if d.ParentCID == NoParent {
		return nil, nil
	}
	if d.ParentFileName == "" {
		return nil, v.bad("descriptor", "a parent with CID %08x, but no parentFileNameHint", d.ParentCID)
	}
	l, err := v.below(v.node, d.ParentFileName, "")
	if err != nil {
		return nil, fmt.Errorf("parent of %s: %w", v.host.name, err)
	}
	if p, ok := l.(vmdkDisk); ok && p.cid != d.ParentCID {
		return nil, v.bad("descriptor", "the parent %q has CID %08x, and %08x is expected: it was changed after this disk was made",
			d.ParentFileName, p.cid, d.ParentCID)
	}
	return l, nil
}

// extents makes the disk of a descriptor's extents, in order.
func (v *vmdkOpener) extents(d *Descriptor, below layer) (layer, error) {
	disk := &joined{}
	hosts := map[string]*hostFile{}
	for i, e := range d.Extents {
		where := fmt.Sprintf("extent %d", i)
		part := layer(nothing{e.Sectors * SectorSize})
		if e.Type != ExtentZero {
			host, err := v.extentFile(hosts, e.File)
			if err != nil {
				return nil, fmt.Errorf("%s of %s: %w", where, v.host.name, err)
			}
			if part, err = v.extent(where, e, host, section{below, disk.length, e.Sectors * SectorSize}); err != nil {
				return nil, err
			}
		}
		disk.add(part)
	}
	if len(disk.parts) == 1 {
		return disk.parts[0], nil
	}
	return disk, nil
}

// extentFile opens each file once, however many extents lie in it.
func (v *vmdkOpener) extentFile(hosts map[string]*hostFile, name string) (*hostFile, error) {
	if h, ok := hosts[name]; ok {
		return h, nil
	}
	h, err := v.beside(v.node, name)
	if err != nil {
		return nil, err
	}
	if h.id == v.host.id {
		return nil, v.bad("extent", "%q is the descriptor itself", name)
	}
	hosts[name] = h
	return h, nil
}

func (v *vmdkOpener) extent(where string, e DescriptorExtent, host *hostFile, below section) (layer, error) {
	length := e.Sectors * SectorSize
	if e.Type != ExtentSparse {
		if start := e.Offset * SectorSize; start > host.size || length > host.size-start {
			return nil, v.bad(where, "%d bytes at %d of %s, which has only %d", length, start, host.name, host.size)
		}
		return &flat{host: host, start: e.Offset * SectorSize, length: length}, nil
	}
	s, err := openSparse(v.opener, host)
	if err != nil {
		return nil, err
	}
	if s.capacity != length {
		return nil, v.bad(where, "%d bytes, but %s has room for %d", length, host.name, s.capacity)
	}
	l := &over{length: length, tables: s}
	if below.layer != nil {
		l.below = below
	}
	return l, nil
}

// joined is a layer of several, one after another.
type joined struct {
	parts  []layer
	starts []int64 // of each part; ascending
	length int64
}

func (j *joined) add(l layer) {
	j.parts = append(j.parts, l)
	j.starts = append(j.starts, j.length)
	j.length += l.size()
}

func (j *joined) size() int64 { return j.length }

// find is the part that holds off.
func (j *joined) find(off int64) (part layer, start int64) {
	i := sort.Search(len(j.starts), func(i int) bool { return j.starts[i] > off }) - 1
	return j.parts[i], j.starts[i]
}

func (j *joined) read(p []byte, off int64) error {
	for len(p) > 0 {
		part, start := j.find(off)
		n := min(int64(len(p)), start+part.size()-off)
		if err := part.read(p[:n], off-start); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (j *joined) run(off, limit int64) (Extent, error) {
	part, start := j.find(off)
	ext, err := part.run(off-start, min(limit, start+part.size()-off))
	ext.Offset += start
	return ext, err
}

// section is a part of a layer, which may end before the section does.
type section struct {
	layer
	start, length int64
}

func (s section) size() int64 { return max(0, min(s.length, s.layer.size()-s.start)) }

func (s section) read(p []byte, off int64) error { return s.layer.read(p, s.start+off) }

func (s section) run(off, limit int64) (Extent, error) {
	ext, err := s.layer.run(s.start+off, limit)
	ext.Offset -= s.start
	return ext, err
}
