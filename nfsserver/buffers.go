package nfsserver

import "sync"

// Sizes of pooled buffers in bytes: the arguments of a request without data, a
// reply without data, a 64 KiB READ, a 1 MiB READ, each with room for what is
// around it.
const (
	tinyBuffer   = 512
	smallBuffer  = 4 << 10
	middleBuffer = 72 << 10
	largeBuffer  = 1<<20 + 64<<10
)

// buffer is a pooled run of bytes; b may be re-sliced and appended to freely.
type buffer struct{ b []byte }

// buffers recycles buffers by size. What does not fit a size is left to the
// garbage collector.
type buffers struct{ tiny, small, middle, large sync.Pool }

// get returns an empty buffer with room for n bytes.
func (p *buffers) get(n int) *buffer {
	pool, size := p.fit(n)
	if pool == nil {
		return &buffer{b: make([]byte, 0, n)}
	}
	if b, ok := pool.Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, 0, size)}
}

// put takes a buffer back. The caller must not touch it afterwards.
func (p *buffers) put(b *buffer) {
	b.b = b.b[:0]
	switch c := cap(b.b); {
	case c >= largeBuffer && c < 2*largeBuffer:
		p.large.Put(b)
	case c >= middleBuffer && c < largeBuffer:
		p.middle.Put(b)
	case c >= smallBuffer && c < middleBuffer:
		p.small.Put(b)
	case c >= tinyBuffer && c < smallBuffer:
		p.tiny.Put(b)
	}
}

func (p *buffers) fit(n int) (*sync.Pool, int) {
	switch {
	case n <= tinyBuffer:
		return &p.tiny, tinyBuffer
	case n <= smallBuffer:
		return &p.small, smallBuffer
	case n <= middleBuffer:
		return &p.middle, middleBuffer
	case n <= largeBuffer:
		return &p.large, largeBuffer
	}
	return nil, 0
}
