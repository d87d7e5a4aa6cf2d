package ntfs

import (
	"container/list"
	"sync"
)

// lru keeps the latest of things that are costly to read again. Safe for
// concurrent use.
type lru[K comparable, V any] struct {
	max int

	mu    sync.Mutex
	items map[K]*list.Element
	order list.List // of lruEntry[K, V], latest in front
}

type lruEntry[K comparable, V any] struct {
	key   K
	value V
}

func newLRU[K comparable, V any](limit int) *lru[K, V] {
	return &lru[K, V]{max: limit, items: map[K]*list.Element{}}
}

func (c *lru[K, V]) get(k K) (v V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.items[k]
	if e == nil {
		return v, false
	}
	c.order.MoveToFront(e)
	return e.Value.(lruEntry[K, V]).value, true
}

func (c *lru[K, V]) put(k K, v V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.items[k]; e != nil {
		e.Value = lruEntry[K, V]{k, v}
		return
	}
	c.items[k] = c.order.PushFront(lruEntry[K, V]{k, v})
	if len(c.items) > c.max {
		last := c.order.Remove(c.order.Back()).(lruEntry[K, V])
		delete(c.items, last.key)
	}
}
