package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// codecs are the decompressors of one image and what is under it, pooled
// because making one costs more than a cluster. Each reader decompresses on its
// own goroutine, so that parallel reads use all cores.
type codecs struct {
	flate   sync.Pool // of io.ReadCloser + flate.Resetter
	zlib    sync.Pool // of io.ReadCloser + zlib.Resetter
	scratch sync.Pool // of *[]byte

	// zstd is used for DecodeAll only, which is safe for concurrent use and
	// starts no goroutines. It is never closed: reads may be in it.
	mu   sync.Mutex
	zstd *zstd.Decoder
}

// maxCluster is the largest compressed unit that any format may have, bytes.
const maxCluster = 2 << 20

// buffer returns n bytes of scratch space; give it back with release.
func (c *codecs) buffer(n int64) *[]byte {
	if b, ok := c.scratch.Get().(*[]byte); ok && int64(cap(*b)) >= n {
		*b = (*b)[:n]
		return b
	}
	b := make([]byte, n)
	return &b
}

func (c *codecs) release(b *[]byte) { c.scratch.Put(b) }

// inflate fills dst from a raw deflate stream (RFC 1951), as qcow2 has it. What
// follows in src is ignored: its length is known in sectors only.
func (c *codecs) inflate(dst, src []byte) error {
	r, ok := c.flate.Get().(io.ReadCloser)
	if !ok {
		r = flate.NewReader(bytes.NewReader(src))
	} else if err := r.(flate.Resetter).Reset(bytes.NewReader(src), nil); err != nil {
		return err
	}
	defer c.flate.Put(r)
	return fill(r, dst)
}

// unzlib fills dst from a zlib stream (RFC 1950), as vmdk has it, and returns
// how much of dst there was.
func (c *codecs) unzlib(dst, src []byte) (int, error) {
	r, ok := c.zlib.Get().(io.ReadCloser)
	var err error
	if ok {
		err = r.(zlib.Resetter).Reset(bytes.NewReader(src), nil)
	} else {
		r, err = zlib.NewReader(bytes.NewReader(src))
	}
	if err != nil {
		return 0, err
	}
	defer c.zlib.Put(r)
	n, err := io.ReadFull(r, dst)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return n, nil // the stream is whole and shorter: the caller decides
	}
	if err != nil {
		return n, err
	}
	// One more read makes the reader compare the stream's checksum.
	if extra, err := r.Read(make([]byte, 1)); extra != 0 || (err != nil && err != io.EOF) {
		return n, fmt.Errorf("after %d bytes: %w", n, errors.Join(errTooLong, err))
	}
	return n, nil
}

var errTooLong = errors.New("damaged or longer than a cluster")

func fill(r io.Reader, dst []byte) error {
	if n, err := io.ReadFull(r, dst); err != nil {
		return fmt.Errorf("%d bytes of %d: %w", n, len(dst), err)
	}
	return nil
}

// unzstd fills dst from one or more zstd frames (RFC 8878). What follows the
// last frame needed is ignored, as in inflate.
func (c *codecs) unzstd(dst, src []byte) error {
	dec, err := c.zstdDecoder()
	if err != nil {
		return err
	}
	out := dst[:0:len(dst)]
	for len(out) < len(dst) {
		n, err := zstdFrameLen(src)
		if err != nil {
			return err
		}
		before := len(out)
		if out, err = dec.DecodeAll(src[:n], out); err != nil {
			return err
		}
		if len(out) == before {
			return fmt.Errorf("%d bytes of %d: %w", len(out), len(dst), io.ErrUnexpectedEOF)
		}
		src = src[n:]
	}
	return nil
}

func (c *codecs) zstdDecoder() (*zstd.Decoder, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.zstd == nil {
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxCluster),
			zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		c.zstd = dec
	}
	return c.zstd, nil
}

// zstdFrameLen is the length of the zstd frame at the start of src. qcow2 does
// not record it, and the decoder takes nothing that follows a frame. It reads
// the frame header and the chain of block headers (RFC 8878 §3.1.1).
func zstdFrameLen(src []byte) (int, error) {
	var h zstd.Header
	if err := h.Decode(src); err != nil {
		return 0, err
	}
	at := h.HeaderSize
	if h.Skippable {
		at += int(h.SkippableSize)
		if at > len(src) {
			return 0, io.ErrUnexpectedEOF
		}
		return at, nil
	}
	for last := false; !last; {
		if at+3 > len(src) {
			return 0, io.ErrUnexpectedEOF
		}
		block := uint32(src[at]) | uint32(src[at+1])<<8 | uint32(src[at+2])<<16
		last = block&1 != 0
		at += 3
		if block>>1&3 == 1 { // a run of one byte
			at++
		} else {
			at += int(block >> 3)
		}
		if at > len(src) {
			return 0, io.ErrUnexpectedEOF
		}
	}
	if h.HasCheckSum {
		at += 4
	}
	if at > len(src) {
		return 0, io.ErrUnexpectedEOF
	}
	return at, nil
}
