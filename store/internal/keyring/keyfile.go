package keyring

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"lifeboat/store/backend"
)

// KeyPrefix is where the key files are.
const KeyPrefix = "keys/"

// MaxKeys is how many key files a repository may have. Each costs one run of
// Argon2id to try a password on, so there must be a limit on what is tried.
const MaxKeys = 32

const (
	keyFileVersion = 1
	kdfName        = "argon2id"
	kdfSaltSize    = 32
)

// keyFile is the content of keys/<id> apart from the closing checksum, which
// is unkeyed and so tells a damaged file from a wrong password.
//
// Wrapped is AES-256-GCM under the key that Argon2id makes of the password:
// the master key, then the whole text of lifeboat.json, so that a lost or
// damaged header can be written anew. Salt and so key are never used twice;
// the nonce is zero. The additional data are wrapPurpose, the repository's ID
// and the key's.
type keyFile struct {
	Version    int       `json:"version"`
	ID         string    `json:"id"` // 16 hex digits, random; also its name
	Repository string    `json:"repository"`
	Created    time.Time `json:"created"`
	Label      string    `json:"label"`
	Function   string    `json:"kdf"`
	KDF
	Salt    []byte `json:"salt"`    // base64
	Wrapped []byte `json:"wrapped"` // base64
}

const wrapPurpose = "lifeboat: wrapped master key: "

func (f keyFile) name() string { return KeyPrefix + f.ID }

func (f keyFile) additional() []byte { return []byte(wrapPurpose + f.Repository + " " + f.ID) }

// wrap makes a key file for a password.
func wrap(f keyFile, password []byte, master [KeySize]byte, headerDoc []byte) ([]byte, error) {
	f.Version, f.Function = keyFileVersion, kdfName
	f.Created = f.Created.UTC().Truncate(time.Second)
	if err := f.check(); err != nil {
		return nil, err
	}
	aead, err := newGCM(f.derive(password, f.Salt))
	if err != nil {
		return nil, err
	}
	plain := append(append([]byte(nil), master[:]...), headerDoc...)
	f.Wrapped = aead.Seal(nil, make([]byte, aead.NonceSize()), plain, f.additional())
	text, err := body(f)
	if err != nil {
		return nil, err
	}
	return finish(text), nil
}

// parseKeyFile checks all that can be checked without the password.
func parseKeyFile(name string, doc []byte) (keyFile, error) {
	text, err := split(name, doc)
	if err != nil {
		return keyFile{}, err
	}
	v, err := version(name, text)
	if err != nil {
		return keyFile{}, err
	}
	if v != keyFileVersion {
		return keyFile{}, fmt.Errorf("%s: %w: it has version %d: upgrade Lifeboat", name, ErrVersion, v)
	}
	var f keyFile
	if err := decode(name, text, &f); err != nil {
		return keyFile{}, err
	}
	if f.name() != name {
		return keyFile{}, damaged(name, "it says that it is %.40q", f.name())
	}
	if err := f.check(); err != nil {
		return keyFile{}, damaged(name, "%v", err)
	}
	return f, nil
}

func isKeyID(id string) bool {
	b, err := hex.DecodeString(id)
	return err == nil && len(b) == 8 && id == strings.ToLower(id)
}

func (f keyFile) check() error {
	if !isKeyID(f.ID) {
		return fmt.Errorf("%.40q is no key ID", f.ID)
	}
	if f.Function != kdfName {
		return fmt.Errorf("it is made with %.40q, not %s", f.Function, kdfName)
	}
	if len(f.Salt) != kdfSaltSize {
		return fmt.Errorf("its salt has %d bytes, want %d", len(f.Salt), kdfSaltSize)
	}
	if err := backend.CheckName(f.name()); err != nil {
		return err
	}
	return f.KDF.check()
}

// unwrap returns the master key and the header that the file was made for, or
// an error matching ErrWrongPassword.
func (f keyFile) unwrap(password []byte) (master [KeySize]byte, headerDoc []byte, err error) {
	aead, err := newGCM(f.derive(password, f.Salt))
	if err != nil {
		return master, nil, err
	}
	plain, err := aead.Open(nil, make([]byte, aead.NonceSize()), f.Wrapped, f.additional())
	if err != nil || len(plain) < KeySize {
		return master, nil, ErrWrongPassword
	}
	return [KeySize]byte(plain), plain[KeySize:], nil
}
