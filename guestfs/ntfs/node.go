package ntfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/wtf8"
)

// maxList bounds an attribute list, in bytes. Windows stops at 256 KiB.
const maxList = 1 << 20

// node is a file or directory: its base record and, where that was too small for
// its attributes, the list of those, wherever they are.
type node struct {
	fs   *FS
	base *record
	list []listed // nil: all attributes are in the base record
}

// listed is an entry of an attribute list.
type listed struct {
	kind   uint32
	id     uint16
	name   string
	lowest int64
	record uint64
	seq    uint16
}

// node finds a file by its reference.
func (f *FS) node(ctx context.Context, ref guestfs.Inode) (*node, error) {
	number, seq := uint64(ref)&numberMask, uint16(ref>>48)
	r, err := f.record(ctx, number)
	if err != nil {
		if errors.Is(err, guestfs.ErrCorrupt) && number >= firstUser && f.unused(ctx, number) {
			return nil, fmt.Errorf("ntfs: record %d was never used: %w", number, fs.ErrNotExist)
		}
		return nil, err
	}
	if r.flags()&recordInUse == 0 || r.sequence() != seq || r.base()&numberMask != 0 {
		return nil, fmt.Errorf("ntfs: record %d is not file %d-%d: %w", number, number, seq, fs.ErrNotExist)
	}
	return f.nodeOf(ctx, r)
}

// unused reports whether a record was never written: the MFT grows in steps.
func (f *FS) unused(ctx context.Context, number uint64) bool {
	at := number * uint64(f.geo.recordSize)
	block, err := f.mft.Block(ctx, at/mftBlock)
	return err == nil && binary.LittleEndian.Uint32(block[at%mftBlock:]) == 0
}

// nodeOf reads the attribute list of a base record, if it has one.
func (f *FS) nodeOf(ctx context.Context, r *record) (*node, error) {
	n := &node{fs: f, base: r}
	var list *attr
	if err := r.attrs(func(a *attr) bool {
		if a.kind == attrList {
			list = a
		}
		return list == nil
	}); err != nil {
		return nil, err
	}
	if list == nil {
		return n, nil
	}
	b, err := f.listBytes(ctx, r, list)
	if err != nil {
		return nil, err
	}
	n.list, err = parseList(r.number, b)
	return n, err
}

// listBytes is the content of an attribute list, whose runs are always in the
// base record.
func (f *FS) listBytes(ctx context.Context, r *record, list *attr) ([]byte, error) {
	if list.size() > maxList {
		return nil, corrupt("record %d: an attribute list of %d bytes", r.number, list.size())
	}
	if list.resident {
		return list.value(), nil
	}
	s, err := f.streamOf(r, list)
	if err != nil {
		return nil, err
	}
	return readAll(s.image(ctx), maxList)
}

func parseList(number uint64, b []byte) ([]listed, error) {
	const header = 26
	le := binary.LittleEndian
	list := []listed{}
	for len(b) >= header {
		length, nameLen, nameAt := int(le.Uint16(b[4:])), 2*int(b[6]), int(b[7])
		if length < header || length > len(b) || nameLen > 0 && nameAt+nameLen > length {
			return nil, corrupt("record %d: an entry of %d bytes in its attribute list", number, length)
		}
		ref := le.Uint64(b[16:])
		e := listed{kind: le.Uint32(b), id: le.Uint16(b[24:]), lowest: int64(le.Uint64(b[8:])), record: ref & numberMask, seq: uint16(ref >> 48)}
		if nameLen > 0 {
			e.name = wtf8.DecodeBytes(b[nameAt : nameAt+nameLen])
		}
		list = append(list, e)
		b = b[length:]
	}
	return list, nil
}

// extension reads the record of an entry of the list.
func (n *node) extension(ctx context.Context, e *listed) (*record, error) {
	if e.record == n.base.number {
		return n.base, nil
	}
	r, err := n.fs.record(ctx, e.record)
	if err != nil {
		return nil, fmt.Errorf("an attribute of record %d: %w", n.base.number, err)
	}
	if r.flags()&recordInUse == 0 || r.sequence() != e.seq || r.base()&numberMask != n.base.number || uint16(r.base()>>48) != n.base.sequence() {
		return nil, corrupt("record %d lists attributes in record %d, which is another file's", n.base.number, e.record)
	}
	return r, nil
}

// listedAttr reads the attribute, or part of one, that an entry of the list is
// about.
func (n *node) listedAttr(ctx context.Context, e *listed) (*attr, error) {
	r, err := n.extension(ctx, e)
	if err != nil {
		return nil, err
	}
	var found *attr
	if err := r.attrs(func(a *attr) bool {
		if a.kind == e.kind && a.id == e.id && a.name == e.name {
			found = a
		}
		return found == nil
	}); err != nil {
		return nil, err
	}
	if found == nil || !found.resident && found.lowest() != e.lowest {
		return nil, corrupt("record %d: attribute %#x is not in record %d, where it is listed", n.base.number, e.kind, e.record)
	}
	return found, nil
}

// each calls yield with every attribute of a kind, of large ones with the first
// part.
func (n *node) each(ctx context.Context, kind uint32, yield func(*attr) bool) error {
	if n.list == nil {
		return n.base.attrs(func(a *attr) bool {
			return a.kind != kind || !a.resident && a.lowest() != 0 || yield(a)
		})
	}
	for i := range n.list {
		e := &n.list[i]
		if e.kind != kind || e.lowest != 0 {
			continue
		}
		a, err := n.listedAttr(ctx, e)
		if err != nil {
			return err
		}
		if !yield(a) {
			return nil
		}
	}
	return nil
}

// find is the attribute of a kind and name, or its first part; nil where there
// is none.
func (n *node) find(ctx context.Context, kind uint32, name string) (found *attr, err error) {
	if n.list != nil {
		for i := range n.list {
			if e := &n.list[i]; e.kind == kind && e.lowest == 0 && e.name == name {
				return n.listedAttr(ctx, e)
			}
		}
		return nil, nil
	}
	err = n.each(ctx, kind, func(a *attr) bool {
		if a.name == name {
			found = a
		}
		return found == nil
	})
	return found, err
}

func (n *node) isDir() bool { return n.base.flags()&recordDir != 0 }
