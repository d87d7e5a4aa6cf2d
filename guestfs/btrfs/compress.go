package btrfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"

	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"

	"lifeboat/guestfs"
)

// Compressions of extents. What is stored may be followed by zeros, and what it
// decodes to may be shorter than it should: the rest is zeros.
const (
	compressionZlib = 1
	compressionLZO  = 2
	compressionZstd = 3

	zstdWindow = 1 << 20 // the kernel's is 128 KiB
)

func (f *FS) decompress(in *inode, e extent, b []byte) ([]byte, error) {
	out := make([]byte, e.decoded)
	var err error
	switch e.compression {
	case compressionZlib:
		err = inflate(out, b)
	case compressionLZO:
		err = lzoSegments(out, b, f.sb.sectorSize)
	case compressionZstd:
		err = f.unzstd(out, b)
	default:
		return nil, &guestfs.UnsupportedError{FS: fsName, What: "a compression that is none of zlib, LZO and zstd"}
	}
	if err != nil {
		return nil, in.corrupt("a compressed extent at %d: %v", e.from, err)
	}
	return out, nil
}

func inflate(out, b []byte) error {
	r, err := zlib.NewReader(bytes.NewReader(b))
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := io.ReadFull(r, out); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func (f *FS) unzstd(out, b []byte) error {
	frame, err := zstdFrame(b)
	if err != nil {
		return err
	}
	d, err := f.zstd()
	if err != nil {
		return err
	}
	got, err := d.DecodeAll(frame, out[:0])
	if err != nil {
		return err
	}
	if len(got) > 0 && &got[0] != &out[0] {
		copy(out, got) // it decoded to more than it should
	}
	return nil
}

// newZstd makes a decoder for all of a file system, which starts no goroutine.
func newZstd() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderMaxMemory(2*maxEncoded))
}

var errZstd = errors.New("not a frame of zstd")

// zstdFrame cuts off what follows a frame (RFC 8878, 3.1.1): a header, blocks whose
// headers of three bytes tell their size, and a checksum.
func zstdFrame(b []byte) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(b); err != nil {
		return nil, err
	}
	const raw, rle = 0, 1
	for off := h.HeaderSize; off+3 <= len(b); {
		head := uint32(b[off]) | uint32(b[off+1])<<8 | uint32(b[off+2])<<16
		size := int(head >> 3)
		if head>>1&3 == rle {
			size = 1
		}
		off += 3 + size
		if head&1 == 0 {
			continue
		}
		if h.HasCheckSum {
			off += 4
		}
		if off > len(b) {
			break
		}
		return b[:off], nil
	}
	return nil, errZstd
}

// lzoSegments decodes what the kernel calls LZO: the length of all of it (4), and
// segments of a sector each: length (4) and content. A segment's length is never
// split between two sectors of what is stored.
func lzoSegments(out, b []byte, sectorSize int) error {
	le := binary.LittleEndian
	if len(b) < 4 || int64(le.Uint32(b)) > int64(len(b)) {
		return errLZO
	}
	b = b[:le.Uint32(b)]
	for off := 4; off < len(b) && len(out) > 0; {
		if left := sectorSize - off%sectorSize; left < 4 {
			off += left
			continue
		}
		if off+4 > len(b) {
			return errLZO
		}
		n := int64(le.Uint32(b[off:]))
		off += 4
		if n > int64(len(b)-off) {
			return errLZO
		}
		if len(out) < sectorSize {
			last := make([]byte, sectorSize)
			err := lzo(last, b[off:off+int(n)])
			copy(out, last)
			return err
		}
		if err := lzo(out[:sectorSize], b[off:off+int(n)]); err != nil {
			return err
		}
		out = out[sectorSize:]
		off += int(n)
	}
	return nil
}
