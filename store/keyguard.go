package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"lifeboat/store/internal/keyring"
)

// Keys of a repository whose points are protected. Who steals a password could
// add one of their own and take all others away: every point would still be
// there, and its owner could not read it. So as long as there is an immutability
// window, an immutable point or append-only mode, a key that opens the
// repository is not removed at once. The first attempt is noted, for everybody
// to see (`immutable show`) and to take back; after the window, or when the last
// point that is immutable now is not any more, a second attempt succeeds.

// maxKeyRemovals bounds the wishes that are kept.
const maxKeyRemovals = 4 * keyring.MaxKeys

// KeyRemoval is somebody's wish to remove a key.
type KeyRemoval struct {
	Key string `json:"key"` // its ID
	// From is when it can be removed, by this host's clock.
	From time.Time `json:"from"`
	// By is the host where that was asked for.
	By string `json:"by,omitempty"`
}

// keyRemovalRecord is a wish as it is stored.
type keyRemovalRecord struct {
	Key string `json:"key"`
	At  int64  `json:"at"` // Unix milliseconds by the repository's clock
	By  string `json:"by,omitempty"`
}

// KeyProtectedError says that a key stays for now. It matches ErrProtected.
type KeyProtectedError struct{ KeyRemoval }

func (e *KeyProtectedError) Error() string {
	return fmt.Sprintf("key %s is protected, as restore points here are immutable: its removal is noted, and can be done from %s on",
		e.Key, e.From.Local().Format(time.DateTime))
}

// Is makes the error match ErrProtected.
func (e *KeyProtectedError) Is(target error) bool { return target == ErrProtected }

// guardKey fails with a *KeyProtectedError where a key must not be removed yet.
func (r *Repository) guardKey(ctx context.Context, id string) error {
	keys, err := r.Keys(ctx)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(keys, func(k Key) bool { return k.ID == id }); i < 0 || keys[i].Problem != "" {
		return nil // it opens nothing
	}
	latest, err := r.latestLockEnd(ctx)
	if err != nil {
		return err
	}
	if s, err := r.readImmutability(ctx); err == nil && latest == 0 && s.WindowSeconds == 0 && !s.AppendOnly && len(s.KeyRemovals) == 0 {
		return nil // nothing is protected, and never was
	}
	var wait *KeyProtectedError
	err = r.changeImmutability(ctx, func(s *immutabilityRecord, now repoTime) error {
		at := max(latest, now.at+s.window().Milliseconds())
		if s.appendOnly(now.at) {
			at = max(at, now.at+AppendOnlyDelay.Milliseconds())
		}
		i := slices.IndexFunc(s.KeyRemovals, func(w keyRemovalRecord) bool { return w.Key == id })
		switch {
		case i >= 0 && s.KeyRemovals[i].At <= now.at:
			s.KeyRemovals = slices.Delete(s.KeyRemovals, i, i+1)
			return nil
		case i < 0 && at <= now.at:
			return errNothingToChange
		case i < 0:
			host, _ := os.Hostname() // for people
			s.KeyRemovals = append(s.KeyRemovals, keyRemovalRecord{Key: id, At: at, By: host})
			i = len(s.KeyRemovals) - 1
			if i > 0 && len(s.KeyRemovals) > maxKeyRemovals {
				s.KeyRemovals = s.KeyRemovals[1:]
				i--
			}
		}
		w := s.KeyRemovals[i]
		wait = &KeyProtectedError{KeyRemoval{Key: id, From: now.wallAt(w.At), By: w.By}}
		return nil
	})
	if err == nil && wait != nil {
		err = wait
	}
	return err
}

// latestLockEnd is when the last point that is immutable stops to be it, by the
// repository's clock; 0 where none ever was.
func (r *Repository) latestLockEnd(ctx context.Context) (int64, error) {
	recs, err := r.pointRecords(ctx, func(string, error) {})
	var end int64
	for _, rec := range recs {
		if rec.LockSeconds > 0 {
			end = max(end, rec.lockEnd())
		}
	}
	return end, err
}

// KeepKey takes back what was asked for: that a key be removed. ErrNotFound: it
// was not.
func (r *Repository) KeepKey(ctx context.Context, id string) error {
	err := r.changeImmutability(ctx, func(s *immutabilityRecord, _ repoTime) error {
		n := len(s.KeyRemovals)
		s.KeyRemovals = slices.DeleteFunc(s.KeyRemovals, func(w keyRemovalRecord) bool { return w.Key == id })
		if len(s.KeyRemovals) == n {
			return fmt.Errorf("a wish to remove key %.40q: %w", id, ErrNotFound)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("keep a key: %w", err)
	}
	return nil
}

// changePassword is ChangePassword, also where the old key must stay for now.
func (r *Repository) changePassword(ctx context.Context, password []byte) error {
	err := r.guardKey(ctx, r.ring.KeyID)
	if err == nil {
		return r.ring.ChangePassword(ctx, r.backend, password, keyring.KeyOptions{KDF: r.kdf})
	}
	var wait *KeyProtectedError
	if !errors.As(err, &wait) {
		return err
	}
	id, addErr := r.AddPassword(ctx, password, "")
	if addErr != nil {
		return errors.Join(addErr, r.KeepKey(ctx, r.ring.KeyID))
	}
	return fmt.Errorf("the new password opens the repository (key %s); the old one does still: %w; `lifeboat key remove %s` does it then", id, err, wait.Key)
}

// lockKeys has the storage lock the keys that nobody wants to remove.
func (j lockJob) lockKeys(ctx context.Context) error {
	s, err := j.r.readImmutability(ctx)
	if err != nil && !errors.Is(err, ErrDamaged) {
		return err
	}
	for info, err := range j.r.backend.List(ctx, keyring.KeyPrefix) {
		if err != nil {
			return err
		}
		id := info.Name[len(keyring.KeyPrefix):]
		if slices.ContainsFunc(s.KeyRemovals, func(w keyRemovalRecord) bool { return w.Key == id }) || !validID(id) {
			continue
		}
		if err := j.locker.Lock(ctx, info.Name, j.need); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
