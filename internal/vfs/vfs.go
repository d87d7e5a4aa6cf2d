// Package vfs is the small part of a file system that Lifeboat's durable
// structures need, as an interface, so that the same code runs on the host's
// file system ([OS]) and on one that loses power on purpose (package crashfs).
//
// What a durable structure may rely on, and nothing more:
//
//   - A File's content is durable once Sync returned nil after the write.
//     Without it any sector may be old, new or (for a sector being written)
//     either, in any combination, independent of order.
//   - A directory entry (create, rename, remove) is durable once SyncDir of the
//     directory returned nil. Without it any such change may be lost, and a
//     later one may survive an earlier one of another name.
//   - Rename and RenameExclusive are atomic: after a crash there is the old
//     state or the new state, never half of one.
package vfs

import (
	"io"
	"io/fs"
)

// FS is a file system. Names are host paths (slash separated, absolute or
// relative to the working directory). Errors match io/fs's sentinels
// (fs.ErrNotExist, fs.ErrExist, …) and syscall.ENOSPC for a full disk.
type FS interface {
	// OpenFile is os.OpenFile. The flags used are os.O_RDONLY, O_RDWR,
	// O_CREATE, O_EXCL and O_TRUNC.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Rename replaces newname if it exists.
	Rename(oldname, newname string) error
	// RenameExclusive fails with fs.ErrExist if newname exists, atomically
	// also against other processes and hosts.
	RenameExclusive(oldname, newname string) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// MkdirAll makes name and its missing parents; it syncs the directories
	// that gained an entry.
	MkdirAll(name string, perm fs.FileMode) error
	// ReadDir lists a directory in name order.
	ReadDir(name string) ([]fs.DirEntry, error)
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes the directory's entries durable.
	SyncDir(name string) error
	// Free is the space that an unprivileged writer may still fill, in bytes,
	// on the file system that holds name.
	Free(name string) (int64, error)
}

// File is an open file. ReadAt and WriteAt are safe for concurrent use.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Name is the name given to OpenFile.
	Name() string
	// Sync makes content and size durable (fdatasync(2)).
	Sync() error
	Truncate(size int64) error
	Size() (int64, error)
	// Allocate reserves space for [off, off+n), growing the file if needed, so
	// that writes there cannot fail for lack of room (fallocate(2)). Where the
	// file system cannot, it writes zeros.
	Allocate(off, n int64) error
	// PunchHole makes [off, off+n) read as zeros and gives its space back
	// where the file system can. It does not change the size.
	PunchHole(off, n int64) error
}

// NoWaitReader is implemented by files that can be read without waiting.
type NoWaitReader interface {
	// ReadAtNoWait fills p from off if the bytes are in memory (preadv2(2)
	// with RWF_NOWAIT) and reports whether it did.
	ReadAtNoWait(p []byte, off int64) bool
}
