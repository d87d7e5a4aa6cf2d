package crypt

import (
	"crypto/aes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/internal/wtf8"
)

// BitLocker's structures (full volume encryption, FVE). Microsoft has not
// published them; they are described by the libbde project ("BitLocker Drive
// Encryption (BDE) format specification") and in the paper of Kumar and Kumar on
// its implementation in Windows 7. Numbers are little-endian, times FILETIME.
const (
	fveSignature    = "-FVE-FS-"
	fveGUID         = "\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01" // of Windows 7 and later
	fveToGoGUID     = "\x3b\x4d\xa8\x92\x80\xdd\x0e\x4d\x9e\x4e\xb1\xe3\x28\x4e\xae\xd8"
	fveBlockHeader  = 64
	fveHeader       = 48
	fveRegion       = 64 << 10 // what is kept free for one copy of the metadata
	maxFVE          = fveRegion - fveBlockHeader
	fveEntryHeader  = 8
	fveStretchCount = 1 << 20
	fveMACBytes     = 16
	fveNonceBytes   = 12
)

// Types of entries, and of their values.
const (
	fveVMK         = 0x0002
	fveFVEK        = 0x0003
	fveDescription = 0x0007
	fveVolumeBlock = 0x000f

	valueKey      = 0x0001
	valueStretch  = 0x0003
	valueUse      = 0x0004
	valueCCM      = 0x0005
	valueVMK      = 0x0008
	valueExternal = 0x0009
	valueOffset   = 0x000f
)

// What protects a volume master key.
const (
	protectClear    = 0x0000
	protectTPM      = 0x0100
	protectStartup  = 0x0200
	protectTPMPin   = 0x0500
	protectRecovery = 0x0800
	protectPassword = 0x2000
)

// fve is the metadata of a volume.
type fve struct {
	copies     []int64
	size       int64 // encrypted so far, bytes
	headerAt   int64 // where the volume's first sectors are
	headerSize int64
	method     uint16
	guid       string
	label      string
	masters    []fveMaster
	volumeKey  []fveEntry
	toGo       bool
}

// fveMaster is the volume master key, protected in one way.
type fveMaster struct {
	protection uint16
	guid       []byte
	entries    []fveEntry
}

type fveEntry struct {
	kind, value uint16
	data        []byte
}

// readFVE reads the metadata: the first of its three copies that is whole.
func readFVE(img disk.Image) (*fve, error) {
	b, err := read(img, 0, disk.SectorSize)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	at := 176
	var toGo bool
	switch {
	case string(b[3:11]) == fveSignature && string(b[160:176]) == fveGUID:
	case string(b[424:440]) == fveGUID || string(b[424:440]) == fveToGoGUID:
		at, toGo = 440, true
	case string(b[3:11]) == fveSignature && le.Uint16(b[11:]) != 0 && le.Uint64(b[56:]) != 0:
		return nil, unsupported(BitLocker, "the format of Windows Vista")
	default:
		return nil, guestfs.ErrNoFS
	}
	if sector := le.Uint16(b[11:]); sector != disk.SectorSize {
		return nil, unsupported(BitLocker, "a disk with sectors of %d bytes", sector)
	}
	var failed error
	for i := range 3 {
		off := int64(le.Uint64(b[at+8*i:]))
		v, err := readFVEBlock(img, off)
		if err == nil {
			v.toGo = toGo
			return v, nil
		}
		failed = errors.Join(failed, err)
	}
	return nil, fmt.Errorf("none of the three copies of its metadata can be read: %w", failed)
}

func readFVEBlock(img disk.Image, off int64) (*fve, error) {
	if off <= 0 || off > img.Size()-fveRegion {
		return nil, corrupt(BitLocker, "metadata at %d of %d", off, img.Size())
	}
	b, err := read(img, off, fveRegion)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if string(b[:8]) != fveSignature || le.Uint16(b[10:]) != 2 {
		return nil, corrupt(BitLocker, "metadata at %d of version %d", off, le.Uint16(b[10:]))
	}
	size := int(le.Uint32(b[fveBlockHeader:]))
	if size < fveHeader || size > maxFVE || le.Uint32(b[fveBlockHeader+8:]) != fveHeader {
		return nil, corrupt(BitLocker, "metadata of %d bytes", size)
	}
	// Behind them comes a checksum, of Windows 7's blocks at least.
	end := int(le.Uint16(b[8:])) * 16
	if end >= fveBlockHeader+size && end+8 <= len(b) && le.Uint16(b[end:]) >= 8 {
		if sum := le.Uint32(b[end+4:]); sum != 0 && sum != crc32.ChecksumIEEE(b[:end]) {
			return nil, corrupt(BitLocker, "the metadata at %d has a wrong checksum", off)
		}
	}
	v := &fve{
		size: int64(le.Uint64(b[16:])), headerAt: int64(le.Uint64(b[56:])), headerSize: int64(le.Uint32(b[28:])) * disk.SectorSize,
		method: le.Uint16(b[fveBlockHeader+36:]), guid: guid(b[fveBlockHeader+16:]),
	}
	for i := range 3 {
		v.copies = append(v.copies, int64(le.Uint64(b[32+8*i:])))
	}
	entries, err := fveEntries(b[fveBlockHeader+fveHeader : fveBlockHeader+size])
	if err != nil {
		return nil, err
	}
	return v, v.take(entries)
}

func guid(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}

// fveEntries takes a list of entries apart.
func fveEntries(b []byte) (list []fveEntry, err error) {
	le := binary.LittleEndian
	for len(b) >= fveEntryHeader {
		n := int(le.Uint16(b))
		if n == 0 {
			break
		}
		if n < fveEntryHeader || n > len(b) {
			return nil, corrupt(BitLocker, "an entry of %d bytes in %d", n, len(b))
		}
		list = append(list, fveEntry{kind: le.Uint16(b[2:]), value: le.Uint16(b[4:]), data: b[fveEntryHeader:n]})
		b = b[n:]
	}
	return list, nil
}

func (v *fve) take(entries []fveEntry) error {
	le := binary.LittleEndian
	for _, e := range entries {
		switch {
		case e.kind == fveVMK && e.value == valueVMK && len(e.data) >= 28:
			nested, err := fveEntries(e.data[28:])
			if err != nil {
				return err
			}
			v.masters = append(v.masters, fveMaster{protection: le.Uint16(e.data[26:]), guid: e.data[:16], entries: nested})
		case e.kind == fveFVEK && e.value == valueCCM:
			v.volumeKey = append(v.volumeKey, e)
		case e.kind == fveDescription:
			v.label = strings.TrimRight(wtf8.DecodeBytes(e.data), "\x00")
		case e.kind == fveVolumeBlock && e.value == valueOffset && len(e.data) >= 16:
			v.headerAt, v.headerSize = int64(le.Uint64(e.data)), int64(le.Uint64(e.data[8:]))
		}
	}
	return nil
}

// find is the first value of a kind among entries.
func find(entries []fveEntry, value uint16) []byte {
	for _, e := range entries {
		if e.value == value {
			return e.data
		}
	}
	return nil
}

// unseal decrypts what AES-CCM protects: nonce (12), MAC (16), and a key with a
// header of 12 bytes that begins with its length.
func unseal(data, key []byte) ([]byte, bool) {
	if len(data) < fveNonceBytes+fveMACBytes+12 {
		return nil, false
	}
	plain, ok := openCCM(key, data[:fveNonceBytes], data[fveNonceBytes:fveNonceBytes+fveMACBytes], data[fveNonceBytes+fveMACBytes:])
	if !ok {
		return nil, false
	}
	n := int(binary.LittleEndian.Uint16(plain))
	if n < 12 || n > len(plain) {
		return nil, false
	}
	return plain[12:n], true
}

// openCCM is AES-CCM (RFC 3610) with a nonce of 12 bytes and a MAC of 16: the
// standard library has none.
func openCCM(key, nonce, mac, sealed []byte) ([]byte, bool) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, false
	}
	const lengthBytes = 15 - fveNonceBytes
	stream := func(n int) (out [aes.BlockSize]byte) {
		out[0] = lengthBytes - 1
		copy(out[1:], nonce)
		out[13], out[14], out[15] = byte(n>>16), byte(n>>8), byte(n)
		block.Encrypt(out[:], out[:])
		return out
	}
	plain := make([]byte, len(sealed))
	for i := 0; i*aes.BlockSize < len(sealed); i++ {
		part := sealed[i*aes.BlockSize : min((i+1)*aes.BlockSize, len(sealed))]
		k := stream(i + 1)
		subtle.XORBytes(plain[i*aes.BlockSize:], part, k[:])
	}
	// The MAC: CBC over a first block with the lengths, and the text.
	var sum [aes.BlockSize]byte
	sum[0] = (fveMACBytes-2)/2<<3 | lengthBytes - 1
	copy(sum[1:], nonce)
	sum[13], sum[14], sum[15] = byte(len(plain)>>16), byte(len(plain)>>8), byte(len(plain))
	block.Encrypt(sum[:], sum[:])
	for part := range slices.Chunk(plain, aes.BlockSize) {
		subtle.XORBytes(sum[:], sum[:], part)
		block.Encrypt(sum[:], sum[:])
	}
	k := stream(0)
	subtle.XORBytes(sum[:], sum[:], k[:])
	return plain, subtle.ConstantTimeCompare(sum[:], mac) == 1
}

// stretch makes a key of the hash of a password or recovery key: a million
// rounds of SHA-256 over what was before, the hash, the salt and a counter.
func stretch(initial [sha256.Size]byte, salt []byte) []byte {
	var b [2*sha256.Size + 16 + 8]byte
	copy(b[sha256.Size:], initial[:])
	copy(b[2*sha256.Size:], salt)
	for i := range uint64(fveStretchCount) {
		binary.LittleEndian.PutUint64(b[2*sha256.Size+16:], i)
		sum := sha256.Sum256(b[:])
		copy(b[:], sum[:])
	}
	return b[:sha256.Size:sha256.Size]
}

func passwordHash(password []byte) [sha256.Size]byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(string(password))) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	sum := sha256.Sum256(b)
	return sha256.Sum256(sum[:])
}

// ErrRecoveryKey says that a recovery key was mistyped.
var ErrRecoveryKey = errors.New("not a BitLocker recovery key")

// recoveryHash reads a recovery key: eight groups of six digits, each a number of
// 16 bits times eleven, so that a typing error shows.
func recoveryHash(key string) (sum [sha256.Size]byte, err error) {
	groups := strings.FieldsFunc(key, func(r rune) bool { return r == '-' || r == ' ' })
	if len(groups) != 8 {
		return sum, fmt.Errorf("%w: it has %d groups of digits, not 8", ErrRecoveryKey, len(groups))
	}
	var b []byte
	for i, g := range groups {
		n, err := strconv.ParseUint(g, 10, 32)
		if err != nil || len(g) != 6 || n%11 != 0 || n/11 >= 1<<16 {
			return sum, fmt.Errorf("%w: group %d (%s) is mistyped", ErrRecoveryKey, i+1, g)
		}
		b = binary.LittleEndian.AppendUint16(b, uint16(n/11))
	}
	return sha256.Sum256(b), nil
}

// externalKey reads a start-up key file (.BEK): a header like the metadata's and
// an entry with the key and the GUID that it is for.
func externalKey(file []byte) (id, key []byte, err error) {
	if len(file) < fveHeader || len(file) > fveRegion {
		return nil, nil, fmt.Errorf("the key file has %d bytes: it is no start-up key of BitLocker", len(file))
	}
	size := int(binary.LittleEndian.Uint32(file))
	if size < fveHeader || size > len(file) {
		return nil, nil, fmt.Errorf("the key file is no start-up key of BitLocker")
	}
	entries, err := fveEntries(file[fveHeader:size])
	if err != nil {
		return nil, nil, fmt.Errorf("the key file: %w", err)
	}
	ext := find(entries, valueExternal)
	if len(ext) < 24 {
		return nil, nil, fmt.Errorf("the key file holds no start-up key")
	}
	nested, err := fveEntries(ext[24:])
	if err != nil {
		return nil, nil, fmt.Errorf("the key file: %w", err)
	}
	if key = plainKey(find(nested, valueKey)); key == nil {
		return nil, nil, fmt.Errorf("the key file holds no start-up key")
	}
	return ext[:16], key, nil
}

// plainKey is the value of type key: its method (4 bytes) and the key.
func plainKey(b []byte) []byte {
	if len(b) < 4+32 {
		return nil
	}
	return b[4 : 4+32]
}
