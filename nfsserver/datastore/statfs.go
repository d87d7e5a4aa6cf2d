package datastore

import (
	"math"

	"golang.org/x/sys/unix"
)

// StatFS is what FSSTAT reports (RFC 1813 §3.3.18).
type StatFS struct {
	TotalBytes, FreeBytes, AvailBytes uint64
	TotalFiles, FreeFiles, AvailFiles uint64
}

// StatFS describes the datastore: free is what the host has free. Virtual disks
// are thin, and their bytes are not all on the host's file system; so that
// clients do not see disks bigger than the datastore they are on, total is at
// least the sum of their sizes and what is free.
func (t *Tree) StatFS() (StatFS, error) {
	root, err := t.root.acquire()
	if err != nil {
		return StatFS{}, fail("statfs", "", err)
	}
	defer t.root.release(root)
	var h unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(root.fd, &h) }); err != nil {
		return StatFS{}, fail("statfs", "", err)
	}
	unit := uint64(h.Frsize)
	if unit == 0 {
		unit = uint64(h.Bsize)
	}
	s := StatFS{
		TotalBytes: h.Blocks * unit, FreeBytes: h.Bfree * unit, AvailBytes: h.Bavail * unit,
		TotalFiles: h.Files, FreeFiles: h.Ffree, AvailFiles: h.Ffree,
	}
	if s.TotalFiles == 0 { // Btrfs does not count; 0 would say that there is no room
		s.TotalFiles, s.FreeFiles, s.AvailFiles = math.MaxInt32, math.MaxInt32, math.MaxInt32
	}
	s.TotalBytes = max(s.TotalBytes, min(uint64(t.diskBytes.Load())+s.FreeBytes, math.MaxInt64))
	return s, nil
}
