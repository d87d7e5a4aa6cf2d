package keyring

import (
	"errors"
	"fmt"
)

// Errors that callers decide on. They arrive wrapped; use errors.Is.
var (
	// ErrWrongPassword: no key file opens with the password.
	ErrWrongPassword = errors.New("wrong password: no key of this repository opens with it")
	// ErrDamaged: an object is not what was written. [DamageError] names it.
	ErrDamaged = errors.New("damaged")
	// ErrVersion: the repository is of a format, or uses a feature, that this
	// version of Lifeboat does not know.
	ErrVersion = errors.New("repository format not supported")
	// ErrNotRepository: there is no repository here.
	ErrNotRepository = errors.New("no repository here: check the path, or make one with `lifeboat init`")
	// ErrExists: there is a repository here already, or what is left of one.
	ErrExists = errors.New("a repository exists here already")
	// ErrLastKey: without this key nobody could open the repository.
	ErrLastKey = errors.New("this is the only key of the repository: add another password first")
	// ErrPassword: a password that cannot be used for a new key.
	ErrPassword = errors.New("the password is empty: set LIFEBOAT_PASSWORD or LIFEBOAT_PASSWORD_FILE")
	// ErrKnownPassword: a password for a new key that another key has.
	ErrKnownPassword = errors.New("this password opens the repository already (`lifeboat key list` shows the keys, `lifeboat key remove` takes one away)")
)

// DamageError says which object is damaged and how that shows. It matches
// [ErrDamaged].
type DamageError struct {
	Object string
	Reason string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("object %s is damaged: %s", e.Object, e.Reason)
}

// Is makes errors.Is(err, ErrDamaged) true.
func (e *DamageError) Is(target error) bool { return target == ErrDamaged }

func damaged(object, format string, args ...any) error {
	return &DamageError{Object: object, Reason: fmt.Sprintf(format, args...)}
}
