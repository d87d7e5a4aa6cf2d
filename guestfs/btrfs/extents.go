package btrfs

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"math"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// Extents of a file (struct btrfs_file_extent_item), by offset: transaction 8,
// size when decoded 8, compression 1, encryption 1, other encoding 2, type 1; then
// the content itself or address 8, size there 8, offset in what it decodes to 8,
// length 8. What is between them, and address 0, is a hole.
const (
	extentHead  = 21
	extentBytes = 53

	typeInline   = 0
	typeRegular  = 1
	typePrealloc = 2

	// maxEncoded bounds a compressed extent, encoded and decoded.
	maxEncoded = 128 << 10
)

// extent is an extent of a file.
type extent struct {
	from, length uint64 // in the file
	kind         byte
	compression  byte
	inline       []byte
	at, stored   uint64 // address and size there
	skip         uint64 // of what it decodes to
	decoded      uint64 // bytes
}

func parseExtent(in *inode, it item) (e extent, err error) {
	le := binary.LittleEndian
	b := it.data
	if len(b) < extentHead {
		return e, in.corrupt("an extent of %d bytes", len(b))
	}
	e = extent{from: it.offset, decoded: le.Uint64(b[8:]), compression: b[16], kind: b[20]}
	if b[17] != 0 || le.Uint16(b[18:]) != 0 {
		return e, fmt.Errorf("btrfs: inode %d of subvolume %d: its content is %w by the guest", in.id, in.sub.id, guestfs.ErrEncrypted)
	}
	if e.kind == typeInline {
		e.inline, e.length = b[extentHead:], e.decoded
		if e.from != 0 || e.decoded > maxEncoded || e.compression == 0 && e.decoded > uint64(len(e.inline)) {
			return e, in.corrupt("an extent at %d holds %d bytes in %d", e.from, e.decoded, len(e.inline))
		}
		return e, nil
	}
	if len(b) < extentBytes || e.kind > typePrealloc {
		return e, in.corrupt("an extent of type %d in %d bytes", e.kind, len(b))
	}
	e.at, e.stored, e.skip, e.length = le.Uint64(b[21:]), le.Uint64(b[29:]), le.Uint64(b[37:]), le.Uint64(b[45:])
	switch {
	case e.length == 0 || e.from > math.MaxInt64 || e.length > math.MaxInt64-e.from:
		return e, in.corrupt("an extent of %d bytes at %d", e.length, e.from)
	case e.at == 0:
	case e.skip > e.decoded || e.length > e.decoded-e.skip || e.at > 1<<62 || e.decoded > 1<<62:
		return e, in.corrupt("an extent of %d bytes from %d of %d at %d", e.length, e.skip, e.decoded, e.at)
	case e.compression != 0 && (e.stored == 0 || e.stored > maxEncoded || e.decoded > maxEncoded):
		return e, in.corrupt("a compressed extent of %d bytes in %d", e.decoded, e.stored)
	}
	return e, nil
}

// extent finds the extent that contains an offset; ok is false in a hole. next is
// where what follows begins.
func (f *FS) extent(ctx context.Context, in *inode, off uint64) (e extent, next uint64, ok bool, err error) {
	it, found, err := in.sub.floor(ctx, key{in.id, kindExtent, off})
	if err != nil {
		return e, 0, false, err
	}
	if found && it.id == in.id && it.kind == kindExtent {
		if e, err = parseExtent(in, it); err != nil {
			return e, 0, false, err
		}
		if off-e.from < e.length {
			return e, e.from + e.length, e.kind != typePrealloc && (e.kind == typeInline || e.at != 0), nil
		}
	}
	next = math.MaxInt64
	err = in.sub.of(ctx, in.id, kindExtent, off, func(it item) bool {
		next = it.offset
		return next <= off
	})
	return e, max(next, off+1), false, err
}

// piece finds the piece of a file that contains an offset.
func (f *FS) piece(ctx context.Context, in *inode, off int64) (disk.Piece, error) {
	e, next, ok, err := f.extent(ctx, in, uint64(off))
	if err != nil {
		return disk.Piece{}, err
	}
	if !ok {
		return disk.Piece{Offset: off, Length: int64(min(next, math.MaxInt64)) - off}, nil
	}
	p := disk.Piece{Offset: int64(e.from), Length: int64(e.length)}
	switch {
	case e.compression != 0:
		p.From, p.At = &encoded{ctx: ctx, f: f, in: in, e: e}, int64(e.skip)
	case e.kind == typeInline:
		p.From = disk.Bytes(ctx, e.inline[:e.decoded])
	case in.u64(inFlags)&flagNoSums != 0 && f.v.copies(e.at) == 1:
		return f.unsummed(e, off)
	default:
		p.From, p.At = &data{ctx: ctx, f: f, in: in}, int64(e.at+e.skip)
	}
	return p, nil
}

// unsummed is the piece of an extent of which there is one copy and no checksum: it
// can be read where it stands.
func (f *FS) unsummed(e extent, off int64) (disk.Piece, error) {
	within := uint64(off) - e.from
	at := e.at + e.skip + within
	c, err := f.v.chunk(at)
	if err != nil {
		return disk.Piece{}, err
	}
	s, n := c.place(at, 0)
	img := f.v.devices[s.device]
	if img == nil {
		return disk.Piece{}, fmt.Errorf("btrfs: %d bytes at %d are on device %d: %w", n, at, s.device, errMissing)
	}
	return disk.Piece{Offset: off, Length: int64(min(n, e.length-within)), From: img, At: int64(min(s.at, math.MaxInt64))}, nil
}

// PhysicalExtents implements [guestfs.Mapped], for a volume of one device.
func (f *FS) PhysicalExtents(ctx context.Context, number guestfs.Inode) iter.Seq2[guestfs.PhysicalExtent, error] {
	return func(yield func(guestfs.PhysicalExtent, error) bool) {
		in, err := f.file(ctx, number)
		if err == nil && f.sb.devices > 1 {
			err = &guestfs.UnsupportedError{FS: fsName, What: "to say where a file is on a volume of several devices"}
		}
		for off := uint64(0); err == nil && off < uint64(in.size()); {
			var e extent
			var next uint64
			var ok bool
			if e, next, ok, err = f.extent(ctx, in, off); err == nil && ok && e.kind == typeRegular {
				var more bool
				if more, err = f.physical(in, e, yield); err == nil && !more {
					return
				}
			}
			off = next
			if err == nil && ctx.Err() != nil {
				err = context.Cause(ctx)
			}
		}
		if err != nil {
			yield(guestfs.PhysicalExtent{}, err)
		}
	}
}

// physical yields where an extent stands, chunk by chunk.
func (f *FS) physical(in *inode, e extent, yield func(guestfs.PhysicalExtent, error) bool) (more bool, err error) {
	at, left, from := e.at+e.skip, min(e.length, uint64(in.size())-e.from), int64(e.from)
	if e.compression != 0 {
		at, left, from = e.at, e.stored, int64(e.from-min(e.from, e.skip))
	}
	for left > 0 {
		c, err := f.v.chunk(at)
		if err != nil {
			return false, err
		}
		s, n := c.place(at, 0)
		n = min(n, left)
		if !yield(guestfs.PhysicalExtent{Offset: from, At: int64(min(s.at, math.MaxInt64)), Length: int64(n), Encoded: e.compression != 0}, nil) {
			return false, nil
		}
		at, left = at+n, left-n
		if e.compression == 0 {
			from += int64(n)
		}
	}
	return true, nil
}
