package store

import (
	"context"
	"iter"

	"lifeboat/disk"
)

// Image is one disk of a restore point, open for reading.
type Image struct{}

var (
	_ disk.Image        = (*Image)(nil)
	_ disk.Mapper       = (*Image)(nil)
	_ disk.CachedReader = (*Image)(nil)
	_ disk.Usage        = (*Image)(nil)
)

// ReadAt reads from the disk. Damage is an error that matches ErrDamaged and
// names the object; wrong bytes are never returned.
func (m *Image) ReadAt(p []byte, off int64) (int, error) { return 0, errNotYet }

// ReadCached fills p if all of it is in memory; see disk.CachedReader.
func (m *Image) ReadCached(p []byte, off int64) bool { return false }

// Size is the virtual size in bytes.
func (m *Image) Size() int64 { return 0 }

// Used is the number of bytes in blocks that are not holes.
func (m *Image) Used() int64 { return 0 }

// Extents tells data from holes, in whole blocks.
func (m *Image) Extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) { yield(disk.Extent{}, errNotYet) }
}

// Close lets go of the image. Reads after it fail with ErrClosed.
func (m *Image) Close() error { return nil }
