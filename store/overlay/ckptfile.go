package overlay

import (
	"bufio"
	"encoding/binary"
	"errors"
	"hash"
	"hash/crc32"
	"io"
)

// The checkpoint file says which pages the overlay held when it was written and
// where the log goes on (docs/overlay-format.md): a header, then items in
// ascending order of chunk, then a checksum of everything before it.
const (
	checkpointMagic = "LBovckp1"
	checkpointFixed = 64
	itemFixed       = 12
)

// Kinds of items.
const (
	itemBits  = 1 // one chunk: its two bitmaps follow
	itemData  = 2 // count chunks that hold data in every page
	itemZeros = 3 // count chunks that hold zeros in every page
)

// checkpointHeader is what stands before the items.
type checkpointHeader struct {
	overlay uint64
	number  uint64 // of the checkpoint
	file    uint64 // replay starts with the log file of this number
	record  uint64 // and with this record
	data    uint64 // pages that hold data
	zeros   uint64 // pages that hold zeros
	items   uint32
}

type item struct {
	chunk uint32
	count uint32
	kind  uint32
	bits  *chunk
}

// items yields the items of m. Neighbouring uniform chunks are one item.
func (m *pageMap) items(yield func(item) bool) {
	var last item
	for i, n := range m.top {
		if n == nil {
			continue
		}
		for j, c := range n.chunks {
			if c == nil {
				continue
			}
			it := item{chunk: uint32(i*nodeChunks + j), count: 1, kind: m.kind(c), bits: c}
			if it.kind != itemBits && it.kind == last.kind && it.chunk == last.chunk+last.count {
				last.count++
				continue
			}
			if last.count > 0 && !yield(last) {
				return
			}
			last = it
		}
	}
	if last.count > 0 {
		yield(last)
	}
}

func (m *pageMap) kind(c *chunk) uint32 {
	switch c {
	case m.dataChunk:
		return itemData
	case m.zeroChunk:
		return itemZeros
	}
	switch data, zeros := c.count(); {
	case data == chunkPages:
		return itemData
	case zeros == chunkPages:
		return itemZeros
	}
	return itemBits
}

// writeCheckpoint writes h and m, with h's counts filled in.
func writeCheckpoint(w io.Writer, h checkpointHeader, m *pageMap) error {
	h.data, h.zeros, h.items = uint64(m.data), uint64(m.zeros), 0
	for range m.items {
		h.items++
	}
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	out := bufio.NewWriterSize(w, 1<<18)
	both := io.MultiWriter(out, sum)
	if _, err := both.Write(h.encode()); err != nil {
		return err
	}
	buf := make([]byte, 0, itemFixed+2*chunkPages/8)
	for it := range m.items {
		if _, err := both.Write(it.append(buf)); err != nil {
			return err
		}
	}
	if err := binary.Write(out, binary.LittleEndian, sum.Sum32()); err != nil {
		return err
	}
	return out.Flush()
}

func (h *checkpointHeader) encode() []byte {
	le := binary.LittleEndian
	p := append(make([]byte, 0, checkpointFixed), checkpointMagic...)
	for _, v := range []uint64{h.overlay, h.number, h.file, h.record, h.data, h.zeros} {
		p = le.AppendUint64(p, v)
	}
	p = le.AppendUint32(p, h.items)
	return le.AppendUint32(p, 0)
}

func (it *item) append(p []byte) []byte {
	le := binary.LittleEndian
	p = le.AppendUint32(p, it.chunk)
	p = le.AppendUint32(p, it.count)
	p = le.AppendUint32(p, it.kind)
	if it.kind != itemBits {
		return p
	}
	for _, words := range []*[chunkWords]uint64{&it.bits.data, &it.bits.zero} {
		for _, w := range words {
			p = le.AppendUint64(p, w)
		}
	}
	return p
}

// checkpointReader reads items and sums up what it read.
type checkpointReader struct {
	in  *bufio.Reader
	sum hash.Hash32
	m   *pageMap
	buf [itemFixed + 2*chunkPages/8]byte
}

// readCheckpoint reads a checkpoint of a disk of diskPages pages. What it
// allocates is bounded by what it has read: nothing in the file is trusted.
func readCheckpoint(r io.Reader, diskPages int64) (checkpointHeader, *pageMap, error) {
	c := &checkpointReader{in: bufio.NewReaderSize(r, 1<<18), sum: crc32.New(crc32.MakeTable(crc32.Castagnoli)), m: newPageMap(diskPages)}
	h, err := c.header()
	for i, next := uint32(0), int64(0); err == nil && i < h.items; i++ {
		next, err = c.item(next)
	}
	if err == nil {
		err = c.end()
	}
	if err == nil && (h.data != uint64(c.m.data) || h.zeros != uint64(c.m.zeros)) {
		err = errFields
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errShort
	}
	return h, c.m, err
}

func (c *checkpointReader) next(n int) ([]byte, error) {
	p := c.buf[:n]
	if _, err := io.ReadFull(c.in, p); err != nil {
		return nil, err
	}
	c.sum.Write(p)
	return p, nil
}

func (c *checkpointReader) header() (h checkpointHeader, err error) {
	p, err := c.next(checkpointFixed)
	if err != nil {
		return h, err
	}
	if string(p[:8]) != checkpointMagic {
		return h, errMagic
	}
	le := binary.LittleEndian
	for i, v := range []*uint64{&h.overlay, &h.number, &h.file, &h.record, &h.data, &h.zeros} {
		*v = le.Uint64(p[8+8*i:])
	}
	h.items = le.Uint32(p[56:])
	return h, nil
}

// item reads one item, whose chunk must not lie before first, and returns the
// first chunk that the next may be about.
func (c *checkpointReader) item(first int64) (int64, error) {
	p, err := c.next(itemFixed)
	if err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	at, count, kind := int64(le.Uint32(p)), int64(le.Uint32(p[4:])), le.Uint32(p[8:])
	page := at * chunkPages
	if at < first || count == 0 || page >= c.m.pages {
		return 0, errFields
	}
	if kind == itemBits && count == 1 {
		return at + 1, c.bits(page)
	}
	if page+count*chunkPages > c.m.pages || (kind != itemData && kind != itemZeros) {
		return 0, errFields
	}
	c.m.set(page, count*chunkPages, map[uint32]pageState{itemData: holdsData, itemZeros: holdsZeros}[kind])
	return at + count, nil
}

func (c *checkpointReader) bits(page int64) error {
	p, err := c.next(2 * chunkPages / 8)
	if err != nil {
		return err
	}
	own := &chunk{gen: c.m.gen}
	limit := c.m.pages - page
	for w := range own.data {
		own.data[w] = binary.LittleEndian.Uint64(p[8*w:])
		own.zero[w] = binary.LittleEndian.Uint64(p[8*(w+chunkWords):])
		beyond := ^uint64(0) // the bits of pages that the disk does not have
		if valid := limit - int64(w)*64; valid >= 64 {
			beyond = 0
		} else if valid > 0 {
			beyond <<= valid
		}
		if own.data[w]&own.zero[w] != 0 || (own.data[w]|own.zero[w])&beyond != 0 {
			return errFields
		}
	}
	n := c.m.ownNode(page / nodePages)
	n.chunks[page/chunkPages%nodeChunks] = own
	data, zeros := own.count()
	c.m.data, c.m.zeros = c.m.data+data, c.m.zeros+zeros
	return nil
}

// end checks the checksum, and that nothing follows it.
func (c *checkpointReader) end() error {
	want := c.sum.Sum32()
	p, err := c.next(4)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(p) != want {
		return errChecksum
	}
	if _, err := c.in.ReadByte(); err != io.EOF {
		return errFields
	}
	return nil
}
