// Package xfs reads XFS, versions 4 and 5, as the kernel would show it after
// mounting: the log is replayed, in memory, before anything is read.
//
// What is written where is described in "XFS Algorithms & Data Structures" and
// in the kernel's fs/xfs/libxfs/*_format.h. All of it is big-endian, but for
// checksums and what the log's items hold. With version 5 every checksum, and
// that a block belongs where it was found, is verified, so that damage is an
// error and not a wrong file; with version 4 everything is still checked to be
// possible.
//
// Files on a realtime device are refused by name.
package xfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/meta"
)

const fsName = "xfs"

// cacheBytes bounds the metadata that is kept.
const cacheBytes = 8 << 20

// FS is an XFS file system.
type FS struct {
	sb    *superblock
	disk  disk.Image // after replay
	meta  *meta.Cache
	state guestfs.State
	note  string

	// What the log left unfinished, and the kernel would finish: see intents.go.
	remaps  map[guestfs.Inode][]remap
	reowned map[guestfs.Inode]bool // inodes whose blocks may bear another's number

	chunks chunks
}

var (
	_ guestfs.FS          = (*FS)(nil)
	_ guestfs.Lookuper    = (*FS)(nil)
	_ guestfs.XattrReader = (*FS)(nil)
	_ guestfs.Mapped      = (*FS)(nil)
	_ guestfs.Describer   = (*FS)(nil)
)

// Open reads the file system on img, which must stay open as long.
// guestfs.ErrNoFS where there is none.
func Open(ctx context.Context, img disk.Image) (*FS, error) {
	sb, err := readSuper(img)
	if err != nil {
		return nil, err
	}
	f := &FS{sb: sb, disk: img, meta: meta.New(img, sb.blockSize, cacheBytes), state: guestfs.Clean}
	if err := f.recover(ctx); err != nil {
		return nil, err
	}
	if f.sb.needsRepair {
		f.state, f.note = guestfs.Damaged, join(f.note, "it says that it needs xfs_repair")
	}
	return f, nil
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// Info implements [guestfs.Describer].
func (f *FS) Info() guestfs.Info {
	u := f.sb.uuid
	return guestfs.Info{
		Type: fsName, Label: f.sb.label, UUID: fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]),
		Size: int64(f.sb.blocks) << f.sb.blockLog, Used: int64(f.sb.blocks-min(f.sb.blocks, f.sb.freeBlocks)) << f.sb.blockLog,
		State: f.state, Note: f.note,
	}
}

// Root implements [guestfs.FS].
func (f *FS) Root() guestfs.Inode { return f.sb.root }

// Stat implements [guestfs.FS].
func (f *FS) Stat(ctx context.Context, number guestfs.Inode) (*guestfs.Attr, error) {
	in, err := f.inode(ctx, number)
	if err != nil {
		return nil, err
	}
	return f.attr(in), nil
}

// inode reads an inode and checks that it is one.
func (f *FS) inode(ctx context.Context, number guestfs.Inode) (*inode, error) {
	block, off, ok := f.sb.inodePlace(number)
	if !ok || number == 0 {
		return nil, fmt.Errorf("xfs: inode %d: %w", number, fs.ErrNotExist)
	}
	b, err := f.meta.Block(ctx, block)
	if err != nil {
		return nil, fmt.Errorf("xfs: inode %d: %w", number, err)
	}
	in := &inode{number: number, raw: b[off : off+f.sb.inodeSize]}
	return in, f.checkInode(in)
}

// layout says where a structure of version 5 keeps what tells that it is itself;
// 0 is nowhere.
type layout struct {
	crc, block, lsn, uuid, owner int
}

// The layouts of what has one (xfs_format.h, xfs_da_format.h).
var (
	dirLayout  = layout{crc: 4, block: 8, lsn: 16, uuid: 24, owner: 40}   // xfs_dir3_blk_hdr
	daLayout   = layout{crc: 12, block: 16, lsn: 24, uuid: 32, owner: 48} // xfs_da3_blkinfo
	bmapLayout = layout{crc: 64, block: 24, lsn: 32, uuid: 40, owner: 56} // xfs_btree_block, long
	agLayout   = layout{crc: 52, block: 16, lsn: 24, uuid: 32}            // xfs_btree_block, short
	farLayout  = layout{crc: 12, block: 40, lsn: 48, uuid: 16, owner: 32} // xfs_dsymlink_hdr, xfs_attr3_rmt_hdr
	agfLayout  = layout{crc: 216, lsn: 208, uuid: 64}                     // xfs_agf
	agiLayout  = layout{crc: 312, lsn: 320, uuid: 296}                    // xfs_agi
	agflLayout = layout{crc: 32, lsn: 24, uuid: 8}                        // xfs_agfl
	sbLayout   = layout{crc: sbCRC, lsn: 240, uuid: 32}                   // xfs_dsb
	sbMeta     = layout{crc: sbCRC, lsn: 240, uuid: 248}                  // with a UUID of its metadata
)

// verify checks that b, found at byte at of the volume, is what inode owner's
// block should be.
func (f *FS) verify(b []byte, l layout, at int64, owner guestfs.Inode) error {
	if !f.sb.v5 {
		return nil
	}
	be := binary.BigEndian
	switch {
	case !sumOK(b, l.crc):
		return corrupt("inode %d: the block at %d has a wrong checksum", owner, at)
	case !bytes.Equal(b[l.uuid:l.uuid+16], f.sb.metaUUID[:]):
		return corrupt("inode %d: the block at %d is of another file system", owner, at)
	case be.Uint64(b[l.block:]) != uint64(at)/sector:
		return corrupt("inode %d: the block at %d says that it is at %d", owner, at, be.Uint64(b[l.block:]))
	case be.Uint64(b[l.owner:]) != uint64(owner) && !f.reowned[owner]:
		return corrupt("inode %d: the block at %d is of inode %d", owner, at, be.Uint64(b[l.owner:]))
	}
	return nil
}
