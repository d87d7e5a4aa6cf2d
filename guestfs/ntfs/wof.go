package ntfs

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"lifeboat/disk"
	"lifeboat/guestfs/ntfs/internal/lzx"
	"lifeboat/guestfs/ntfs/internal/xpress"
)

// wofStream is where the content of a file is that WOF compressed; the unnamed
// stream is a hole of its size.
const wofStream = "WofCompressedData"

// Methods of WOF: the size of their chunks in bytes.
const (
	methodXpress4K  = 0
	methodLZX       = 1
	methodXpress8K  = 2
	methodXpress16K = 3
)

// wof is a file that WOF compressed. The stream is a table of where the chunks
// begin, the first one left out, of 32 bits (64 in a file of 4 GiB and more),
// then the chunks. One that would not get smaller is there as it is.
type wof struct {
	number uint64
	img    disk.Image // the compressed stream
	size   int64      // bytes
	chunk  int64
	entry  int64 // bytes of an entry of the table
	table  int64
	packed sync.Pool // of *[]byte: windows as they are stored
	xpress sync.Pool
	lzx    sync.Pool
	lzxed  bool
}

func (n *node) openWOF(ctx context.Context, point *reparsePoint, size int64) (disk.Image, error) {
	w := &wof{number: n.base.number, size: size, entry: 4}
	switch point.method {
	case methodXpress4K:
		w.chunk = 4 << 10
	case methodXpress8K:
		w.chunk = 8 << 10
	case methodXpress16K:
		w.chunk = 16 << 10
	case methodLZX:
		w.chunk, w.lzxed = lzx.ChunkSize, true
	default:
		return nil, unsupported("record %d: method %d of compression by WOF", n.base.number, point.method)
	}
	a, err := n.find(ctx, attrData, wofStream)
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, corrupt("record %d: compressed by WOF, and without its stream", n.base.number)
	}
	if w.img, err = n.open(ctx, a); err != nil {
		return nil, err
	}
	if size > 1<<32-1 {
		w.entry = 8
	}
	if size > 0 {
		w.table = ((size+w.chunk-1)/w.chunk - 1) * w.entry
	}
	if w.table > w.img.Size() {
		return nil, corrupt("record %d: %d bytes in a compressed stream of %d", n.base.number, size, w.img.Size())
	}
	w.packed.New = func() any { b := make([]byte, windowSize); return &b }
	w.xpress.New = func() any { return new(xpress.Decoder) }
	w.lzx.New = func() any { return new(lzx.Decoder) }
	return newEncoded(ctx, size, windowSize, w), nil
}

// bounds reads where the chunks from first on begin, count of them, and where
// the last one ends.
func (w *wof) bounds(first, count int64) ([]int64, error) {
	chunks := (w.size + w.chunk - 1) / w.chunk
	out := make([]int64, count+1)
	from, to := max(first, 1), min(first+count, chunks-1) // entries of the table
	raw := make([]byte, max(0, (to-from+1)*w.entry))
	if n, err := w.img.ReadAt(raw, (from-1)*w.entry); n < len(raw) {
		return nil, unexpected(err)
	}
	for i := range out {
		switch chunk := first + int64(i); {
		case chunk == 0:
		case chunk == chunks:
			out[i] = w.img.Size() - w.table
		case w.entry == 8:
			out[i] = int64(binary.LittleEndian.Uint64(raw[(chunk-from)*8:]))
		default:
			out[i] = int64(binary.LittleEndian.Uint32(raw[(chunk-from)*4:]))
		}
		if out[i] < 0 || out[i] > w.img.Size()-w.table || i > 0 && (out[i] < out[i-1] || out[i]-out[i-1] > w.chunk) {
			return nil, corrupt("chunk %d begins at %d of %d", first+int64(i), out[i], w.img.Size())
		}
	}
	return out, nil
}

func (w *wof) decode(_ context.Context, p []byte, off int64) error {
	if err := w.window(p, off/w.chunk); err != nil {
		return fmt.Errorf("record %d: content compressed by WOF at %d: %w", w.number, off, err)
	}
	return nil
}

// window reads the chunks from first on that fill p, and decompresses them.
func (w *wof) window(p []byte, first int64) error {
	at, err := w.bounds(first, (int64(len(p))+w.chunk-1)/w.chunk)
	if err != nil {
		return err
	}
	buf := w.packed.Get().(*[]byte)
	defer w.packed.Put(buf)
	packed := (*buf)[:at[len(at)-1]-at[0]]
	if n, err := w.img.ReadAt(packed, w.table+at[0]); n < len(packed) {
		return unexpected(err)
	}
	for i := 0; len(p) > 0; i++ {
		n := min(int64(len(p)), w.chunk)
		if err := w.unpack(p[:n], packed[at[i]-at[0]:at[i+1]-at[0]]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

func (w *wof) unpack(dst, src []byte) (err error) {
	switch {
	case len(src) == len(dst):
		copy(dst, src)
		return nil
	case w.lzxed:
		d := w.lzx.Get().(*lzx.Decoder)
		err = d.Decode(dst, src)
		w.lzx.Put(d)
	default:
		d := w.xpress.Get().(*xpress.Decoder)
		err = d.Decode(dst, src)
		w.xpress.Put(d)
	}
	if err != nil {
		return corrupt("%v", err)
	}
	return nil
}

// hole is part of codec: WOF has none.
func (w *wof) hole(context.Context, int64) (int64, error) { return 0, nil }
