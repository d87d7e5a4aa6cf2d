package keyring

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"lifeboat/store/backend"
)

// Removing a key, when several may be removed at once.
//
// Of two people who each remove the other's key at the same moment, one has to
// fail, or nobody opens the repository any more. So whoever removes a key
//
//  1. announces it: the empty object keys/<id>.gone
//  2. counts the other keys that can be used and whose removal nobody announced;
//     if there are none, takes the announcement back and gives up
//  3. removes the key
//  4. removes the announcement
//
// Of two announcements one is first, and the other's owner sees it in step 2, or
// sees that the key is gone: it looks for the announcement before it looks for
// the key, because step 4 comes after step 3. At worst both give up. A crash leaves a key that still opens the repository and
// that nobody counts on, until its removal is asked for again; or an
// announcement of a key that is gone, which means nothing.
const announceSuffix = ".gone"

func announcement(id string) string { return KeyPrefix + id + announceSuffix }

// announced reports whether somebody began to remove the key.
func announced(ctx context.Context, b backend.Backend, id string) (bool, error) {
	if !isKeyID(id) {
		return false, nil
	}
	_, err := readSmall(ctx, b, announcement(id))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// RemoveKey removes a key file: its password opens the repository no more. It
// fails with [ErrLastKey] when no other usable key would be left, and with
// fs.ErrNotExist where there is no such key.
//
// Who had the password may have kept the master key: for data that they must
// not read, make a new repository.
func (r *Repo) RemoveKey(ctx context.Context, b backend.Backend, id string) error {
	infos, err := r.ListKeys(ctx, b)
	if err != nil {
		return fmt.Errorf("remove key: %w", err)
	}
	if _, found := usableBeside(infos, id); !found {
		return fmt.Errorf("remove key %.40q: %w", id, fs.ErrNotExist)
	}
	if err := r.removeKey(ctx, b, id); err != nil {
		return fmt.Errorf("remove key %s: %w", id, err)
	}
	return nil
}

func (r *Repo) removeKey(ctx context.Context, b backend.Backend, id string) error {
	if err := writeSmall(ctx, b, announcement(id), nil, backend.Replace); err != nil {
		return err
	}
	err := r.mayRemove(ctx, b, id)
	if err == nil {
		err = b.Remove(ctx, KeyPrefix+id)
	}
	return errors.Join(err, b.Remove(context.WithoutCancel(ctx), announcement(id)))
}

func (r *Repo) mayRemove(ctx context.Context, b backend.Backend, id string) error {
	infos, err := r.ListKeys(ctx, b)
	if err != nil {
		return err
	}
	if others, _ := usableBeside(infos, id); others == 0 {
		return ErrLastKey
	}
	return nil
}

// usableBeside counts the keys that open the repository and stay, without id,
// and reports whether id is there at all.
func usableBeside(infos []KeyInfo, id string) (others int, found bool) {
	for _, info := range infos {
		switch {
		case info.ID == id:
			found = true
		case info.Err == nil && !info.Removing:
			others++
		}
	}
	return others, found
}
