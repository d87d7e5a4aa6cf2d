package keyring

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"lifeboat/store/backend"
)

// maxWitnesses is how many sealed objects RestoreHeader looks at.
const maxWitnesses = 16

// RestoreHeader writes the header anew from a key file, for a repository whose
// header is lost or damaged. A header that is whole is left alone.
//
// A key file may be left from an attempt to make a repository that failed
// before its header, perhaps with the same password. So the key must open what
// the repository holds: a claim or a restore point.
func RestoreHeader(ctx context.Context, b backend.Backend, password []byte) error {
	doc, err := readSmall(ctx, b, HeaderName)
	if err == nil {
		_, err = parseHeader(doc)
	}
	if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrDamaged) {
		return err
	}
	if doc, err = findHeader(ctx, b, password); err == nil {
		err = writeSmall(ctx, b, HeaderName, doc, backend.Replace)
	}
	if err != nil {
		return fmt.Errorf("restore %s: %w", HeaderName, err)
	}
	return nil
}

func findHeader(ctx context.Context, b backend.Backend, password []byte) ([]byte, error) {
	witnesses, err := readWitnesses(ctx, b)
	if err != nil {
		return nil, err
	}
	var docs [][]byte
	err = tryKeys(ctx, b, password, func(keyFile) bool { return true }, func(u *unlocked) bool {
		if len(witnesses) == 0 || u.opensAny(witnesses) {
			docs = append(docs, u.headerDoc)
		}
		return true
	})
	switch {
	case err != nil:
		return nil, err
	case len(docs) == 0:
		return nil, damaged(KeyPrefix, "the keys that the password opens are not those of the data here")
	}
	for _, doc := range docs[1:] {
		if string(doc) != string(docs[0]) {
			return nil, damaged(KeyPrefix, "keys of several repositories open with the password, and there is no data to tell which is this one's")
		}
	}
	_, err = parseHeader(docs[0])
	return docs[0], err
}

func (u *unlocked) opensAny(witnesses map[string][]byte) bool {
	for name, sealed := range witnesses {
		if _, err := u.keys.Open(name, sealed); err == nil {
			return true
		}
	}
	return false
}

// readWitnesses reads some of the objects that are sealed in envelopes.
func readWitnesses(ctx context.Context, b backend.Backend) (map[string][]byte, error) {
	witnesses := map[string][]byte{}
	for _, prefix := range []string{"claims/", "points/"} {
		n := 0
		for info, err := range b.List(ctx, prefix) {
			if err != nil {
				return nil, err
			}
			if sealed, err := readSmall(ctx, b, info.Name); err == nil {
				witnesses[info.Name] = sealed
			}
			if n++; n == maxWitnesses {
				break
			}
		}
	}
	return witnesses, nil
}
