package store

import (
	"context"
	"errors"
	"fmt"
	"io"

	"lifeboat/store/backend"
)

// putSealed writes a small object in the keyring's sealed envelope.
func (r *Repository) putSealed(ctx context.Context, name string, plain []byte, mode backend.Mode) error {
	sealed, err := r.keys.Seal(name, plain)
	if err != nil {
		return fmt.Errorf("seal %s: %w", name, err)
	}
	return putObject(ctx, r.backend, name, sealed, mode)
}

// getSealed reads a small object of at most limit bytes of plaintext.
func (r *Repository) getSealed(ctx context.Context, name string, limit int64) ([]byte, error) {
	sealed, err := getObject(ctx, r.backend, name, limit+envelopeRoom)
	if err != nil {
		return nil, err
	}
	plain, err := r.keys.Open(name, sealed)
	if err != nil {
		return nil, damaged(err)
	}
	return plain, nil
}

// envelopeRoom is at least what the envelope adds.
const envelopeRoom = 1 << 10

func putObject(ctx context.Context, b backend.Backend, name string, data []byte, mode backend.Mode) error {
	w, err := b.Create(ctx, name, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := w.Commit(ctx); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func getObject(ctx context.Context, b backend.Backend, name string, limit int64) ([]byte, error) {
	obj, err := b.Open(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer obj.Close()
	if obj.Size() > limit {
		return nil, fmt.Errorf("%w: %s is %d bytes long, more than it can be", ErrDamaged, name, obj.Size())
	}
	data := make([]byte, obj.Size())
	if n, err := obj.ReadAt(data, 0); n < len(data) {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: %s ends after %d of %d bytes", ErrDamaged, name, n, len(data))
		}
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}
