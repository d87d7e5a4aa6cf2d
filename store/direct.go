package store

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"lifeboat/store/internal/segment"
)

// Large reads. Whoever reads a quarter of a MiB at once copies a disk: an
// export, a move, a file that is copied inside a guest. Its blocks are found in
// their segments, those that stand side by side are read with one request, and
// each is decoded on one of several processors straight to where the caller
// wants it. The cache of frames is asked first, and is bypassed otherwise: to
// put a block there and take it out again costs a fifth of the whole, and a disk
// that is read once from front to back would push out what is in use.
//
// A block goes into the cache all the same while there is room that nobody ever
// used, and when it is read in this way for the second time within about a
// cache's worth of others.
const (
	directMin = 256 << 10
	// directMax bounds what is decoded at a time, and with it the memory for
	// sealed bytes.
	directMax = 4 << 20
	// directParallel is how many requests one large read makes at a time.
	directParallel = 16
	// gapLocal and gapRemote are the largest holes in a request, in bytes: what
	// it would cost to make another instead.
	gapLocal  = 16 << 10
	gapRemote = 256 << 10
)

// want is a stored block and where it is wanted.
type want struct {
	addr segment.Addr
	at   int // in what is read, bytes
	dst  []byte
	done bool
}

// readDirect reads whole blocks and returns how many bytes, from the front, are
// good.
func (m *Image) readDirect(p []byte, off int64) (int, error) {
	size := 1 << m.shift
	wants := make([]want, 0, len(p)>>m.shift)
	var failed error
	for at := 0; at < len(p); at += size {
		dst := p[at : at+size : at+size]
		addr, err := m.address((off + int64(at)) >> m.shift)
		if err != nil {
			p, failed = p[:at], err
			break
		}
		switch {
		case addr == segment.Hole:
			clear(dst)
		case addr == segment.Unreadable:
			p, failed = p[:at], errUnreadable
		case !m.fetch.cached(addr, dst, 0):
			wants = append(wants, want{addr: addr, at: at, dst: dst})
		}
	}
	m.r.gather(m.ctx, wants)
	// What failed is tried once more by itself, and says what is wrong with it.
	for i := range wants {
		if w := &wants[i]; !w.done {
			if err := m.fetch.read(m.ctx, w.addr, w.dst, 0); err != nil {
				return w.at, err
			}
		}
	}
	return len(p), failed
}

// gather reads blocks into their places, as many as it can.
func (r *Repository) gather(ctx context.Context, wants []want) {
	if len(wants) == 0 {
		return
	}
	sorted := make([]*want, len(wants))
	for i := range wants {
		sorted[i] = &wants[i]
	}
	slices.SortFunc(sorted, func(a, b *want) int { return cmp.Compare(a.addr, b.addr) })
	// One of several with the same address is read, the others copy from it.
	unique := slices.CompactFunc(slices.Clone(sorted), func(a, b *want) bool { return a.addr == b.addr })
	addrs := make([]segment.Addr, len(unique))
	for i, w := range unique {
		addrs[i] = w.addr
	}
	r.decode(r.fetchBatches(ctx, r.locate(ctx, addrs, directMax)), unique)
	for i, w := range sorted[1:] {
		if first := sorted[i]; first.addr == w.addr && first.done {
			w.done = copy(w.dst, first.dst) == len(w.dst)
		}
	}
}

// locate finds blocks, given in ascending order, in their segments, and joins
// those that are close to requests of at most largest bytes. Blocks that cannot
// be found are left out.
func (r *Repository) locate(ctx context.Context, addrs []segment.Addr, largest int64) [][]segment.Span {
	gap := int64(gapLocal)
	if r.near != nil {
		gap = gapRemote
	}
	var mu sync.Mutex
	var requests [][]segment.Span
	find := func(addrs []segment.Addr) {
		spans, _ := r.segments.Locate(ctx, addrs)
		mu.Lock()
		defer mu.Unlock()
		requests = appendJoined(requests, spans, gap, largest)
	}
	group := new(errgroup.Group)
	group.SetLimit(directParallel)
	for len(addrs) > 0 {
		n := slices.IndexFunc(addrs, func(a segment.Addr) bool { return a.Segment() != addrs[0].Segment() })
		if n < 0 {
			n = len(addrs)
		}
		in := addrs[:n]
		if addrs = addrs[n:]; len(addrs) == 0 {
			find(in) // the last or only one, here
			break
		}
		group.Go(func() error { find(in); return nil })
	}
	_ = group.Wait() // none has an error
	return requests
}

// appendJoined cuts the spans of one segment, which are sorted by offset, where
// there are large holes between them.
func appendJoined(out [][]segment.Span, spans []segment.Span, gap, largest int64) [][]segment.Span {
	from := 0
	for i := 1; i <= len(spans); i++ {
		if i == len(spans) || spans[i].Offset-spans[i-1].End() > gap || spans[i].End()-spans[from].Offset > largest {
			out = append(out, spans[from:i])
			from = i
		}
	}
	return out
}

// fetchBatches makes the requests. Those that fail are left out.
func (r *Repository) fetchBatches(ctx context.Context, requests [][]segment.Span) []*segment.Batch {
	batches := make([]*segment.Batch, len(requests))
	fetch := func(i int) {
		room := r.rooms.Get().(*[]byte)
		batch, err := r.segments.Fetch(ctx, requests[i], *room)
		if err != nil {
			r.rooms.Put(room)
			return
		}
		batches[i] = batch
	}
	if len(requests) == 1 {
		fetch(0)
	} else {
		group := new(errgroup.Group)
		group.SetLimit(directParallel)
		for i := range requests {
			group.Go(func() error { fetch(i); return nil })
		}
		_ = group.Wait() // none has an error
	}
	return slices.DeleteFunc(batches, func(b *segment.Batch) bool { return b == nil })
}

// decode opens the blobs of batches into the places of the wants, which are
// sorted by address; on more than one processor where others are idle.
func (r *Repository) decode(batches []*segment.Batch, wants []*want) {
	type item struct {
		batch *segment.Batch
		i     int
	}
	items := make([]item, 0, len(wants))
	for _, b := range batches {
		for i := range b.Len() {
			items = append(items, item{b, i})
		}
	}
	var next atomic.Int64
	work := func() {
		for n := next.Add(1) - 1; n < int64(len(items)); n = next.Add(1) - 1 {
			it := items[n]
			addr := it.batch.Addr(it.i)
			k, ok := slices.BinarySearchFunc(wants, addr, func(w *want, a segment.Addr) int { return cmp.Compare(w.addr, a) })
			if ok {
				wants[k].done = r.decodeOne(it.batch, it.i, wants[k])
			}
		}
	}
	var helpers sync.WaitGroup
	for range min(cap(r.aheadSlots)-1, len(items)/4) {
		select {
		case r.aheadSlots <- struct{}{}:
			helpers.Go(func() {
				defer func() { <-r.aheadSlots }()
				work()
			})
		default:
		}
	}
	work()
	helpers.Wait()
	for _, b := range batches {
		room := b.Room()
		r.rooms.Put(&room)
	}
}

// decodeOne reports whether the whole block is in its place.
func (r *Repository) decodeOne(batch *segment.Batch, i int, w *want) bool {
	n, err := batch.Open(i, w.dst)
	if err != nil || n != len(w.dst) {
		return false
	}
	if r.fetch.seen.worth(w.addr, n) {
		r.fetch.put(w.addr, w.dst)
	}
	return true
}

// sightings decides which blocks of large reads go into the cache. It remembers
// fingerprints of as many blocks as the cache has room for, twice; a collision
// makes it forget or guess wrong, which costs a copy.
type sightings struct {
	room  atomic.Int64 // bytes of the cache that may be filled without asking
	table []atomic.Uint32
}

func (s *sightings) init(cacheBytes int64, blockSize int) {
	s.room.Store(cacheBytes)
	size := 64
	for int64(size) < 2*cacheBytes/int64(blockSize) {
		size *= 2
	}
	s.table = make([]atomic.Uint32, size)
}

func (s *sightings) worth(addr segment.Addr, n int) bool {
	if s.room.Load() > 0 {
		s.room.Add(-int64(n))
		return true
	}
	h := (uint64(addr) + 1) * 0x9e3779b97f4a7c15
	mark := uint32(h) | 1
	return s.table[(h>>32)&uint64(len(s.table)-1)].Swap(mark) == mark
}
