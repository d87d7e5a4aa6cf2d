package xfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// Offsets in struct xfs_dinode, and its flags.
const (
	inMagic       = 0x494e // "IN"
	inMode        = 2
	inVersion     = 4
	inFormat      = 5
	inOldLinks    = 6 // version 1
	inUID         = 8
	inGID         = 12
	inLinks       = 16
	inBigExtents  = 24 // with flag2NREXT64
	inFlushIter   = 30 // version 2
	inAtime       = 32
	inMtime       = 40
	inCtime       = 48
	inSize        = 56
	inBlocks      = 64
	inExtents     = 76
	inAttrExtents = 80
	inForkOff     = 82 // of the attributes, in 8 bytes
	inAttrFormat  = 83
	inFlags       = 90
	inGeneration  = 92
	inUnlinked    = 96
	inCRC         = 100
	inLSN         = 112
	inFlags2      = 120
	inCrtime      = 144
	inNumber      = 152
	inUUID        = 160

	oldCore = 100 // bytes before the forks, versions 1 and 2
	core    = 176 // version 3

	flagRealtime  = 0x1
	flagImmutable = 0x8
	flagAppend    = 0x10
	flag2Bigtime  = 0x8
	flag2NREXT64  = 0x10
)

// Formats of a fork.
const (
	formatDevice  = 0
	formatLocal   = 1
	formatExtents = 2
	formatBtree   = 3
)

// inode is an inode as it stands on the volume.
type inode struct {
	number guestfs.Inode
	raw    []byte
}

func (in *inode) u16(at int) uint16 { return binary.BigEndian.Uint16(in.raw[at:]) }
func (in *inode) u32(at int) uint32 { return binary.BigEndian.Uint32(in.raw[at:]) }
func (in *inode) u64(at int) uint64 { return binary.BigEndian.Uint64(in.raw[at:]) }
func (in *inode) kind() uint32      { return uint32(in.u16(inMode)) & guestfs.TypeMask }
func (in *inode) size() int64       { return int64(in.u64(inSize)) }

func (in *inode) flags2() uint64 {
	if in.raw[inVersion] < 3 {
		return 0
	}
	return in.u64(inFlags2)
}

func (in *inode) links() uint32 {
	if in.raw[inVersion] == 1 {
		return uint32(in.u16(inOldLinks))
	}
	return in.u32(inLinks)
}

// coreBytes is where the forks begin.
func (in *inode) coreBytes() int {
	if in.raw[inVersion] >= 3 {
		return core
	}
	return oldCore
}

func (f *FS) checkInode(in *inode) error {
	if in.u16(0) != inMagic {
		return corrupt("inode %d is none", in.number)
	}
	version := in.raw[inVersion]
	switch {
	case f.sb.v5 && version != 3 || !f.sb.v5 && (version < 1 || version > 2):
		return corrupt("inode %d is of version %d", in.number, version)
	case f.sb.v5 && !sumOK(in.raw, inCRC):
		return corrupt("inode %d has a wrong checksum", in.number)
	case f.sb.v5 && (in.u64(inNumber) != uint64(in.number) || !bytes.Equal(in.raw[inUUID:inUUID+16], f.sb.metaUUID[:])):
		return corrupt("inode %d says that it is inode %d of file system %x", in.number, in.u64(inNumber), in.raw[inUUID:inUUID+16])
	case in.u16(inMode) == 0 || in.links() == 0:
		return fmt.Errorf("xfs: inode %d is free: %w", in.number, fs.ErrNotExist)
	case in.size() < 0:
		return corrupt("inode %d: a size of %d bytes", in.number, in.u64(inSize))
	case in.coreBytes()+8*int(in.raw[inForkOff]) >= len(in.raw):
		return corrupt("inode %d: its attributes begin at %d", in.number, 8*int(in.raw[inForkOff]))
	}
	return nil
}

// fork is one of the two things that an inode maps: content and attributes.
type fork struct {
	name    string
	format  byte
	data    []byte
	extents uint64 // how many
}

// content is the fork with a file's data.
func (in *inode) content() fork {
	k := fork{name: "content", format: in.raw[inFormat], data: in.raw[in.coreBytes():], extents: uint64(in.u32(inExtents))}
	if off := 8 * int(in.raw[inForkOff]); off > 0 {
		k.data = k.data[:off]
	}
	if in.flags2()&flag2NREXT64 != 0 {
		k.extents = in.u64(inBigExtents)
	}
	return k
}

// attributes is the fork with attributes; ok is false where there is none.
func (in *inode) attributes() (k fork, ok bool) {
	off := 8 * int(in.raw[inForkOff])
	if off == 0 {
		return k, false
	}
	k = fork{name: "attributes", format: in.raw[inAttrFormat], data: in.raw[in.coreBytes()+off:], extents: uint64(in.u16(inAttrExtents))}
	if in.flags2()&flag2NREXT64 != 0 {
		k.extents = uint64(in.u32(inExtents))
	}
	return k, true
}

func (f *FS) attr(in *inode) *guestfs.Attr {
	a := &guestfs.Attr{
		Inode: in.number, Mode: uint32(in.u16(inMode)), Links: in.links(), UID: in.u32(inUID), GID: in.u32(inGID), Size: in.size(),
		Allocated: f.allocated(in), Atime: in.time(inAtime), Mtime: in.time(inMtime), Ctime: in.time(inCtime), Generation: uint64(in.u32(inGeneration)),
	}
	if in.raw[inVersion] >= 3 {
		a.Btime = in.time(inCrtime)
	}
	if k := a.Type(); k == guestfs.TypeChar || k == guestfs.TypeBlock {
		dev := in.u32(in.coreBytes())
		a.Major, a.Minor = dev>>18, dev&(1<<18-1)
	}
	if in.u16(inFlags)&flagImmutable != 0 {
		a.Flags |= guestfs.Immutable
	}
	if in.u16(inFlags)&flagAppend != 0 {
		a.Flags |= guestfs.AppendOnly
	}
	return a
}

func (f *FS) allocated(in *inode) int64 {
	n := int64(min(in.u64(inBlocks), f.sb.blocks))
	for _, r := range f.remaps[in.number] {
		if r.unmap {
			n -= int64(r.count)
		} else {
			n += int64(r.count)
		}
	}
	return max(0, n) << f.sb.blockLog
}

// time decodes the two ways to write one: seconds and nanoseconds of 32 bits, or
// 64 bits of nanoseconds since the earliest time that the first can tell.
func (in *inode) time(at int) time.Time {
	if in.flags2()&flag2Bigtime != 0 {
		ns := in.u64(at)
		return time.Unix(int64(ns/1e9)-1<<31, int64(ns%1e9))
	}
	return time.Unix(int64(int32(in.u32(at))), int64(int32(in.u32(at+4))))
}

// Open implements [guestfs.FS].
func (f *FS) Open(ctx context.Context, number guestfs.Inode) (disk.Image, error) {
	in, err := f.inode(ctx, number)
	if err != nil {
		return nil, err
	}
	if in.kind() == guestfs.TypeSymlink {
		return f.target(ctx, in)
	}
	in, k, err := f.file(ctx, number)
	if err != nil {
		return nil, err
	}
	return disk.Assemble(ctx, in.size(), func(off int64) (disk.Piece, error) { return f.piece(ctx, in, k, off) }), nil
}

// file reads the inode of a regular file.
func (f *FS) file(ctx context.Context, number guestfs.Inode) (*inode, fork, error) {
	in, err := f.inode(ctx, number)
	if err != nil {
		return nil, fork{}, err
	}
	k := in.content()
	switch {
	case in.kind() == guestfs.TypeDir:
		err = fmt.Errorf("xfs: inode %d is a directory", number)
	case in.kind() != guestfs.TypeFile:
		err = fmt.Errorf("xfs: inode %d is not a file", number)
	case in.u16(inFlags)&flagRealtime != 0:
		err = &guestfs.UnsupportedError{FS: fsName, What: "a file on the realtime device"}
	case k.format != formatExtents && k.format != formatBtree:
		err = corrupt("inode %d: a file of format %d", number, k.format)
	}
	return in, k, err
}

// maxTarget bounds the target of a symbolic link (XFS_SYMLINK_MAXLEN).
const maxTarget = 1024

// farHeader is what each extent of a target, or each block of an attribute's
// value, begins with: magic, offset, length, and a farLayout. Version 4 has none.
const (
	farHeader = 56
	linkMagic = 0x58534c4d // "XSLM"
)

// target is the content of a symbolic link.
func (f *FS) target(ctx context.Context, in *inode) (disk.Image, error) {
	size, k := in.size(), in.content()
	if size > maxTarget {
		return nil, corrupt("inode %d: a symbolic link of %d bytes", in.number, size)
	}
	if k.format == formatLocal {
		if size > int64(len(k.data)) {
			return nil, corrupt("inode %d: %d bytes of target in %d", in.number, size, len(k.data))
		}
		return disk.Bytes(ctx, k.data[:size]), nil
	}
	var out []byte
	for block := uint64(0); int64(len(out)) < size; {
		e, _, err := f.lookup(ctx, in, k, block)
		if err != nil {
			return nil, err
		}
		if e.count == 0 || e.unwritten || e.off != block || e.count > maxTarget {
			return nil, corrupt("inode %d: its target is not all there", in.number)
		}
		b, err := f.part(ctx, in, e, size-int64(len(out)))
		if err != nil {
			return nil, err
		}
		if len(b) == 0 {
			return nil, corrupt("inode %d: an empty part of a target", in.number)
		}
		out = append(out, b...)
		block += e.count
	}
	return disk.Bytes(ctx, out), nil
}

// part is what one extent holds of the target of a symbolic link, of which want
// bytes are missing.
func (f *FS) part(ctx context.Context, in *inode, e extent, want int64) ([]byte, error) {
	b, at, err := f.read(ctx, in, e)
	if err != nil {
		return nil, err
	}
	if !f.sb.v5 {
		return b[:min(want, int64(len(b)))], nil
	}
	if binary.BigEndian.Uint32(b) != linkMagic {
		return nil, corrupt("inode %d: the block at %d holds no target", in.number, at)
	}
	if err := f.verify(b, farLayout, at, in.number); err != nil {
		return nil, err
	}
	b = b[farHeader:]
	return b[:min(want, int64(len(b)))], nil
}
