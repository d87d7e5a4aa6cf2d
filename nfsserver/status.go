package nfsserver

import (
	"errors"
	"syscall"

	"lifeboat/disk"
	"lifeboat/nfsserver/datastore"
)

// status is nfsstat3 (RFC 1813 §2.6).
type status uint32

const (
	statusOK          status = 0
	statusPerm        status = 1
	statusNoEnt       status = 2
	statusIO          status = 5
	statusNXIO        status = 6
	statusAcces       status = 13
	statusExist       status = 17
	statusXDev        status = 18
	statusNoDev       status = 19
	statusNotDir      status = 20
	statusIsDir       status = 21
	statusInval       status = 22
	statusFBig        status = 27
	statusNoSpc       status = 28
	statusROFS        status = 30
	statusMLink       status = 31
	statusNameTooLong status = 63
	statusNotEmpty    status = 66
	statusDQuot       status = 69
	statusStale       status = 70
	statusBadHandle   status = 10001
	statusNotSync     status = 10002
	statusBadCookie   status = 10003
	statusNotSupp     status = 10004
	statusTooSmall    status = 10005
	statusServerFault status = 10006
	statusBadType     status = 10007
	statusJukebox     status = 10008
)

// statusOf is the one place where an error becomes an nfsstat3. The tree's
// errors map one to one; a device's are told apart as far as a client can act
// on them, and the rest is an I/O error. The order matters only where an error
// matches twice: what the tree says comes before the cause it wraps.
func statusOf(err error) status {
	if err == nil {
		return statusOK
	}
	for _, m := range [...]struct {
		err    error
		status status
	}{
		{datastore.ErrPerm, statusPerm},
		{datastore.ErrNoEnt, statusNoEnt},
		{datastore.ErrIO, statusIO},
		{datastore.ErrAcces, statusAcces},
		{datastore.ErrExist, statusExist},
		{datastore.ErrXDev, statusXDev},
		{datastore.ErrNotDir, statusNotDir},
		{datastore.ErrIsDir, statusIsDir},
		{datastore.ErrInval, statusInval},
		{datastore.ErrFBig, statusFBig},
		{datastore.ErrNoSpc, statusNoSpc},
		{datastore.ErrROFS, statusROFS},
		{datastore.ErrMLink, statusMLink},
		{datastore.ErrNameTooLong, statusNameTooLong},
		{datastore.ErrNotEmpty, statusNotEmpty},
		{datastore.ErrDQuot, statusDQuot},
		{datastore.ErrStale, statusStale},
		{datastore.ErrBadHandle, statusBadHandle},
		{datastore.ErrNotSync, statusNotSync},
		{datastore.ErrBadCookie, statusBadCookie},
		{datastore.ErrNotSupp, statusNotSupp},
		{datastore.ErrTooSmall, statusTooSmall},
		{datastore.ErrServerFault, statusServerFault},
		{datastore.ErrBadType, statusBadType},
		{datastore.ErrJukebox, statusJukebox},
		{disk.ErrOutOfRange, statusFBig},
		{syscall.ENOSPC, statusNoSpc},
		{syscall.EDQUOT, statusDQuot},
		{syscall.EFBIG, statusFBig},
		{syscall.EROFS, statusROFS},
	} {
		if errors.Is(err, m.err) {
			return m.status
		}
	}
	return statusIO
}

// ours reports whether a status says that something is wrong on the server's
// side, so that it belongs in the log.
func (s status) ours() bool {
	switch s {
	case statusIO, statusNoSpc, statusDQuot, statusServerFault:
		return true
	}
	return false
}
