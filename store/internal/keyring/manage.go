package keyring

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"strings"
	"time"

	"lifeboat/store/backend"
)

// maxListed is how many names below keys/ are looked at.
const maxListed = 16 * MaxKeys

// maxLabel is the longest label of a key, in bytes.
const maxLabel = 256

// KeyInfo describes a key file.
type KeyInfo struct {
	ID      string
	Label   string
	Created time.Time
	KDF     KDF
	Current bool // the repository was opened with it
	// Removing says that somebody began to remove it, and has not finished.
	Removing bool
	Err      error // why it cannot be used; then only ID is set
}

// KeyOptions are the choices made when a key is. The zero value is right.
type KeyOptions struct {
	KDF   KDF    // default: DefaultKDF
	Label string // for people
}

// AddPassword adds a key file for another password and returns its ID.
func (r *Repo) AddPassword(ctx context.Context, b backend.Backend, password []byte, o KeyOptions) (string, error) {
	if len(password) == 0 {
		return "", ErrPassword
	}
	if len(o.Label) > maxLabel {
		return "", fmt.Errorf("add key: the label has %d bytes: want at most %d", len(o.Label), maxLabel)
	}
	if n, err := r.countKeys(ctx, b); err != nil {
		return "", err
	} else if n >= MaxKeys {
		return "", fmt.Errorf("add key: the repository has %d keys, the most it may have: remove one first", n)
	}
	// Two keys of one password: who removes one, or changes the password, would
	// take it for gone.
	if u, err := unlock(ctx, b, password, r.ID); err == nil {
		return "", fmt.Errorf("%w: key %s", ErrKnownPassword, u.keyID)
	}
	f := keyFile{
		ID: randomHex(8), Repository: r.ID, Created: time.Now(), Label: o.Label,
		KDF: o.KDF.orDefault(), Salt: make([]byte, kdfSaltSize),
	}
	rand.Read(f.Salt) // never fails (crypto/rand)
	doc, err := wrap(f, password, r.Keys.master, r.headerDoc)
	if err == nil {
		err = writeSmall(ctx, b, f.name(), doc, backend.Exclusive)
	}
	if err != nil {
		return "", fmt.Errorf("add key: %w", err)
	}
	return f.ID, nil
}

// ChangePassword replaces the key that the repository was opened with. The
// old one is removed after the new one has been read back and opened.
func (r *Repo) ChangePassword(ctx context.Context, b backend.Backend, password []byte, o KeyOptions) error {
	id, err := r.AddPassword(ctx, b, password, o)
	if err != nil {
		return fmt.Errorf("change password: %w", err)
	}
	f, err := readKeyFile(ctx, b, KeyPrefix+id)
	if err == nil {
		_, _, err = f.unwrap(password)
	}
	if err != nil {
		return fmt.Errorf("change password: the new key cannot be used and the old one stays: %w", err)
	}
	if err := r.RemoveKey(ctx, b, r.KeyID); err != nil {
		return fmt.Errorf("change password: the new one works, the old one does still: %w", err)
	}
	r.KeyID = id
	return nil
}

// ListKeys describes all key files, also those that are damaged or of another
// repository.
func (r *Repo) ListKeys(ctx context.Context, b backend.Backend) ([]KeyInfo, error) {
	var infos []KeyInfo
	for name, err := range keyNames(ctx, b) {
		if err != nil {
			return nil, fmt.Errorf("list keys: %w", err)
		}
		// First this, then the key: see remove.go.
		removing, err := announced(ctx, b, name[len(KeyPrefix):])
		if err != nil {
			return nil, fmt.Errorf("list keys: %w", err)
		}
		f, err := readKeyFile(ctx, b, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && f.Repository != r.ID {
			err = fmt.Errorf("%s belongs to another repository (%.40q): it can be removed", name, f.Repository)
		}
		if err != nil {
			infos = append(infos, KeyInfo{ID: name[len(KeyPrefix):], Err: err})
			continue
		}
		infos = append(infos, KeyInfo{f.ID, f.Label, f.Created, f.KDF, f.ID == r.KeyID, removing, nil})
	}
	return infos, nil
}

func (r *Repo) countKeys(ctx context.Context, b backend.Backend) (int, error) {
	infos, err := r.ListKeys(ctx, b)
	n := 0
	for _, info := range infos {
		if info.Err == nil {
			n++
		}
	}
	return n, err
}

// Verify checks header and key files and calls report with every object that
// is not what was written. Its own error means that it could not look.
func (r *Repo) Verify(ctx context.Context, b backend.Backend, report func(object string, err error)) error {
	doc, err := readSmall(ctx, b, HeaderName)
	if err == nil {
		err = authenticate(doc, r.Keys)
	}
	switch {
	case errors.Is(err, ErrDamaged), errors.Is(err, fs.ErrNotExist):
		report(HeaderName, err)
	case err != nil:
		return fmt.Errorf("verify: %w", err)
	}
	infos, err := r.ListKeys(ctx, b)
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	for _, info := range infos {
		if info.Err != nil {
			report(KeyPrefix+info.ID, info.Err)
		}
	}
	return nil
}

// keyNames lists the key files' names, and ends with an error when there are
// absurdly many.
func keyNames(ctx context.Context, b backend.Backend) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		n := 0
		for info, err := range b.List(ctx, KeyPrefix) {
			if err == nil && n >= maxListed {
				err = damaged(KeyPrefix, "it holds more than %d objects", maxListed)
			}
			if err != nil {
				yield("", err)
				return
			}
			if strings.HasSuffix(info.Name, announceSuffix) {
				continue
			}
			n++
			if !yield(info.Name, nil) {
				return
			}
		}
	}
}
