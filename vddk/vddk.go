// Package vddk reads and writes the disks of VMs where they lie: on the
// datastores of ESXi hosts. There are many ways to a disk, and which of them
// work depends on where Lifeboat runs and what is installed. They are the rungs
// of a ladder, best first:
//
//	file    the datastore is mounted here          fastest; no load on any host
//	hotadd  the disk is attached to our own VM      through vSphere's API, no library
//	vddk    VMware's library, in a helper process   nbdssl, san, or nbd and hotadd when asked for
//	folder  ranges of the file through /folder      needs nothing but HTTPS to vCenter or the host
//	nfc     a lease that exports the whole disk     last: always everything, spooled to a file
//
// [Open] tries the rungs that a [Request] offers from the top until one opens,
// and says in the log and in its error why each of the others did not. It only
// ever changes rungs before the first byte was read: afterwards a failure is the
// reader's to know, because what was read by two ways is not known to be one
// state of one disk. [OpenWrite] and [WriteImage] are the same for writing.
//
// # Why a helper
//
// libvixDiskLib.so is VMware's, is loaded at run time and is never shipped. It
// starts threads, installs signal handlers and has crashed under others. It runs
// in a process of its own, lifeboat-vddk, one for each disk, which serves the
// disk as NBD (package nbd) on a socket that it inherits. A crash, a hang or a
// leak in it costs one disk's reader, and Lifeboat itself stays a static binary.
// The process ends when the socket is closed, however that came about, and
// closes the disk at the host first.
//
// # Errors
//
// What a caller decides on are the Err values below, matched with errors.Is. All
// bytes that a read returns are the disk's; a read that cannot have all of them
// returns an error instead, and after the source is lost it stays lost.
package vddk

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"lifeboat/disk"
)

// The names of transports, as [Source.Transport] gives them and
// [Options.Transport] takes them. NBDSSL, NBD and SAN are modes of VMware's
// library, and so is hotadd where no [HotAdder] is given.
const (
	File   = "file"
	HotAdd = "hotadd"
	VDDK   = "vddk" // only in Options: the library, in whichever mode it likes best
	NBDSSL = "nbdssl"
	NBD    = "nbd"
	SAN    = "san"
	Folder = "folder"
	NFC    = "nfc"
)

// Errors that callers decide on. They arrive wrapped; use errors.Is.
var (
	// ErrUnavailable: the request does not offer what the transport needs, or
	// this machine does not have it. Nothing was tried.
	ErrUnavailable = errors.New("not available")
	// ErrCredentials: the server does not accept user name and password.
	ErrCredentials = errors.New("the credentials were refused")
	// ErrBusy: the host has no room for another connection now (NFC memory,
	// number of connections). Fewer streams or a later time may help.
	ErrBusy = errors.New("the host takes no more connections")
	// ErrLost: the way to the disk broke while it was in use. Opening it anew
	// may help.
	ErrLost = errors.New("the connection to the disk was lost")
	// ErrHung: the other side did not answer in time. It matches ErrLost too.
	ErrHung error = lostError("no answer in time")
	// ErrCrashed: the helper process died. It matches ErrLost too.
	ErrCrashed error = lostError("the helper process died")
	// ErrSize: the disk has another size than the request says.
	ErrSize = errors.New("the disk has another size")
)

// lostError is a way of losing a disk.
type lostError string

func (e lostError) Error() string        { return string(e) }
func (e lostError) Is(target error) bool { return target == ErrLost }

// Source is one disk at its source, to be read.
//
// Its Extents tell allocated areas where the transport can find them out, and
// say that all is data where it cannot. Reads may be any number at once and
// any size; many at once is what makes a source that is far away fast.
type Source interface {
	disk.Image
	disk.Mapper
	// Transport is the name of the transport that reads it: "file", "hotadd",
	// "nbdssl", "nbd", "san", "folder" or "nfc".
	Transport() string
}

// Request says which disk is meant and by which ways it may be reached. A way
// whose fields are not set is not tried.
type Request struct {
	Key  int32  // the disk's device key in its VM
	Size int64  // bytes; a disk of another size is refused
	Path string // datastore path of the descriptor, "[ds] dir/vm.vmdk": of the snapshot's base when reading

	// LocalPath is the same descriptor, or the flat file itself, as a path on
	// this machine: transport file.
	LocalPath string

	// HotAdd attaches the disk to the VM that we run in: transport hotadd.
	HotAdd HotAdder

	// Server and so on are for VMware's library: transports nbdssl, nbd, san.
	// The password is handed to the helper through a pipe and is neither in
	// its arguments nor in its environment.
	Server             string // host name, address or URL, with an optional :port
	Username, Password string
	Thumbprint         string // of the server's certificate, SHA-1 or SHA-256; "" = the system's authorities vouch for it
	VM, Snapshot       string // references: "vm-42", "snapshot-43"; a type in front ("VirtualMachine:") is dropped
	Library            Library

	// Files reaches files of datastores over HTTP: transport folder. Writing
	// needs that it is a FileWriter too.
	Files FileReader

	// Lease exports the disk: transport nfc. Import is the same for writing.
	Lease  Leaser
	Import Importer
}

// FileReader reads files of datastores.
type FileReader interface {
	// ReadRange reads len(p) bytes at off of the file called path
	// ("[ds] dir/file"). As with io.ReaderAt, fewer come with an error; the
	// bytes that did come are right, and reading goes on after them. io.EOF
	// itself means that the file ends there. Errors that match fs.ErrNotExist
	// or fs.ErrPermission are final; after all others it is tried again.
	ReadRange(ctx context.Context, path string, off int64, p []byte) (int, error)
	// Size is the file's size in bytes.
	Size(ctx context.Context, path string) (int64, error)
}

// FileWriter writes files of datastores, whole.
type FileWriter interface {
	// Upload replaces the file called path by the size bytes of r.
	Upload(ctx context.Context, path string, r io.Reader, size int64) error
}

// HotAdder attaches a disk to the VM that this process runs in.
type HotAdder interface {
	// Attach returns the block device that the disk has become, and how to
	// detach it. detach is called once, after the device was closed.
	Attach(ctx context.Context) (devicePath string, detach func(context.Context) error, err error)
}

// Leaser exports the disks of a VM or snapshot.
type Leaser interface {
	Export(ctx context.Context) (Lease, error)
}

// Lease is an export that is under way.
type Lease interface {
	// Disk is the streamOptimized VMDK of the disk with the device key. The
	// lease is kept alive while it is read.
	Disk(ctx context.Context, key int32) (io.ReadCloser, error)
	// Progress tells the server how far we are: 0 to 100.
	Progress(percent int)
	// Close completes the lease, or aborts it if why is not nil.
	Close(ctx context.Context, why error) error
}

// Importer takes the content of a new VM's disks.
type Importer interface {
	Import(ctx context.Context) (ImportLease, error)
}

// ImportLease is an import that is under way.
type ImportLease interface {
	// Upload sends stream, a streamOptimized VMDK, as the disk with the device
	// key, and returns when the server has all of it.
	Upload(ctx context.Context, key int32, stream io.Reader) error
	Progress(percent int)
	Close(ctx context.Context, why error) error
}

// Limiter keeps a rate, and may be shared by many disks.
type Limiter interface {
	// Wait returns when bytes more may be moved, or with the context's error.
	Wait(ctx context.Context, bytes int64) error
}

// Library says where VMware's library and our helper program are. The zero
// value looks where they usually are.
type Library struct {
	// Dir is the folder vmware-vix-disklib-distrib, or its lib64. "" = the first
	// that exists of /usr/lib/vmware-vix-disklib and
	// /opt/vmware-vix-disklib-distrib.
	Dir string
	// Helper is the program lifeboat-vddk. "" = beside the running program,
	// then in /usr/lib/lifeboat, then in PATH.
	Helper string
	// Config is the library's own configuration file. "" = one with as many
	// buffers as Options.Buffers says.
	Config string
}

// Options are choices that have nothing to do with which disk it is. The zero
// value is good.
type Options struct {
	// Transport forces one transport, or several in the order in which they
	// are to be tried, with commas between. "" = all that the request offers,
	// best first. Unencrypted nbd is only used when it is named here.
	Transport string
	// Buffers is how many requests of up to 1 MiB are in flight for this disk
	// at the source. A host has room for about 48 of them, for all who read.
	// 0 = 4.
	Buffers int
	// Limiter is asked before each request; nil = no limit.
	Limiter Limiter
	// OpenTimeout bounds the opening of one transport. 0 = 2 minutes.
	OpenTimeout time.Duration
	// Timeout bounds how long one request may go without an answer before the
	// source is given up as hung. 0 = 2 minutes.
	Timeout time.Duration
	// Spool is the folder for the temporary files of transports that cannot
	// read or write at random: nfc when reading, folder when writing. They
	// have no name and take as much room as the disk holds data. "" = the
	// system's folder for temporary files.
	Spool string
	// Logger gets which transport was chosen and why not a better one, and
	// what the library says. nil = nothing.
	Logger *slog.Logger
}

const (
	defaultBuffers = 4
	maxBuffers     = 48
	defaultTimeout = 2 * time.Minute
	requestBytes   = 1 << 20 // the size of one request at a source
	closeTimeout   = time.Minute
)

func (o Options) withDefaults() Options {
	if o.Buffers <= 0 {
		o.Buffers = defaultBuffers
	}
	o.Buffers = min(o.Buffers, maxBuffers)
	if o.OpenTimeout <= 0 {
		o.OpenTimeout = defaultTimeout
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// LibraryInfo is what is known of VMware's library on this machine.
type LibraryInfo struct {
	Path    string   // the library's file
	Version string   // by its file name: "8.0.2"
	Modes   []string // transport modes that it says it has
	Helper  string   // the helper program's path
	Err     error    // why it cannot be used; matches ErrUnavailable where it is just not there
}
