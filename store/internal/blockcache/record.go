package blockcache

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/zeebo/blake3"
)

// The files. "blocks" is slots of 64 KiB; "index" is a header of 48 bytes and
// then, for each slot, a record of 48 bytes (all numbers little-endian):
//
//	offset  size  content
//	0       16    keyed hash of the object's name
//	16      4     number of the chunk in the object; ffffffff is the last one
//	20      4     length of the chunk in bytes, at most 65536; 0: the slot is empty
//	24      8     size of the object in bytes
//	32      16    MAC of the 32 bytes above and of the chunk
//
// The header is "LBCHUNK1", 24 zero bytes and the MAC of these 32: files of
// another version or repository are emptied, not misread.
//
// The last chunk is found without knowing how many there are, and its MAC
// covers the object's size: having it means knowing the size.
const (
	recordSize = 48
	magic      = "LBCHUNK1"
	tailChunk  = ^uint32(0)
	// maxObject bounds the size of an object, in bytes: its chunks can be
	// counted.
	maxObject = int64(tailChunk) * ChunkSize
)

type objectKey [16]byte

// chunkID names a chunk. number is tailChunk for the last one of an object.
type chunkID struct {
	object objectKey
	number uint32
}

// chunk is the bytes of a chunk, and the size of the object it is from. data is
// shared and never written to.
type chunk struct {
	data []byte
	size int64
}

// chunks is how many chunks an object has.
func chunks(size int64) int64 { return (size + ChunkSize - 1) / ChunkSize }

// numberOf turns an index into the number of a chunkID.
func numberOf(index, size int64) uint32 {
	if index == chunks(size)-1 {
		return tailChunk
	}
	return uint32(index)
}

// hash spreads a chunkID over 64 bits. The object's part is random already.
func (id chunkID) hash() uint64 {
	return binary.LittleEndian.Uint64(id.object[:]) + uint64(id.number)*0x9e3779b97f4a7c15
}

// record describes what is in a slot.
type record struct {
	id     chunkID
	length uint32
	size   int64
	mac    [16]byte
}

func (r *record) encode() (b [recordSize]byte) {
	copy(b[:], r.id.object[:])
	binary.LittleEndian.PutUint32(b[16:], r.id.number)
	binary.LittleEndian.PutUint32(b[20:], r.length)
	binary.LittleEndian.PutUint64(b[24:], uint64(r.size))
	copy(b[32:], r.mac[:])
	return b
}

// parseRecord reads a record. One that cannot be true is an empty slot.
func parseRecord(b []byte) (r record) {
	copy(r.id.object[:], b)
	r.id.number = binary.LittleEndian.Uint32(b[16:])
	r.length = binary.LittleEndian.Uint32(b[20:])
	r.size = int64(binary.LittleEndian.Uint64(b[24:]))
	copy(r.mac[:], b[32:])
	if r.length == 0 || r.size <= 0 || r.size > maxObject || int64(r.length) != r.id.length(r.size) {
		return record{}
	}
	return r
}

// length is how long the chunk is in an object of that size; 0 if it has no
// such chunk.
func (id chunkID) length(size int64) int64 {
	n := chunks(size)
	switch {
	case id.number == tailChunk:
		return size - (n-1)*ChunkSize
	case int64(id.number) < n-1:
		return ChunkSize
	}
	return 0
}

// seal computes the MAC of a record and its chunk.
func (r *record) seal(h *blake3.Hasher, data []byte) (mac [16]byte) {
	b := r.encode()
	var sum [32]byte
	h.Reset()
	_, _ = h.Write(b[:32])
	_, _ = h.Write(data)
	return [16]byte(h.Sum(sum[:0])[:16])
}

func header(h *blake3.Hasher) (b [recordSize]byte) {
	copy(b[:], magic)
	var sum [32]byte
	h.Reset()
	_, _ = h.Write(b[:32])
	copy(b[32:], h.Sum(sum[:0])[:16])
	return b
}

// readIndex reads the records of at most slots slots. ok says whether the header
// is ours; what is missing or cannot be true is an empty slot.
func readIndex(f io.Reader, h *blake3.Hasher, slots int64) (records []record, ok bool, err error) {
	var head [recordSize]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return nil, false, endless(err)
	}
	if head != header(h) {
		return nil, false, nil
	}
	page := make([]byte, recordSize<<10)
	for int64(len(records)) < slots {
		n, err := io.ReadFull(f, page)
		for b := range chunked(page[:n]) {
			if int64(len(records)) == slots {
				break
			}
			records = append(records, parseRecord(b))
		}
		if err != nil {
			return records, true, endless(err)
		}
	}
	return records, true, nil
}

// chunked yields the whole records in b.
func chunked(b []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for ; len(b) >= recordSize; b = b[recordSize:] {
			if !yield(b[:recordSize]) {
				return
			}
		}
	}
}

// endless: a file that ends early is shorter, not wrong.
func endless(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil
	}
	return fmt.Errorf("read the index: %w", err)
}

// same reports whether the MAC fits.
func (r *record) same(h *blake3.Hasher, data []byte) bool {
	mac := r.seal(h, data)
	return bytes.Equal(mac[:], r.mac[:])
}
