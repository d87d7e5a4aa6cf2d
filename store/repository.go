package store

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"time"

	"lifeboat/disk"
	"lifeboat/store/backend"
)

var errNotYet = errors.New("not implemented yet")

// Init makes a new repository on b, which must hold none. The password is
// needed to open it and cannot be recovered.
func Init(ctx context.Context, b backend.Backend, password []byte, opts InitOptions) error {
	return errNotYet
}

// Repository is an open repository. All methods are safe for concurrent use.
type Repository struct {
	backend backend.Backend
	log     *slog.Logger
}

// Open opens the repository on b. It costs the same whatever the repository
// holds. The errors to decide on are ErrNotRepository, ErrWrongPassword,
// ErrVersion and ErrDamaged.
func Open(ctx context.Context, b backend.Backend, password []byte, opts Options) (*Repository, error) {
	return nil, errNotYet
}

// Close lets go of memory and open files. Images of the repository must be
// closed before.
func (r *Repository) Close() error { return errNotYet }

// ID is the repository's own identity: 32 hexadecimal digits, random.
func (r *Repository) ID() string { return "" }

// BlockSize is the unit of deduplication, in bytes.
func (r *Repository) BlockSize() int { return 0 }

// Points returns all restore points, oldest first. Objects that are damaged are
// left out, logged, and named by Verify.
func (r *Repository) Points(ctx context.Context) ([]*Point, error) { return nil, errNotYet }

// Point returns the restore point with exactly that ID.
func (r *Repository) Point(ctx context.Context, id string) (*Point, error) { return nil, errNotYet }

// Latest returns the newest restore point of a VM (by name or VMID), or
// ErrNotFound.
func (r *Repository) Latest(ctx context.Context, vm string) (*Point, error) { return nil, errNotYet }

// ResolvePoint finds the restore point that ref means: an ID, a unique prefix
// of one, "VM@latest", or "VM@2026-11-21T10:00" (the newest point at or before
// that time, which is local unless it carries a zone). Errors match
// ErrNotFound, ErrAmbiguous (and then name the candidates) or ErrReference.
func (r *Repository) ResolvePoint(ctx context.Context, ref string) (*Point, error) {
	return nil, errNotYet
}

// Config returns a file that was kept with the point.
func (r *Repository) Config(ctx context.Context, p *Point, name string) ([]byte, error) {
	return nil, errNotYet
}

// OpenDisk opens disk n (an index into p.Disks) for reading. It costs the same
// for any size of disk. Cancelling ctx fails reads in flight and to come.
func (r *Repository) OpenDisk(ctx context.Context, p *Point, n int) (*Image, error) {
	return nil, errNotYet
}

// Diff yields the areas in which disk number diskB of b differs from disk number
// diskA of a, in whole blocks, ascending, clipped to the larger disk; Hole says
// that the area is a hole in b. It costs what differs, not what is there.
func (r *Repository) Diff(ctx context.Context, a *Point, diskA int, b *Point, diskB int) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) { yield(disk.Extent{}, errNotYet) }
}

// Forget removes a restore point. Its blocks stay until Prune.
func (r *Repository) Forget(ctx context.Context, id string) error { return errNotYet }

// Stat is what a repository holds.
type Stat struct {
	Points       int   `json:"points"`
	Segments     int   `json:"segments"`
	SegmentBytes int64 `json:"segment_bytes"`
	IndexBytes   int64 `json:"index_bytes"`
	OtherBytes   int64 `json:"other_bytes"` // header, keys, claims, points
	TotalBytes   int64 `json:"total_bytes"`
	VirtualBytes int64 `json:"virtual_bytes"` // sizes of all disks of all points
}

// Stat lists the repository and adds up.
func (r *Repository) Stat(ctx context.Context) (*Stat, error) { return nil, errNotYet }

// Key is one password's way into the repository.
type Key struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
}

// Keys lists the passwords' keys.
func (r *Repository) Keys(ctx context.Context) ([]Key, error) { return nil, errNotYet }

// AddPassword lets another password open the repository.
func (r *Repository) AddPassword(ctx context.Context, password []byte) (Key, error) {
	return Key{}, errNotYet
}

// RemoveKey takes a password's key away. The last one cannot be removed.
func (r *Repository) RemoveKey(ctx context.Context, id string) error { return errNotYet }

// ChangePassword adds a key for the new password, and then removes the one that
// the repository was opened with.
func (r *Repository) ChangePassword(ctx context.Context, password []byte) error { return errNotYet }
