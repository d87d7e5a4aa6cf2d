package vddk

import (
	"context"
	"sync"
)

// ahead answers small reads of a disk that is far away from blocks that it keeps
// for a while, and fetches the next ones when reads go on in order. Whoever
// parses a file system asks for a sector here and a table there; each of them
// would be a request of its own that takes milliseconds.
//
// Reads of a block and more go past it: what is read once, in large pieces,
// gains nothing, and small changes must not be blown up. The disk has to be
// immutable.
//
// mu guards blocks and clock. A block is loaded by who wants it first; others
// wait for its done.
type ahead struct {
	load func(p []byte, off int64) error // reads from the disk; inside it
	size int64
	gone func() bool // no further block is to be fetched

	mu     sync.Mutex
	blocks map[int64]*aheadBlock
	clock  int64 // counts uses
	work   sync.WaitGroup
}

type aheadBlock struct {
	data []byte
	err  error
	done chan struct{}
	used int64 // by the clock
}

const (
	aheadBytes = 64 << 10 // a block
	aheadKept  = 64       // blocks: 4 MiB for a disk
	aheadNext  = 4        // blocks that are fetched before they are asked for
)

func newAhead(size int64, load func([]byte, int64) error, gone func() bool) *ahead {
	return &ahead{load: load, size: size, gone: gone, blocks: map[int64]*aheadBlock{}}
}

// read fills p, which is shorter than a block, from off.
func (a *ahead) read(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n := off / aheadBytes
		b, err := a.block(ctx, n)
		if err != nil {
			return err
		}
		got := copy(p, b[off-n*aheadBytes:])
		p, off = p[got:], off+int64(got)
	}
	return nil
}

// block returns block n.
func (a *ahead) block(ctx context.Context, n int64) ([]byte, error) {
	a.mu.Lock()
	b, mine := a.get(n)
	if _, before := a.blocks[n-1]; before {
		for next := n + 1; next <= n+aheadNext && next*aheadBytes < a.size && !a.gone(); next++ {
			if more, mine := a.get(next); mine {
				a.work.Go(func() { a.fetch(next, more) })
			}
		}
	}
	a.mu.Unlock()
	if mine {
		a.fetch(n, b)
	}
	select {
	case <-b.done:
		return b.data, b.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// get finds block n or makes it, in which case the caller fetches it. mu is held.
func (a *ahead) get(n int64) (b *aheadBlock, mine bool) {
	a.clock++
	if b = a.blocks[n]; b == nil {
		a.evict()
		b, mine = &aheadBlock{done: make(chan struct{})}, true
		a.blocks[n] = b
	}
	b.used = a.clock
	return b, mine
}

// evict makes room for one more block. mu is held.
func (a *ahead) evict() {
	for len(a.blocks) >= aheadKept {
		var oldest int64
		used := a.clock + 1
		for n, b := range a.blocks {
			if b.used < used {
				oldest, used = n, b.used
			}
		}
		delete(a.blocks, oldest)
	}
}

// fetch loads block n. One that could not be loaded is asked for again by the
// next who wants it.
func (a *ahead) fetch(n int64, b *aheadBlock) {
	data := make([]byte, min(aheadBytes, a.size-n*aheadBytes))
	if b.err = a.load(data, n*aheadBytes); b.err == nil {
		b.data = data
	}
	close(b.done)
	if b.err != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.blocks[n] == b {
			delete(a.blocks, n)
		}
	}
}
