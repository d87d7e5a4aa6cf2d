package store

import (
	"context"
	"time"

	"lifeboat/disk"
)

// IngestOptions says how to write. The zero value is good.
type IngestOptions struct {
	// Workers is how many goroutines hash and compress; 0 means one per CPU.
	Workers int
	// Tool is the version recorded in the points.
	Tool string
}

// Ingest is one writer's stay in the repository: it holds a claim and the
// dedupe index, and makes any number of points, one after the other or at the
// same time.
type Ingest struct {
}

// NewIngest announces a writer, after sweeping what dead ones left. ctx governs
// everything the ingest does: when it ends, all of it fails, and Close cleans
// up.
func (r *Repository) NewIngest(ctx context.Context, opts IngestOptions) (*Ingest, error) {
	return nil, errNotYet
}

// PointSpec describes a point to be made.
type PointSpec struct {
	VM   string // required
	VMID string
	Time time.Time // when the state was captured; zero means now
	// Consistency defaults to CrashConsistent.
	Consistency Consistency
	// Parent is an earlier point of the same VM to compare with, or nil.
	Parent *Point
	// Config are small files (.vmx, .nvram) to keep with the point, by name; at
	// most MaxConfigFile bytes each.
	Config map[string][]byte
	Labels map[string]string
}

// DiskSpec describes a disk to be added.
type DiskSpec struct {
	// Key is the disk's lasting number in its VM. With a parent, the parent's
	// disk of the same key is the one compared with.
	Key   int
	Label string
}

// Progress is how far a disk has come, in bytes.
type Progress struct {
	Done   int64 // of Total
	Total  int64 // what has to be looked at: data, in the changed areas
	Read   int64 // read from the source
	New    int64 // not in the repository before
	Stored int64 // New after compression
}

// Begin starts a point. Nothing of it is visible before Commit.
func (in *Ingest) Begin(spec PointSpec) (*PointWriter, error) { return nil, errNotYet }

// Close ends the writer's stay: points in progress are aborted, what they wrote
// is removed and the claim is given up. It does its work also when the ingest's
// context has ended.
func (in *Ingest) Close() error { return errNotYet }

// PointWriter makes one point. AddDisk may be called for several disks at the
// same time; Commit and Abort when all of them have returned.
type PointWriter struct{}

// AddDisk stores the content of src. Holes (see disk.Mapper) are not read.
//
// With a parent that has a disk of the same key and size, and with changed not
// nil, only the blocks that changed touches are read, and the rest is taken from
// the parent; the caller vouches that nothing else differs. Otherwise changed is
// not used: all data of src is read, and compared with the parent's if there is
// one. changed may be unsorted and overlap; areas outside src match
// ErrChangedList. Empty but not nil means that nothing changed.
//
// A source that ends early or fails matches disk.ErrChanged or its own error;
// no room in the repository matches syscall.ENOSPC. After an error the point
// can only be aborted.
//
// progress, if not nil, is called about ten times a second and at the end, from
// one goroutine at a time.
func (w *PointWriter) AddDisk(ctx context.Context, spec DiskSpec, src disk.Image, changed []disk.Extent, progress func(Progress)) error {
	return errNotYet
}

// Commit makes the point durable and visible, in one step. On error there is no
// point, with one exception that the message names: when the outcome of the step
// itself is unknown.
func (w *PointWriter) Commit(ctx context.Context) (*Point, error) { return nil, errNotYet }

// Abort drops the point. After Commit it does nothing.
func (w *PointWriter) Abort() {}
