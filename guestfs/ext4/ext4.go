// Package ext4 reads ext2, ext3 and ext4, as the kernel would show them after
// mounting: the journal is replayed, in memory, before anything is read.
//
// What is written where is described in the kernel's Documentation/filesystems/
// ext4 and fs/ext4/*.h. With metadata_csum every checksum is verified, so that
// damage is an error and not a wrong file; without it, everything is still
// checked to be possible.
//
// A file whose content or names are encrypted (fscrypt) is said to be so.
package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/meta"
)

const fsName = "ext4"

// cacheBytes bounds the metadata that is kept.
const cacheBytes = 8 << 20

const rootInode = 2

// FS is an ext2, ext3 or ext4 file system.
type FS struct {
	sb    *superblock
	disk  disk.Image // after replay
	meta  *meta.Cache
	state guestfs.State
	note  string

	tables tables
}

var (
	_ guestfs.FS          = (*FS)(nil)
	_ guestfs.XattrReader = (*FS)(nil)
	_ guestfs.Describer   = (*FS)(nil)
)

// Open reads the file system on img, which must stay open as long.
// guestfs.ErrNoFS where there is none.
func Open(ctx context.Context, img disk.Image) (*FS, error) {
	f, err := open(img)
	if err != nil {
		return nil, err
	}
	f.state = guestfs.Clean
	if f.sb.incompat&incompatRecover != 0 {
		if err := f.recover(ctx); err != nil {
			return nil, err
		}
	}
	if f.sb.state&stateError != 0 {
		f.state, f.note = guestfs.Damaged, join(f.note, "the guest's kernel found errors in it")
	}
	return f, nil
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// open reads the superblock, and nothing else.
func open(img disk.Image) (*FS, error) {
	b := make([]byte, superSize)
	if n, err := img.ReadAt(b, superOffset); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, guestfs.ErrNoFS
		}
		return nil, fmt.Errorf("ext4: read the superblock: %w", err)
	}
	sb, err := parseSuper(b, img.Size())
	if err != nil {
		return nil, err
	}
	return &FS{sb: sb, disk: img, meta: meta.New(img, sb.blockSize, cacheBytes)}, nil
}

// Info implements [guestfs.Describer].
func (f *FS) Info() guestfs.Info {
	u := f.sb.uuid
	return guestfs.Info{
		Type: f.sb.name(), Label: f.sb.label, UUID: fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]),
		Size: clampInt64(f.sb.blocks) * int64(f.sb.blockSize), Used: clampInt64(f.sb.blocks-min(f.sb.blocks, f.sb.freeBlocks)) * int64(f.sb.blockSize),
		State: f.state, Note: f.note,
	}
}

func clampInt64(n uint64) int64 { return int64(min(n, math.MaxInt64>>16)) }

// Root implements [guestfs.FS].
func (f *FS) Root() guestfs.Inode { return rootInode }

// block reads a block of metadata.
func (f *FS) block(ctx context.Context, n uint64) ([]byte, error) {
	if n >= f.sb.blocks {
		return nil, corrupt("block %d of %d", n, f.sb.blocks)
	}
	return f.meta.Block(ctx, n)
}

// inodeTable is the first block of a group's inode table.
func (f *FS) inodeTable(ctx context.Context, group uint64) (uint64, error) {
	n, off := f.sb.descBlock(group)
	b, err := f.block(ctx, n)
	if err != nil {
		return 0, fmt.Errorf("descriptor of group %d: %w", group, err)
	}
	d := b[off : off+f.sb.descSize]
	le := binary.LittleEndian
	if f.sb.checksums {
		const sumAt = 0x1e
		sum := crc(f.sb.seed, le.AppendUint32(nil, uint32(group)))
		sum = crc(crc(sum, d[:sumAt]), []byte{0, 0})
		sum = crc(sum, d[sumAt+2:])
		if uint16(sum) != le.Uint16(d[sumAt:]) {
			return 0, corrupt("the descriptor of group %d has a wrong checksum", group)
		}
	}
	table := uint64(le.Uint32(d[8:]))
	if f.sb.descSize >= 64 {
		table |= uint64(le.Uint32(d[0x28:])) << 32
	}
	return table, nil
}

// inode reads an inode and checks that it is one.
func (f *FS) inode(ctx context.Context, number guestfs.Inode) (*inode, error) {
	if number == 0 || uint64(number) > f.sb.inodes {
		return nil, fmt.Errorf("ext4: inode %d: %w", number, fs.ErrNotExist)
	}
	group, index := (uint64(number)-1)/f.sb.perGroup, (uint64(number)-1)%f.sb.perGroup
	table, err := f.inodeTable(ctx, group)
	if err != nil {
		return nil, err
	}
	at := index * uint64(f.sb.inodeSize)
	b, err := f.block(ctx, table+at/uint64(f.sb.blockSize))
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", number, err)
	}
	off := at % uint64(f.sb.blockSize)
	in := &inode{number: number, raw: b[off : off+uint64(f.sb.inodeSize)]}
	return in, f.checkInode(in)
}

// Stat implements [guestfs.FS].
func (f *FS) Stat(ctx context.Context, number guestfs.Inode) (*guestfs.Attr, error) {
	in, err := f.inode(ctx, number)
	if err != nil {
		return nil, err
	}
	return f.attr(in), nil
}
