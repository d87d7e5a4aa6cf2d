// Package meta caches the metadata blocks of a volume for the readers of file
// systems.
package meta

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"lifeboat/disk"
)

// Cache reads blocks of a volume and keeps the latest. Safe for concurrent use.
// mu is never held during I/O.
type Cache struct {
	img  disk.Image
	size int // of a block, bytes
	max  int // blocks kept

	mu     sync.Mutex
	blocks map[uint64]*list.Element
	order  list.List // of *entry, latest in front
}

type entry struct {
	n    uint64
	data []byte
}

// New caches up to limit bytes (at least 16 blocks) of blocks of size bytes.
func New(img disk.Image, size int, limit int) *Cache {
	return &Cache{img: img, size: size, max: max(16, limit/size), blocks: map[uint64]*list.Element{}}
}

// Block returns block n, which is not to be changed. A block that is not all on
// the volume is io.ErrUnexpectedEOF.
func (c *Cache) Block(ctx context.Context, n uint64) ([]byte, error) {
	if b := c.get(n); b != nil {
		return b, nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if n >= uint64(c.img.Size())/uint64(c.size) {
		return nil, fmt.Errorf("block %d lies behind the end of the volume: %w", n, io.ErrUnexpectedEOF)
	}
	b := make([]byte, c.size)
	if m, err := c.img.ReadAt(b, int64(n)*int64(c.size)); m < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read block %d: %w", n, err)
	}
	c.put(n, b)
	return b, nil
}

func (c *Cache) get(n uint64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.blocks[n]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*entry).data
}

func (c *Cache) put(n uint64, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.blocks[n] != nil {
		return
	}
	c.blocks[n] = c.order.PushFront(&entry{n, b})
	if len(c.blocks) > c.max {
		last := c.order.Remove(c.order.Back()).(*entry)
		delete(c.blocks, last.n)
	}
}
