package blockcache

import (
	"context"
	"errors"
	"io"
	"io/fs"

	"github.com/zeebo/blake3"
)

// object is an open object. It holds nothing of the backend's.
type object struct {
	c    *Cache
	ctx  context.Context
	name string
	key  objectKey
	size int64
}

func (o *object) Size() int64  { return o.size }
func (o *object) Close() error { return nil }

// ReadAt implements [io.ReaderAt].
func (o *object) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case off < 0:
		return 0, errors.New("block cache: negative offset")
	case off >= o.size:
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > o.size-off {
		p, eof = p[:o.size-off], io.EOF
	}
	if len(p) == 0 {
		return 0, eof
	}
	first, last := off/ChunkSize, (off+int64(len(p))-1)/ChunkSize
	got, err := o.chunks(first, last)
	n := 0
	for i, data := range got {
		if data == nil {
			break
		}
		at := 0
		if i == 0 {
			at = int(off % ChunkSize)
		}
		n += copy(p[n:], data[at:])
	}
	if n == len(p) {
		return n, eof
	}
	return n, err
}

// chunks returns the bytes of chunks first to last; nil for what err kept from
// being read.
func (o *object) chunks(first, last int64) ([][]byte, error) {
	got := make([][]byte, last-first+1)
	var missing []int64
	for n := first; n <= last; n++ {
		if ch, ok := o.c.lookup(o.id(n), o.size); ok {
			got[n-first] = ch.data
		} else {
			missing = append(missing, n)
		}
	}
	if len(missing) == 0 {
		return got, o.ctx.Err()
	}
	flights, err := o.c.depart(o, missing, false)
	for i, f := range flights {
		select {
		case <-f.done:
			if f.err != nil && err == nil {
				err = f.err
			}
			got[missing[i]-first] = f.data
		case <-o.ctx.Done():
			return got, context.Cause(o.ctx)
		}
	}
	return got, err
}

func (o *object) id(n int64) chunkID { return chunkID{o.key, numberOf(n, o.size)} }

// depart returns a flight for each chunk, all of them in ascending order: one
// that is under way already, or a new one; adjacent new ones are one request.
func (c *Cache) depart(o *object, numbers []int64, ahead bool) ([]*flight, error) {
	flights := make([]*flight, len(numbers))
	var from []int // index in numbers of the first chunk of each request
	var to []int
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, errClosed
	}
	for i, n := range numbers {
		id := o.id(n)
		if f, ok := c.flights[id]; ok {
			f.wanted = f.wanted || !ahead
			flights[i] = f
			continue
		}
		if ch, ok := c.memory.get(id); ok && ch.size == o.size { // it landed between the look and the lock
			flights[i] = landed(ch.data)
			continue
		}
		f := &flight{done: make(chan struct{}), wanted: !ahead}
		flights[i], c.flights[id] = f, f
		if k := len(to) - 1; k >= 0 && to[k] == i && numbers[i-1] == n-1 && (i-from[k])*ChunkSize < maxRequest {
			to[k] = i + 1
		} else {
			from, to = append(from, i), append(to, i+1)
		}
	}
	for k := range from {
		run, mine := numbers[from[k]:to[k]], flights[from[k]:to[k]]
		c.running.Go(func() { c.fly(o, run[0], mine) })
	}
	c.mu.Unlock()
	return flights, nil
}

func landed(data []byte) *flight {
	f := &flight{done: make(chan struct{}), data: data}
	close(f.done)
	return f
}

// fly makes one request for adjacent chunks, of which the first is number n.
func (c *Cache) fly(o *object, n int64, flights []*flight) {
	start := n * ChunkSize
	buf := make([]byte, min(int64(len(flights))*ChunkSize, o.size-start))
	got, err := c.request(o, buf, start)
	c.mu.Lock()
	for i, f := range flights {
		id := o.id(n + int64(i))
		from, to := min(i*ChunkSize, len(buf)), min((i+1)*ChunkSize, len(buf))
		if to <= got {
			f.data = buf[from:to:to]
			c.memory.insert(&memoryChunk{chunk: chunk{f.data, o.size}, id: id, ahead: !f.wanted})
		} else {
			f.err = err
		}
		delete(c.flights, id)
	}
	c.mu.Unlock()
	for _, f := range flights {
		close(f.done)
	}
	if errors.Is(err, fs.ErrNotExist) {
		c.forget(o.name, o.size)
		return
	}
	if c.disk != nil && !c.disk.readOnly && got > 0 && c.stores.TryAcquire(1) {
		defer c.stores.Release(1)
		c.store(o, n, flights)
	}
}

// request reads from the backend.
func (c *Cache) request(o *object, buf []byte, off int64) (int, error) {
	if err := c.requests.Acquire(c.ctx, 1); err != nil {
		return 0, context.Cause(c.ctx)
	}
	defer c.requests.Release(1)
	n, err := c.sources.readAt(o.name, o.size, buf, off)
	c.count.requests.Add(1)
	c.count.fetched.Add(int64(n))
	if n < len(buf) && (err == nil || errors.Is(err, io.EOF)) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// store puts chunks that arrived on local disk.
func (c *Cache) store(o *object, n int64, flights []*flight) {
	h := c.hashers.Get().(*blake3.Hasher)
	defer c.hashers.Put(h)
	for i, f := range flights {
		if f.data != nil && c.disk.put(h, o.id(n+int64(i)), chunk{f.data, o.size}) {
			c.count.stored.Add(int64(len(f.data)))
		}
	}
}

// Range is a piece of an object, from Offset to before End, in bytes.
type Range struct {
	Object      string
	Offset, End int64
}

// Fetch brings a piece of an object here that somebody will read soon, as far as
// it is not here yet. It returns when it has been asked for, not when it
// arrived. Errors are left to whoever reads.
func (c *Cache) Fetch(ctx context.Context, g Range) {
	obj, err := c.Open(ctx, g.Object)
	if err != nil {
		return
	}
	if o, ok := obj.(*object); ok {
		o.fetch(max(g.Offset, 0), min(g.End, o.size))
		return
	}
	_ = obj.Close() // not an object that is cached
}

func (o *object) fetch(from, to int64) {
	if from >= to {
		return
	}
	var missing []int64
	for n := from / ChunkSize; n <= (to-1)/ChunkSize; n++ {
		if id := o.id(n); !o.c.has(id) {
			missing = append(missing, n)
			o.c.count.ahead.Add(id.length(o.size))
		}
	}
	if len(missing) > 0 {
		_, _ = o.c.depart(o, missing, true)
	}
}

// has reports whether a chunk is here or on its way.
func (c *Cache) has(id chunkID) bool {
	c.mu.Lock()
	_, ok := c.flights[id]
	ok = ok || c.memory.has(id)
	c.mu.Unlock()
	return ok || c.disk != nil && c.disk.has(id)
}
