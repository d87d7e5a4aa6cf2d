package vsphere

import (
	"errors"
	"fmt"
)

// What a caller decides on. Errors of this package match at most a few of them
// with errors.Is; their text says what happened, where, and what to do next.
var (
	ErrUnreachable = errors.New("server cannot be reached")
	ErrCertificate = errors.New("certificate of the server is not trusted") // *CertificateError
	ErrCredentials = errors.New("user name or password not accepted")
	ErrNotVSphere  = errors.New("no vCenter Server or ESXi host answers here")
	ErrTimeout     = errors.New("no answer in time")
	ErrPermission  = errors.New("privilege missing") // *PermissionError
	ErrNotFound    = errors.New("not found")
	ErrAmbiguous   = errors.New("name fits several")
	ErrExists      = errors.New("name is taken")
	ErrInUse       = errors.New("in use")
	ErrLocked      = errors.New("file is locked by another host")
	ErrState       = errors.New("not possible in this state")
	ErrBusy        = errors.New("another operation is in progress")
	ErrCancelled   = errors.New("task was cancelled at the server")
	ErrTaskLost    = errors.New("the server forgot the task; its outcome is unknown")
	ErrHost        = errors.New("host is not connected")
	ErrSpace       = errors.New("no space left")
	ErrFile        = errors.New("file on the datastore cannot be used")
	ErrLicence     = errors.New("not licensed")
	ErrUnsupported = errors.New("not supported there")
	ErrInvalid     = errors.New("not accepted")
	ErrFault       = errors.New("refused by vSphere") // any other fault

	ErrQuiesce        = errors.New("guest could not be quiesced")
	ErrChangeID       = errors.New("changed areas cannot be asked from this change ID")
	ErrNameTaken      = errors.New("datastore name is taken")            // by another datastore
	ErrAlreadyMounted = errors.New("export is mounted already")          // *MountedError: under which name
	ErrMaxVolumes     = errors.New("host has as many NFS mounts as may") // NFS.MaxVolumes
	ErrNASUnreachable = errors.New("host cannot reach the NFS server")

	ErrGuestCredentials = errors.New("guest does not accept this user and password")
	ErrGuestTools       = errors.New("VMware Tools do not run in the guest")
	ErrGuestPermission  = errors.New("guest denies access")
)

// Error is a call to vSphere that failed.
type Error struct {
	Op     string // what was to be done, with names: "take a snapshot of VM web01"
	Kind   error  // one of the Err values
	Fault  string // vSphere's name of it ("TaskInProgress"), "" where none was told
	Text   string // the sentence for a person: what it means and what to do next
	Detail string // vSphere's own message
	Err    error  // what is below
}

// Error says what, why and what next, in one line.
func (e *Error) Error() string {
	s := e.Op + ": " + e.Text
	if e.Detail != "" && e.Detail != e.Text {
		s += " (vSphere says: " + e.Detail
		if e.Fault != "" {
			s += "; " + e.Fault
		}
		return s + ")"
	}
	if e.Fault != "" {
		s += " (" + e.Fault + ")"
	}
	return s
}

// Unwrap gives the kind and what is below.
func (e *Error) Unwrap() []error {
	out := make([]error, 0, 2)
	if e.Kind != nil {
		out = append(out, e.Kind)
	}
	if e.Err != nil {
		out = append(out, e.Err)
	}
	return out
}

// CertificateError says which certificate was seen, so that a person can
// compare it with the server's own console and then accept it.
type CertificateError struct {
	Server     string // host:port
	SHA256     string // "AB:CD:…"
	SHA1       string
	Expected   string // the pinned thumbprint that it is not, "" where none is pinned
	KnownHosts string // the file that was read, "" for none
	Reason     error  // why the chain was not accepted
}

// Error says the thumbprint that was seen and how to accept it.
func (e *CertificateError) Error() string {
	if e.Expected != "" {
		return fmt.Sprintf("certificate of %s has changed: expected thumbprint %s, seen %s; if the server was given a new certificate, "+
			"compare the thumbprint with what its own console shows, then replace the old one", e.Server, e.Expected, e.SHA256)
	}
	where := "a file named with GOVC_TLS_KNOWN_HOSTS"
	if e.KnownHosts != "" {
		where = e.KnownHosts
	}
	return fmt.Sprintf("certificate of %s is not trusted (%v); its thumbprint is %s; compare it with what the server's own console shows, then "+
		"give it with --thumbprint, or add the line %q to %s, or name the authority's certificate with --ca",
		e.Server, e.Reason, e.SHA256, e.Server+" "+e.SHA256, where)
}

// Unwrap gives ErrCertificate and the reason.
func (e *CertificateError) Unwrap() []error {
	if e.Reason == nil {
		return []error{ErrCertificate}
	}
	return []error{ErrCertificate, e.Reason}
}

// PermissionError names the privilege that is missing and where.
type PermissionError struct {
	Privilege string // "VirtualMachine.State.CreateSnapshot"
	Entity    Ref    // "" where the server did not tell
}

// Error names the privilege.
func (e *PermissionError) Error() string {
	return fmt.Sprintf("privilege %s is missing on %s", e.Privilege, e.Entity)
}

// Unwrap gives ErrPermission.
func (e *PermissionError) Unwrap() error { return ErrPermission }

// MountedError says under which name an export is mounted already.
type MountedError struct {
	Host, Name   string
	Server, Path string
}

// Error names the datastore.
func (e *MountedError) Error() string {
	return fmt.Sprintf("%s:%s is mounted on host %s already, as datastore %q", e.Server, e.Path, e.Host, e.Name)
}

// Unwrap gives ErrAlreadyMounted.
func (e *MountedError) Unwrap() error { return ErrAlreadyMounted }
