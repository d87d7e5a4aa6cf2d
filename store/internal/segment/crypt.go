package segment

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
)

// What keys are derived for (see KeySource.SubKey). Part of the format.
const (
	purposeFrames = "segment frames"
	purposeFooter = "segment footer"
)

func newAEAD(keys KeySource, purpose string, salt []byte) cipher.AEAD {
	key := keys.SubKey(purpose, salt)
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic("segment: AES-256 key: " + err.Error()) // 32 bytes: cannot happen
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("segment: GCM: " + err.Error())
	}
	return aead
}

// scratch is the memory that one read or one seal needs and that must not be
// allocated for each.
type scratch struct {
	nonce  [12]byte
	aad    [12]byte
	sealed []byte // as read
	plain  []byte // one decoded frame, with room for the decoder to overshoot
}

// frameNonce is slot and frame, 32 bit each, and 32 bits of zero.
func (s *scratch) frameNonce(slot, frame int) []byte {
	binary.LittleEndian.PutUint32(s.nonce[0:], uint32(slot))
	binary.LittleEndian.PutUint32(s.nonce[4:], uint32(frame))
	binary.LittleEndian.PutUint32(s.nonce[8:], 0)
	return s.nonce[:]
}

// frameAAD is segment number, kind and whether the frame is stored raw.
func (s *scratch) frameAAD(number uint64, kind Kind, raw bool) []byte {
	binary.LittleEndian.PutUint64(s.aad[:], number)
	s.aad[8] = byte(kind)
	s.aad[9] = 0
	if raw {
		s.aad[9] = 1
	}
	return s.aad[:10]
}

// footerNonce is the table and the page, 32 bit each, and 32 bits of zero.
func (s *scratch) footerNonce(t table, page int) []byte {
	return s.frameNonce(int(t), page)
}

// pageAAD is segment number and generation.
func (s *scratch) pageAAD(number uint64, generation uint32) []byte {
	binary.LittleEndian.PutUint64(s.aad[:], number)
	binary.LittleEndian.PutUint32(s.aad[8:], generation)
	return s.aad[:12]
}
