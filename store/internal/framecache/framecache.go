// Package framecache keeps decoded frames in memory outside the Go heap.
package framecache

// SlotSize is the size of one cached frame in bytes.
const SlotSize = 16 << 10

// Cache is a bounded cache of frames. Safe for concurrent use.
type Cache struct{}

// New returns a cache of at most bytes (rounded down to whole slots, at least
// one per shard). Memory is taken from the system as it is used.
func New(bytes int64) (*Cache, error) { return &Cache{}, nil }

// Get copies len(dst) bytes from offset off of a frame to dst, and reports
// whether the frame was there (and is long enough).
func (c *Cache) Get(addr uint64, frame int, dst []byte, off int) bool { return false }

// Put offers a frame of at most SlotSize bytes. data is copied.
func (c *Cache) Put(addr uint64, frame int, data []byte) {}

// Drop forgets everything and gives the memory back to the system.
func (c *Cache) Drop() {}

// Close releases the memory. No other method may be running or called later.
func (c *Cache) Close() error { return nil }
