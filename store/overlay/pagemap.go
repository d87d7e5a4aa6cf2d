package overlay

import "math/bits"

// pageSize is the unit of the overlay, in bytes: what is logged, indexed and
// checkpointed are whole pages.
const pageSize = 4096

const (
	chunkPages = 4096                    // pages of a chunk: 16 MiB of disk
	chunkWords = chunkPages / 64         //
	nodeChunks = 64                      //
	nodePages  = nodeChunks * chunkPages // pages of a node: 1 GiB of disk
)

// pageState says where a page's content comes from when the log has none.
type pageState uint8

const (
	absent     pageState = iota // the base's
	holdsData                   // the log's, or else the data file's
	holdsZeros                  // nobody's: it reads as zeros
)

// chunk and node carry the generation in which they were made. One of an older
// generation is shared with a snapshot and copied before it changes. The uniform
// ones have generation 0, which is older than any, so that they are never
// changed.
type chunk struct {
	gen  uint32
	data [chunkWords]uint64 // bit set: holdsData
	zero [chunkWords]uint64 // bit set: holdsZeros; never together with data
}

type node struct {
	gen    uint32
	chunks [nodeChunks]*chunk
}

// pageMap holds the state of every page of a disk in two bits, in a tree that
// costs nothing for areas that are absent or uniform: 8 bytes per GiB of disk,
// and at most 1.1 KiB per 16 MiB that was touched. Its snapshot shares all
// that does not change afterwards. It needs outside locking; a snapshot none.
type pageMap struct {
	pages     int64 // pages of the disk
	gen       uint32
	top       []*node
	data      int64 // pages that hold data
	zeros     int64 // pages that hold zeros
	zeroChunk *chunk
	dataChunk *chunk
	zeroNode  *node
}

func newPageMap(pages int64) *pageMap {
	m := &pageMap{pages: pages, gen: 1, top: make([]*node, (pages+nodePages-1)/nodePages)}
	m.zeroChunk, m.dataChunk, m.zeroNode = new(chunk), new(chunk), new(node)
	for i := range m.zeroChunk.zero {
		m.zeroChunk.zero[i], m.dataChunk.data[i] = ^uint64(0), ^uint64(0)
	}
	for i := range m.zeroNode.chunks {
		m.zeroNode.chunks[i] = m.zeroChunk
	}
	return m
}

// snapshot returns the map as it is now; later changes of m leave it alone.
func (m *pageMap) snapshot() *pageMap {
	s := *m
	s.top = append([]*node(nil), m.top...)
	m.gen++
	return &s
}

// chunkAt returns the chunk that holds page, or nil where all are absent.
func (m *pageMap) chunkAt(page int64) *chunk {
	n := m.top[page/nodePages]
	if n == nil {
		return nil
	}
	return n.chunks[page/chunkPages%nodeChunks]
}

func (m *pageMap) get(page int64) pageState {
	c := m.chunkAt(page)
	if c == nil {
		return absent
	}
	return c.get(uint(page % chunkPages))
}

func (c *chunk) get(i uint) pageState {
	bit := uint64(1) << (i % 64)
	switch {
	case c.data[i/64]&bit != 0:
		return holdsData
	case c.zero[i/64]&bit != 0:
		return holdsZeros
	}
	return absent
}

// run returns the state of page and how many pages from it on, not beyond end,
// are known to share it; there may be more behind them.
func (m *pageMap) run(page, end int64) (pageState, int64) {
	n := m.top[page/nodePages]
	switch n {
	case nil:
		return absent, min(end, (page/nodePages+1)*nodePages) - page
	case m.zeroNode:
		return holdsZeros, min(end, (page/nodePages+1)*nodePages) - page
	}
	limit := min(end, (page/chunkPages+1)*chunkPages) - page
	c := n.chunks[page/chunkPages%nodeChunks]
	switch c {
	case nil:
		return absent, limit
	case m.zeroChunk:
		return holdsZeros, limit
	case m.dataChunk:
		return holdsData, limit
	}
	i := uint(page % chunkPages)
	st := c.get(i)
	length := int64(0)
	for length < limit {
		same := bits.TrailingZeros64(^(c.word(i/64, st) >> (i % 64)))
		same = min(same, int(64-i%64))
		length += int64(same)
		i += uint(same)
		if same == 0 || i%64 != 0 {
			break
		}
	}
	return st, min(length, limit)
}

// word returns the bits of the pages of word w whose state is st.
func (c *chunk) word(w uint, st pageState) uint64 {
	switch st {
	case holdsData:
		return c.data[w]
	case holdsZeros:
		return c.zero[w]
	}
	return ^(c.data[w] | c.zero[w])
}

// set gives count pages from page on the state st, which is not absent.
func (m *pageMap) set(page, count int64, st pageState) {
	for count > 0 {
		if st == holdsZeros && page%nodePages == 0 && count >= nodePages {
			m.forget(m.top[page/nodePages])
			m.top[page/nodePages] = m.zeroNode
			m.zeros += nodePages
			page, count = page+nodePages, count-nodePages
			continue
		}
		n := min(count, chunkPages-page%chunkPages)
		m.setInChunk(page, n, st)
		page, count = page+n, count-n
	}
}

// forget takes the pages of n off the counts.
func (m *pageMap) forget(n *node) {
	if n == nil {
		return
	}
	for _, c := range n.chunks {
		if c != nil {
			data, zeros := c.count()
			m.data, m.zeros = m.data-data, m.zeros-zeros
		}
	}
}

func (c *chunk) count() (data, zeros int64) {
	for i := range c.data {
		data += int64(bits.OnesCount64(c.data[i]))
		zeros += int64(bits.OnesCount64(c.zero[i]))
	}
	return data, zeros
}

func (m *pageMap) setInChunk(page, count int64, st pageState) {
	n := m.ownNode(page / nodePages)
	at := &n.chunks[page/chunkPages%nodeChunks]
	if count == chunkPages {
		if *at != nil {
			data, zeros := (*at).count()
			m.data, m.zeros = m.data-data, m.zeros-zeros
		}
		if st == holdsData {
			*at, m.data = m.dataChunk, m.data+count
		} else {
			*at, m.zeros = m.zeroChunk, m.zeros+count
		}
		return
	}
	c := *at
	switch {
	case c == nil:
		c = &chunk{gen: m.gen}
		*at = c
	case c.gen != m.gen:
		own := *c
		own.gen = m.gen
		c = &own
		*at = c
	}
	m.setBits(c, uint(page%chunkPages), uint(count), st)
}

func (m *pageMap) setBits(c *chunk, i, count uint, st pageState) {
	for count > 0 {
		n := min(count, 64-i%64)
		mask := ^uint64(0) >> (64 - n) << (i % 64)
		d, z := &c.data[i/64], &c.zero[i/64]
		m.data -= int64(bits.OnesCount64(*d))
		m.zeros -= int64(bits.OnesCount64(*z))
		*d, *z = *d&^mask, *z&^mask
		if st == holdsData {
			*d |= mask
		} else {
			*z |= mask
		}
		m.data += int64(bits.OnesCount64(*d))
		m.zeros += int64(bits.OnesCount64(*z))
		i, count = i+n, count-n
	}
}

// ownNode returns node i, made or copied so that it may change.
func (m *pageMap) ownNode(i int64) *node {
	n := m.top[i]
	switch {
	case n == nil:
		n = &node{gen: m.gen}
	case n.gen != m.gen:
		own := *n
		own.gen = m.gen
		n = &own
	default:
		return n
	}
	m.top[i] = n
	return n
}

// dataTurnedZero calls yield for every run of pages that hold data in old and
// zeros in m. What both share is skipped without looking at it.
func (m *pageMap) dataTurnedZero(old *pageMap, yield func(page, count int64) bool) {
	for i, n := range m.top {
		before := old.top[i]
		if n == nil || before == nil || n == before {
			continue
		}
		for j, c := range n.chunks {
			was := before.chunks[j]
			if c == nil || was == nil || c == was {
				continue
			}
			first := int64(i)*nodePages + int64(j)*chunkPages
			if !turnedZero(was, c, first, yield) {
				return
			}
		}
	}
}

func turnedZero(was, is *chunk, first int64, yield func(page, count int64) bool) bool {
	var start, length int64
	for w := range is.zero {
		for set := was.data[w] & is.zero[w]; set != 0; {
			i := bits.TrailingZeros64(set)
			n := bits.TrailingZeros64(^(set >> i))
			at := first + int64(w*64+i)
			if length > 0 && at == start+length {
				length += int64(n)
			} else {
				if length > 0 && !yield(start, length) {
					return false
				}
				start, length = at, int64(n)
			}
			if i+n == 64 {
				break
			}
			set = set >> (i + n) << (i + n)
		}
	}
	return length == 0 || yield(start, length)
}
