package datastore

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Errors of the tree. Each corresponds to one nfsstat3 (RFC 1813 §2.6), named
// in its comment. They arrive wrapped in an [OpError], together with their
// cause: decide with errors.Is.
var (
	ErrPerm        error = &kind{unix.EPERM, "not the owner"}                        // NFS3ERR_PERM
	ErrNoEnt       error = &kind{unix.ENOENT, "no such file or directory"}           // NFS3ERR_NOENT
	ErrIO          error = &kind{unix.EIO, "input/output error"}                     // NFS3ERR_IO
	ErrAcces       error = &kind{unix.EACCES, "permission denied"}                   // NFS3ERR_ACCES
	ErrExist       error = &kind{unix.EEXIST, "already exists"}                      // NFS3ERR_EXIST
	ErrXDev        error = &kind{unix.EXDEV, "not in the same session"}              // NFS3ERR_XDEV
	ErrNotDir      error = &kind{unix.ENOTDIR, "not a directory"}                    // NFS3ERR_NOTDIR
	ErrIsDir       error = &kind{unix.EISDIR, "is a directory"}                      // NFS3ERR_ISDIR
	ErrInval       error = &kind{unix.EINVAL, "invalid argument"}                    // NFS3ERR_INVAL
	ErrFBig        error = &kind{unix.EFBIG, "beyond the largest size of the file"}  // NFS3ERR_FBIG
	ErrNoSpc       error = &kind{unix.ENOSPC, "no space left on the datastore"}      // NFS3ERR_NOSPC
	ErrROFS        error = &kind{unix.EROFS, "read-only"}                            // NFS3ERR_ROFS
	ErrMLink       error = &kind{unix.EMLINK, "too many hard links"}                 // NFS3ERR_MLINK
	ErrNameTooLong error = &kind{unix.ENAMETOOLONG, "name too long"}                 // NFS3ERR_NAMETOOLONG
	ErrNotEmpty    error = &kind{unix.ENOTEMPTY, "directory not empty"}              // NFS3ERR_NOTEMPTY
	ErrDQuot       error = &kind{unix.EDQUOT, "quota exceeded"}                      // NFS3ERR_DQUOT
	ErrStale       error = &kind{unix.ESTALE, "stale file handle: the file is gone"} // NFS3ERR_STALE
	ErrBadHandle   error = &kind{unix.ESTALE, "not a file handle of this server"}    // NFS3ERR_BADHANDLE
	ErrNotSync     error = &kind{unix.EINVAL, "ctime differs from the guard"}        // NFS3ERR_NOT_SYNC
	ErrBadCookie   error = &kind{unix.EINVAL, "directory cookie not valid"}          // NFS3ERR_BAD_COOKIE
	ErrNotSupp     error = &kind{unix.EOPNOTSUPP, "operation not supported"}         // NFS3ERR_NOTSUPP
	ErrTooSmall    error = &kind{unix.EINVAL, "buffer too small"}                    // NFS3ERR_TOOSMALL
	ErrBadType     error = &kind{unix.EINVAL, "file type not supported"}             // NFS3ERR_BADTYPE
	ErrServerFault error = &kind{unix.EIO, "internal error"}                         // NFS3ERR_SERVERFAULT
	ErrJukebox     error = &kind{unix.EAGAIN, "not available right now, try again"}  // NFS3ERR_JUKEBOX
)

// kind is one of the errors above, with the errno that says the same to code
// that thinks in terms of the host.
type kind struct {
	errno syscall.Errno
	text  string
}

func (k *kind) Error() string { return k.text }

// OpError says which operation failed on what, of which kind the failure is
// and why. It matches both Kind and Err with errors.Is.
type OpError struct {
	Op   string // the operation, lower case: "create", "rename"
	Name string // the name or path concerned; may be empty
	Kind error  // one of the errors above
	Err  error  // the cause; nil when Kind says it all
}

func (e *OpError) Error() string {
	s := e.Op
	if e.Name != "" {
		s += fmt.Sprintf(" %q", e.Name)
	}
	s += ": " + e.Kind.Error()
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap makes errors.Is see the kind and the cause.
func (e *OpError) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// fail wraps err for op. An OpError passes unchanged, one of the kinds becomes
// the kind, and anything else is classified by its errno.
func fail(op, name string, err error) error {
	if err == nil {
		return nil
	}
	var oe *OpError
	if errors.As(err, &oe) {
		return err
	}
	if errors.Is(err, errLost) {
		return &OpError{Op: op, Name: name, Kind: ErrStale, Err: err}
	}
	if _, ok := err.(*kind); ok { //nolint:errorlint // a kind that is wrapped has a cause to tell
		return &OpError{Op: op, Name: name, Kind: err}
	}
	return &OpError{Op: op, Name: name, Kind: kindOf(err), Err: err}
}

// kindOf maps an errno of the host to the kind that a client understands.
func kindOf(err error) error {
	var no syscall.Errno
	if !errors.As(err, &no) {
		return ErrIO
	}
	switch no {
	case unix.EPERM:
		return ErrPerm
	case unix.ENOENT:
		return ErrNoEnt
	case unix.EACCES:
		return ErrAcces
	case unix.EEXIST:
		return ErrExist
	case unix.EXDEV:
		return ErrXDev
	case unix.ENOTDIR, unix.ELOOP: // ELOOP: O_NOFOLLOW met a symbolic link
		return ErrNotDir
	case unix.EISDIR:
		return ErrIsDir
	case unix.EINVAL:
		return ErrInval
	case unix.EFBIG:
		return ErrFBig
	case unix.ENOSPC:
		return ErrNoSpc
	case unix.EROFS:
		return ErrROFS
	case unix.EMLINK:
		return ErrMLink
	case unix.ENAMETOOLONG:
		return ErrNameTooLong
	case unix.ENOTEMPTY:
		return ErrNotEmpty
	case unix.EDQUOT:
		return ErrDQuot
	case unix.ESTALE:
		return ErrStale
	case unix.EOPNOTSUPP, unix.ENOSYS:
		return ErrNotSupp
	case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EAGAIN:
		return ErrJukebox // short of something now; the client tries again
	}
	return ErrIO
}

// retry repeats f while a signal interrupts it.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
