// Package chain follows the linked lists of clusters that files are on FAT and
// exFAT.
package chain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"lifeboat/guestfs"
)

// stride is how far apart the marks are that a walk can begin at: a file of any
// size and fragmentation costs a few bytes per thousand clusters.
const stride = 1024

// longestRun bounds what Run looks ahead, in clusters.
const longestRun = 4096

// Chain is the list of one file. Safe for concurrent use; mu is never held
// during I/O.
type Chain struct {
	fsType string
	count  uint64 // clusters that the file must have
	next   func(ctx context.Context, cluster uint32) (uint32, error)

	mu     sync.Mutex
	marks  []uint32 // the clusters 0, stride, 2*stride, … as far as they are known
	latest position // where the last walk ended
}

type position struct {
	n       uint64 // of the file's clusters
	cluster uint32
}

// New follows the list that begins with first and must have count clusters.
// next says what follows a cluster; io.EOF when it is the last. Errors are those
// of fsType.
func New(fsType string, first uint32, count uint64, next func(ctx context.Context, cluster uint32) (uint32, error)) *Chain {
	return &Chain{fsType: fsType, count: count, next: next, marks: []uint32{first}, latest: position{0, first}}
}

// Run finds the n-th cluster of the file, and how many of the file from there on
// lie one after the other on the volume: at least 1, perhaps fewer than there
// are.
func (c *Chain) Run(ctx context.Context, n uint64) (cluster uint32, length uint64, err error) {
	if n >= c.count {
		return 0, 0, fmt.Errorf("cluster %d of a file of %d", n, c.count)
	}
	at := c.nearest(n)
	for at.n < n {
		if at, err = c.step(ctx, at); err != nil {
			return 0, 0, err
		}
	}
	last := at
	for last.n-at.n+1 < longestRun && last.n+1 < c.count {
		next, err := c.step(ctx, last)
		if err != nil {
			if errors.Is(err, guestfs.ErrCorrupt) {
				break // whoever wants to read that far will hear of it
			}
			return 0, 0, err
		}
		if next.cluster != last.cluster+1 {
			break
		}
		last = next
	}
	c.mu.Lock()
	c.latest = last
	c.mu.Unlock()
	return at.cluster, last.n - at.n + 1, nil
}

// nearest is the last known position that is not behind n.
func (c *Chain) nearest(n uint64) position {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := min(n/stride, uint64(len(c.marks)-1))
	best := position{i * stride, c.marks[i]}
	if c.latest.n <= n && c.latest.n > best.n {
		best = c.latest
	}
	return best
}

func (c *Chain) step(ctx context.Context, at position) (position, error) {
	if ctx.Err() != nil {
		return at, context.Cause(ctx)
	}
	next, err := c.next(ctx, at.cluster)
	if errors.Is(err, io.EOF) {
		return at, guestfs.Corruptf(c.fsType, "a file of %d clusters ends after %d", c.count, at.n+1)
	}
	if err != nil {
		return at, err
	}
	at = position{at.n + 1, next}
	if at.n%stride == 0 {
		c.mu.Lock()
		if at.n/stride == uint64(len(c.marks)) {
			c.marks = append(c.marks, next)
		}
		c.mu.Unlock()
	}
	return at, nil
}
