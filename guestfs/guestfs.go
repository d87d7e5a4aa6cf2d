// Package guestfs reads the files inside a guest's disks, without the guest and
// without the host's kernel.
//
// Everything it is given was written by somebody else's machine and may have
// been written by an attacker: no disk makes it crash, hang or grow without
// bound. And a backup is a disk at one instant of a running machine, so a file
// system whose journal has not been replayed is the rule, not the exception: a
// reader replays it, in memory, or says that it did not ([State]). What a reader
// cannot do it refuses by name ([UnsupportedError]); it never returns bytes that
// the guest would not have read.
//
//	disks → partitions (package partition) → LVM2 (package lvm) → volumes → FS
//
// Each file system is a package below this one and implements [FS] on a
// [disk.Image]. A file system is a graph of inodes, as in a kernel; paths are a
// walker's business. Names are bytes in a Go string, in whatever encoding the
// guest used (NTFS and FAT: UTF-8 made of their UTF-16, unpaired surrogates as
// WTF-8), and never names of the host.
package guestfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"time"

	"lifeboat/disk"
)

// Inode is the identity of a file or directory within one FS, stable for as
// long as the volume is the same: the inode number, on NTFS the file reference
// (sequence number included). 0 is no inode.
type Inode uint64

// FS is a file system, read-only. All methods are safe for concurrent use.
// Errors to decide on are ErrCorrupt, ErrUnsupported, ErrEncrypted and
// fs.ErrNotExist; any other comes from the disk below.
type FS interface {
	// Root is the root directory.
	Root() Inode
	// Stat describes an inode. A number that is free or out of range is
	// fs.ErrNotExist.
	Stat(ctx context.Context, inode Inode) (*Attr, error)
	// ReadDir yields the entries of a directory that follow the cookie of an
	// earlier entry (0: all), without "." and "..". The order is the file
	// system's own and the same each time. Damage ends it with an error after
	// the entries that could be read.
	ReadDir(ctx context.Context, dir Inode, after uint64) iter.Seq2[Dirent, error]
	// Open opens the content of a file: of a symbolic link, its target; of a
	// directory or device, an error. The image knows its holes (disk.Mapper)
	// where the file system does. ctx governs reads, too.
	Open(ctx context.Context, inode Inode) (disk.Image, error)
}

// Lookuper is an FS that finds a name without reading the whole directory, and
// knows how the guest compares names (NTFS and FAT: without case).
type Lookuper interface {
	// Lookup fails with fs.ErrNotExist where there is no such name.
	Lookup(ctx context.Context, dir Inode, name string) (Dirent, error)
}

// XattrReader is an FS with extended attributes.
type XattrReader interface {
	// Xattrs returns all of an inode, by name with its namespace
	// ("user.comment", "system.posix_acl_access", "security.capability").
	// POSIX ACLs are in the kernel's format of the xattr.
	Xattrs(ctx context.Context, inode Inode) ([]Xattr, error)
}

// StreamReader is an FS whose files have named streams besides their content
// (NTFS alternate data streams).
type StreamReader interface {
	// Streams lists them.
	Streams(ctx context.Context, inode Inode) ([]Stream, error)
	// OpenStream opens one.
	OpenStream(ctx context.Context, inode Inode, name string) (disk.Image, error)
}

// SecurityReader is an FS with Windows security descriptors.
type SecurityReader interface {
	// SecurityDescriptor is self-relative (MS-DTYP 2.4.6); nil where there is
	// none.
	SecurityDescriptor(ctx context.Context, inode Inode) ([]byte, error)
}

// Mapped is an FS that knows where on its volume the content of a file stands.
type Mapped interface {
	// PhysicalExtents yields where the unnamed content is stored, ascending by
	// Offset. Holes, what was never written (it reads as zeros) and content that
	// stands in the inode are left out. Where a journal was replayed, the places
	// are those after it; what stands there is what is on the disk.
	PhysicalExtents(ctx context.Context, inode Inode) iter.Seq2[PhysicalExtent, error]
}

// PhysicalExtent is a run of a file's content and where it stands.
type PhysicalExtent struct {
	Offset int64 // in the file, bytes
	At     int64 // on the volume, bytes
	Length int64 // bytes on the volume, > 0
	// Encoded says that what stands there is not the content itself: it is
	// compressed. Offset then is where what it decodes to begins, or 0 where
	// that is not known.
	Encoded bool
}

// Describer is an FS that tells what it is.
type Describer interface {
	Info() Info
}

// Info describes a volume's file system.
type Info struct {
	Type  string `json:"type"` // "ext4", "ntfs", "xfs", …
	Label string `json:"label"`
	UUID  string `json:"uuid"` // as blkid prints it
	Size  int64  `json:"size"` // bytes
	Used  int64  `json:"used"` // bytes; -1 where it is not known cheaply
	State State  `json:"state"`
	// Note says in a sentence what State means here: what was replayed, what is
	// wrong, what is missing.
	Note string `json:"note,omitempty"`
}

// State is how far what is read can be trusted.
type State string

const (
	// Clean means that it was unmounted, or that its journal is empty.
	Clean State = "clean"
	// Replayed means that its journal held changes, and that they are seen as
	// the guest would see them after a reboot.
	Replayed State = "replayed"
	// Dirty means that it was in use and what was on its way is not seen: files
	// may be missing, old or torn.
	Dirty State = "dirty"
	// Damaged means that the file system says of itself, or a reader found, that
	// it needs repair.
	Damaged State = "damaged"
	// Encrypted means that a key is needed.
	Encrypted State = "encrypted"
	// Unsupported means that no reader here knows it.
	Unsupported State = "unsupported"
)

// Bits of Attr.Mode that tell the type, as in POSIX st_mode (inode(7)).
const (
	TypeMask    = 0o170000
	TypeSocket  = 0o140000
	TypeSymlink = 0o120000
	TypeFile    = 0o100000
	TypeBlock   = 0o060000
	TypeDir     = 0o040000
	TypeChar    = 0o020000
	TypeFIFO    = 0o010000
)

// Attr is what Stat tells. Times that a file system does not have are zero.
type Attr struct {
	Inode     Inode
	Mode      uint32 // POSIX st_mode: type and permissions
	Links     uint32
	UID, GID  uint32
	Size      int64 // bytes of content
	Allocated int64 // bytes on the volume
	Atime     time.Time
	Mtime     time.Time
	Ctime     time.Time // of the inode
	Btime     time.Time // of creation
	Major     uint32    // of a device
	Minor     uint32
	// Generation tells a reused inode number from the one before.
	Generation uint64
	Flags      Flags
}

// Type is Mode's type bits.
func (a *Attr) Type() uint32 { return a.Mode & TypeMask }

// Flags are properties of a file beyond its mode.
type Flags uint32

// The first six are of Unix, the rest are the DOS attributes.
const (
	Immutable Flags = 1 << iota
	AppendOnly
	Compressed
	EncryptedFile // the content is encrypted with a key that the file system does not hold
	Sparse
	Verity
	ReadOnly
	Hidden
	System
	Archive
	Offline // the content is elsewhere (HSM, OneDrive)
	Reparse // a reparse point that is neither a link nor compression: the guest has a driver that decides
)

// Dirent is an entry of a directory.
type Dirent struct {
	Name   string // bytes as the guest has them, or WTF-8
	Inode  Inode
	Type   uint32 // type bits of the mode, 0 where the directory does not tell
	Cookie uint64 // of this entry, not 0; what ReadDir goes on after
}

// Xattr is one extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// Stream is a named stream of a file.
type Stream struct {
	Name string
	Size int64 // bytes
}

// Errors that a caller decides on. ErrCorrupt and ErrUnsupported come with
// details in a CorruptError or UnsupportedError.
var (
	ErrCorrupt     = errors.New("the file system is damaged")
	ErrUnsupported = errors.New("not supported")
	ErrEncrypted   = errors.New("encrypted")
	ErrNotDir      = errors.New("not a directory")
	// ErrNoFS says that what is looked for is not on this volume: a superblock,
	// a partition table.
	ErrNoFS = errors.New("no such structure here")
)

// CorruptError says what contradicts itself and where. It matches ErrCorrupt.
type CorruptError struct {
	FS   string // "ext4"
	What string // "inode 12: extent tree: depth 7"
}

func (e *CorruptError) Error() string { return fmt.Sprintf("%s: damaged: %s", e.FS, e.What) }

// Is reports whether target is ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// Corruptf makes a CorruptError.
func Corruptf(fsType, format string, args ...any) error {
	return &CorruptError{FS: fsType, What: fmt.Sprintf(format, args...)}
}

// UnsupportedError names what a reader cannot do. It matches ErrUnsupported.
type UnsupportedError struct {
	FS   string
	What string // "external journal", "feature casefold"
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s: %s is not supported", e.FS, e.What)
}

// Is reports whether target is ErrUnsupported.
func (e *UnsupportedError) Is(target error) bool { return target == ErrUnsupported }

// MaxSymlink bounds the target of a symbolic link, in bytes (Linux: PATH_MAX).
const MaxSymlink = 4096

// ReadLink returns the target of a symbolic link, as the guest wrote it: it is
// not to be followed on the host.
func ReadLink(ctx context.Context, fsys FS, inode Inode) (string, error) {
	img, err := fsys.Open(ctx, inode)
	if err != nil {
		return "", err
	}
	defer img.Close()
	if img.Size() > 16*MaxSymlink { // NTFS targets are up to 32 Ki characters
		return "", fmt.Errorf("symbolic link of %d bytes: %w", img.Size(), ErrCorrupt)
	}
	p := make([]byte, img.Size())
	if n, err := img.ReadAt(p, 0); n < len(p) {
		return "", err
	}
	return string(p), nil
}

// Lookup finds a name in a directory, whichever way the FS offers.
func Lookup(ctx context.Context, fsys FS, dir Inode, name string) (Dirent, error) {
	if l, ok := fsys.(Lookuper); ok {
		return l.Lookup(ctx, dir, name)
	}
	for e, err := range fsys.ReadDir(ctx, dir, 0) {
		if err != nil {
			return Dirent{}, err
		}
		if e.Name == name {
			return e, nil
		}
	}
	return Dirent{}, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
}
