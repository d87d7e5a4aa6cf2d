// Package store is the repository: restore points of virtual machines, kept
// deduplicated, compressed, encrypted and verifiable on a [backend.Backend].
//
// The bytes are specified in docs/repository-format.md. In short: a disk is cut
// into blocks; a block of zeros is not stored; every other block is identified
// by a keyed hash, stored once in a segment and found by its address. A tree of
// addresses, the block map, makes a disk; its nodes are stored like blocks and
// shared between the points that have them in common. A restore point is one
// small object that names the roots. Creating that object is the commit.
//
// # Reading
//
// [Open] reads the header and a key; it costs the same whatever the repository
// holds. [Repository.Points] lists, [Repository.OpenDisk] gives an [Image],
// which is a [disk.Image] with everything optional that a reader can offer.
//
// # Writing
//
//	ing, err := repo.NewIngest(ctx, store.IngestOptions{})
//	defer ing.Close()
//	w, err := ing.Begin(store.PointSpec{VM: "web1", Parent: last})
//	defer w.Abort() // does nothing after Commit
//	err = w.AddDisk(ctx, store.DiskSpec{Key: 2000, Label: "Hard disk 1"}, src, nil, nil)
//	point, err := w.Commit(ctx)
//
// Nothing of a point is visible before Commit returned, and whatever way a
// writer ends, the next one finds and sweeps what it left.
//
// # Who may do what at the same time
//
// Any number of readers and writers, in one process and in many, on one
// repository, and one prune beside them: nobody waits for anybody. A writer
// announces itself with a claim on a range of segment numbers, so that no two
// write the same object; claim.go has the protocol and its safety argument. A
// reader holds the points that it reads (hold.go). [Repository.Forget] hides a
// point and [Repository.Prune] removes it, and what nobody needs any more;
// prune.go says why nothing is removed that anybody needs.
package store

import (
	"log/slog"
	"time"

	"lifeboat/store/backend"
)

// DefaultCacheBytes is the size of a repository's cache of decoded frames when
// Options does not say. The memory is taken as it is used.
const DefaultCacheBytes = 256 << 20

// DefaultBlockSize is the block size of a new repository, in bytes.
const DefaultBlockSize = 64 << 10

// InitOptions says how a new repository is made. The zero value is good.
type InitOptions struct {
	// BlockSize is the unit of deduplication and of reading, in bytes: 64, 128
	// or 256 KiB; 0 means DefaultBlockSize. It never changes afterwards.
	BlockSize int
	// KDFTime, KDFMemory and KDFThreads are the cost of turning the password
	// into a key (Argon2id, RFC 9106): passes, KiB and lanes; 0 means the
	// defaults (3, 64 MiB, 4). They are kept with the key.
	KDFTime    uint32
	KDFMemory  uint32
	KDFThreads uint8
}

// Options says how a repository is opened. The zero value is good.
type Options struct {
	// CacheBytes bounds the cache of decoded frames shared by all images; 0
	// means DefaultCacheBytes.
	CacheBytes int64
	// DiskCache keeps what was read on local disk; the zero value does not.
	DiskCache DiskCache
	// Remote says that every request to the backend takes milliseconds: readers
	// then make few large ones, many at the same time. DiskCache implies it.
	Remote bool
	// Logger hears of what was repaired or skipped; nil means slog.Default.
	Logger *slog.Logger
	// Lease is how long others respect a claim of a writer here after its last
	// sign of life, if they cannot see its process; 0 means DefaultLease. At
	// most a day.
	Lease time.Duration
	// Processes tells whether a writer on this host is still running; nil means
	// backend.HostProcesses.
	Processes backend.Processes
	// Clock tells the time of restore points that have none; nil means
	// time.Now.
	Clock func() time.Time
}

// DiskCache is a cache of a repository's objects on local disk. It holds them as
// they are in the repository, sealed; what it gives is checked, so that its
// files may be damaged or removed at any time, also while they are in use. Of
// several processes that use it, one adds to it and the others read.
type DiskCache struct {
	// Dir is a directory, shared by repositories: each makes its own in it.
	Dir string
	// Bytes bounds what is kept of each repository; 0 means no cache on disk.
	Bytes int64
}

// DefaultLease is how long a writer on another host is respected after its last
// sign of life.
const DefaultLease = 15 * time.Minute

// MaxConfigFile bounds a configuration file kept with a point, in bytes.
const MaxConfigFile = 16 << 20
