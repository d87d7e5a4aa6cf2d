package crypt

import (
	"bytes"
	"context"
	"crypto/pbkdf2"
	"crypto/sha1" //nolint:gosec // LUKS 1 says so
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"strings"

	//lint:ignore SA1019 old volumes have it
	"golang.org/x/crypto/ripemd160" //nolint:staticcheck,gosec // old volumes

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// The header of LUKS 1 ("LUKS1 On-Disk Format Specification", 1.2.3); numbers
// are big-endian.
const (
	luksMagic   = "LUKS\xba\xbe"
	luks1Bytes  = 592
	luksSlots   = 8
	slotBytes   = 48
	slotActive  = 0x00ac71f3
	digestBytes = 20
)

type luks1 struct {
	cipher, hash string
	payload      int64 // bytes
	keyBytes     int
	digest, salt []byte
	iterations   int
	uuid         string
	slots        []luksSlot
}

type luksSlot struct {
	iterations int
	salt       []byte
	at         int64
	stripes    int
}

func readLUKS1(img disk.Image) (*luks1, error) {
	b, err := read(img, 0, luks1Bytes)
	if err != nil {
		return nil, err
	}
	be := binary.BigEndian
	if string(b[:6]) != luksMagic || be.Uint16(b[6:]) != 1 {
		return nil, guestfs.ErrNoFS
	}
	h := &luks1{
		cipher: text(b[8:40]) + "-" + text(b[40:72]), hash: text(b[72:104]), payload: int64(be.Uint32(b[104:])) * disk.SectorSize,
		keyBytes: int(be.Uint32(b[108:])), digest: b[112:132], salt: b[132:164], iterations: int(be.Uint32(b[164:])), uuid: text(b[168:208]),
	}
	if h.keyBytes == 0 || h.keyBytes > maxKeyBytes || h.payload >= img.Size() || h.iterations > maxIterations {
		return nil, corrupt(LUKS1, "a key of %d bytes, data from %d, %d iterations", h.keyBytes, h.payload, h.iterations)
	}
	for i := range luksSlots {
		s := b[208+i*slotBytes:]
		if be.Uint32(s) != slotActive {
			continue
		}
		slot := luksSlot{iterations: int(be.Uint32(s[4:])), salt: s[8:40], at: int64(be.Uint32(s[40:])) * disk.SectorSize, stripes: int(be.Uint32(s[44:]))}
		if slot.iterations > maxIterations || slot.stripes == 0 || slot.stripes > maxStripes {
			return nil, corrupt(LUKS1, "key slot %d: %d iterations, %d stripes", i, slot.iterations, slot.stripes)
		}
		h.slots = append(h.slots, slot)
	}
	return h, nil
}

// text is a string that ends with its first zero.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

func identifyLUKS1(img disk.Image) (Info, error) {
	h, err := readLUKS1(img)
	if err != nil {
		return Info{}, err
	}
	return Info{Kind: LUKS1, UUID: h.uuid, Cipher: fmt.Sprintf("%s, %d-bit key", h.cipher, h.keyBytes*8), Needs: []string{"passphrase", "key file"}}, nil
}

// hashes are those that volumes are made with.
func newHash(kind Kind, name string) (func() hash.Hash, error) {
	switch strings.ToLower(name) {
	case "sha1":
		return sha1.New, nil
	case "sha256":
		return sha256.New, nil
	case "sha512":
		return sha512.New, nil
	case "sha224":
		return sha256.New224, nil
	case "sha384":
		return sha512.New384, nil
	case "ripemd160":
		return ripemd160.New, nil
	}
	return nil, unsupported(kind, "the hash %s", name)
}

// passphrases are the secrets that LUKS tries.
func (s Secret) passphrases() (list [][]byte) {
	for _, p := range [][]byte{s.Passphrase, s.KeyFile} {
		if len(p) > 0 {
			list = append(list, p)
		}
	}
	return list
}

func unlockLUKS1(ctx context.Context, img disk.Image, secret Secret) (disk.Image, error) {
	h, err := readLUKS1(img)
	if err != nil {
		return nil, err
	}
	newH, err := newHash(LUKS1, h.hash)
	if err != nil {
		return nil, err
	}
	for _, pass := range secret.passphrases() {
		for _, slot := range h.slots {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			derived, err := pbkdf2.Key(newH, string(pass), slot.salt, max(1, slot.iterations), h.keyBytes)
			if err != nil {
				return nil, fmt.Errorf("luks1: derive a key: %w", err)
			}
			key, err := slotKey(LUKS1, img, h.cipher, newH, derived, slot.at, h.keyBytes, slot.stripes)
			if err != nil {
				return nil, err
			}
			sum, err := pbkdf2.Key(newH, string(key), h.salt, max(1, h.iterations), digestBytes)
			if err != nil {
				return nil, fmt.Errorf("luks1: check a key: %w", err)
			}
			if subtle.ConstantTimeCompare(sum, h.digest) == 1 {
				open, err := newDecryptor(LUKS1, h.cipher, key)
				if err != nil {
					return nil, err
				}
				return payload(ctx, LUKS1, img, h.payload, -1, disk.SectorSize, 0, open)
			}
		}
	}
	return nil, ErrKey
}

// slotKey reads a key slot: the volume's key, split and encrypted.
func slotKey(kind Kind, img disk.Image, spec string, newH func() hash.Hash, derived []byte, at int64, keyBytes, stripes int) ([]byte, error) {
	open, err := newDecryptor(kind, spec, derived)
	if err != nil {
		return nil, err
	}
	length := keyBytes * stripes
	material, err := read(img, at, (length+disk.SectorSize-1)/disk.SectorSize*disk.SectorSize)
	if errors.Is(err, guestfs.ErrNoFS) {
		return nil, corrupt(kind, "a key slot of %d bytes at %d lies behind the end", length, at)
	}
	if err != nil {
		return nil, err
	}
	for n := 0; n < len(material); n += disk.SectorSize {
		open(material[n:n+disk.SectorSize], uint64(n/disk.SectorSize))
	}
	return merge(newH, material[:length], keyBytes), nil
}

// merge undoes the anti-forensic splitting: every stripe but the last is diffused
// into the next.
func merge(newH func() hash.Hash, material []byte, keyBytes int) []byte {
	key := make([]byte, keyBytes)
	last := len(material) - keyBytes
	for at := 0; at < last; at += keyBytes {
		subtle.XORBytes(key, key, material[at:at+keyBytes])
		diffuse(newH, key)
	}
	subtle.XORBytes(key, key, material[last:])
	return key
}

func diffuse(newH func() hash.Hash, key []byte) {
	h := newH()
	n := h.Size()
	for i := 0; i*n < len(key); i++ {
		part := key[i*n : min((i+1)*n, len(key))]
		h.Reset()
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(i)))
		h.Write(part)
		copy(part, h.Sum(nil))
	}
}

// payload is the data of a volume: from at to its end, or size bytes of it.
func payload(ctx context.Context, kind Kind, img disk.Image, at, size, sector int64, tweak uint64, open decryptor) (disk.Image, error) {
	if size < 0 {
		size = (img.Size() - at) / sector * sector
	}
	if at < 0 || size <= 0 || size > img.Size()-at || size%sector != 0 {
		return nil, corrupt(kind, "%d bytes of data at %d of %d", size, at, img.Size())
	}
	return newDecrypted(ctx, img, sector, []run{{length: size, at: at, number: tweak}}, open), nil
}
