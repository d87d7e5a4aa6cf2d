package datastore

import (
	"container/list"
	"sync"

	"golang.org/x/sys/unix"
)

// openFile is a host file descriptor that is closed when the cache has let go
// of it and its last user too. So a descriptor's number is never reused while
// anybody may still read or write through it.
type openFile struct {
	fd       int
	node     *Node
	writable bool

	// Guarded by fdCache.mu.
	refs   int
	cached bool
	elem   *list.Element
}

// fdCache keeps the most recently used descriptors open, one for a node.
type fdCache struct {
	max int

	mu     sync.Mutex
	recent list.List // of *openFile, most recent first
	closed bool
}

// get returns n's descriptor with one more reference, or nil.
func (c *fdCache) get(n *Node) *openFile {
	c.mu.Lock()
	f := n.file
	if f != nil {
		f.refs++
		if f.elem != nil { // the root's is not in the list: it is never evicted
			c.recent.MoveToFront(f.elem)
		}
	}
	c.mu.Unlock()
	return f
}

// put hands over fd, freshly opened for n, and returns it with one reference;
// if another goroutine was first, fd is closed and theirs is returned. The
// descriptor of a node that is gone is not kept.
func (c *fdCache) put(n *Node, fd int, writable bool) *openFile {
	c.mu.Lock()
	if f := n.file; f != nil {
		f.refs++
		c.mu.Unlock()
		_ = unix.Close(fd)
		return f
	}
	f := &openFile{fd: fd, node: n, writable: writable, refs: 1}
	var evicted []int
	if !c.closed && !n.gone.Load() {
		f.cached = true
		f.elem = c.recent.PushFront(f)
		n.file = f
		for c.recent.Len() > c.max {
			evicted = c.forget(c.recent.Back().Value.(*openFile), evicted)
		}
	}
	c.mu.Unlock()
	closeAll(evicted)
	return f
}

// release gives a reference back.
func (c *fdCache) release(f *openFile) {
	c.mu.Lock()
	f.refs--
	last := f.refs == 0 && !f.cached
	c.mu.Unlock()
	if last {
		_ = unix.Close(f.fd)
	}
}

// drop forgets n's descriptor; it is closed when its users have finished.
func (c *fdCache) drop(n *Node) {
	c.mu.Lock()
	var evicted []int
	if n.file != nil {
		evicted = c.forget(n.file, nil)
	}
	c.mu.Unlock()
	closeAll(evicted)
}

// close forgets all descriptors, and makes put keep no more.
func (c *fdCache) close() {
	c.mu.Lock()
	c.closed = true
	var evicted []int
	for e := c.recent.Front(); e != nil; e = c.recent.Front() {
		evicted = c.forget(e.Value.(*openFile), evicted)
	}
	c.mu.Unlock()
	closeAll(evicted)
}

// forget takes f out of the cache and appends its descriptor to fds if nobody
// uses it. c.mu is held.
func (c *fdCache) forget(f *openFile, fds []int) []int {
	c.recent.Remove(f.elem)
	f.cached, f.node.file = false, nil
	if f.refs == 0 {
		fds = append(fds, f.fd)
	}
	return fds
}

// closeAll closes outside of the cache's lock: the close of a file that has
// been removed frees its space, which takes time. What close reports has been
// reported by the sync before it.
func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
