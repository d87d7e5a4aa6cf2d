// Package framecache keeps decoded frames in memory outside the Go heap.
//
// # Shape
//
// The memory is one anonymous mapping, cut into slots of 16 KiB and dealt out to
// shards by a hash of the key. A slot is touched when it is first used, so that
// a cache costs what is in it. The garbage collector sees none of it.
//
// # Reading without locks
//
// [Cache.Get] takes no lock: it follows the hash chain with atomic loads, pins
// the slot, checks that the slot still has the key, copies, and unpins. All
// changes are made under the shard's mutex, and a slot's key and bytes are
// changed only while its pin count is locked (set far below zero by a
// compare-and-swap from zero): while anybody reads, it cannot be reused, and
// whoever pins a locked slot sees a negative count and misses. A chain changed
// under a reader can make it miss what is there; it never makes it find what is
// not, because the key is checked under the pin.
//
// # What stays
//
// Eviction is S3-FIFO (Yang et al., SOSP 2023): what is new passes through a
// small queue and gets into the main queue only if it was asked for again, so
// that a sequential scan (a backup, a verify, a move of a disk) does not wash
// out what a booting machine needs. Keys that fell out of the small queue are
// remembered for a while and go straight to the main queue when they come back.
package framecache

import (
	"fmt"
	"math/bits"

	"golang.org/x/sys/unix"
)

// SlotSize is the size of one cached frame in bytes.
const SlotSize = 16 << 10

const (
	maxShards     = 32
	minShardSlots = 64
	// maxChain bounds the walk of a chain that changes under the reader.
	maxChain = 64
)

// Cache is a bounded cache of frames. Safe for concurrent use.
type Cache struct {
	arena  []byte
	shards []shard
	shift  uint // of a hash, to its shard
}

// New returns a cache of at most bytes, rounded down to whole slots, and at
// least one slot. Memory is taken from the system as it is used.
func New(bytes int64) (*Cache, error) {
	slots := max(bytes/SlotSize, 1)
	n := int64(1)
	for n < maxShards && slots/(2*n) >= minShardSlots {
		n *= 2
	}
	perShard := slots / n
	if perShard > 1<<30 {
		return nil, fmt.Errorf("framecache: a cache of %d bytes is too large", bytes)
	}
	slots = perShard * n
	arena, err := unix.Mmap(-1, 0, int(slots*SlotSize), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("framecache: cannot map %d bytes of memory: %w", slots*SlotSize, err)
	}
	// Fewer TLB misses; without it everything works as well.
	_ = unix.Madvise(arena, unix.MADV_HUGEPAGE)
	c := &Cache{arena: arena, shards: make([]shard, n), shift: uint(64 - bits.Len64(uint64(n-1)))}
	for i := range c.shards {
		// Slot j of shard i is slot j*n+i of the arena, so that memory is
		// touched from its start.
		c.shards[i].init(int(perShard), arena[i*SlotSize:], int(n*SlotSize))
	}
	return c, nil
}

// hash spreads a key over all bits.
func hash(addr uint64, frame int) uint64 {
	h := (addr ^ uint64(frame)<<58) * 0x9e3779b97f4a7c15
	h ^= h >> 32
	return h * 0xd6e8feb86659fd93
}

func (c *Cache) shard(h uint64) *shard {
	return &c.shards[h>>c.shift]
}

// Get copies len(dst) bytes from offset off of a frame to dst, and reports
// whether the frame was there (and is long enough).
func (c *Cache) Get(addr uint64, frame int, dst []byte, off int) bool {
	h := hash(addr, frame)
	s := c.shard(h)
	i := s.heads[h&s.mask].Load()
	for range maxChain {
		if i == none {
			break
		}
		m := &s.slots[i]
		if m.addr.Load() == addr && m.what.Load()>>lenBits == uint32(frame) {
			if s.copyOut(i, addr, frame, dst, off) {
				return true
			}
			break
		}
		i = m.next.Load()
	}
	return false
}

// Put offers a frame of at most SlotSize bytes, which is copied. It may not be
// kept.
func (c *Cache) Put(addr uint64, frame int, data []byte) {
	if len(data) == 0 || len(data) > SlotSize || frame < 0 || frame > maxFrame {
		return
	}
	h := hash(addr, frame)
	c.shard(h).put(h, addr, frame, data)
}

// Drop forgets everything and gives the memory back to the system.
func (c *Cache) Drop() {
	for i := range c.shards {
		c.shards[i].lockAll()
	}
	// If the system keeps the memory, nothing but memory is lost.
	_ = unix.Madvise(c.arena, unix.MADV_DONTNEED)
	for i := range c.shards {
		c.shards[i].unlockAll()
	}
}

// Stats is a count of what happened since New.
type Stats struct {
	Slots   int   // that there are
	Used    int   // that hold a frame
	Puts    int64 // frames taken in, which is about the number of misses
	Evicted int64
	Main    int // of Used: frames asked for more than once
}

// Stats adds up the shards.
func (c *Cache) Stats() Stats {
	var sum Stats
	for i := range c.shards {
		c.shards[i].stats(&sum)
	}
	return sum
}

// Close releases the memory. No other method may be running or called later.
func (c *Cache) Close() error {
	arena := c.arena
	c.arena, c.shards = nil, nil
	if arena == nil {
		return nil
	}
	if err := unix.Munmap(arena); err != nil {
		return fmt.Errorf("framecache: cannot unmap: %w", err)
	}
	return nil
}
