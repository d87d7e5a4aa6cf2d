package btrfs

import (
	"context"
	"slices"
	"sort"
)

// view is a tree as it will be when the log has been replayed: its items, and what
// takes their place.
type view struct {
	tree
	changed *changes // nil: nothing
}

// changes are items that take the place of those of a tree. They are kept in runs
// of keys, so that they can be many.
type changes struct {
	runs  [][]key // ascending, none empty
	items map[key]change
	bytes int
}

// change is what an item is now, or that it is gone.
type change struct {
	data []byte
	gone bool
}

const (
	maxRun         = 512
	bytesPerChange = 120 // in memory, besides the data
)

func newChanges() *changes { return &changes{items: map[key]change{}} }

func (c *changes) set(k key, ch change) {
	old, ok := c.items[k]
	c.bytes += len(ch.data) - len(old.data)
	c.items[k] = ch
	if ok {
		return
	}
	c.bytes += bytesPerChange
	if len(c.runs) == 0 {
		c.runs = [][]key{{k}}
		return
	}
	r := max(0, c.run(k))
	at := sort.Search(len(c.runs[r]), func(i int) bool { return k.less(c.runs[r][i]) })
	c.runs[r] = slices.Insert(c.runs[r], at, k)
	if n := len(c.runs[r]); n > maxRun {
		c.runs = slices.Insert(c.runs, r+1, slices.Clone(c.runs[r][n/2:]))
		c.runs[r] = c.runs[r][:n/2]
	}
}

// run is the last run that begins with a key or before it; -1 where none does.
func (c *changes) run(k key) int {
	return sort.Search(len(c.runs), func(i int) bool { return k.less(c.runs[i][0]) }) - 1
}

// floor is the last change whose key is not greater.
func (c *changes) floor(k key) (key, bool) {
	r := c.run(k)
	if r < 0 {
		return k, false
	}
	return c.runs[r][sort.Search(len(c.runs[r]), func(i int) bool { return k.less(c.runs[r][i]) })-1], true
}

// ceil is the first change whose key is not less.
func (c *changes) ceil(k key) (key, bool) {
	r := max(0, c.run(k))
	for ; r < len(c.runs); r++ {
		if i := sort.Search(len(c.runs[r]), func(i int) bool { return !c.runs[r][i].less(k) }); i < len(c.runs[r]) {
			return c.runs[r][i], true
		}
	}
	return k, false
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
		at, changed := v.changed.floor(k)
		if !changed || ok && at.less(it.key) {
			return it, ok, nil
		}
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
	if v.changed != nil {
		if ch, ok := v.changed.items[k]; ok {
			return item{k, ch.data}, !ch.gone, nil
		}
	}
	it, ok, err := v.tree.floor(ctx, k)
	return it, ok && it.key == k, err
}

// scan hands over the items from a key on, in order, until yield reports false,
// which must not change anything.
func (v view) scan(ctx context.Context, from key, yield func(item) bool) error {
	if v.changed == nil {
		return v.tree.scan(ctx, from, yield)
	}
	more := true
	at, left := v.changed.ceil(from)
	// upTo hands over the changes in front of a key.
	upTo := func(before func(key) bool) {
		for more && left && before(at) {
			if ch := v.changed.items[at]; !ch.gone {
				more = yield(item{at, ch.data})
			}
			next := at.after()
			if next == at {
				left = false
				return
			}
			at, left = v.changed.ceil(next)
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
