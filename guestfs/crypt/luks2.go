package crypt

import (
	"bytes"
	"context"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"maps"
	"slices"
	"strconv"

	"golang.org/x/crypto/argon2"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// The header of LUKS 2 ("LUKS2 On-Disk Format Specification", 1.1.3): 4 KiB of
// binary and an area of JSON, twice. Numbers in the binary part are big-endian.
const (
	luks2Bytes    = 4096
	luksSecond    = "SKUL\xba\xbe"
	luks2Checksum = 448
	maxLUKS2      = 4 << 20
)

// decimal is a number that JSON has as a string.
type decimal int64

// UnmarshalJSON reads it.
func (d *decimal) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseInt(string(bytes.Trim(b, `"`)), 10, 64)
	*d = decimal(n)
	return err
}

type luks2 struct {
	uuid, label string
	seq         uint64
	Keyslots    map[string]struct {
		Type    string `json:"type"`
		KeySize int    `json:"key_size"`
		AF      struct {
			Type    string `json:"type"`
			Stripes int    `json:"stripes"`
			Hash    string `json:"hash"`
		} `json:"af"`
		Area struct {
			Type       string  `json:"type"`
			Offset     decimal `json:"offset"`
			Encryption string  `json:"encryption"`
			KeySize    int     `json:"key_size"`
		} `json:"area"`
		KDF luks2KDF `json:"kdf"`
	} `json:"keyslots"`
	Segments map[string]luks2Segment `json:"segments"`
	Digests  map[string]struct {
		Type       string   `json:"type"`
		Keyslots   []string `json:"keyslots"`
		Segments   []string `json:"segments"`
		Hash       string   `json:"hash"`
		Iterations int      `json:"iterations"`
		Salt       []byte   `json:"salt"`
		Digest     []byte   `json:"digest"`
	} `json:"digests"`
	Config struct {
		Requirements struct {
			Mandatory []string `json:"mandatory"`
		} `json:"requirements"`
	} `json:"config"`
}

type luks2KDF struct {
	Type       string `json:"type"`
	Salt       []byte `json:"salt"`
	Hash       string `json:"hash"`
	Iterations int    `json:"iterations"`
	Time       int    `json:"time"`
	Memory     int    `json:"memory"` // KiB
	CPUs       int    `json:"cpus"`
}

type luks2Segment struct {
	Type       string          `json:"type"`
	Offset     decimal         `json:"offset"`
	Size       string          `json:"size"` // bytes, or "dynamic"
	IVTweak    decimal         `json:"iv_tweak"`
	Encryption string          `json:"encryption"`
	SectorSize int64           `json:"sector_size"`
	Integrity  json.RawMessage `json:"integrity"`
}

// readLUKS2 reads the newer of the two headers that is whole.
func readLUKS2(img disk.Image) (*luks2, error) {
	first, err := header2(img, 0, luksMagic)
	if err == nil {
		return first, nil
	}
	if !errors.Is(err, guestfs.ErrNoFS) && !errors.Is(err, guestfs.ErrCorrupt) {
		return nil, err
	}
	for at := int64(16 << 10); at <= maxLUKS2; at *= 2 { // the sizes that a header may have
		second, err2 := header2(img, at, luksSecond)
		if err2 == nil {
			return second, nil
		}
	}
	return nil, err
}

func header2(img disk.Image, at int64, magic string) (*luks2, error) {
	b, err := read(img, at, luks2Bytes)
	if err != nil {
		return nil, err
	}
	be := binary.BigEndian
	if string(b[:6]) != magic || be.Uint16(b[6:]) != 2 || be.Uint64(b[256:]) != uint64(at) {
		return nil, guestfs.ErrNoFS
	}
	size := be.Uint64(b[8:])
	if size < luks2Bytes || size > maxLUKS2 {
		return nil, corrupt(LUKS2, "a header of %d bytes", size)
	}
	all, err := read(img, at, int(size))
	if err != nil {
		return nil, err
	}
	var sum hash.Hash
	switch alg := text(b[72:104]); alg {
	case "sha256":
		sum = sha256.New()
	case "sha512":
		sum = sha512.New()
	default:
		return nil, unsupported(LUKS2, "the checksum %s", alg)
	}
	want := bytes.Clone(all[luks2Checksum : luks2Checksum+sum.Size()])
	clear(all[luks2Checksum : luks2Checksum+64])
	sum.Write(all)
	if !bytes.Equal(sum.Sum(nil), want) {
		return nil, corrupt(LUKS2, "the header has a wrong checksum")
	}
	h := &luks2{uuid: text(b[168:208]), label: text(b[24:72]), seq: be.Uint64(b[16:])}
	if err := json.Unmarshal([]byte(text(all[luks2Bytes:])), h); err != nil {
		return nil, corrupt(LUKS2, "its description: %v", err)
	}
	return h, nil
}

// segment is the one that holds the data.
func (h *luks2) segment() (luks2Segment, error) {
	for _, r := range h.Config.Requirements.Mandatory {
		return luks2Segment{}, unsupported(LUKS2, "%s", r)
	}
	if len(h.Segments) != 1 || h.Segments["0"].Type != "crypt" {
		return luks2Segment{}, unsupported(LUKS2, "a volume of %d segments, in the middle of being encrypted anew", len(h.Segments))
	}
	s := h.Segments["0"]
	if len(s.Integrity) > 0 {
		return s, unsupported(LUKS2, "integrity protection (dm-integrity)")
	}
	if s.SectorSize < 512 || s.SectorSize > 4096 || s.SectorSize&(s.SectorSize-1) != 0 || s.Offset < 0 || s.IVTweak < 0 {
		return s, corrupt(LUKS2, "data at %d in sectors of %d bytes", s.Offset, s.SectorSize)
	}
	return s, nil
}

func identifyLUKS2(img disk.Image) (Info, error) {
	h, err := readLUKS2(img)
	if err != nil {
		return Info{}, err
	}
	info := Info{Kind: LUKS2, UUID: h.uuid, Label: h.label, Needs: []string{"passphrase", "key file"}}
	if s, err := h.segment(); err == nil {
		info.Cipher = s.Encryption
	}
	return info, nil
}

func unlockLUKS2(ctx context.Context, img disk.Image, secret Secret) (disk.Image, error) {
	h, err := readLUKS2(img)
	if err != nil {
		return nil, err
	}
	s, err := h.segment()
	if err != nil {
		return nil, err
	}
	key, err := h.key(ctx, img, secret)
	if err != nil {
		return nil, err
	}
	open, err := newDecryptor(LUKS2, s.Encryption, key)
	if err != nil {
		return nil, err
	}
	size := int64(-1)
	if s.Size != "dynamic" {
		if size, err = strconv.ParseInt(s.Size, 10, 64); err != nil || size < 0 {
			return nil, corrupt(LUKS2, "data of %q bytes", s.Size)
		}
	}
	return payload(ctx, LUKS2, img, int64(s.Offset), size, s.SectorSize, uint64(s.IVTweak), open)
}

// key finds the volume's key with a passphrase. A slot that cannot be used is
// passed over as long as another one can.
func (h *luks2) key(ctx context.Context, img disk.Image, secret Secret) ([]byte, error) {
	var failed error
	for _, pass := range secret.passphrases() {
		for _, id := range slices.Sorted(maps.Keys(h.Keyslots)) {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			key, err := h.try(img, id, pass)
			if err == nil && key != nil {
				return key, nil
			}
			failed = errors.Join(failed, err)
		}
	}
	if failed != nil {
		return nil, fmt.Errorf("%w; and not every key slot could be tried: %w", ErrKey, failed)
	}
	return nil, ErrKey
}

// try tries a passphrase with one slot; nil if it does not fit.
func (h *luks2) try(img disk.Image, id string, pass []byte) ([]byte, error) {
	slot := h.Keyslots[id]
	switch {
	case slot.Type != "luks2" || slot.Area.Type != "raw" || slot.AF.Type != "luks1":
		return nil, unsupported(LUKS2, "a key slot of type %s", slot.Type)
	case slot.KeySize <= 0 || slot.KeySize > maxKeyBytes || slot.Area.KeySize <= 0 || slot.Area.KeySize > maxKeyBytes ||
		slot.AF.Stripes <= 0 || slot.AF.Stripes > maxStripes || slot.Area.Offset < 0:
		return nil, corrupt(LUKS2, "key slot %s: keys of %d and %d bytes, %d stripes", id, slot.KeySize, slot.Area.KeySize, slot.AF.Stripes)
	}
	newH, err := newHash(LUKS2, slot.AF.Hash)
	if err != nil {
		return nil, err
	}
	derived, err := slot.KDF.derive(pass, slot.Area.KeySize)
	if err != nil {
		return nil, fmt.Errorf("key slot %s: %w", id, err)
	}
	key, err := slotKey(LUKS2, img, slot.Area.Encryption, newH, derived, int64(slot.Area.Offset), slot.KeySize, slot.AF.Stripes)
	if err != nil {
		return nil, err
	}
	for _, d := range h.Digests {
		if !slices.Contains(d.Keyslots, id) || !slices.Contains(d.Segments, "0") {
			continue
		}
		if d.Type != "pbkdf2" || d.Iterations <= 0 || d.Iterations > maxIterations || len(d.Digest) == 0 || len(d.Digest) > 64 {
			return nil, corrupt(LUKS2, "a digest of type %s, %d iterations", d.Type, d.Iterations)
		}
		newD, err := newHash(LUKS2, d.Hash)
		if err != nil {
			return nil, err
		}
		sum, err := pbkdf2.Key(newD, string(key), d.Salt, d.Iterations, len(d.Digest))
		if err != nil {
			return nil, err
		}
		if subtle.ConstantTimeCompare(sum, d.Digest) == 1 {
			return key, nil
		}
	}
	return nil, nil
}

// derive turns a passphrase into a key of n bytes.
func (k luks2KDF) derive(pass []byte, n int) ([]byte, error) {
	switch k.Type {
	case "pbkdf2":
		if k.Iterations <= 0 || k.Iterations > maxIterations {
			return nil, corrupt(LUKS2, "%d iterations", k.Iterations)
		}
		newH, err := newHash(LUKS2, k.Hash)
		if err != nil {
			return nil, err
		}
		return pbkdf2.Key(newH, string(pass), k.Salt, k.Iterations, n)
	case "argon2i", "argon2id":
		if k.Time <= 0 || k.Time > maxKDFPasses || k.Memory <= 0 || k.Memory > maxKDFMemory || k.CPUs <= 0 || k.CPUs > 255 {
			return nil, unsupported(LUKS2, "Argon2 with %d passes over %d KiB in %d lanes", k.Time, k.Memory, k.CPUs)
		}
		if k.Type == "argon2i" {
			return argon2.Key(pass, k.Salt, uint32(k.Time), uint32(k.Memory), uint8(k.CPUs), uint32(n)), nil
		}
		return argon2.IDKey(pass, k.Salt, uint32(k.Time), uint32(k.Memory), uint8(k.CPUs), uint32(n)), nil
	}
	return nil, unsupported(LUKS2, "deriving keys with %s", k.Type)
}
