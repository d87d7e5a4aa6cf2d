package ext4

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"iter"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// Directory entries (struct ext4_dir_entry_2): inode (4), length of the record
// (2), of the name (1), type (1), name. An indexed directory (htree) is a list
// of such blocks too; its index looks like blocks of one unused entry.
const (
	direntHeader = 8
	tailSize     = 12
	tailType     = 0xde
)

// dirTypes are the types of directory entries (EXT4_FT_*).
var dirTypes = [...]uint32{0, guestfs.TypeFile, guestfs.TypeDir, guestfs.TypeChar, guestfs.TypeBlock, guestfs.TypeFIFO, guestfs.TypeSocket, guestfs.TypeSymlink}

// maxDirBytes bounds a directory: far above any that is real.
const maxDirBytes = 1 << 36

// ReadDir implements [guestfs.FS]. A cookie is one more than the offset of the
// entry.
func (f *FS) ReadDir(ctx context.Context, dir guestfs.Inode, after uint64) iter.Seq2[guestfs.Dirent, error] {
	return func(yield func(guestfs.Dirent, error) bool) {
		if err := f.readDir(ctx, dir, after, func(e guestfs.Dirent) bool { return yield(e, nil) }); err != nil {
			yield(guestfs.Dirent{}, err)
		}
	}
}

func (f *FS) readDir(ctx context.Context, dir guestfs.Inode, after uint64, yield func(guestfs.Dirent) bool) error {
	in, err := f.inode(ctx, dir)
	if err != nil {
		return err
	}
	switch {
	case in.kind() != guestfs.TypeDir:
		return fmt.Errorf("ext4: inode %d: %w", dir, guestfs.ErrNotDir)
	case in.flags()&flagEncrypted != 0:
		return fmt.Errorf("ext4: the names in directory %d are %w by the guest (fscrypt)", dir, guestfs.ErrEncrypted)
	case in.flags()&flagInline != 0:
		return f.inlineDir(ctx, in, after, yield)
	}
	size := f.size(in)
	if size > maxDirBytes || size%int64(f.sb.blockSize) != 0 {
		return corrupt("directory %d is of %d bytes", dir, size)
	}
	img, err := f.content(ctx, in)
	if err != nil {
		return err
	}
	defer img.Close()
	from := int64(0)
	if after > 0 {
		from = int64(min(after-1, maxDirBytes)) / int64(f.sb.blockSize) * int64(f.sb.blockSize)
	}
	return f.dirBlocks(ctx, in, img, from, after, yield)
}

func (f *FS) dirBlocks(ctx context.Context, in *inode, img disk.Image, from int64, after uint64, yield func(guestfs.Dirent) bool) error {
	block := make([]byte, f.sb.blockSize)
	for ext, err := range disk.Extents(ctx, img, disk.Extent{Offset: from, Length: img.Size() - from}) {
		if err != nil {
			return err
		}
		if ext.Hole {
			continue // the kernel, too, reads over holes
		}
		for off := ext.Offset; off < ext.End(); off += int64(len(block)) {
			if n, err := img.ReadAt(block, off); n < len(block) {
				return fmt.Errorf("ext4: directory %d: read at %d: %w", in.number, off, err)
			}
			if err := f.checkDirBlock(in, block); err != nil {
				return err
			}
			more, err := f.entries(in, block, off, after, yield)
			if err != nil || !more {
				return err
			}
		}
	}
	return nil
}

// checkDirBlock verifies the checksum of a block of entries. Blocks of the index
// have another one, and no entries; where the first one was a block of entries,
// it may still end like one.
func (f *FS) checkDirBlock(in *inode, b []byte) error {
	if !f.sb.checksums || f.indexBlock(b) {
		return nil
	}
	le := binary.LittleEndian
	tail := b[len(b)-tailSize:]
	if le.Uint32(tail) != 0 || le.Uint16(tail[4:]) != tailSize || tail[6] != 0 || tail[7] != tailType {
		return corrupt("directory %d: a block without a checksum", in.number)
	}
	if crc(f.inodeSeed(in), b[:len(b)-tailSize]) != le.Uint32(tail[8:]) {
		return corrupt("directory %d: a block has a wrong checksum", in.number)
	}
	return nil
}

// indexBlock recognises a block of the index: "." and a ".." that reaches to the
// end of the block, or one unused entry that fills it.
func (f *FS) indexBlock(b []byte) bool {
	le := binary.LittleEndian
	if le.Uint32(b) == 0 {
		return f.recordLen(le.Uint16(b[4:])) == len(b)
	}
	return le.Uint16(b[4:]) == 12 && b[6] == 1 && f.recordLen(le.Uint16(b[16:])) == len(b)-12
}

// recordLen decodes the length of a record, of which blocks of 64 KiB need 17
// bits.
func (f *FS) recordLen(n uint16) int {
	if f.sb.blockSize == 1<<16 && (n == 0 || n == 0xffff) {
		return 1 << 16
	}
	return int(n&^3) | int(n&3)<<16
}

// entries yields those of one block, and reports whether to go on.
func (f *FS) entries(in *inode, b []byte, base int64, after uint64, yield func(guestfs.Dirent) bool) (bool, error) {
	le := binary.LittleEndian
	for off := 0; off < len(b); {
		if len(b)-off < direntHeader {
			return false, corrupt("directory %d: %d bytes too many at %d", in.number, len(b)-off, base)
		}
		number, length, nameLen := le.Uint32(b[off:]), f.recordLen(le.Uint16(b[off+4:])), int(b[off+6])
		if length < direntHeader+(nameLen+3)&^3 && number != 0 || length < direntHeader || length%4 != 0 || length > len(b)-off {
			return false, corrupt("directory %d: an entry of %d bytes at %d", in.number, length, base+int64(off))
		}
		e := guestfs.Dirent{Inode: guestfs.Inode(number), Name: string(b[off+direntHeader : min(len(b), off+direntHeader+nameLen)]), Cookie: uint64(base) + uint64(off) + 1}
		if kind := b[off+7]; f.sb.incompat&incompatFiletype != 0 && int(kind) < len(dirTypes) {
			e.Type = dirTypes[kind]
		}
		off += length
		if number == 0 || e.Cookie <= after || e.Name == "." || e.Name == ".." {
			continue
		}
		if uint64(number) > f.sb.inodes {
			return false, corrupt("directory %d: entry %q is inode %d of %d", in.number, e.Name, number, f.sb.inodes)
		}
		if !yield(e) {
			return false, nil
		}
	}
	return true, nil
}

// inlineDir reads a directory that fits in its inode: the parent's number, then
// entries to the end of i_block, and more in the attribute system.data.
func (f *FS) inlineDir(ctx context.Context, in *inode, after uint64, yield func(guestfs.Dirent) bool) error {
	data, err := f.inline(ctx, in)
	if err != nil {
		return err
	}
	size := f.size(in)
	if size < blockBytes || size > int64(len(data)) {
		return corrupt("directory %d: %d bytes in its inode, of %d", in.number, size, len(data))
	}
	data = data[:size]
	more, err := f.entries(in, data[4:blockBytes], 4, after, yield)
	if err != nil || !more || len(data) == blockBytes {
		return err
	}
	_, err = f.entries(in, data[blockBytes:], blockBytes, after, yield)
	return err
}

// readAll reads a small file of metadata.
func readAll(img disk.Image, limit int64) ([]byte, error) {
	if img.Size() > limit {
		return nil, corrupt("%d bytes where at most %d can be", img.Size(), limit)
	}
	p := make([]byte, img.Size())
	if n, err := img.ReadAt(p, 0); n < len(p) {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return p, nil
}
