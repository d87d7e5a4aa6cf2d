package dedupe

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"

	"lifeboat/store/internal/segment"
)

// A run, version 1. All integers are little-endian. "Sealed" is AES-256-GCM
// with the 16-byte tag at the end, under SubKey("dedupe run", salt); the salt
// is random for every run.
//
//	partition 0:  pages, summary
//	partition 1:  …
//	directory     sealed
//	trailer       64 bytes
//
// A page is 4096 bytes: 170 entries of 24 bytes (identity 16, address 8),
// sealed. Entries ascend by identity over the whole run. Only the last page of
// a run may have fewer; the rest of it is zeros. A partition has 4096 pages,
// the last one of a run fewer.
//
// A summary holds what is kept in memory of a partition, sealed, padded with
// zeros to a multiple of 4096 bytes:
//
//	0   16  the first identity
//	16  4   pages
//	20  4   entries
//	24  8   filter: seed
//	32  4   filter: segment length, a power of two
//	36  4   filter: segments s
//	40  4p  per page the first 4 bytes of its first identity, as a number (big-endian)
//	…       filter: (s+2) × segment length bytes
//
// The filter is a BinaryFuse8 (Graf and Lemire, "Binary Fuse Filters", 2022)
// over filterKey of each identity.
//
// The directory:
//
//	0   8   stamp: time of publication, Unix nanoseconds; of a merged run the latest of its sources'
//	8   8   entries
//	16  4   partitions n
//	20  4   replaced runs r
//	24  12n per partition: pages, entries, size of the sealed summary (4 bytes each)
//	…   8r  names of the runs that this one replaces
//
// The trailer, which with the object's name is the additional data of the
// directory:
//
//	0   32  salt
//	32  8   offset of the directory
//	40  4   size of the sealed directory
//	44  4   version, 1
//	48  8   zero
//	56  8   "LBIDXEND"
//
// The nonce is the kind of what is sealed (page 1, summary 2, directory 3; 4
// bytes) and its number in the run (8 bytes). So every byte of the object is
// authenticated, in its place.
const (
	version = 1
	magic   = "LBIDXEND"
	purpose = "dedupe run"

	pageSize       = 4096
	entrySize      = 24
	tagSize        = 16
	pageEntries    = (pageSize - tagSize) / entrySize // 170, and no byte left
	partitionPages = 4096

	saltSize      = 32
	trailerSize   = 64
	summaryFixed  = 40
	directoryHead = 24
	directoryPart = 12

	maxPartitions = 1 << 20
	maxReplaced   = 1 << 12
	maxSegment    = 1 << 20 // length of a filter's segment
	maxDirectory  = directoryHead + maxPartitions*directoryPart + maxReplaced*8 + tagSize
)

// kind is what is sealed.
type kind uint32

const (
	pageKind kind = 1 + iota
	summaryKind
	directoryKind
)

// Prefix is where the runs are.
const Prefix = "index/"

// runID names a run: index/<16 hex digits>.
type runID uint64

func (id runID) object() string { return fmt.Sprintf("%s%016x", Prefix, uint64(id)) }

// parseName is the inverse of object.
func parseName(object string) (runID, bool) {
	digits, ok := strings.CutPrefix(object, Prefix)
	raw, err := hex.DecodeString(digits)
	if !ok || err != nil || len(raw) != 8 {
		return 0, false
	}
	id := runID(binary.BigEndian.Uint64(raw))
	return id, id.object() == object
}

// Entry says where a blob is.
type Entry struct {
	ID   segment.Identity
	Addr segment.Addr
}

func putEntry(p []byte, e Entry) {
	copy(p, e.ID[:])
	binary.LittleEndian.PutUint64(p[16:], uint64(e.Addr))
}

func getEntry(p []byte) Entry {
	return Entry{segment.Identity(p[:16]), segment.Addr(binary.LittleEndian.Uint64(p[16:]))}
}

// filterKey is what a filter holds of an identity. Identities are uniform
// already; both halves count so that tests with poor ones work too.
func filterKey(id segment.Identity) uint64 {
	a, b := binary.LittleEndian.Uint64(id[:]), binary.LittleEndian.Uint64(id[8:])
	return a*0x9e3779b97f4a7c15 ^ b
}

// fence is what is kept in memory of a page.
func fence(id segment.Identity) uint32 { return binary.BigEndian.Uint32(id[:]) }

// Keys derives the keys of runs. keyring.Keys does.
type Keys interface {
	SubKey(purpose string, salt []byte) [32]byte
}

// seal is the cipher of one run. It is safe for concurrent use.
type seal struct {
	aead cipher.AEAD
	pool *sync.Pool // of *scratch
}

// scratch is what one seal or open needs and must not allocate each time.
type scratch struct {
	nonce [12]byte
	page  [pageSize]byte
}

func newSeal(keys Keys, salt []byte) (seal, error) {
	key := keys.SubKey(purpose, salt)
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return seal{}, err
	}
	aead, err := cipher.NewGCM(block)
	return seal{aead, &sync.Pool{New: func() any { return new(scratch) }}}, err
}

func (s *scratch) setNonce(k kind, number int) []byte {
	binary.LittleEndian.PutUint32(s.nonce[:], uint32(k))
	binary.LittleEndian.PutUint64(s.nonce[4:], uint64(number))
	return s.nonce[:]
}

// seal appends the sealed plaintext to dst.
func (c seal) seal(dst []byte, k kind, number int, plain, additional []byte) []byte {
	s := c.pool.Get().(*scratch)
	defer c.pool.Put(s)
	return c.aead.Seal(dst, s.setNonce(k, number), plain, additional)
}

var errAuth = errors.New("its content is not what was sealed there")

// open opens in place.
func (c seal) open(k kind, number int, sealed, additional []byte) ([]byte, error) {
	s := c.pool.Get().(*scratch)
	defer c.pool.Put(s)
	plain, err := c.aead.Open(sealed[:0], s.setNonce(k, number), sealed, additional)
	if err != nil {
		return nil, errAuth
	}
	return plain, nil
}
