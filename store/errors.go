package store

import (
	"errors"

	"lifeboat/store/internal/keyring"
)

// Errors that callers decide on. They arrive wrapped; use errors.Is.
var (
	// ErrNotFound: no restore point, disk or file of that name.
	ErrNotFound = errors.New("not found")
	// ErrAmbiguous: a reference fits several restore points; the message names
	// them.
	ErrAmbiguous = errors.New("more than one restore point fits")
	// ErrReference: what was given cannot be a reference to a restore point.
	ErrReference = errors.New("not a reference to a restore point")
	// ErrBusy: another process is at work that must finish first.
	ErrBusy = errors.New("the repository is busy")
	// ErrFenced: this writer was taken for dead (its lease ran out, because it
	// was suspended or cut off) and what it had written was removed.
	ErrFenced = errors.New("this writer lost its claim")
	// ErrChangedList: the list of changed areas given for a disk is not one.
	ErrChangedList = errors.New("invalid list of changed areas")
	// ErrClosed: the repository, ingest, point or image was closed.
	ErrClosed = errors.New("closed")
)

// Errors of opening a repository.
var (
	// ErrNotRepository: there is no repository here.
	ErrNotRepository = keyring.ErrNotRepository
	// ErrExists: there is a repository here already.
	ErrExists = keyring.ErrExists
	// ErrWrongPassword: no key of the repository opens with the password.
	ErrWrongPassword = keyring.ErrWrongPassword
	// ErrPassword: the password is empty.
	ErrPassword = keyring.ErrPassword
	// ErrLastKey: without this key nobody could open the repository.
	ErrLastKey = keyring.ErrLastKey
	// ErrVersion: the repository needs a newer Lifeboat.
	ErrVersion = keyring.ErrVersion
	// ErrDamaged: bytes of the repository are not what was written.
	ErrDamaged = keyring.ErrDamaged
)
