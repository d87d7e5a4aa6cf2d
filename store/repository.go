package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"runtime"
	"sync"
	"time"

	"lifeboat/store/backend"
	"lifeboat/store/internal/blockcache"
	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/framecache"
	"lifeboat/store/internal/keyring"
	"lifeboat/store/internal/segment"
)

// Repository is an open repository. All methods are safe for concurrent use.
type Repository struct {
	backend   backend.Backend
	ring      *keyring.Repo
	keys      *keyring.Keys
	id        string
	blockSize int
	shift     uint // log2 of blockSize

	// reads is backend or, where that is slow, a cache over it (near, else nil)
	// for the objects that never change. Whoever wants the truth about what is
	// stored, such as Verify, uses backend.
	reads    backend.Backend
	near     *blockcache.Cache
	segments *segment.Reader
	maps     *blockmap.Reader
	cache    *framecache.Cache
	fetch    *fetcher
	points   pointCache

	rooms      sync.Pool     // *[]byte: room for what large reads fetch
	aheadSlots chan struct{} // one for each goroutine that decodes beside a reader
	aheadMax   int64         // largest window that is decoded ahead, bytes
	farMax     int64         // largest window that is fetched ahead, bytes; 0: none

	kdf   keyring.KDF // for new keys; zero is the default
	lease time.Duration
	clock func() time.Time
	proc  backend.Processes
	host  hostClock // what this host knows of time; see clockledger.go
	locks objectLocks
	log   *slog.Logger

	exclusive exclusiveProbe // whether the backend keeps two writers apart
}

// Init makes a new repository on b, which must hold none (ErrExists). The
// password is needed to open it and cannot be recovered.
func Init(ctx context.Context, b backend.Backend, password []byte, opts InitOptions) error {
	_, err := keyring.Create(ctx, b, password, keyring.Params{
		BlockSize: opts.BlockSize,
		KDF:       keyring.KDF{MemoryKiB: opts.KDFMemory, Passes: opts.KDFTime, Lanes: opts.KDFThreads},
	})
	return err
}

// Open opens the repository on b. It costs the same whatever the repository
// holds. The errors to decide on are ErrNotRepository, ErrWrongPassword,
// ErrVersion and ErrDamaged.
func Open(ctx context.Context, b backend.Backend, password []byte, opts Options) (*Repository, error) {
	ring, err := keyring.Open(ctx, b, password)
	if err != nil {
		return nil, err
	}
	r, err := newRepository(b, ring, opts)
	if err != nil {
		return nil, fmt.Errorf("open the repository: %w", err)
	}
	return r, nil
}

func newRepository(b backend.Backend, ring *keyring.Repo, opts Options) (*Repository, error) {
	r := &Repository{
		backend: b, ring: ring, keys: ring.Keys, id: ring.ID, blockSize: ring.BlockSize,
		shift: uint(bits.TrailingZeros(uint(ring.BlockSize))),
		lease: opts.Lease, clock: opts.Clock, proc: opts.Processes, log: opts.Logger,
		aheadSlots: make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
	if r.lease <= 0 {
		r.lease = DefaultLease
	}
	r.lease = min(r.lease, maxLease)
	if r.proc == nil {
		r.proc = backend.HostProcesses()
	}
	if r.clock == nil {
		r.clock = time.Now
	}
	if r.log == nil {
		r.log = slog.Default()
	}
	r.host = newHostClock(r.clock)
	r.rooms.New = func() any { return new([]byte) }
	cacheBytes := opts.CacheBytes
	if cacheBytes <= 0 {
		cacheBytes = DefaultCacheBytes
	}
	cache, err := framecache.New(cacheBytes)
	if err != nil {
		return nil, err
	}
	r.cache = cache
	// What is read ahead must not wash itself out before it is used.
	r.aheadMax = min(4<<20, cacheBytes/32)
	r.openNear(opts)
	r.segments = segment.NewReader(r.reads, r.keys, segment.ReaderOptions{Logger: r.log})
	r.maps = blockmap.NewReader(r.segments, blockmap.ReaderOptions{})
	r.fetch = newFetcher(r.segments, r.cache, r.blockSize)
	return r, nil
}

// Close lets go of memory and open files. Images and ingests of the repository
// must be closed before.
func (r *Repository) Close() error {
	err := r.segments.Close()
	if err2 := r.cache.Close(); err == nil {
		err = err2
	}
	if r.near != nil {
		err = errors.Join(err, r.near.Close())
	}
	return err
}

// ID is the repository's own identity, random.
func (r *Repository) ID() string { return r.id }

// BlockSize is the unit of deduplication, in bytes.
func (r *Repository) BlockSize() int { return r.blockSize }
