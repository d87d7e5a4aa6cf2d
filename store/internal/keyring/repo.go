package keyring

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"lifeboat/store/backend"
)

// Params are the choices made when a repository is. The zero value is right.
type Params struct {
	BlockSize int    // bytes: 64, 128 or 256 KiB. Default: 64 KiB
	KDF       KDF    // default: DefaultKDF
	Label     string // of the first key, for people
}

// Repo is a repository that has been opened with a password.
type Repo struct {
	ID        string // 32 hex digits
	BlockSize int    // bytes
	Created   time.Time
	KeyID     string // of the key file that the password opened
	Keys      *Keys
	headerDoc []byte
}

// Create makes a repository in an empty place.
//
// The key file is written first; the header makes the repository, and is
// created exclusively. So of two at once one fails with [ErrExists], and a
// crash leaves either a repository that opens or none. A key file without a
// header belongs to no repository and is ignored.
func Create(ctx context.Context, b backend.Backend, password []byte, p Params) (*Repo, error) {
	if p.BlockSize == 0 {
		p.BlockSize = DefaultBlockSize
	}
	if err := checkBlockSize(p.BlockSize); err != nil {
		return nil, fmt.Errorf("create repository: %w", err)
	}
	if err := checkEmpty(ctx, b); err != nil {
		return nil, fmt.Errorf("create repository: %w", err)
	}
	var master [KeySize]byte
	rand.Read(master[:]) // never fails (crypto/rand)
	keys := NewKeys(master)
	h := newHeader(randomHex(16), time.Now(), p.BlockSize)
	doc, err := h.encode(keys)
	if err != nil {
		return nil, fmt.Errorf("create repository: %w", err)
	}
	r := newRepo(h, doc, keys)
	if r.KeyID, err = r.AddPassword(ctx, b, password, KeyOptions{p.KDF, p.Label}); err != nil {
		return nil, fmt.Errorf("create repository: %w", err)
	}
	err = writeSmall(ctx, b, HeaderName, doc, backend.Exclusive)
	if err != nil && !errors.Is(err, backend.ErrUncertain) {
		// The header may be there when the outcome is uncertain: then its
		// only key must stay.
		err = errors.Join(err, b.Remove(context.WithoutCancel(ctx), KeyPrefix+r.KeyID))
	}
	if errors.Is(err, fs.ErrExist) {
		err = fmt.Errorf("%w: %w", ErrExists, err)
	}
	if err != nil {
		return nil, fmt.Errorf("create repository: %w", err)
	}
	return r, nil
}

// checkEmpty refuses a place with a repository, or with the data of one whose
// header is lost.
func checkEmpty(ctx context.Context, b backend.Backend) error {
	for info, err := range b.List(ctx, "") {
		if err != nil {
			return err
		}
		if info.Name == HeaderName {
			return ErrExists
		}
		for _, prefix := range []string{"claims/", "segments/", "points/", "index/"} {
			if len(info.Name) > len(prefix) && info.Name[:len(prefix)] == prefix {
				return fmt.Errorf("%w: %s is there although %s is missing: restore the header, or choose an empty place",
					ErrExists, info.Name, HeaderName)
			}
		}
	}
	return nil
}

func newRepo(h header, doc []byte, keys *Keys) *Repo {
	return &Repo{ID: h.ID, BlockSize: h.BlockSize, Created: h.Created, Keys: keys, headerDoc: doc}
}

// Open opens a repository with any of its passwords. Errors match
// [ErrNotRepository], [ErrVersion], [ErrDamaged] or [ErrWrongPassword].
func Open(ctx context.Context, b backend.Backend, password []byte) (*Repo, error) {
	doc, err := readSmall(ctx, b, HeaderName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open repository: %w (%w)", ErrNotRepository, err)
	} else if err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	h, err := parseHeader(doc)
	if errors.Is(err, ErrDamaged) {
		return nil, fmt.Errorf("open repository: %w: put lifeboat.json back from a copy, or make it anew with `lifeboat repair header`", err)
	} else if err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	u, err := unlock(ctx, b, password, h.ID)
	if err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	if err := authenticate(doc, u.keys); err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	r := newRepo(h, doc, u.keys)
	r.KeyID = u.keyID
	return r, nil
}

type unlocked struct {
	keyID     string
	keys      *Keys
	headerDoc []byte
}

// unlock tries the password on the repository's key files.
func unlock(ctx context.Context, b backend.Backend, password []byte, repository string) (*unlocked, error) {
	var found *unlocked
	err := tryKeys(ctx, b, password, func(f keyFile) bool { return f.Repository == repository },
		func(u *unlocked) bool { found = u; return false })
	return found, err
}

// tryKeys tries the password on the key files that consider lets pass, and
// hands each that opens to opened, until that returns false. That none does is
// an error which names the damaged ones too.
func tryKeys(ctx context.Context, b backend.Backend, password []byte, consider func(keyFile) bool, opened func(*unlocked) bool) error {
	var failed error
	tried, hits := 0, 0
	password = recoverySpelling(password)
	for name, err := range keyNames(ctx, b) {
		if err != nil {
			return err
		}
		f, err := readKeyFile(ctx, b, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			failed = also(failed, err)
			continue
		}
		if !consider(f) {
			continue
		}
		if tried++; tried > MaxKeys {
			return damaged(KeyPrefix, "it holds more than %d keys", MaxKeys)
		}
		master, doc, err := f.unwrap(password)
		if err != nil {
			continue
		}
		if hits++; !opened(&unlocked{f.ID, NewKeys(master), doc}) {
			return nil
		}
	}
	switch {
	case hits > 0:
		return nil
	case tried > 0:
		return also(wrongPassword(password), failed)
	case failed != nil:
		return fmt.Errorf("no key can be used: put one back from a copy: %w", failed)
	}
	return damaged(KeyPrefix, "the repository has no key: put one back from a copy")
}

// also joins two errors, either of which may be nil, in one line.
func also(a, b error) error {
	if a == nil || b == nil {
		return cmp.Or(a, b)
	}
	return fmt.Errorf("%w; also: %w", a, b)
}

func readKeyFile(ctx context.Context, b backend.Backend, name string) (keyFile, error) {
	doc, err := readSmall(ctx, b, name)
	if err != nil {
		return keyFile{}, err
	}
	return parseKeyFile(name, doc)
}

func randomHex(n int) string {
	p := make([]byte, n)
	rand.Read(p) // never fails (crypto/rand)
	return hex.EncodeToString(p)
}
