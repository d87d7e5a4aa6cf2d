package vsphere

import (
	"context"
	"crypto/tls"
	"encoding/xml"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	govmomixml "github.com/vmware/govmomi/vim25/xml"
)

// verdict is what a fault means to us: one of the Err values, and the sentence
// for the person in front of it.
type verdict struct {
	kind error
	text string
}

// byName is the table of faults, by vSphere's own names (API reference). A
// fault that is not listed is judged by its family (byFamily).
func byName(name string) (verdict, bool) {
	switch name {
	case "InvalidLogin":
		return verdict{ErrCredentials, "user name or password is wrong; check GOVC_USERNAME (vCenter wants the domain too: user@vsphere.local) and GOVC_PASSWORD"}, true
	case "NotAuthenticated":
		return verdict{ErrSession, "the session ended at the server and could not be established again"}, true
	case "NoPermission":
		return verdict{ErrPermission, "this user may not do that"}, true
	case "ManagedObjectNotFound", "NotFound":
		return verdict{ErrNotFound, "it does not exist any more"}, true
	case "FileNotFound", "InvalidDatastorePath", "InvalidDatastore":
		return verdict{ErrNotFound, "the file or its datastore does not exist"}, true
	case "DuplicateName", "AlreadyExists", "FileAlreadyExists", "VmAlreadyExistsInDatacenter":
		return verdict{ErrExists, "something of this name is there already; choose another name"}, true
	case "ResourceInUse":
		return verdict{ErrInUse, "it is in use; a VM that is registered on it, or a disk that is attached from it, has to go first"}, true
	case "FileLocked":
		return verdict{ErrLocked, "a file is locked, most often by the host that runs the VM or by another backup"}, true
	case "TaskInProgress", "ConcurrentAccess":
		return verdict{ErrBusy, "another operation on it is in progress; it can be tried again when that has ended"}, true
	case "RequestCanceled":
		return verdict{ErrCancelled, "the task was cancelled at the server"}, true
	case "HostNotConnected", "HostNotReachable", "HostCommunication", "NoHost", "HostConnectFault":
		return verdict{ErrHost, "vCenter has no connection to the host; look at the host, then try again"}, true
	case "NoDiskSpace", "InsufficientStorageSpace":
		return verdict{ErrSpace, "there is not enough space left on the datastore"}, true
	case "RestrictedVersion", "LicenseRestricted", "NotEnoughLicenses", "LicenseExpired", "LicenseSourceUnavailable", "FeatureRequirementsNotMet", "InvalidLicense", "LicenseKeyEntityMismatch":
		return verdict{ErrLicence, "the licence of the host or vCenter does not include it"}, true
	case "NotSupported", "MethodNotFound", "NotImplemented", "OperationNotSupportedByGuest", "NotSupportedHost", "DeviceHotPlugNotSupported", "VirtualHardwareVersionNotSupported":
		return verdict{ErrUnsupported, "this is not supported there"}, true
	case "InvalidPowerState", "InvalidState", "VAppNotRunning", "InvalidHostState":
		return verdict{ErrState, "the state that it is in does not allow it"}, true
	case "Timedout":
		return verdict{ErrTimeout, "it took longer than the server allows"}, true
	case "ApplicationQuiesceFault", "FilesystemQuiesceFault":
		return verdict{ErrQuiesce, "the guest's file systems or applications could not be brought to rest"}, true
	case "ToolsUnavailable", "GuestOperationsUnavailable", "GuestComponentsOutOfDate", "VmToolsUpgradeFault":
		return verdict{ErrGuestTools, "VMware Tools do not run in the guest, or are too old"}, true
	case "InvalidGuestLogin":
		return verdict{ErrGuestCredentials, "the guest does not accept this user and password"}, true
	case "GuestPermissionDenied", "OperationDisabledByGuest":
		return verdict{ErrGuestPermission, "the guest denies access to this user"}, true
	case "GuestAuthenticationChallenge":
		return verdict{ErrUnsupported, "the guest wants something that cannot be given"}, true
	case "NasConnectionLimitReached":
		return verdict{ErrMaxVolumes, "the host has as many NFS mounts as its setting NFS.MaxVolumes allows; raise it (up to 256), or unmount what is not needed"}, true
	case "NasVolumeNotMounted":
		return verdict{ErrNASUnreachable, nasHint}, true
	case "VMotionInterfaceIssue", "VMotionNotConfigured", "VMotionLinkDown", "VMotionNotSupported":
		return verdict{ErrUnsupported, "vMotion is not set up on the host: it has no VMkernel adapter that is enabled for vMotion"}, true
	case "InvalidArgument", "InvalidName", "InvalidRequest", "InvalidProperty", "InvalidType", "InvalidDeviceSpec", "InvalidVmConfig", "OutOfBounds":
		return verdict{ErrInvalid, "vSphere does not accept what was asked"}, true
	}
	return verdict{}, false
}

// ErrSession means that a session was lost and could not be had again.
var ErrSession = errors.New("session lost")

const nasHint = "the host cannot mount the export: the server must answer it on ports 111 (portmapper), 2049 (NFS) and the mount port, TCP, " +
	"with no firewall in between, and no rpcbind of the system may hold port 111 in its place"

// byFamily judges a fault by what it is a kind of.
func byFamily(f types.BaseMethodFault) verdict {
	switch f.(type) {
	case types.BaseNoPermission:
		return verdict{ErrPermission, "this user may not do that"}
	case types.BaseGuestOperationsFault:
		return verdict{ErrGuestPermission, "the guest refused it"}
	case types.BaseSnapshotFault:
		return verdict{ErrState, "the VM's snapshots do not allow it"}
	case types.BaseInvalidState:
		return verdict{ErrState, "the state that it is in does not allow it"}
	case types.BaseFileFault:
		return verdict{ErrFile, "a file on the datastore cannot be used"}
	case types.BaseHostCommunication, types.BaseHostConnectFault:
		return verdict{ErrHost, "vCenter has no connection to the host; look at the host, then try again"}
	case types.BaseNotEnoughLicenses:
		return verdict{ErrLicence, "the licence of the host or vCenter does not include it"}
	case types.BaseInsufficientResourcesFault:
		return verdict{ErrSpace, "the host or cluster has not enough memory, CPU or space for it"}
	case types.BaseMigrationFault:
		return verdict{ErrUnsupported, "the VM cannot be moved there"}
	case types.BaseInvalidVmConfig, types.BaseVmConfigFault:
		return verdict{ErrInvalid, "the VM's configuration is not accepted"}
	case types.BaseInvalidArgument:
		return verdict{ErrInvalid, "vSphere does not accept what was asked"}
	}
	return verdict{ErrFault, "vSphere refused it"}
}

// faultOf finds the fault in an error, with the message that came with it.
func faultOf(err error) (types.BaseMethodFault, string) {
	var has interface{ Fault() types.BaseMethodFault }
	if !errors.As(err, &has) {
		return nil, ""
	}
	message := ""
	if e, ok := has.(error); ok && soap.IsSoapFault(e) {
		message = soap.ToSoapFault(e).String
	} else if ok {
		message = e.Error()
	}
	f := has.Fault()
	if f == nil {
		return nil, message
	}
	if m := f.GetMethodFault(); m != nil {
		for _, more := range m.FaultMessage {
			if more.Message != "" && !strings.Contains(message, more.Message) {
				message = strings.TrimSpace(message + " " + more.Message)
			}
		}
	}
	if p, ok := f.(*types.PlatformConfigFault); ok && !strings.Contains(message, p.Text) {
		message = strings.TrimSpace(message + " " + p.Text)
	}
	return f, message
}

func faultName(f types.BaseMethodFault) string {
	t := reflect.TypeOf(f)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return strings.TrimSuffix(t.Name(), "Fault_")
}

// fail makes an Error of whatever a call returned; op says what was to be done.
func (c *Client) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	var done *Error
	if errors.As(err, &done) && done.Fault == "" && done.Kind != nil {
		return &Error{Op: op, Kind: done.Kind, Text: done.Text, Err: err}
	}
	if errors.As(err, &done) {
		return err
	}
	if f, message := faultOf(err); f != nil {
		return c.failFault(op, f, message, err)
	}
	return c.failTransport(op, err)
}

func (c *Client) failFault(op string, f types.BaseMethodFault, message string, err error) error {
	name := faultName(f)
	v, ok := byName(name)
	if !ok {
		v = byFamily(f)
	}
	if isQuiesceText(message) {
		v, _ = byName("FilesystemQuiesceFault")
	}
	out := &Error{Op: op, Kind: v.kind, Fault: name, Text: v.text, Detail: message, Err: err}
	if v.kind == ErrPermission {
		out.describePermission(f)
	}
	return out
}

// isQuiesceText recognises a failed quiesce where hosts wrap it in a general
// fault: "An error occurred while quiescing the virtual machine" (KB 1015180).
func isQuiesceText(message string) bool {
	m := strings.ToLower(message)
	return strings.Contains(m, "quiesc")
}

// describePermission names the privileges that NoPermission tells.
func (e *Error) describePermission(f types.BaseMethodFault) {
	p, ok := f.(*types.NoPermission)
	if !ok {
		return
	}
	var missing []string
	for _, m := range p.MissingPrivileges {
		for _, id := range m.PrivilegeIds {
			missing = append(missing, id+" on "+string(refOf(m.Entity)))
		}
	}
	first := &PermissionError{Privilege: p.PrivilegeId}
	if p.Object != nil {
		first.Entity = refOf(*p.Object)
	}
	if len(missing) == 0 && p.PrivilegeId != "" {
		missing = append(missing, p.PrivilegeId+" on "+string(first.Entity))
	}
	if len(missing) > 0 {
		e.Text = "this user lacks the privilege " + strings.Join(missing, ", ") + "; give it with a role there, or above it and propagating"
		e.Err = errors.Join(first, e.Err)
	}
}

func (c *Client) failTransport(op string, err error) error {
	out := &Error{Op: op, Err: err}
	var cert *CertificateError
	var record tls.RecordHeaderError
	var status *statusError
	var syntax *xml.SyntaxError
	var theirs *govmomixml.SyntaxError
	var dns *net.DNSError
	switch {
	case errors.Is(err, context.Canceled):
		return &Error{Op: op, Text: "interrupted", Err: err}
	case errors.As(err, &cert):
		out.Kind, out.Text = ErrCertificate, cert.Error()
	case errors.As(err, &dns):
		out.Kind, out.Text = ErrUnreachable, "the name "+dns.Name+" cannot be resolved; check its spelling and the name server"
	case errors.Is(err, errSessionLost), errors.Is(err, errRenewed):
		out.Kind, out.Text = ErrSession, err.Error()
	case errors.As(err, &record), errors.As(err, &syntax), errors.As(err, &theirs):
		out.Kind, out.Text = ErrNotVSphere, "what answers there does not speak vSphere's protocol; check the address and port"
	case errors.As(err, &status):
		out.Kind, out.Text = ErrNotVSphere, status.Error()+": no vCenter Server or ESXi host; check the address and port"
		if isOutage(err) {
			out.Kind, out.Text = ErrUnreachable, status.Error()+": its service is starting, or not running"
		}
	case errors.Is(err, context.DeadlineExceeded):
		out.Kind, out.Text = ErrTimeout, "no answer in time"
	case isOutage(err):
		out.Kind, out.Text = ErrUnreachable, "the server "+c.about.Server+" cannot be reached: "+rootCause(err)
	default:
		out.Kind, out.Text = ErrFault, err.Error()
	}
	return out
}

// isCutShort recognises a connection that ended in the middle of an answer.
func isCutShort(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)
}

// rootCause is the innermost error's text, without the URL that the HTTP client puts around.
func rootCause(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}
