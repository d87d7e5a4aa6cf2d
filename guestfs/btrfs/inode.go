package btrfs

import (
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// Offsets in struct btrfs_inode_item, and its flags.
const (
	inodeBytes   = 160
	inGeneration = 0
	inSize       = 16
	inBytes      = 24
	inLinks      = 40
	inUID        = 44
	inGID        = 48
	inMode       = 52
	inDevice     = 56
	inFlags      = 64
	inAtime      = 112
	inCtime      = 124
	inMtime      = 136
	inOtime      = 148

	flagNoSums    = 1 << 0
	flagImmutable = 1 << 6
	flagAppend    = 1 << 7
	flagCompress  = 1 << 11
	flagVerity    = 1 << 32

	// placeholder is the number of the empty directories where a subvolume was when
	// its parent was made a snapshot of.
	placeholder = 2
)

// inode is an inode of a subvolume.
type inode struct {
	sub *subvolume
	id  uint64
	raw []byte
}

func (in *inode) u32(at int) uint32 { return binary.LittleEndian.Uint32(in.raw[at:]) }
func (in *inode) u64(at int) uint64 { return binary.LittleEndian.Uint64(in.raw[at:]) }
func (in *inode) kind() uint32      { return in.u32(inMode) & guestfs.TypeMask }
func (in *inode) size() int64       { return int64(in.u64(inSize)) }

// inode reads one and checks that it is.
func (f *FS) inode(ctx context.Context, number guestfs.Inode) (*inode, error) {
	index, id := uint64(number)>>subvolumeShift, uint64(number)&(1<<subvolumeShift-1)
	none := fmt.Errorf("btrfs: inode %d: %w", number, fs.ErrNotExist)
	if index >= uint64(len(f.subs)) {
		return nil, none
	}
	in := &inode{sub: f.subs[index], id: id}
	if id == placeholder {
		in.raw = make([]byte, inodeBytes)
		binary.LittleEndian.PutUint32(in.raw[inMode:], guestfs.TypeDir|0o755)
		binary.LittleEndian.PutUint32(in.raw[inLinks:], 1)
		return in, nil
	}
	if id < idFirst {
		return nil, none
	}
	it, ok, err := in.sub.get(ctx, key{id, kindInode, 0})
	if err != nil {
		return nil, fmt.Errorf("btrfs: inode %d of subvolume %d: %w", id, in.sub.id, err)
	}
	if !ok {
		return nil, none
	}
	in.raw = it.data
	switch {
	case len(it.data) < inodeBytes:
		return nil, in.corrupt("it is of %d bytes", len(it.data))
	case in.u32(inLinks) == 0 || in.u32(inMode) == 0:
		return nil, none
	case in.size() < 0:
		return nil, in.corrupt("it has %d bytes", in.u64(inSize))
	}
	return in, nil
}

func (in *inode) corrupt(format string, args ...any) error {
	return corrupt("inode %d of subvolume %d: %s", in.id, in.sub.id, fmt.Sprintf(format, args...))
}

// Stat implements [guestfs.FS].
func (f *FS) Stat(ctx context.Context, number guestfs.Inode) (*guestfs.Attr, error) {
	in, err := f.inode(ctx, number)
	if err != nil {
		return nil, err
	}
	a := &guestfs.Attr{
		Inode: number, Mode: in.u32(inMode), Links: in.u32(inLinks), UID: in.u32(inUID), GID: in.u32(inGID), Size: in.size(), Allocated: f.allocated(in),
		Atime: in.time(inAtime), Mtime: in.time(inMtime), Ctime: in.time(inCtime), Btime: in.time(inOtime), Generation: in.u64(inGeneration),
	}
	if k := a.Type(); k == guestfs.TypeChar || k == guestfs.TypeBlock {
		dev := in.u64(inDevice)
		a.Major, a.Minor = uint32(dev>>20), uint32(dev&(1<<20-1))
	}
	for bit, flag := range map[uint64]guestfs.Flags{
		flagImmutable: guestfs.Immutable, flagAppend: guestfs.AppendOnly, flagCompress: guestfs.Compressed, flagVerity: guestfs.Verity,
	} {
		if in.u64(inFlags)&bit != 0 {
			a.Flags |= flag
		}
	}
	return a, nil
}

// allocated is as the kernel counts it: in whole sectors.
func (f *FS) allocated(in *inode) int64 {
	n := int64(min(in.u64(inBytes), 1<<62))
	return (n + int64(f.sb.sectorSize) - 1) &^ int64(f.sb.sectorSize-1)
}

// time is seconds of 64 bits and nanoseconds.
func (in *inode) time(at int) time.Time {
	return time.Unix(int64(in.u64(at)), int64(in.u32(at+8)))
}

// Open implements [guestfs.FS].
func (f *FS) Open(ctx context.Context, number guestfs.Inode) (disk.Image, error) {
	in, err := f.file(ctx, number)
	if err != nil {
		return nil, err
	}
	if in.kind() == guestfs.TypeSymlink && in.size() > guestfs.MaxSymlink {
		return nil, in.corrupt("a symbolic link of %d bytes", in.size())
	}
	return disk.Assemble(ctx, in.size(), func(off int64) (disk.Piece, error) { return f.piece(ctx, in, off) }), nil
}

// file reads the inode of a file or symbolic link.
func (f *FS) file(ctx context.Context, number guestfs.Inode) (*inode, error) {
	in, err := f.inode(ctx, number)
	if err != nil {
		return nil, err
	}
	switch in.kind() {
	case guestfs.TypeFile, guestfs.TypeSymlink:
		return in, nil
	case guestfs.TypeDir:
		return nil, fmt.Errorf("btrfs: inode %d of subvolume %d is a directory", in.id, in.sub.id)
	}
	return nil, fmt.Errorf("btrfs: inode %d of subvolume %d is not a file", in.id, in.sub.id)
}

// maxXattrBytes bounds what the attributes of one inode take in memory.
const maxXattrBytes = 32 << 20

// Xattrs implements [guestfs.XattrReader].
func (f *FS) Xattrs(ctx context.Context, number guestfs.Inode) ([]guestfs.Xattr, error) {
	in, err := f.inode(ctx, number)
	if err != nil || in.id == placeholder {
		return nil, err
	}
	var out []guestfs.Xattr
	var bad error
	total := 0
	err = in.sub.of(ctx, in.id, kindXattr, 0, func(it item) bool {
		entries := parseDirItems(it.data)
		if entries == nil {
			bad = in.corrupt("an attribute of %d bytes", len(it.data))
		}
		for _, e := range entries {
			out = append(out, guestfs.Xattr{Name: e.name, Value: append([]byte{}, e.data...)})
			if total += len(e.name) + len(e.data) + 64; total > maxXattrBytes {
				bad = in.corrupt("it has too many attributes")
			}
		}
		return bad == nil
	})
	return out, first(err, bad)
}
