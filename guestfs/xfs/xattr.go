package xfs

import (
	"context"
	"encoding/binary"
	"fmt"

	"lifeboat/guestfs"
)

// Extended attributes (xfs_da_format.h): a list in the inode, or the leaves of an
// index like a directory's. Large values have blocks of their own in the fork.
const (
	attrMagic4  = 0xfbee
	attrMagic5  = 0x3bee
	attrHeader4 = 32
	attrHeader5 = 80

	attrLocal      = 0x1 // the value stands with the name
	attrRoot       = 0x2
	attrSecure     = 0x4
	attrParent     = 0x8 // a name of the file, not an attribute
	attrIncomplete = 0x80

	valueMagic = 0x5841524d // "XARM"
	maxValue   = 64 << 10
	maxXattrs  = 1 << 16
	// maxXattrBytes bounds what the attributes of one inode take in memory.
	maxXattrBytes = 32 << 20

	// POSIX ACLs are attributes of root, and are seen under two names.
	aclName        = "trusted.SGI_ACL_FILE"
	aclDefaultName = "trusted.SGI_ACL_DEFAULT"
)

// attributeList collects the attributes of an inode.
type attributeList struct {
	f     *FS
	in    *inode
	k     fork
	list  []guestfs.Xattr
	bytes int
}

// Xattrs implements [guestfs.XattrReader].
func (f *FS) Xattrs(ctx context.Context, number guestfs.Inode) ([]guestfs.Xattr, error) {
	in, err := f.inode(ctx, number)
	if err != nil {
		return nil, err
	}
	k, ok := in.attributes()
	if !ok || k.format != formatLocal && k.extents == 0 {
		return nil, nil
	}
	l := &attributeList{f: f, in: in, k: k}
	if k.format == formatLocal {
		err = l.short()
	} else {
		err = l.leaves(ctx)
	}
	return l.list, err
}

// add takes an attribute over as the kernel shows it.
func (l *attributeList) add(flags byte, name, value []byte) error {
	if flags&(attrParent|attrIncomplete) != 0 {
		return nil
	}
	prefix := "user."
	switch {
	case flags&attrRoot != 0:
		prefix = "trusted."
	case flags&attrSecure != 0:
		prefix = "security."
	}
	x := guestfs.Xattr{Name: prefix + string(name), Value: append([]byte{}, value...)}
	l.bytes += len(x.Name) + len(x.Value)
	if len(l.list) >= maxXattrs || l.bytes > maxXattrBytes {
		return corrupt("inode %d has too many attributes", l.in.number)
	}
	l.list = append(l.list, x)
	seen, ok := map[string]string{aclName: "system.posix_acl_access", aclDefaultName: "system.posix_acl_default"}[x.Name]
	if !ok {
		return nil
	}
	acl, err := aclToXattr(x.Value)
	if err != nil {
		return fmt.Errorf("inode %d: %w", l.in.number, err)
	}
	l.list = append(l.list, guestfs.Xattr{Name: seen, Value: acl})
	return nil
}

// short reads a list in the inode: its length of 2 bytes, the number of entries;
// each has lengths of name and value, flags, name, value.
func (l *attributeList) short() error {
	b := l.k.data
	if len(b) < 4 || int(binary.BigEndian.Uint16(b)) > len(b) || binary.BigEndian.Uint16(b) < 4 {
		return corrupt("inode %d: its list of attributes", l.in.number)
	}
	count := int(b[2])
	b = b[4:binary.BigEndian.Uint16(b)]
	for i := range count {
		if len(b) < 3 || len(b) < 3+int(b[0])+int(b[1]) {
			return corrupt("inode %d: attribute %d of %d is cut off", l.in.number, i, count)
		}
		name, rest := b[3:3+b[0]], b[3+int(b[0]):]
		if err := l.add(b[2], name, rest[:b[1]]); err != nil {
			return err
		}
		b = rest[b[1]:]
	}
	return nil
}

// leaves goes through all leaves, from the first one on.
func (l *attributeList) leaves(ctx context.Context) error {
	be := binary.BigEndian
	d, err := l.f.daBlock(ctx, l.in, l.k, 0, 1)
	for depth := 0; err == nil && d != nil && d.isNode(); depth++ {
		if d.count == 0 || depth > daDepth {
			return corrupt("inode %d: the index of its attributes", l.in.number)
		}
		d, err = l.f.daBlock(ctx, l.in, l.k, uint64(be.Uint32(d.entries[4:])), 1)
	}
	for steps := uint64(0); err == nil; steps++ {
		if d == nil || d.magic != attrMagic4 && d.magic != attrMagic5 || steps > l.f.sb.blocks || steps > maxXattrs {
			return corrupt("inode %d: a leaf of its attributes is missing", l.in.number)
		}
		if err := l.leaf(ctx, d.b); err != nil || d.next == 0 {
			return err
		}
		d, err = l.f.daBlock(ctx, l.in, l.k, d.next, 1)
	}
	return err
}

// leaf reads the entries of one: hash, offset of name and value, flags.
func (l *attributeList) leaf(ctx context.Context, b []byte) error {
	be := binary.BigEndian
	header, count := attrHeader4, int(be.Uint16(b[12:]))
	if l.f.sb.v5 {
		header, count = attrHeader5, int(be.Uint16(b[56:]))
	}
	if count > (len(b)-header)/8 {
		return corrupt("inode %d: %d attributes in a block", l.in.number, count)
	}
	for i := range count {
		e := b[header+8*i:]
		at, flags := int(be.Uint16(e[4:])), e[6]
		if at < header || at > len(b)-4 {
			return corrupt("inode %d: an attribute at %d of a block", l.in.number, at)
		}
		p := b[at:]
		var err error
		if flags&attrLocal != 0 {
			size, n := int(be.Uint16(p)), int(p[2])
			if 3+n+size > len(p) {
				return corrupt("inode %d: an attribute of %d and %d bytes", l.in.number, n, size)
			}
			err = l.add(flags, p[3:3+n], p[3+n:3+n+size])
		} else {
			err = l.far(ctx, flags, p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// far reads an attribute whose value stands elsewhere: block, length, name.
func (l *attributeList) far(ctx context.Context, flags byte, p []byte) error {
	if len(p) < 9 {
		return corrupt("inode %d: an attribute is cut off", l.in.number)
	}
	block, size, n := uint64(binary.BigEndian.Uint32(p)), int64(binary.BigEndian.Uint32(p[4:])), int(p[8])
	if 9+n > len(p) || size > maxValue {
		return corrupt("inode %d: an attribute of %d and %d bytes", l.in.number, n, size)
	}
	if flags&attrIncomplete != 0 {
		return nil
	}
	value := make([]byte, 0, size)
	for int64(len(value)) < size {
		b, at, err := l.f.blocks(ctx, l.in, l.k, block, 1)
		if err != nil {
			return err
		}
		if b == nil {
			return corrupt("inode %d: a block of the value of attribute %q is missing", l.in.number, p[9:9+n])
		}
		if l.f.sb.v5 {
			if binary.BigEndian.Uint32(b) != valueMagic {
				return corrupt("inode %d: the block at %d holds no value", l.in.number, at)
			}
			if err := l.f.verify(b, farLayout, at, l.in.number); err != nil {
				return err
			}
			b = b[farHeader:]
		}
		value = append(value, b[:min(int64(len(b)), size-int64(len(value)))]...)
		block++
	}
	return l.add(flags, p[9:9+n], value)
}

// aclToXattr turns an ACL as it is stored (a count; tag 4, ID 4, permissions 2,
// nothing 2; big-endian) into what the kernel shows (version 2; tag 2,
// permissions 2, ID 4; little-endian).
func aclToXattr(b []byte) ([]byte, error) {
	be, le := binary.BigEndian, binary.LittleEndian
	if len(b) < 4 || int64(be.Uint32(b)) > int64(len(b)-4)/12 {
		return nil, corrupt("an ACL is cut off")
	}
	out := []byte{2, 0, 0, 0}
	for i := range int(be.Uint32(b)) {
		p := b[4+12*i:]
		const user, group = 0x02, 0x08
		tag, id := be.Uint32(p), be.Uint32(p[4:])
		if tag != user && tag != group {
			id = ^uint32(0)
		}
		out = le.AppendUint16(out, uint16(tag))
		out = le.AppendUint16(out, be.Uint16(p[8:]))
		out = le.AppendUint32(out, id)
	}
	return out, nil
}
