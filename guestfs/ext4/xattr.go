package ext4

import (
	"context"
	"encoding/binary"
	"fmt"

	"lifeboat/guestfs"
)

// Extended attributes (fs/ext4/xattr.h): entries of 16 bytes and a name, in what
// the inode has left behind its fields, and in one block. Large values have
// inodes of their own.
const (
	xattrMagic   = 0xea020000
	xattrHeader  = 32 // of the block
	xattrEntry   = 16
	maxEAValue   = 64 << 10 // what the kernel's interface can hand over
	maxXattrs    = 4096
	indexUser    = 1
	indexACL     = 2
	indexDefault = 3
	indexTrusted = 4
	indexSecure  = 6
	indexSystem  = 7
	indexRichACL = 8
	indexCrypt   = 9
	dataName     = "data" // system.data: the rest of inline content
)

var xattrPrefixes = map[byte]string{
	indexUser: "user.", indexACL: "system.posix_acl_access", indexDefault: "system.posix_acl_default",
	indexTrusted: "trusted.", indexSecure: "security.", indexSystem: "system.", indexRichACL: "system.richacl",
}

// rawXattr is an attribute as it is stored.
type rawXattr struct {
	index byte
	name  string
	value []byte
}

// Xattrs implements [guestfs.XattrReader].
func (f *FS) Xattrs(ctx context.Context, number guestfs.Inode) ([]guestfs.Xattr, error) {
	in, err := f.inode(ctx, number)
	if err != nil {
		return nil, err
	}
	raw, err := f.rawXattrs(ctx, in, func(rawXattr) bool { return true })
	if err != nil {
		return nil, err
	}
	var out []guestfs.Xattr
	for _, x := range raw {
		prefix, ok := xattrPrefixes[x.index]
		if !ok || x.index == indexSystem && x.name == dataName || x.index == indexCrypt {
			continue // the kernel shows none of these
		}
		if x.index == indexACL || x.index == indexDefault {
			if x.value, err = aclToXattr(x.value); err != nil {
				return nil, fmt.Errorf("inode %d: %w", number, err)
			}
		}
		out = append(out, guestfs.Xattr{Name: prefix + x.name, Value: x.value})
	}
	return out, nil
}

// inline is the content of an inode that holds it: i_block, and system.data.
func (f *FS) inline(ctx context.Context, in *inode) ([]byte, error) {
	raw, err := f.rawXattrs(ctx, in, func(x rawXattr) bool { return x.index == indexSystem && x.name == dataName })
	if err != nil {
		return nil, err
	}
	data := append([]byte(nil), in.block()...)
	for _, x := range raw {
		data = append(data, x.value...)
	}
	return data, nil
}

// rawXattrs reads those attributes of an inode that want asks for. It sees them
// without their values.
func (f *FS) rawXattrs(ctx context.Context, in *inode, want func(rawXattr) bool) ([]rawXattr, error) {
	var out []rawXattr
	if at := oldInode + in.extra(); len(in.raw) > oldInode && in.extra() > 0 && at+4 <= len(in.raw) && in.u32(at) == xattrMagic {
		body := in.raw[at+4:]
		var err error
		if out, err = f.xattrEntries(ctx, in, body, body, want); err != nil {
			return nil, err
		}
	}
	block := uint64(in.u32(inACL))
	if f.sb.incompat&incompat64Bit != 0 {
		block |= uint64(in.u16(inACLHigh)) << 32
	}
	if block == 0 {
		return out, nil
	}
	b, err := f.block(ctx, block)
	if err != nil {
		return nil, fmt.Errorf("attributes of inode %d: %w", in.number, err)
	}
	if err := f.checkXattrBlock(in, block, b); err != nil {
		return nil, err
	}
	more, err := f.xattrEntries(ctx, in, b[xattrHeader:], b, want)
	return append(out, more...), err
}

func (f *FS) checkXattrBlock(in *inode, number uint64, b []byte) error {
	le := binary.LittleEndian
	if le.Uint32(b) != xattrMagic || le.Uint32(b[8:]) != 1 {
		return corrupt("inode %d: block %d does not hold attributes", in.number, number)
	}
	if !f.sb.checksums {
		return nil
	}
	const sumAt = 16
	sum := crc(f.sb.seed, le.AppendUint64(nil, number))
	sum = crc(crc(sum, b[:sumAt]), make([]byte, 4))
	if crc(sum, b[sumAt+4:]) != le.Uint32(b[sumAt:]) {
		return corrupt("inode %d: its attributes have a wrong checksum", in.number)
	}
	return nil
}

// xattrEntries reads a list of entries; offsets of values count from base.
func (f *FS) xattrEntries(ctx context.Context, in *inode, list, base []byte, want func(rawXattr) bool) ([]rawXattr, error) {
	le := binary.LittleEndian
	var out []rawXattr
	for len(list) >= 4 && le.Uint32(list) != 0 {
		if len(list) < xattrEntry {
			return nil, corrupt("inode %d: its attributes have no end", in.number)
		}
		nameLen, index := int(list[0]), list[1]
		off, valueInode, size := int(le.Uint16(list[2:])), le.Uint32(list[4:]), int(le.Uint32(list[8:]))
		if xattrEntry+nameLen > len(list) || size < 0 || size > maxEAValue || len(out) > maxXattrs {
			return nil, corrupt("inode %d: an attribute of %d and %d bytes", in.number, nameLen, size)
		}
		x := rawXattr{index: index, name: string(list[xattrEntry : xattrEntry+nameLen])}
		list = list[min(len(list), (xattrEntry+nameLen+3)&^3):]
		if !want(x) {
			continue
		}
		switch {
		case valueInode != 0:
			value, err := f.eaValue(ctx, in, valueInode, size)
			if err != nil {
				return nil, err
			}
			x.value = value
		case off > len(base) || size > len(base)-off:
			return nil, corrupt("inode %d: the value of attribute %q is %d bytes at %d", in.number, x.name, size, off)
		default:
			x.value = append([]byte{}, base[off:off+size]...)
		}
		out = append(out, x)
	}
	return out, nil
}

// eaValue reads a value that has an inode of its own.
func (f *FS) eaValue(ctx context.Context, in *inode, number uint32, size int) ([]byte, error) {
	ea, err := f.inode(ctx, guestfs.Inode(number))
	if err != nil {
		return nil, fmt.Errorf("an attribute of inode %d: %w", in.number, err)
	}
	if ea.flags()&flagEAInode == 0 || f.size(ea) != int64(size) {
		return nil, corrupt("inode %d: the value of an attribute is inode %d, which is none", in.number, number)
	}
	img, err := f.content(ctx, ea)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	return readAll(img, maxEAValue)
}

// aclToXattr turns an ACL as it is stored (version 1: entries of 4 bytes, or 8
// with an ID) into what the kernel shows (version 2: 8 bytes each).
func aclToXattr(b []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(b) < 4 || le.Uint32(b) != 1 {
		return nil, corrupt("an ACL of an unknown version")
	}
	out := []byte{2, 0, 0, 0}
	for b = b[4:]; len(b) > 0; {
		if len(b) < 4 {
			return nil, corrupt("an ACL is cut off")
		}
		out = append(out, b[:4]...)
		const user, group = 0x02, 0x08
		tag := le.Uint16(b)
		b = b[4:]
		if tag != user && tag != group {
			out = le.AppendUint32(out, ^uint32(0))
			continue
		}
		if len(b) < 4 {
			return nil, corrupt("an ACL is cut off")
		}
		out = append(out, b[:4]...)
		b = b[4:]
	}
	return out, nil
}
