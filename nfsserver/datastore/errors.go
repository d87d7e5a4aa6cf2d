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
	ErrPerm        = errors.New("not the owner")                                 // NFS3ERR_PERM
	ErrNoEnt       = errors.New("no such file or directory")                     // NFS3ERR_NOENT
	ErrIO          = errors.New("input/output error")                            // NFS3ERR_IO
	ErrAcces       = errors.New("permission denied")                             // NFS3ERR_ACCES
	ErrExist       = errors.New("already exists")                                // NFS3ERR_EXIST
	ErrXDev        = errors.New("not in the same session")                       // NFS3ERR_XDEV
	ErrNotDir      = errors.New("not a directory")                               // NFS3ERR_NOTDIR
	ErrIsDir       = errors.New("is a directory")                                // NFS3ERR_ISDIR
	ErrInval       = errors.New("invalid argument")                              // NFS3ERR_INVAL
	ErrFBig        = errors.New("beyond the largest size of the file")           // NFS3ERR_FBIG
	ErrNoSpc       = errors.New("no space left on the datastore")                // NFS3ERR_NOSPC
	ErrROFS        = errors.New("read-only")                                     // NFS3ERR_ROFS
	ErrMLink       = errors.New("too many hard links")                           // NFS3ERR_MLINK
	ErrNameTooLong = errors.New("name too long")                                 // NFS3ERR_NAMETOOLONG
	ErrNotEmpty    = errors.New("directory not empty")                           // NFS3ERR_NOTEMPTY
	ErrDQuot       = errors.New("quota exceeded")                                // NFS3ERR_DQUOT
	ErrStale       = errors.New("stale file handle: the file is gone")           // NFS3ERR_STALE
	ErrBadHandle   = errors.New("not a file handle of this server")              // NFS3ERR_BADHANDLE
	ErrNotSync     = errors.New("ctime differs from the guard")                  // NFS3ERR_NOT_SYNC
	ErrBadCookie   = errors.New("directory cookie not valid")                    // NFS3ERR_BAD_COOKIE
	ErrNotSupp     = errors.New("operation not supported")                       // NFS3ERR_NOTSUPP
	ErrTooSmall    = errors.New("buffer too small")                              // NFS3ERR_TOOSMALL
	ErrBadType     = errors.New("file type not supported")                       // NFS3ERR_BADTYPE
	ErrServerFault = errors.New("internal error")                                // NFS3ERR_SERVERFAULT
	ErrJukebox     = errors.New("not available right now: session not attached") // NFS3ERR_JUKEBOX
)

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
	if isKind(err) {
		return &OpError{Op: op, Name: name, Kind: err}
	}
	return &OpError{Op: op, Name: name, Kind: kindOf(err), Err: err}
}

func isKind(err error) bool {
	switch err {
	case ErrPerm, ErrNoEnt, ErrIO, ErrAcces, ErrExist, ErrXDev, ErrNotDir, ErrIsDir, ErrInval, ErrFBig,
		ErrNoSpc, ErrROFS, ErrMLink, ErrNameTooLong, ErrNotEmpty, ErrDQuot, ErrStale, ErrBadHandle,
		ErrNotSync, ErrBadCookie, ErrNotSupp, ErrTooSmall, ErrBadType, ErrServerFault, ErrJukebox:
		return true
	}
	return false
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
