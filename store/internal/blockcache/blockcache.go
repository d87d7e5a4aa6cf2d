// Package blockcache keeps pieces of a repository's objects near a reader whose
// backend is far away: on local disk, and the latest of them in memory.
//
// # Shape
//
// [Cache] wraps a [backend.Backend] and is one. Objects that never change
// (segments, restore points) are cut into chunks of 64 KiB at fixed offsets; a
// chunk that is read comes from memory, else from local disk, else from the
// backend. What is kept is what the backend gave: sealed bytes. No plaintext
// and no name of an object ever reaches the local disk.
//
// # One request for many
//
// A chunk that is on its way is a flight. Whoever wants it too waits for that
// flight; chunks that are missing side by side are one request. Requests are
// governed by the cache, not by the reader who happened to come first: a reader
// that is cancelled goes away, and what it asked for still arrives for the
// others. Nothing is read that nobody asked for: read-ahead is the business of
// whoever knows what comes next, by way of [Cache.Fetch].
//
// # Trust
//
// The files on local disk are not trusted. Each chunk has a MAC (BLAKE3, keyed
// with a key of the repository) over repository, object, size of the object,
// number of the chunk and bytes. Torn writes, another repository's files, a
// disk that lies, two processes that write at once: all of it is a miss and
// never a wrong byte. That is why nothing here is ever synced, why the files may
// be removed or overwritten at any time, and why a crash needs no recovery.
//
// # Lock order
//
//	Cache.mu (flights, memory)   never held during I/O
//	sources.mu                   never held during I/O
//	diskTier.mu                  never held during I/O
//
// None of them is taken while another is held.
package blockcache

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/semaphore"

	"lifeboat/store/backend"
)

// ChunkSize is the unit of caching, in bytes.
const ChunkSize = 64 << 10

const (
	defaultMemory = 48 << 20
	// maxRequest is the largest request made of adjacent chunks, in bytes.
	maxRequest = 4 << 20
	// maxRequests is how many requests are under way at once.
	maxRequests = 64
	// maxStores is how many chunks' requests are being written to local disk at
	// once. Those beyond are not kept there: a slow disk must not hold up reads.
	maxStores = 8
)

// Options says how a Cache works. Key is needed; the rest may be zero.
type Options struct {
	// Dir is the directory on local disk, made if it is missing and used by this
	// repository alone; empty: memory only.
	Dir string
	// Bytes bounds the data kept in Dir, rounded down to chunks. It takes up to
	// 1.2 MiB of memory for each GiB.
	Bytes int64
	// Memory bounds the chunks kept in memory, in bytes; 0 means 48 MiB.
	Memory int64
	// Key authenticates what is on local disk. It must be of this repository.
	Key [32]byte
	// Prefixes are those of the names of the objects to be cached, which must be
	// immutable. All others go to the backend.
	Prefixes []string
	// Logger hears why the local disk is not used; nil means slog.Default.
	Logger *slog.Logger
}

// Stats counts what happened since New, in bytes where not said otherwise.
type Stats struct {
	Memory, Disk int64 // answered from there
	Requests     int64 // made to the backend, not counting opens
	Opens        int64 // of objects at the backend
	Fetched      int64 // that the requests brought
	Ahead        int64 // of Fetched, by Cache.Fetch
	Wasted       int64 // of Ahead, left memory without having been read
	Stored       int64 // written to local disk
	Corrupt      int64 // chunks on local disk that were not what was stored there
}

type counters struct {
	memory, disk, requests, opens, fetched, ahead, wasted, stored atomic.Int64
}

// Cache is a backend that remembers. Safe for concurrent use.
type Cache struct {
	backend.Backend // everything but Open of what is cached

	opts     Options
	disk     *diskTier // nil: none
	sources  *sources
	ctx      context.Context
	cancel   context.CancelCauseFunc
	requests *semaphore.Weighted
	stores   *semaphore.Weighted
	hashers  sync.Pool // of *blake3.Hasher
	count    counters

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup // Add only under mu while not closed
	flights map[chunkID]*flight
	memory  memoryTier
}

// flight is a chunk on its way. data and err are set before done is closed.
type flight struct {
	done   chan struct{}
	wanted bool // by a reader, not only ahead; guarded by Cache.mu
	data   []byte
	err    error
}

// New returns a cache over b. Where Dir cannot be used the cache does without
// and logs why. If another process uses Dir already, this one reads what is
// there and adds nothing.
func New(b backend.Backend, o Options) *Cache {
	if o.Memory <= 0 {
		o.Memory = defaultMemory
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	c := &Cache{
		Backend: b, opts: o, flights: make(map[chunkID]*flight),
		requests: semaphore.NewWeighted(maxRequests), stores: semaphore.NewWeighted(maxStores),
	}
	c.hashers.New = func() any { return newHasher(o.Key) }
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.sources = newSources(c.ctx, b, &c.count)
	c.memory = newMemoryTier(o.Memory, &c.count)
	if o.Dir != "" && o.Bytes >= ChunkSize {
		disk, err := openDisk(o.Dir, o.Bytes/ChunkSize, o.Key, o.Logger)
		if err != nil {
			o.Logger.Warn("the cache on local disk cannot be used; going on without", "dir", o.Dir, "error", err)
		}
		c.disk = disk
	}
	return c
}

func newHasher(key [32]byte) *blake3.Hasher {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic("blockcache: BLAKE3 key: " + err.Error()) // 32 bytes: cannot happen
	}
	return h
}

// Unwrap returns the backend itself, which sees the truth.
func (c *Cache) Unwrap() backend.Backend { return c.Backend }

// OnDisk reports whether what is read is kept on local disk.
func (c *Cache) OnDisk() bool { return c.disk != nil && !c.disk.readOnly }

// Stats returns the counters.
func (c *Cache) Stats() Stats {
	n := &c.count
	s := Stats{
		Memory: n.memory.Load(), Disk: n.disk.Load(), Requests: n.requests.Load(), Opens: n.opens.Load(),
		Fetched: n.fetched.Load(), Ahead: n.ahead.Load(), Wasted: n.wasted.Load(), Stored: n.stored.Load(),
	}
	if c.disk != nil {
		s.Corrupt = c.disk.corrupt.Load()
	}
	return s
}

func (c *Cache) cacheable(name string) bool {
	for _, p := range c.opts.Prefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// key hides the name of an object: what lies on local disk names nothing.
func (c *Cache) key(name string) objectKey {
	h := c.hashers.Get().(*blake3.Hasher)
	defer c.hashers.Put(h)
	h.Reset()
	_, _ = h.WriteString("name\x00")
	_, _ = h.WriteString(name)
	var sum [32]byte
	return objectKey(h.Sum(sum[:0])[:16])
}

// Remove implements [backend.Backend].
func (c *Cache) Remove(ctx context.Context, name string) error {
	err := c.Backend.Remove(ctx, name)
	if c.cacheable(name) {
		c.Forget(name)
	}
	return err
}

// Forget drops everything that is kept of an object. Whoever finds that it is
// not as it should be calls it, and then sees what the backend has.
func (c *Cache) Forget(name string) {
	size, ok := c.sources.known(name)
	if !ok {
		size, _ = c.sizeOf(c.key(name))
	}
	c.forget(name, size)
}

func (c *Cache) forget(name string, size int64) {
	c.sources.forget(name)
	key := c.key(name)
	for n := range chunks(size) {
		id := chunkID{key, numberOf(n, size)}
		c.mu.Lock()
		c.memory.drop(id)
		c.mu.Unlock()
		if c.disk != nil {
			c.disk.drop(id)
		}
	}
}

// sizeOf is the size of an object of which the last chunk is here.
func (c *Cache) sizeOf(key objectKey) (int64, bool) {
	ch, ok := c.lookup(chunkID{key, tailChunk}, -1)
	if !ok {
		return 0, false
	}
	return ch.size, true
}

// lookup finds a chunk in memory or on local disk. size is the object's, or -1
// where that is not known yet.
func (c *Cache) lookup(id chunkID, size int64) (chunk, bool) {
	c.mu.Lock()
	ch, ok := c.memory.get(id)
	c.mu.Unlock()
	if ok && (size < 0 || ch.size == size) {
		c.count.memory.Add(int64(len(ch.data)))
		return ch, true
	}
	if c.disk == nil {
		return chunk{}, false
	}
	h := c.hashers.Get().(*blake3.Hasher)
	ch, ok = c.disk.get(h, id)
	c.hashers.Put(h)
	if !ok || size >= 0 && ch.size != size {
		return chunk{}, false
	}
	c.count.disk.Add(int64(len(ch.data)))
	c.mu.Lock()
	c.memory.add(id, ch)
	c.mu.Unlock()
	return ch, true
}

// Open implements [backend.Backend]. An object of which the end is kept here
// costs no request.
func (c *Cache) Open(ctx context.Context, name string) (backend.Object, error) {
	if !c.cacheable(name) {
		return c.Backend.Open(ctx, name)
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	o := &object{c: c, ctx: ctx, name: name, key: c.key(name)}
	if size, ok := c.sizeOf(o.key); ok {
		o.size = size
		return o, nil
	}
	var err error
	if o.size, err = c.sources.size(ctx, name); err != nil {
		return nil, err
	}
	return o, nil
}

var errClosed = fmt.Errorf("block cache: %w", fs.ErrClosed)

// Close ends what is under way and closes the files. What is in them is found
// by the next New.
func (c *Cache) Close() error {
	c.cancel(errClosed)
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.running.Wait()
	c.sources.close()
	if c.disk == nil {
		return nil
	}
	return c.disk.close()
}
