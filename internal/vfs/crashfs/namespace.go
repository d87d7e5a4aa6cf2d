package crashfs

import (
	"cmp"
	"io/fs"
	"maps"
	"path"
	"slices"
	"syscall"
	"time"
)

// node is a file or a directory.
type node struct {
	id       uint64
	modified time.Time

	// Of a directory: what it holds, and what of that is durable.
	entries, durable map[string]*node

	// Of a file.
	pages map[int64]*page
	soil  map[int64]*page // those that a Sync has work with
	size  int64
	sizes []int64 // since the last Sync, the durable one first
	links int     // names that it has now
	open  int     // handles
}

// edit sets one name of a directory; node nil takes it away.
type edit struct {
	dir  *node
	name string
	node *node
}

// change is a change of the name space: all of its edits survive, or none.
type change struct {
	edits []edit
}

// touches reports whether both edit the same name.
func (c *change) touches(other *change) bool {
	for _, a := range c.edits {
		for _, b := range other.edits {
			if a.dir == b.dir && a.name == b.name {
				return true
			}
		}
	}
	return false
}

func (c *change) in(dir *node) bool {
	return slices.ContainsFunc(c.edits, func(e edit) bool { return e.dir == dir })
}

// apply makes a change visible. It is not durable yet.
func (f *FS) apply(c *change) {
	now := time.Now()
	var dropped []*node
	for _, e := range c.edits {
		if old := e.dir.entries[e.name]; old != nil {
			old.links--
			dropped = append(dropped, old)
		}
		if e.node == nil {
			delete(e.dir.entries, e.name)
		} else {
			e.dir.entries[e.name] = e.node
			e.node.links++
		}
		e.dir.modified = now
	}
	for _, n := range dropped {
		f.release(n) // not earlier: a rename takes a name before it gives one
	}
	f.pending = append(f.pending, c)
}

// release gives back the space of a file that nobody can reach any more. Its
// content stays in memory: the removal may be undone by power loss.
func (f *FS) release(n *node) {
	if n.entries == nil && n.links == 0 && n.open == 0 {
		f.used -= int64(len(n.pages)) * pageSize
	}
}

// settle makes the changes that touch dir durable, and with each one those
// before it that touch a name which it touches.
func (f *FS) settle(dir *node) {
	durable := make([]bool, len(f.pending))
	for i := len(f.pending) - 1; i >= 0; i-- {
		c := f.pending[i]
		durable[i] = durable[i] || c.in(dir)
		for j := range i {
			durable[j] = durable[j] || durable[i] && c.touches(f.pending[j])
		}
	}
	var left []*change
	for i, c := range f.pending {
		if durable[i] {
			c.applyTo(func(n *node) map[string]*node { return n.durable })
		} else {
			left = append(left, c)
		}
	}
	f.pending = left
}

// applyTo carries the change out on the maps that entries gives.
func (c *change) applyTo(entries func(dir *node) map[string]*node) {
	for _, e := range c.edits {
		if e.node == nil {
			delete(entries(e.dir), e.name)
		} else {
			entries(e.dir)[e.name] = e.node
		}
	}
}

// Stat implements [vfs.FS].
func (f *FS) Stat(name string) (fs.FileInfo, error) {
	full := clean(name)
	var i info
	err := f.do(call{op: OpStat, path: full}, func() error {
		n, err := f.lookup(full)
		if err == nil {
			i = n.info(path.Base(full))
		}
		return err
	})
	if err != nil {
		return nil, pathError("stat", name, err)
	}
	return i, nil
}

// ReadDir implements [vfs.FS].
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	full := clean(name)
	var entries []fs.DirEntry
	err := f.do(call{op: OpReadDir, path: full}, func() error {
		n, err := f.lookup(full)
		if err != nil {
			return err
		}
		if n.entries == nil {
			return syscall.ENOTDIR
		}
		for name, child := range maps.All(n.entries) {
			entries = append(entries, fs.FileInfoToDirEntry(child.info(name)))
		}
		return nil
	})
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return entries, pathError("readdir", name, err)
}

// info is a fs.FileInfo of the moment it was made.
type info struct {
	name     string
	size     int64
	dir      bool
	modified time.Time
}

func (n *node) info(name string) info {
	return info{name, n.size, n.entries != nil, n.modified}
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) ModTime() time.Time { return i.modified }
func (i info) IsDir() bool        { return i.dir }
func (i info) Sys() any           { return nil }

func (i info) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}
