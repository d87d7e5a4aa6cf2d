package ext4

import (
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// Offsets in struct ext4_inode, and its flags.
const (
	inMode       = 0
	inUID        = 2
	inSize       = 4
	inAtime      = 8
	inCtime      = 12
	inMtime      = 16
	inDtime      = 20
	inGID        = 24
	inLinks      = 26
	inBlocks     = 28
	inFlags      = 32
	inBlock      = 40 // 60 bytes
	inGeneration = 100
	inACL        = 104
	inSizeHigh   = 108
	inBlocksHigh = 116
	inACLHigh    = 118
	inUIDHigh    = 120
	inGIDHigh    = 122
	inSum        = 124
	inExtra      = 128 // size of what follows the first 128 bytes
	inSumHigh    = 130
	inCtimeExtra = 132
	inMtimeExtra = 136
	inAtimeExtra = 140
	inCrtime     = 144
	inCrExtra    = 148

	blockBytes = 60 // of i_block
	oldInode   = 128

	flagCompressed = 0x4
	flagImmutable  = 0x10
	flagAppend     = 0x20
	flagEncrypted  = 0x800
	flagHugeFile   = 0x40000
	flagExtents    = 0x80000
	flagVerity     = 0x100000
	flagEAInode    = 0x200000
	flagInline     = 0x10000000
)

// inode is an inode as it stands on the volume.
type inode struct {
	number guestfs.Inode
	raw    []byte
}

func (in *inode) u16(at int) uint16 { return binary.LittleEndian.Uint16(in.raw[at:]) }
func (in *inode) u32(at int) uint32 { return binary.LittleEndian.Uint32(in.raw[at:]) }
func (in *inode) flags() uint32     { return in.u32(inFlags) }
func (in *inode) kind() uint32      { return uint32(in.u16(inMode)) & guestfs.TypeMask }
func (in *inode) block() []byte     { return in.raw[inBlock : inBlock+blockBytes] }

// extra is how many bytes of the second part are in use.
func (in *inode) extra() int {
	if len(in.raw) <= oldInode {
		return 0
	}
	return int(in.u16(inExtra))
}

// has reports whether a 32-bit field of the second part is in use.
func (in *inode) has(at int) bool { return oldInode+in.extra() >= at+4 }

func (f *FS) checkInode(in *inode) error {
	if in.u16(inMode) == 0 || in.u16(inLinks) == 0 {
		return fmt.Errorf("ext4: inode %d is free: %w", in.number, fs.ErrNotExist)
	}
	if n := in.extra(); n > len(in.raw)-oldInode || n%4 != 0 {
		return corrupt("inode %d: %d extra bytes", in.number, n)
	}
	if !f.sb.checksums {
		return nil
	}
	zeros := []byte{0, 0}
	sum := crc(crc(f.inodeSeed(in), in.raw[:inSum]), zeros)
	sum = crc(sum, in.raw[inSum+2:oldInode])
	want := uint32(in.u16(inSum))
	if len(in.raw) > oldInode {
		sum = crc(sum, in.raw[oldInode:inSumHigh])
		if in.has(inSumHigh - 2) { // the field has 16 bits
			sum = crc(sum, zeros)
			want |= uint32(in.u16(inSumHigh)) << 16
		} else {
			sum = crc(sum, in.raw[inSumHigh:inSumHigh+2])
		}
		sum = crc(sum, in.raw[inSumHigh+2:])
	}
	if want>>16 == 0 && !in.has(inSumHigh-2) {
		sum &= 0xffff
	}
	if sum != want {
		return corrupt("inode %d has a wrong checksum", in.number)
	}
	return nil
}

// inodeSeed is what the checksums of an inode and of its blocks begin with.
func (f *FS) inodeSeed(in *inode) uint32 {
	sum := crc(f.sb.seed, binary.LittleEndian.AppendUint32(nil, uint32(in.number)))
	return crc(sum, in.raw[inGeneration:inGeneration+4])
}

func (f *FS) size(in *inode) int64 {
	n := uint64(in.u32(inSize))
	if k := in.kind(); k == guestfs.TypeFile || k != guestfs.TypeDir || f.sb.incompat&incompatLargedir != 0 {
		n |= uint64(in.u32(inSizeHigh)) << 32
	}
	return int64(n)
}

func (f *FS) attr(in *inode) *guestfs.Attr {
	a := &guestfs.Attr{
		Inode: in.number, Mode: uint32(in.u16(inMode)), Links: uint32(in.u16(inLinks)), Size: f.size(in),
		UID:        uint32(in.u16(inUID)) | uint32(in.u16(inUIDHigh))<<16,
		GID:        uint32(in.u16(inGID)) | uint32(in.u16(inGIDHigh))<<16,
		Atime:      in.time(inAtime, inAtimeExtra),
		Mtime:      in.time(inMtime, inMtimeExtra),
		Ctime:      in.time(inCtime, inCtimeExtra),
		Generation: uint64(in.u32(inGeneration)),
	}
	if in.has(inCrtime) {
		a.Btime = in.time(inCrtime, inCrExtra)
	}
	a.Allocated = int64(in.u32(inBlocks)) * 512
	if f.sb.roCompat&roHugeFile != 0 {
		blocks := int64(in.u32(inBlocks)) | int64(in.u16(inBlocksHigh))<<32
		a.Allocated = blocks * 512
		if in.flags()&flagHugeFile != 0 {
			a.Allocated = blocks * int64(f.sb.blockSize)
		}
	}
	if in.flags()&flagInline != 0 && a.Type() == guestfs.TypeFile {
		a.Allocated += (a.Size + 511) &^ 511 // as the kernel counts it
	}
	if k := a.Type(); k == guestfs.TypeChar || k == guestfs.TypeBlock {
		a.Major, a.Minor = device(in)
	}
	for bit, flag := range map[uint32]guestfs.Flags{
		flagImmutable: guestfs.Immutable, flagAppend: guestfs.AppendOnly, flagEncrypted: guestfs.EncryptedFile,
		flagVerity: guestfs.Verity, flagCompressed: guestfs.Compressed,
	} {
		if in.flags()&bit != 0 {
			a.Flags |= flag
		}
	}
	return a
}

// time joins the 32 bits of seconds, signed, with two more of the epoch and 30
// of nanoseconds where the inode has them.
func (in *inode) time(at, extraAt int) time.Time {
	sec := int64(int32(in.u32(at)))
	if !in.has(extraAt) {
		return time.Unix(sec, 0)
	}
	extra := in.u32(extraAt)
	return time.Unix(sec+int64(extra&3)<<32, int64(extra>>2))
}

// device decodes the two encodings of a device number.
func device(in *inode) (major, minor uint32) {
	if old := in.u32(inBlock); old != 0 {
		return old >> 8 & 0xff, old & 0xff
	}
	dev := in.u32(inBlock + 4)
	return dev >> 8 & 0xfff, dev&0xff | dev>>12&0xfff00
}

// Open implements [guestfs.FS].
func (f *FS) Open(ctx context.Context, number guestfs.Inode) (disk.Image, error) {
	in, err := f.inode(ctx, number)
	if err != nil {
		return nil, err
	}
	switch in.kind() {
	case guestfs.TypeFile, guestfs.TypeSymlink:
	case guestfs.TypeDir:
		return nil, fmt.Errorf("ext4: inode %d is a directory", number)
	default:
		return nil, fmt.Errorf("ext4: inode %d is not a file", number)
	}
	if in.flags()&flagEncrypted != 0 {
		return nil, fmt.Errorf("ext4: inode %d: %w by the guest (fscrypt)", number, guestfs.ErrEncrypted)
	}
	return f.content(ctx, in)
}

// content is the data of a file, directory or symbolic link.
func (f *FS) content(ctx context.Context, in *inode) (disk.Image, error) {
	size := f.size(in)
	if size < 0 {
		return nil, corrupt("inode %d: a size of %d bytes", in.number, uint64(size))
	}
	switch {
	case in.flags()&flagCompressed != 0 && f.sb.incompat&incompatCompression != 0:
		return nil, &guestfs.UnsupportedError{FS: fsName, What: "e2compr compression"}
	case in.flags()&flagInline != 0:
		data, err := f.inline(ctx, in)
		if err != nil {
			return nil, err
		}
		return f.bytes(ctx, in, data, size)
	case in.kind() == guestfs.TypeSymlink && size < blockBytes && in.flags()&(flagExtents|flagEAInode) == 0:
		return f.bytes(ctx, in, in.block(), size)
	case in.flags()&flagExtents != 0:
		return disk.Assemble(ctx, size, func(off int64) (disk.Piece, error) { return f.extentPiece(ctx, in, off) }), nil
	}
	return disk.Assemble(ctx, size, func(off int64) (disk.Piece, error) { return f.indirectPiece(ctx, in, off) }), nil
}

// bytes is content that stands in the inode.
func (f *FS) bytes(ctx context.Context, in *inode, data []byte, size int64) (disk.Image, error) {
	if size > int64(len(data)) {
		return nil, corrupt("inode %d: %d bytes of content in %d", in.number, size, len(data))
	}
	return disk.Bytes(ctx, data[:size]), nil
}
