package keyring

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/zeebo/blake3"
)

// HeaderName is the object that makes a place a repository.
const HeaderName = "lifeboat.json"

// FormatVersion is the version of the repository format that this package
// writes, and the only one it reads.
const FormatVersion = 1

// Block sizes that a repository may be made with, in bytes.
const (
	MinBlockSize     = 64 << 10
	MaxBlockSize     = 256 << 10
	DefaultBlockSize = 64 << 10
)

const headerFormat = "lifeboat repository"

// header is the content of lifeboat.json apart from the closing "mac" and
// "checksum". The MAC is keyed BLAKE3 under SubKey("repository header"): a
// header that was made without the master key is refused.
type header struct {
	Format      string    `json:"format"`
	Version     int       `json:"version"`
	ID          string    `json:"id"` // 32 hex digits, random
	Created     time.Time `json:"created"`
	BlockSize   int       `json:"block_size"`
	Identity    string    `json:"identity"`
	Compression string    `json:"compression"`
	Cipher      string    `json:"cipher"`
	Derivation  string    `json:"derivation"`
	// Required names what a reader must know beyond the version.
	Required []string `json:"required_features"`
}

func newHeader(id string, created time.Time, blockSize int) header {
	return header{
		Format: headerFormat, Version: FormatVersion, ID: id, Created: created.UTC().Truncate(time.Second),
		BlockSize: blockSize, Identity: "blake3-keyed-128", Compression: "zstd-frames-16k",
		Cipher: "aes-256-gcm", Derivation: "hkdf-sha256", Required: []string{},
	}
}

func headerMAC(keys *Keys) member {
	return member{"mac", func(body []byte) [32]byte {
		key := keys.SubKey("repository header", nil)
		h, err := blake3.NewKeyed(key[:])
		if err != nil {
			panic(err) // only for a key that is not 32 bytes long
		}
		_, _ = h.Write(body) // never fails
		return [32]byte(h.Sum(nil))
	}}
}

func (h header) encode(keys *Keys) ([]byte, error) {
	text, err := body(h)
	if err != nil {
		return nil, err
	}
	return finish(append(append(text, headerMAC(keys).line(text)...), ",\n"...)), nil
}

// parseHeader checks all that can be checked without the master key.
func parseHeader(doc []byte) (header, error) {
	if !bytes.Contains(doc[:min(len(doc), 256)], []byte(headerFormat)) {
		// Damage in the very first bytes, or somebody else's lifeboat.json.
		return header{}, damaged(HeaderName, "it does not begin like a repository's header")
	}
	text, err := split(HeaderName, doc)
	if err != nil {
		return header{}, err
	}
	v, err := version(HeaderName, text)
	if err != nil {
		return header{}, err
	}
	if v != FormatVersion {
		return header{}, fmt.Errorf("%w: the repository has version %d, this Lifeboat knows version %d: upgrade it", ErrVersion, v, FormatVersion)
	}
	var h struct {
		header
		MAC string `json:"mac"`
	}
	if err := decode(HeaderName, text, &h); err != nil {
		return header{}, err
	}
	return h.header, h.check()
}

// check refuses what this version cannot read rightly.
func (h header) check() error {
	want := newHeader(h.ID, h.Created, h.BlockSize)
	for _, f := range []struct{ name, got, want string }{
		{"format", h.Format, want.Format},
		{"identity", h.Identity, want.Identity},
		{"compression", h.Compression, want.Compression},
		{"cipher", h.Cipher, want.Cipher},
		{"derivation", h.Derivation, want.Derivation},
	} {
		if f.got != f.want {
			return fmt.Errorf("%w: its %s is %q, this Lifeboat knows %q: upgrade it", ErrVersion, f.name, f.got, f.want)
		}
	}
	if len(h.Required) > 0 {
		return fmt.Errorf("%w: it needs the features %q, which this Lifeboat does not know: upgrade it", ErrVersion, slices.Compact(h.Required))
	}
	if id, err := hex.DecodeString(h.ID); err != nil || len(id) != 16 || h.ID != strings.ToLower(h.ID) {
		return damaged(HeaderName, "%.40q is no repository ID", h.ID)
	}
	return checkBlockSize(h.BlockSize)
}

func checkBlockSize(n int) error {
	if n < MinBlockSize || n > MaxBlockSize || n&(n-1) != 0 {
		return fmt.Errorf("%w: blocks of %d bytes: want 65536, 131072 or 262144", ErrVersion, n)
	}
	return nil
}

// authenticate checks the MAC of a parsed header.
func authenticate(doc []byte, keys *Keys) error {
	text, err := split(HeaderName, doc)
	if err != nil {
		return err
	}
	if _, err := headerMAC(keys).strip(HeaderName, text, ",\n"); err != nil {
		return damaged(HeaderName, "it was not written by who holds the repository's key")
	}
	return nil
}
