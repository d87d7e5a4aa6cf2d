package microvm

import (
	"lifeboat/disk"
	"lifeboat/disk/nbd"
)

// served is a disk as QEMU's NBD client sees it.
type served struct{ *disk.Scratch }

var _ nbd.Backend = served{}

// Read implements [nbd.Backend].
func (s served) Read(_ int, p []byte, off int64) error {
	_, err := s.ReadAt(p, off)
	return err
}

// Write implements [nbd.Backend].
func (s served) Write(_ int, p []byte, off int64) error {
	_, err := s.WriteAt(p, off)
	return err
}

// Flush implements [nbd.Backend].
func (s served) Flush() error { return s.Sync() }

// Extents implements [nbd.Backend]; it is not offered.
func (s served) Extents(_, length int64) ([]nbd.Extent, error) {
	return []nbd.Extent{{Length: length}}, nil
}
