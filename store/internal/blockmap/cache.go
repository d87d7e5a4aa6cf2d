package blockmap

import (
	"sync"

	"lifeboat/store/internal/segment"
)

// cache keeps nodes by address, at most a fixed number. Eviction is by the
// clock: a node that was used since the hand last passed stays for one more
// round.
type cache struct {
	mu    sync.Mutex
	at    map[segment.Addr]int // index in slots
	slots []cacheSlot
	limit int
	hand  int
}

type cacheSlot struct {
	addr segment.Addr
	node *node
	used bool
}

func (c *cache) init(limit int) {
	c.at = make(map[segment.Addr]int)
	c.limit = limit
}

func (c *cache) get(addr segment.Addr) *node {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.at[addr]
	if !ok {
		return nil
	}
	c.slots[i].used = true
	return c.slots[i].node
}

func (c *cache) put(addr segment.Addr, n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.at[addr]; ok {
		return
	}
	if len(c.slots) < c.limit {
		c.at[addr] = len(c.slots)
		c.slots = append(c.slots, cacheSlot{addr: addr, node: n})
		return
	}
	for c.slots[c.hand].used {
		c.slots[c.hand].used = false
		c.hand = (c.hand + 1) % len(c.slots)
	}
	delete(c.at, c.slots[c.hand].addr)
	c.slots[c.hand] = cacheSlot{addr: addr, node: n}
	c.at[addr] = c.hand
	c.hand = (c.hand + 1) % len(c.slots)
}
