// Package keyring keeps a repository's keys: its header, the key files that
// wrap the master key under passwords, and the envelope that small objects are
// sealed in.
//
// One random 32-byte master key is made when the repository is, and never
// changes. Every other key is derived from it by purpose. A key file holds the
// master key sealed under a key that Argon2id makes of a password (RFC 9106);
// so a password is changed by adding a key file and removing another, and
// costs nothing else.
//
// Nothing that is read is trusted: sizes, parameters and counts have limits
// that are checked before memory or time is spent on them.
package keyring

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
)

// KeySize is the size of the master key and of every key derived from it, in
// bytes.
const KeySize = 32

// Keys derives a repository's keys from its master key. It is immutable and
// safe for concurrent use.
type Keys struct {
	master [KeySize]byte
}

// NewKeys is the keys of a given master key, for tests of what seals with
// them. A repository's keys come from [Create] and [Open].
func NewKeys(master [KeySize]byte) *Keys { return &Keys{master} }

// SubKey derives the key for a purpose, and for one use of it where salt is
// not empty: HKDF-SHA256 (RFC 5869) of the master key with "lifeboat: " and
// the purpose as info.
func (k *Keys) SubKey(purpose string, salt []byte) [KeySize]byte {
	key, err := hkdf.Key(sha256.New, k.master[:], salt, "lifeboat: "+purpose, KeySize)
	if err != nil {
		panic(err) // only for a length above 255 hashes
	}
	return [KeySize]byte(key)
}

// IdentityKey is the key of the hash that identifies blocks.
func (k *Keys) IdentityKey() [KeySize]byte { return k.SubKey("block identity", nil) }

// The envelope, version 1:
//
//	offset  size  content
//	0       4     "LBSE"
//	4       1     version, 1
//	5       3     zero
//	8       32    random salt
//	40      n     plaintext, AES-256-GCM
//	40+n    16    tag
//
// The key is SubKey("envelope", salt), so it is never used twice and the
// nonce is zero. The additional data are the first 8 bytes and the object's
// name: an envelope cannot be passed off as another object.
const (
	envelopeMagic   = "LBSE"
	envelopeVersion = 1
	envelopeHeader  = 8
	envelopeSalt    = 32
	tagSize         = 16

	// EnvelopeOverhead is what sealing adds to a plaintext, in bytes.
	EnvelopeOverhead = envelopeHeader + envelopeSalt + tagSize
)

// Seal puts plaintext into an envelope that opens under the same name only.
func (k *Keys) Seal(name string, plaintext []byte) ([]byte, error) {
	var salt [envelopeSalt]byte
	rand.Read(salt[:]) // never fails (crypto/rand)
	return k.sealWith(salt, name, plaintext)
}

func (k *Keys) sealWith(salt [envelopeSalt]byte, name string, plaintext []byte) ([]byte, error) {
	aead, err := k.envelopeCipher(salt[:])
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", name, err)
	}
	out := make([]byte, 0, len(plaintext)+EnvelopeOverhead)
	out = append(out, envelopeMagic...)
	out = append(out, envelopeVersion, 0, 0, 0)
	ad := append(append([]byte(nil), out...), name...)
	out = append(out, salt[:]...)
	return aead.Seal(out, make([]byte, aead.NonceSize()), plaintext, ad), nil
}

// Open returns what Seal put into the envelope. An error matches [ErrDamaged]
// and is a [*DamageError] that names the object.
//
// A version that it does not know is damage too: a repository with newer
// envelopes says so in its header, and has been refused long before.
func (k *Keys) Open(name string, sealed []byte) ([]byte, error) {
	if len(sealed) < EnvelopeOverhead {
		return nil, damaged(name, "%d bytes are too few for an envelope", len(sealed))
	}
	if string(sealed[:4]) != envelopeMagic || sealed[4] != envelopeVersion {
		return nil, damaged(name, "it does not begin like an envelope (% x)", sealed[:5])
	}
	salt := sealed[envelopeHeader : envelopeHeader+envelopeSalt]
	aead, err := k.envelopeCipher(salt)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	ad := append(append([]byte(nil), sealed[:envelopeHeader]...), name...)
	plain, err := aead.Open(nil, make([]byte, aead.NonceSize()), sealed[envelopeHeader+envelopeSalt:], ad)
	if err != nil {
		return nil, damaged(name, "its content is not what was sealed under this name")
	}
	return plain, nil
}

func (k *Keys) envelopeCipher(salt []byte) (cipher.AEAD, error) {
	key := k.SubKey("envelope", salt)
	return newGCM(key)
}

func newGCM(key [KeySize]byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
