// Package handover is what Lifeboat and its helper process lifeboat-vddk say to
// each other before the helper serves a disk.
//
// The helper is started with the request as JSON on its standard input, so that
// the password is neither in its arguments nor in its environment. It answers
// with one line of JSON on descriptor 4, and then serves NBD on descriptor 3, a
// socket, until that is closed. What it prints on standard error is log lines in
// slog's JSON.
package handover

import "fmt"

// The descriptors that the helper inherits.
const (
	Socket = 3
	Answer = 4
)

// What the helper is to do.
const (
	Serve   = "serve"   // open the disk and serve it
	Probe   = "probe"   // load the library and say what it is
	Cleanup = "cleanup" // undo what a process that died left behind
)

// Request is what the helper is asked for.
type Request struct {
	Do      string
	Library string // libvixDiskLib.so
	Dir     string // the folder that the library finds its plugins in
	Config  string // its configuration file; "" = none

	Server     string // name or address
	Port       uint32 // 0 = the library's default
	User       string
	Password   string
	Thumbprint string
	VM         string // "moref=vm-42"
	Snapshot   string // "snapshot-43", or "" for a VM that is off
	Identity   string // what we are called where methods of the VM are disabled

	Path    string // of the disk
	Modes   string // transport modes with colons between, "" = the library's choice
	Write   bool
	Buffers int // how many buffers of nbd.MaxRequest
}

// Status is the helper's answer.
type Status struct {
	Modes     []string // that the library says it has
	Transport string   // that the disk was opened with
	Size      int64    // bytes
	Remaining int      // disks that Cleanup could not clean up
	Failure   *Failure // nil = it worked
}

// Failure is a call of the library that failed.
type Failure struct {
	Stage string // the function, without "VixDiskLib_"
	Code  uint16 // the library's error number
	Text  string // in the library's words
}

func (f *Failure) Error() string {
	s := fmt.Sprintf("VixDiskLib_%s: error %d", f.Stage, f.Code)
	if f.Text != "" {
		s += " (" + f.Text + ")"
	}
	if advice := Explain(f.Code); advice != "" {
		s += ": " + advice
	}
	return s
}

// Error numbers of the library that mean something to us. Source: VMware's
// vixDiskLib.h and its Virtual Disk Programming Guide, "Error Codes".
const (
	CodeFail          = 1
	CodeNoMemory      = 2
	CodeInvalid       = 3
	CodeNotFound      = 4
	CodeBusy          = 5
	CodeNotSupported  = 6
	CodeFull          = 8
	CodeReadOnly      = 11
	CodeAccess        = 13
	CodeLocked        = 15
	CodePermissions   = 3014
	CodeNoServer      = 14008
	CodeRefused       = 14009
	CodeSocket        = 14010
	CodeConnLost      = 14011
	CodeRange         = 16007
	CodeMismatch      = 16008
	CodeInvalidConn   = 16054
	CodeNoLicense     = 16064
	CodeCannotConnect = 18000
	CodeAsync         = 25000 // a request is under way: no error
)

// Explain says what to do about an error of the library, where that is known.
func Explain(code uint16) string {
	switch code {
	case CodeFail:
		return "often a wrong certificate thumbprint, or the host's NFC memory is used up by other readers"
	case CodePermissions:
		return "the user name or the password is wrong, or the user may not do this"
	case CodeNotFound:
		return "the disk's file is not there: was the snapshot removed?"
	case CodeReadOnly:
		return "the disk can only be read"
	case CodeAccess:
		return "the file cannot be accessed: is it in use, or is the privilege VirtualMachine.Provisioning.DiskRandomRead (or DiskRandomAccess) missing?"
	case CodeLocked:
		return "the disk's file is locked: is another backup running?"
	case CodeNoServer:
		return "the host's name cannot be resolved or reached from here: vCenter names hosts as it knows them, and this machine needs to resolve those names"
	case CodeRefused:
		return "the host refuses the connection: is TCP port 902 open from here to every ESXi host?"
	case CodeSocket, CodeConnLost:
		return "the connection to the host broke"
	case CodeRange:
		return "beyond the end of the disk: it was resized"
	case CodeMismatch:
		return "the chain of the disk's files does not fit together: a parent was changed"
	case CodeNoLicense:
		return "the host's licence does not allow it (a free ESXi has no storage APIs), or the privileges Global.DisableMethods and Global.EnableMethods are missing at the vCenter"
	case CodeCannotConnect:
		return "vCenter or the host cannot be reached"
	}
	return ""
}
