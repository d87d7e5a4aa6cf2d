package blockcache

// memoryTier keeps the latest chunks, first in first out: chunks of one request
// share one piece of memory, and so leave together. It is guarded by Cache.mu.
type memoryTier struct {
	limit, used int64
	items       map[chunkID]*memoryChunk
	queue       []*memoryChunk // oldest first, from first
	first       int
	count       *counters
}

type memoryChunk struct {
	chunk
	id    chunkID
	ahead bool // fetched ahead, and not read yet
}

func newMemoryTier(limit int64, count *counters) memoryTier {
	return memoryTier{limit: limit, items: make(map[chunkID]*memoryChunk), count: count}
}

func (m *memoryTier) get(id chunkID) (chunk, bool) {
	it, ok := m.items[id]
	if !ok {
		return chunk{}, false
	}
	it.ahead = false
	return it.chunk, true
}

func (m *memoryTier) has(id chunkID) bool {
	_, ok := m.items[id]
	return ok
}

func (m *memoryTier) add(id chunkID, ch chunk) { m.insert(&memoryChunk{chunk: ch, id: id}) }

func (m *memoryTier) insert(it *memoryChunk) {
	m.drop(it.id)
	m.items[it.id] = it
	m.queue = append(m.queue, it)
	m.used += int64(len(it.data))
	for m.used > m.limit && m.first < len(m.queue)-1 {
		m.leave(m.queue[m.first])
		m.queue[m.first] = nil
		m.first++
	}
	if m.first > len(m.queue)/2 && m.first > 64 {
		m.queue = append(m.queue[:0], m.queue[m.first:]...)
		m.first = 0
	}
}

// drop forgets a chunk. Its place in the queue stays until its turn comes.
func (m *memoryTier) drop(id chunkID) {
	if it, ok := m.items[id]; ok {
		m.leave(it)
	}
}

// leave takes a chunk out, if it is in.
func (m *memoryTier) leave(it *memoryChunk) {
	if it == nil || m.items[it.id] != it {
		return
	}
	delete(m.items, it.id)
	m.used -= int64(len(it.data))
	if it.ahead {
		m.count.wasted.Add(int64(len(it.data)))
	}
	it.data = nil
}
