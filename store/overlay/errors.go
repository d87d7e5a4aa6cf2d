package overlay

import (
	"errors"
	"fmt"
)

// Errors that callers decide on. They arrive wrapped; use errors.Is.
var (
	// ErrMismatch: the directory holds an overlay that was made for another
	// base or another size. Nothing was touched.
	ErrMismatch = errors.New("overlay belongs to another disk")
	// ErrDamaged: a file of the overlay is not what was written, or is gone.
	// DamageError says which.
	ErrDamaged = errors.New("overlay is damaged")
	// ErrVersion: the overlay was written by a later version of Lifeboat.
	ErrVersion = errors.New("overlay format version not known")
	// ErrFailed: the file system refused a write or a sync of the log. What was
	// acknowledged before is durable and stays readable; every later write
	// and sync gets this error, because what the disk holds of the
	// writes in between is not known. Opening the overlay again finds out.
	ErrFailed = errors.New("overlay has failed and takes no more writes")
)

// DamageError says where an overlay is damaged. It matches ErrDamaged.
type DamageError struct {
	File   string // path
	Offset int64  // bytes into it; 0 for the file as a whole
	Reason string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("overlay file %s is damaged at byte %d: %s; restore the file, or discard the session and start again from the restore point",
		e.File, e.Offset, e.Reason)
}

// Is makes the error match ErrDamaged.
func (e *DamageError) Is(target error) bool { return target == ErrDamaged }
