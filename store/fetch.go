package store

import (
	"context"
	"fmt"
	"sync"

	"lifeboat/store/internal/framecache"
	"lifeboat/store/internal/segment"
)

// fetcher brings frames from segments into the frame cache. Misses of the same
// frame at the same time are read and decoded once.
//
// Lock order: a shard's mu is never held during I/O or together with another.
type fetcher struct {
	segments  *segment.Reader
	cache     *framecache.Cache
	blockSize int
	blocks    sync.Pool // *[]byte of blockSize
	shards    [flightShards]flightShard
	seen      sightings
}

const flightShards = 32

// wholeBlock stands for all frames of a block in a flight's key.
const wholeBlock = -1

type flightKey struct {
	addr  segment.Addr
	frame int // or wholeBlock
}

type flightShard struct {
	mu      sync.Mutex
	flights map[flightKey]chan struct{} // closed when the flight has landed
}

func newFetcher(segments *segment.Reader, cache *framecache.Cache, blockSize int) *fetcher {
	f := &fetcher{segments: segments, cache: cache, blockSize: blockSize}
	f.seen.init(int64(cache.Stats().Slots)*framecache.SlotSize, blockSize)
	f.blocks.New = func() any {
		b := make([]byte, blockSize)
		return &b
	}
	for i := range f.shards {
		f.shards[i].flights = make(map[flightKey]chan struct{})
	}
	return f
}

func (f *fetcher) shard(addr segment.Addr) *flightShard {
	return &f.shards[(uint64(addr)*0x9e3779b97f4a7c15)>>59]
}

// cached fills dst from offset off of the block if all of it is in memory.
func (f *fetcher) cached(addr segment.Addr, dst []byte, off int) bool {
	for len(dst) > 0 {
		frame, at := off/segment.FrameSize, off%segment.FrameSize
		n := min(len(dst), segment.FrameSize-at)
		if !f.cache.Get(uint64(addr), frame, dst[:n], at) {
			return false
		}
		dst, off = dst[n:], off+n
	}
	return true
}

// read fills dst from offset off of the block at addr.
func (f *fetcher) read(ctx context.Context, addr segment.Addr, dst []byte, off int) error {
	first, last := off/segment.FrameSize, (off+len(dst)-1)/segment.FrameSize
	var missing int
	for frame := first; frame <= last; frame++ {
		part, at := framePart(dst, off, frame)
		if !f.cache.Get(uint64(addr), frame, part, at) {
			if missing++; missing == 2 {
				return f.readBlock(ctx, addr, dst, off)
			}
			first = frame
		}
	}
	if missing == 0 {
		return nil
	}
	return f.readFrame(ctx, addr, first, dst, off)
}

// framePart is the part of dst (which begins at off in its block) that lies in
// frame, and where in the frame it begins.
func framePart(dst []byte, off, frame int) (part []byte, at int) {
	start := frame * segment.FrameSize
	from, to := max(off, start), min(off+len(dst), start+segment.FrameSize)
	return dst[from-off : to-off], from - start
}

// readFrame reads one frame that was not in the cache.
func (f *fetcher) readFrame(ctx context.Context, addr segment.Addr, frame int, dst []byte, off int) error {
	part, at := framePart(dst, off, frame)
	done, err := f.board(ctx, flightKey{addr, frame})
	if err != nil {
		return err
	}
	if done != nil {
		defer done()
	}
	// Another flight may have landed between the miss and boarding.
	if f.cache.Get(uint64(addr), frame, part, at) {
		return nil
	}
	buf := f.blocks.Get().(*[]byte)
	defer f.blocks.Put(buf)
	n, err := f.segments.ReadFrame(ctx, addr, frame, (*buf)[:segment.FrameSize])
	if err != nil {
		return err
	}
	if n < at+len(part) {
		return shortBlock(addr, frame*segment.FrameSize+n)
	}
	f.cache.Put(uint64(addr), frame, (*buf)[:n])
	copy(part, (*buf)[at:n])
	return nil
}

// readBlock reads a block with one I/O because several frames of it are wanted.
// Where dst is the whole block it is decoded in place.
func (f *fetcher) readBlock(ctx context.Context, addr segment.Addr, dst []byte, off int) error {
	done, err := f.board(ctx, flightKey{addr, wholeBlock})
	if err != nil {
		return err
	}
	if done == nil && f.cached(addr, dst, off) {
		return nil
	}
	if done != nil {
		defer done()
	}
	block := dst
	if off != 0 || len(dst) != f.blockSize {
		buf := f.blocks.Get().(*[]byte)
		defer f.blocks.Put(buf)
		block = *buf
	}
	n, err := f.segments.ReadBlock(ctx, addr, block)
	if err != nil {
		return err
	}
	if n < off+len(dst) {
		return shortBlock(addr, n)
	}
	f.put(addr, block[:n])
	if off != 0 || len(dst) != f.blockSize {
		copy(dst, block[off:])
	}
	return nil
}

// prefetch brings a block into the cache, unless it is there or on its way.
func (f *fetcher) prefetch(ctx context.Context, addr segment.Addr) error {
	if f.cache.Get(uint64(addr), 0, nil, 0) && f.cache.Get(uint64(addr), f.blockSize/segment.FrameSize-1, nil, 0) {
		return nil
	}
	buf := f.blocks.Get().(*[]byte)
	defer f.blocks.Put(buf)
	return f.readBlock(ctx, addr, *buf, 0)
}

func (f *fetcher) put(addr segment.Addr, block []byte) {
	for frame := 0; len(block) > 0; frame++ {
		n := min(len(block), segment.FrameSize)
		f.cache.Put(uint64(addr), frame, block[:n])
		block = block[n:]
	}
}

// board registers a flight for key and returns the function that ends it. If
// one is in the air, for the key or for the whole block, it waits for it to
// land and returns nil: the caller looks into the cache again, and if the frame
// is not there (it failed, or was evicted) reads by itself.
func (f *fetcher) board(ctx context.Context, key flightKey) (done func(), err error) {
	s := f.shard(key.addr)
	s.mu.Lock()
	wait, ok := s.flights[key]
	if !ok && key.frame != wholeBlock {
		wait, ok = s.flights[flightKey{key.addr, wholeBlock}]
	}
	if ok {
		s.mu.Unlock()
		select {
		case <-wait:
			return nil, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	landed := make(chan struct{})
	s.flights[key] = landed
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		delete(s.flights, key)
		s.mu.Unlock()
		close(landed)
	}, nil
}

func shortBlock(addr segment.Addr, n int) error {
	return fmt.Errorf("%w: block %v ends after %d bytes", ErrDamaged, addr, n)
}
