package segment

import (
	"bytes"
	"encoding/hex"

	"github.com/zeebo/blake3"
)

// Identity names a blob by its kind and content: the first 16 bytes of keyed
// BLAKE3 over the kind byte and the plaintext. Without the repository's key it
// says nothing about the content.
type Identity [16]byte

// String is the identity in hexadecimal.
func (id Identity) String() string { return hex.EncodeToString(id[:]) }

// Hasher computes identities. One per goroutine.
type Hasher struct {
	h    *blake3.Hasher
	kind [1]byte
	sum  [32]byte
}

// NewHasher returns a Hasher for the repository's identity key.
func NewHasher(keys KeySource) *Hasher {
	key := keys.IdentityKey()
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic("segment: BLAKE3 key: " + err.Error()) // 32 bytes: cannot happen
	}
	return &Hasher{h: h}
}

// Identity is the identity of a blob.
func (h *Hasher) Identity(kind Kind, plain []byte) Identity {
	h.h.Reset()
	h.kind[0] = byte(kind)
	_, _ = h.h.Write(h.kind[:])
	_, _ = h.h.Write(plain)
	return Identity(h.h.Sum(h.sum[:0])[:16])
}

// zeros is compared with and never written.
var zeros [FrameSize]byte

// IsZero reports whether b is all zeros. It looks no further than the first
// other byte needs.
func IsZero(b []byte) bool {
	if len(b) >= 8 && b[0]|b[1]|b[2]|b[3]|b[4]|b[5]|b[6]|b[7] != 0 {
		return false
	}
	for len(b) > len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}
