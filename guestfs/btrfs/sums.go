package btrfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"math/bits"

	"golang.org/x/crypto/blake2b"
)

// sumKind is a kind of checksum.
type sumKind struct {
	size int
	of   func([]byte) []byte
}

// ok verifies the checksum of b that stands at the beginning of want.
func (k sumKind) ok(b, want []byte) bool {
	return len(want) >= k.size && bytes.Equal(k.of(b), want[:k.size])
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sumKinds are those of the format (BTRFS_CSUM_TYPE_*).
var sumKinds = map[uint16]sumKind{
	0: {4, func(b []byte) []byte { return binary.LittleEndian.AppendUint32(nil, crc32.Checksum(b, castagnoli)) }},
	1: {8, func(b []byte) []byte { return binary.LittleEndian.AppendUint64(nil, xxhash(b)) }},
	2: {32, func(b []byte) []byte { s := sha256.Sum256(b); return s[:] }},
	3: {32, func(b []byte) []byte { s := blake2b.Sum256(b); return s[:] }},
}

// The primes of XXH64 (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md).
const (
	prime1 = 0x9e3779b185ebca87
	prime2 = 0xc2b2ae3d27d4eb4f
	prime3 = 0x165667b19e3779f9
	prime4 = 0x85ebca77c2b2ae63
	prime5 = 0x27d4eb2f165667c5
)

func xxround(acc, lane uint64) uint64 { return bits.RotateLeft64(acc+lane*prime2, 31) * prime1 }

// xxhash is XXH64 with seed 0.
func xxhash(b []byte) uint64 {
	le := binary.LittleEndian
	n := uint64(len(b))
	h := uint64(prime5)
	if len(b) >= 32 {
		// The sums of primes overflow, as they are meant to.
		seed := uint64(0)
		a := [4]uint64{seed + prime1, seed + prime2, seed, seed - prime1}
		a[0] += prime2
		for ; len(b) >= 32; b = b[32:] {
			for i := range a {
				a[i] = xxround(a[i], le.Uint64(b[8*i:]))
			}
		}
		h = bits.RotateLeft64(a[0], 1) + bits.RotateLeft64(a[1], 7) + bits.RotateLeft64(a[2], 12) + bits.RotateLeft64(a[3], 18)
		for _, x := range a {
			h = (h^xxround(0, x))*prime1 + prime4
		}
	}
	h += n
	for ; len(b) >= 8; b = b[8:] {
		h = bits.RotateLeft64(h^xxround(0, le.Uint64(b)), 27)*prime1 + prime4
	}
	if len(b) >= 4 {
		h = bits.RotateLeft64(h^uint64(le.Uint32(b))*prime1, 23)*prime2 + prime3
		b = b[4:]
	}
	for _, c := range b {
		h = bits.RotateLeft64(h^uint64(c)*prime5, 11) * prime1
	}
	h = (h ^ h>>33) * prime2
	h = (h ^ h>>29) * prime3
	return h ^ h>>32
}
