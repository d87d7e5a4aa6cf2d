package disk

import (
	"container/list"
	"context"
	"sync"
)

// pageKey is a page's place: which file, and where in it. The length belongs to
// it because in a damaged image structures of different lengths may overlap.
type pageKey struct {
	file   *hostFile
	off    int64
	length int64
}

// pageCache keeps the most recently used pages (pieces of mapping tables,
// decompressed clusters) up to a bound in bytes. A page that several readers
// miss at once is loaded once. Pages are immutable.
//
// The lock is held for a look-up only, never while a page is loaded. Memory is
// bounded by limit plus one page for each reader that is waiting.
type pageCache struct {
	limit int64

	mu    sync.Mutex
	pages map[pageKey]*cachedPage // also those being loaded
	order *list.List              // of *cachedPage, loaded, most recently used first
	bytes int64
}

type cachedPage struct {
	key   pageKey
	ready chan struct{} // closed when loaded
	data  []byte
	err   error
	elem  *list.Element // nil until it is in order
}

func newPageCache(limit int64) *pageCache {
	return &pageCache{limit: limit, pages: map[pageKey]*cachedPage{}, order: list.New()}
}

// get returns the page at key, loading it if it is not there. Errors are not
// kept: the next reader tries again.
func (c *pageCache) get(ctx context.Context, key pageKey, load func() ([]byte, error)) ([]byte, error) {
	c.mu.Lock()
	if pg, ok := c.pages[key]; ok {
		if pg.elem != nil {
			c.order.MoveToFront(pg.elem)
			c.mu.Unlock()
			return pg.data, nil
		}
		c.mu.Unlock()
		return wait(ctx, pg)
	}
	pg := &cachedPage{key: key, ready: make(chan struct{})}
	c.pages[key] = pg
	c.mu.Unlock()

	pg.data, pg.err = load()
	c.settle(pg)
	close(pg.ready)
	return pg.data, pg.err
}

func wait(ctx context.Context, pg *cachedPage) ([]byte, error) {
	select {
	case <-pg.ready:
		return pg.data, pg.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// settle files a page that was loaded, and makes room for it.
func (c *pageCache) settle(pg *cachedPage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if pg.err != nil {
		delete(c.pages, pg.key)
		return
	}
	pg.elem = c.order.PushFront(pg)
	c.bytes += pg.cost()
	for c.bytes > c.limit && c.order.Len() > 1 {
		last := c.order.Back()
		old := last.Value.(*cachedPage)
		c.order.Remove(last)
		delete(c.pages, old.key)
		c.bytes -= old.cost()
	}
}

// cost is what a page takes: its bytes, and about as much for its bookkeeping.
func (pg *cachedPage) cost() int64 { return int64(len(pg.data)) + 256 }

// tablePage is the unit in which mapping tables are read and cached, bytes.
const tablePage = 16 << 10

// table is a mapping table in a file: length bytes from off.
type table struct {
	host   *hostFile
	cache  *pageCache
	off    int64
	length int64
}

// page returns the cached page that holds byte at of the table, and the
// page's own offset in the table.
func (t table) page(at int64) (page []byte, start int64, err error) {
	start = at &^ (tablePage - 1)
	key := pageKey{t.host, t.off + start, min(tablePage, t.length-start)}
	page, err = t.cache.get(t.host.ctx, key, func() ([]byte, error) {
		b := make([]byte, key.length)
		return b, t.host.readFull(b, key.off)
	})
	return page, start, err
}
