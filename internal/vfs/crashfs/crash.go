package crashfs

import (
	"maps"
	"slices"
)

// chance draws what survives. Extremes find bugs that mixtures hide, so of
// every eight seeds one loses all that it may and one keeps all; the others
// lose between a tenth and nine tenths.
type chance struct {
	seed  uint64
	limit uint64 // of 1000, kept
}

func newChance(seed uint64) chance {
	c := chance{seed: seed}
	switch seed % 8 {
	case 0:
		c.limit = 0
	case 1:
		c.limit = 1000
	default:
		c.limit = 100 + draw(seed)%800
	}
	return c
}

func (c chance) kept(what ...uint64) bool {
	return draw(append([]uint64{c.seed}, what...)...)%1000 < c.limit
}

// below draws a number below n, small for losing and large for keeping.
func (c chance) below(n int, what ...uint64) int {
	switch c.limit {
	case 0:
		return 0
	case 1000:
		return n - 1
	}
	return int(draw(append([]uint64{c.seed, 1}, what...)...) % uint64(n))
}

// draw hashes numbers to a random one (splitmix64 as the step).
func draw(numbers ...uint64) uint64 {
	h := uint64(0x9e3779b97f4a7c15)
	for _, n := range numbers {
		h += n + 0x9e3779b97f4a7c15
		h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
		h = (h ^ h>>27) * 0x94d049bb133111eb
		h ^= h >> 31
	}
	return h
}

// Crash is a disk as power loss at this moment may leave it; other seeds give
// other such disks. f itself is not touched and can go on. Capacity is
// inherited; rules and stops are not.
func (f *FS) Crash(seed uint64) *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &FS{seed: seed, capacity: f.capacity, nodes: f.nodes}
	c := cloner{chance: newChance(seed), entries: f.surviving(seed), nodes: map[*node]*node{}}
	out.root = c.clone(f.root)
	for _, n := range c.nodes {
		out.used += int64(len(n.pages)) * pageSize
	}
	return out
}

// surviving draws which pending changes survive, and returns what the
// directories that they touch hold then. One that touches a name which a lost
// one touched is lost too.
func (f *FS) surviving(seed uint64) map[*node]map[string]*node {
	c := newChance(draw(seed)&^7 | seed%8)
	entries := map[*node]map[string]*node{}
	of := func(dir *node) map[string]*node {
		if entries[dir] == nil {
			entries[dir] = maps.Clone(dir.durable)
		}
		return entries[dir]
	}
	var lost []*change
	for i, p := range f.pending {
		if !c.kept(uint64(i)) || slices.ContainsFunc(lost, p.touches) {
			lost = append(lost, p)
			continue
		}
		p.applyTo(of)
	}
	return entries
}

// cloner copies the tree that survives.
type cloner struct {
	chance  chance
	entries map[*node]map[string]*node // where not what is durable
	nodes   map[*node]*node            // done
}

func (c *cloner) clone(n *node) *node {
	if done := c.nodes[n]; done != nil {
		return done
	}
	if n.entries == nil {
		c.nodes[n] = n.survive(c.chance)
		return c.nodes[n]
	}
	out := &node{id: n.id, modified: n.modified, entries: map[string]*node{}}
	c.nodes[n] = out
	entries, ok := c.entries[n]
	if !ok {
		entries = n.durable
	}
	for name, child := range entries {
		out.entries[name] = c.clone(child)
		out.entries[name].links++
	}
	out.durable = maps.Clone(out.entries)
	return out
}
