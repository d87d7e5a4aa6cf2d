package crypt

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/crypto/xts"

	"lifeboat/disk"
)

// Methods of encryption.
const (
	aes128Diffuser = 0x8000
	aes256Diffuser = 0x8001
	aes128CBC      = 0x8002
	aes256CBC      = 0x8003
	aes128XTS      = 0x8004
	aes256XTS      = 0x8005
)

func methodName(m uint16) string {
	names := map[uint16]string{
		aes128Diffuser: "aes-cbc-elephant, 128-bit key", aes256Diffuser: "aes-cbc-elephant, 256-bit key",
		aes128CBC: "aes-cbc, 128-bit key", aes256CBC: "aes-cbc, 256-bit key",
		aes128XTS: "aes-xts-plain64, 128-bit key", aes256XTS: "aes-xts-plain64, 256-bit key",
	}
	if n, ok := names[m]; ok {
		return n
	}
	return fmt.Sprintf("method %#x", m)
}

func identifyBitLocker(img disk.Image) (Info, error) {
	v, err := readFVE(img)
	if err != nil {
		return Info{}, err
	}
	info := Info{Kind: BitLocker, UUID: v.guid, Label: v.label, Cipher: methodName(v.method)}
	for _, m := range v.masters {
		need, ok := map[uint16]string{
			protectClear: "nothing", protectTPM: "TPM", protectStartup: "key file", protectTPMPin: "TPM", protectRecovery: "recovery key", protectPassword: "passphrase",
		}[m.protection]
		if ok && !slices.Contains(info.Needs, need) {
			info.Needs = append(info.Needs, need)
		}
	}
	return info, nil
}

func unlockBitLocker(ctx context.Context, img disk.Image, secret Secret) (disk.Image, error) {
	v, err := readFVE(img)
	if err != nil {
		return nil, err
	}
	master, err := v.master(ctx, secret)
	if err != nil {
		return nil, err
	}
	for _, e := range v.volumeKey {
		key, ok := unseal(e.data, master)
		if !ok {
			continue
		}
		open, err := v.decryptor(key)
		if err != nil {
			return nil, err
		}
		return v.open(ctx, img, open)
	}
	return nil, corrupt(BitLocker, "its master key does not open the key of the volume")
}

// master finds the volume master key.
func (v *fve) master(ctx context.Context, secret Secret) ([]byte, error) {
	var mistyped error
	for _, m := range v.masters {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		wrapping, err := m.wrapping(secret)
		if err != nil {
			mistyped = err
		}
		if wrapping == nil {
			continue
		}
		if key, ok := unseal(find(m.entries, valueCCM), wrapping); ok {
			return key, nil
		}
	}
	if mistyped != nil {
		return nil, mistyped
	}
	return nil, ErrKey
}

// wrapping is the key that the master key is encrypted with, if the secret has
// something of this kind.
func (m *fveMaster) wrapping(secret Secret) ([]byte, error) {
	salt := find(m.entries, valueStretch)
	switch {
	case m.protection == protectClear:
		return plainKey(find(m.entries, valueKey)), nil
	case m.protection == protectPassword && len(secret.Passphrase) > 0 && len(salt) >= 20:
		return stretch(passwordHash(secret.Passphrase), salt[4:20]), nil
	case m.protection == protectRecovery && secret.RecoveryKey != "" && len(salt) >= 20:
		sum, err := recoveryHash(secret.RecoveryKey)
		if err != nil {
			return nil, err
		}
		return stretch(sum, salt[4:20]), nil
	case m.protection == protectStartup && len(secret.KeyFile) > 0:
		id, key, err := externalKey(secret.KeyFile)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(id, m.guid) {
			return nil, nil
		}
		return key, nil
	}
	return nil, nil
}

// decryptor makes the decryptor of sectors. An IV of CBC is where the sector
// stands, in bytes.
func (v *fve) decryptor(key []byte) (decryptor, error) {
	need := map[uint16]int{aes128Diffuser: 64, aes256Diffuser: 64, aes128CBC: 16, aes256CBC: 32, aes128XTS: 32, aes256XTS: 64}[v.method]
	if need == 0 {
		return nil, unsupported(BitLocker, "encryption by %s", methodName(v.method))
	}
	if len(key) < need {
		return nil, corrupt(BitLocker, "a key of %d bytes for %s", len(key), methodName(v.method))
	}
	if v.method == aes128XTS || v.method == aes256XTS {
		c, err := xts.NewCipher(aes.NewCipher, key[:need])
		if err != nil {
			return nil, err
		}
		return func(b []byte, n uint64) { c.Decrypt(b, b, n) }, nil
	}
	size := 16
	if v.method == aes256CBC || v.method == aes256Diffuser {
		size = 32
	}
	block, err := aes.NewCipher(key[:size])
	if err != nil {
		return nil, err
	}
	var tweak cipher.Block
	if v.method == aes128Diffuser || v.method == aes256Diffuser {
		if tweak, err = aes.NewCipher(key[32 : 32+size]); err != nil {
			return nil, err
		}
	}
	return func(b []byte, n uint64) {
		var at, iv [aes.BlockSize]byte
		binary.LittleEndian.PutUint64(at[:], n*disk.SectorSize)
		block.Encrypt(iv[:], at[:])
		cipher.NewCBCDecrypter(block, iv[:]).CryptBlocks(b, b)
		if tweak != nil {
			undiffuse(b)
			var k [2 * aes.BlockSize]byte
			tweak.Encrypt(k[:16], at[:])
			at[15] = 0x80
			tweak.Encrypt(k[16:], at[:])
			for i := range b {
				b[i] ^= k[i%len(k)]
			}
		}
	}, nil
}

// undiffuse undoes the two diffusers ("Elephant", N. Ferguson, AES-CBC +
// Elephant diffuser, section 4): first B, then A.
func undiffuse(sector []byte) {
	n := len(sector) / 4
	d := make([]uint32, n)
	for i := range d {
		d[i] = binary.LittleEndian.Uint32(sector[4*i:])
	}
	rotateB := [4]int{0, 10, 0, 25}
	for range 3 {
		for i := range n {
			d[i] += d[(i+2)%n] ^ left(d[(i+5)%n], rotateB[i%4])
		}
	}
	rotateA := [4]int{9, 0, 13, 0}
	for range 5 {
		for i := range n {
			d[i] += d[(i+n-2)%n] ^ left(d[(i+n-5)%n], rotateA[i%4])
		}
	}
	for i, v := range d {
		binary.LittleEndian.PutUint32(sector[4*i:], v)
	}
}

func left(v uint32, n int) uint32 { return v<<n | v>>(32-n) }

// open lays the volume out: its first sectors were moved away when it was
// encrypted; where they went to, and where the metadata stands, it reads as
// zeros.
func (v *fve) open(ctx context.Context, img disk.Image, open decryptor) (disk.Image, error) {
	size := img.Size() / disk.SectorSize * disk.SectorSize
	if v.size != 0 && v.size < size {
		// Windows leaves the last sector of a partition out.
		if size-v.size > fveRegion {
			return nil, unsupported(BitLocker, "a volume of which only %d of %d bytes are encrypted so far", v.size, size)
		}
	}
	type hole struct{ from, to int64 }
	holes := []hole{{v.headerAt, v.headerAt + v.headerSize}}
	for _, at := range v.copies {
		holes = append(holes, hole{at, at + fveRegion})
	}
	slices.SortFunc(holes, func(a, b hole) int { return int(min(max(a.from-b.from, -1), 1)) })
	if v.headerSize < disk.SectorSize || v.headerSize > fveRegion || v.headerSize%disk.SectorSize != 0 {
		return nil, corrupt(BitLocker, "the first %d bytes of the volume are elsewhere", v.headerSize)
	}
	runs := []run{{length: v.headerSize, at: v.headerAt, number: uint64(v.headerAt / disk.SectorSize)}}
	at := v.headerSize
	for _, h := range holes {
		if h.from < at || h.to > size || h.from%disk.SectorSize != 0 {
			return nil, corrupt(BitLocker, "metadata from %d to %d, behind %d", h.from, h.to, at)
		}
		if h.from > at {
			runs = append(runs, run{off: at, length: h.from - at, at: at, number: uint64(at / disk.SectorSize)})
		}
		runs = append(runs, run{off: h.from, length: h.to - h.from, zeros: true})
		at = h.to
	}
	if at < size {
		runs = append(runs, run{off: at, length: size - at, at: at, number: uint64(at / disk.SectorSize)})
	}
	return newDecrypted(ctx, img, disk.SectorSize, runs, open), nil
}
