package btrfs

import (
	"context"
	"sort"
)

// view is a tree as it will be when the log has been replayed: its items, and what
// takes their place. Until then, there are no changes.
type view struct {
	tree
	changed *changes
}

// changes are items that take the place of those of a tree, by key; of no data,
// that go.
type changes struct {
	keys  []key // ascending
	items map[key]change
	bytes int
}

type change struct {
	data []byte
	gone bool
}

func newChanges() *changes { return &changes{items: map[key]change{}} }

func (c *changes) set(k key, ch change) {
	old, ok := c.items[k]
	c.bytes += len(ch.data) - len(old.data)
	c.items[k] = ch
	if ok {
		return
	}
	c.bytes += 100 // what it takes to find it
	i := c.from(k)
	c.keys = append(c.keys, key{})
	copy(c.keys[i+1:], c.keys[i:])
	c.keys[i] = k
}

// from is the place of the first key that is not less.
func (c *changes) from(k key) int {
	return sort.Search(len(c.keys), func(i int) bool { return !c.keys[i].less(k) })
}

// empty reports whether there is no tree at all.
func (v view) empty() bool { return v.nodes == nil }

// floor finds the last item whose key is not greater.
func (v view) floor(ctx context.Context, k key) (item, bool, error) {
	if v.changed == nil {
		return v.tree.floor(ctx, k)
	}
	for {
		it, ok, err := v.tree.floor(ctx, k)
		if err != nil {
			return it, false, err
		}
		i := v.changed.from(k)
		if i < len(v.changed.keys) && v.changed.keys[i] == k {
			i++
		}
		if i == 0 || ok && v.changed.keys[i-1].less(it.key) {
			return it, ok, nil
		}
		at := v.changed.keys[i-1]
		if ch := v.changed.items[at]; !ch.gone {
			return item{at, ch.data}, true, nil
		}
		if k, ok = at.before(); !ok {
			return item{}, false, nil
		}
	}
}

// get finds an item.
func (v view) get(ctx context.Context, k key) (item, bool, error) {
	it, ok, err := v.floor(ctx, k)
	return it, ok && it.key == k, err
}

// scan hands over the items from a key on, in order, until yield reports false.
func (v view) scan(ctx context.Context, from key, yield func(item) bool) error {
	if v.changed == nil {
		return v.tree.scan(ctx, from, yield)
	}
	i := v.changed.from(from)
	more := true
	// upTo hands over the changes in front of a key.
	upTo := func(before func(key) bool) {
		for ; more && i < len(v.changed.keys) && before(v.changed.keys[i]); i++ {
			if ch := v.changed.items[v.changed.keys[i]]; !ch.gone {
				more = yield(item{v.changed.keys[i], ch.data})
			}
		}
	}
	err := v.tree.scan(ctx, from, func(it item) bool {
		upTo(func(k key) bool { return k.less(it.key) })
		if _, replaced := v.changed.items[it.key]; more && !replaced {
			more = yield(it)
		}
		return more
	})
	if err == nil {
		upTo(func(key) bool { return true })
	}
	return err
}

// of hands over the items of one object and kind from an offset on.
func (v view) of(ctx context.Context, id uint64, kind byte, offset uint64, yield func(item) bool) error {
	return v.scan(ctx, key{id, kind, offset}, func(it item) bool {
		return it.id == id && it.kind == kind && yield(it)
	})
}
