package segment

import "container/list"

// lru is a map bounded by the total weight of its values; what was used
// longest ago goes first. It is not safe for concurrent use.
type lru[K comparable, V any] struct {
	limit, weight int64
	items         map[K]*list.Element
	order         list.List // front: used last
	evicted       func(V)   // called for what is dropped or replaced; may be nil
}

type lruItem[K comparable, V any] struct {
	key    K
	value  V
	weight int64
}

func newLRU[K comparable, V any](limit int64, evicted func(V)) *lru[K, V] {
	return &lru[K, V]{limit: limit, items: make(map[K]*list.Element), evicted: evicted}
}

func (c *lru[K, V]) get(k K) (V, bool) {
	e, ok := c.items[k]
	if !ok {
		var none V
		return none, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*lruItem[K, V]).value, true
}

// add keeps at least the item just added, however heavy.
func (c *lru[K, V]) add(k K, v V, weight int64) {
	c.remove(k)
	c.items[k] = c.order.PushFront(&lruItem[K, V]{key: k, value: v, weight: weight})
	c.weight += weight
	for c.weight > c.limit && c.order.Len() > 1 {
		c.remove(c.order.Back().Value.(*lruItem[K, V]).key)
	}
}

func (c *lru[K, V]) remove(k K) {
	e, ok := c.items[k]
	if !ok {
		return
	}
	it := c.order.Remove(e).(*lruItem[K, V])
	delete(c.items, k)
	c.weight -= it.weight
	if c.evicted != nil {
		c.evicted(it.value)
	}
}

func (c *lru[K, V]) clear() {
	for k := range c.items {
		c.remove(k)
	}
}
