package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"lifeboat/store/backend"
	"lifeboat/store/internal/keyring"
)

// Key is one password's way into the repository.
type Key struct {
	ID      string    `json:"id"`
	Label   string    `json:"label,omitempty"`
	Created time.Time `json:"created"`
	// Current says that the repository was opened with it.
	Current bool `json:"current,omitempty"`
	// Removing says that its removal was begun and not finished: remove it again.
	Removing bool `json:"removing,omitempty"`
	// Problem says why it cannot be used; then only ID is set.
	Problem string `json:"problem,omitempty"`
}

// Keys lists the passwords' keys.
func (r *Repository) Keys(ctx context.Context) ([]Key, error) {
	infos, err := r.ring.ListKeys(ctx, r.backend)
	if err != nil {
		return nil, err
	}
	keys := make([]Key, len(infos))
	for i, k := range infos {
		keys[i] = Key{ID: k.ID, Label: k.Label, Created: k.Created, Current: k.Current, Removing: k.Removing}
		if k.Err != nil {
			keys[i].Problem = k.Err.Error()
		}
	}
	return keys, nil
}

// AddPassword lets another password open the repository and returns the ID of
// its key. label is for people.
func (r *Repository) AddPassword(ctx context.Context, password []byte, label string) (string, error) {
	return r.ring.AddPassword(ctx, r.backend, password, keyring.KeyOptions{KDF: r.kdf, Label: label})
}

// ChangePassword replaces the password that the repository was opened with.
// Where points are protected the old one stays for a while: a *KeyProtectedError
// says how long.
func (r *Repository) ChangePassword(ctx context.Context, password []byte) error {
	return r.changePassword(ctx, password)
}

// RemoveKey takes a password's key away. The last one cannot be removed
// (ErrLastKey), and where points are protected none at once (*KeyProtectedError;
// see keyguard.go).
func (r *Repository) RemoveKey(ctx context.Context, id string) error {
	if err := r.guardKey(ctx, id); err != nil {
		return fmt.Errorf("remove key %s: %w", id, err)
	}
	err := r.ring.RemoveKey(ctx, r.backend, id)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

// RestoreHeader writes the repository's header anew from a key, when it is lost
// or damaged.
func RestoreHeader(ctx context.Context, b backend.Backend, password []byte) error {
	return keyring.RestoreHeader(ctx, b, password)
}
