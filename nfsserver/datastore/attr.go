package datastore

import (
	"encoding/binary"
	"hash/fnv"
	"time"

	"golang.org/x/sys/unix"
)

// Type is the type of a file with the numbers of NFSv3's ftype3 (RFC 1813 §2.6).
type Type uint32

// The types. Files of the last four kinds can only have been made on the host;
// they are shown and can be renamed or removed, nothing else.
const (
	TypeRegular   Type = 1
	TypeDirectory Type = 2
	TypeBlock     Type = 3
	TypeChar      Type = 4
	TypeSymlink   Type = 5
	TypeSocket    Type = 6
	TypeFIFO      Type = 7
)

// Time is a point in time as NFS has it: seconds since 1970 and nanoseconds.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Unix is t in nanoseconds since 1970.
func (t Time) Unix() int64 { return t.Sec*1e9 + int64(t.Nsec) }

func timeOf(ns int64) Time {
	sec := ns / 1e9
	if ns%1e9 < 0 {
		sec--
	}
	return Time{Sec: sec, Nsec: uint32(ns - sec*1e9)}
}

func (t Time) std() time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }

// Attr is everything that fattr3 needs (RFC 1813 §2.6).
type Attr struct {
	Type      Type
	Mode      uint32 // permission bits with setuid, setgid and sticky: 07777
	Nlink     uint32
	UID, GID  uint32
	Size      uint64 // bytes; a virtual disk's is its Device's
	Used      uint64 // bytes that are really occupied
	RdevMajor uint32
	RdevMinor uint32
	FSID      uint64
	FileID    uint64
	Atime     Time
	Mtime     Time
	Ctime     Time
}

// PreAttr is what a client compares with its cache: wcc_attr (RFC 1813 §2.6).
type PreAttr struct {
	Size  uint64
	Mtime Time
	Ctime Time
}

func (a *Attr) pre() PreAttr { return PreAttr{Size: a.Size, Mtime: a.Mtime, Ctime: a.Ctime} }

// WCC are attributes before and after an operation (weak cache consistency,
// RFC 1813 §2.6). Where both are present nothing else changed the object in
// between. They are filled in as far as known also when the operation failed.
type WCC struct {
	Pre     PreAttr
	Post    Attr
	HasPre  bool
	HasPost bool
}

func (w *WCC) before(a Attr, err error) {
	if err == nil {
		w.Pre, w.HasPre = a.pre(), true
	}
}

func (w *WCC) after(a Attr, err error) {
	if err == nil {
		w.Post, w.HasPost = a, true
	}
}

// stat is the host's view of one file.
type stat struct {
	dev   uint64
	btime int64 // nanoseconds; 0 where the file system keeps none
	attr  Attr
}

const (
	statFlags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	statMask  = unix.STATX_BASIC_STATS | unix.STATX_BTIME
)

// statAt describes name in the directory dirfd, or dirfd itself if name is
// empty. A symbolic link is described, never followed.
func (t *Tree) statAt(dirfd int, name string) (stat, error) {
	var x unix.Statx_t
	flags := statFlags
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := retry(func() error { return unix.Statx(dirfd, name, flags, statMask, &x) }); err != nil {
		return stat{}, err
	}
	s := stat{dev: uint64(x.Dev_major)<<32 | uint64(x.Dev_minor)}
	if x.Mask&unix.STATX_BTIME != 0 {
		s.btime = x.Btime.Sec*1e9 + int64(x.Btime.Nsec)
	}
	s.attr = Attr{
		Type: typeOf(x.Mode), Mode: uint32(x.Mode) & 0o7777, Nlink: x.Nlink, UID: x.Uid, GID: x.Gid,
		Size: x.Size, Used: x.Blocks * 512, RdevMajor: x.Rdev_major, RdevMinor: x.Rdev_minor,
		FSID: t.fsid, FileID: x.Ino,
		Atime: Time{x.Atime.Sec, x.Atime.Nsec}, Mtime: Time{x.Mtime.Sec, x.Mtime.Nsec},
		Ctime: Time{x.Ctime.Sec, x.Ctime.Nsec},
	}
	return s, nil
}

func typeOf(mode uint16) Type {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return TypeDirectory
	case unix.S_IFLNK:
		return TypeSymlink
	case unix.S_IFBLK:
		return TypeBlock
	case unix.S_IFCHR:
		return TypeChar
	case unix.S_IFSOCK:
		return TypeSocket
	case unix.S_IFIFO:
		return TypeFIFO
	}
	return TypeRegular
}

// generation tells apart the files that use one inode number one after the
// other. The time of birth alone is not enough: file systems give a freed
// number out again at once, within one tick of the clock in which they measure
// births. So the kernel's own file handle is mixed in, which holds the inode's
// generation number where the file system has one (ext4, XFS, Btrfs, tmpfs).
// It need not be unguessable: the handle's MAC covers it.
func (t *Tree) generation(dirfd int, name string, st *stat) (uint64, error) {
	h := fnv.New64a()
	var buf [8]byte
	binary.BigEndian.PutUint64(buf[:], uint64(st.btime))
	_, _ = h.Write(buf[:])
	if t.kernelHandles {
		flags := 0
		if name == "" {
			flags = unix.AT_EMPTY_PATH
		}
		kh, _, err := unix.NameToHandleAt(dirfd, name, flags)
		if err != nil {
			return 0, err
		}
		_, _ = h.Write(kh.Bytes())
	}
	return h.Sum64(), nil
}
