package store

import (
	"sync"
	"sync/atomic"

	"lifeboat/disk"
)

// TraceRecorder notes which blocks of a point's disks are read, and how many
// reads wait for something that is not in memory. It is made for the hot path:
// for a block that was noted before, it costs three loads.
//
// Lock order: mu is held for a few operations in memory, never during I/O.
type TraceRecorder struct {
	point     *Point
	blockSize int
	waiting   atomic.Int32 // reads that are not answered from memory
	on        atomic.Bool

	started chan struct{} // closed at the first touch
	mu      sync.Mutex
	left    int64 // blocks that there is room for; 0: nothing is recorded any more
	keys    []int
	runs    []traceRun
}

// NewTraceRecorder makes a recorder for the disks of a point; read them through
// what Image returns. It records from Record on.
func (r *Repository) NewTraceRecorder(p *Point) *TraceRecorder {
	return &TraceRecorder{point: p, blockSize: r.blockSize, started: make(chan struct{}), left: maxTraceBytes / int64(r.blockSize)}
}

// Point is whose disks they are.
func (t *TraceRecorder) Point() *Point { return t.point }

// Record begins to record.
func (t *TraceRecorder) Record() { t.on.Store(true) }

// Started is closed when the first block is noted.
func (t *TraceRecorder) Started() <-chan struct{} { return t.started }

// Waiting reports whether a read waits for something that is not in memory.
func (t *TraceRecorder) Waiting() bool { return t.waiting.Load() > 0 }

// Stop ends the recording and returns it; nil where there is none (any more).
func (t *TraceRecorder) Stop() *Trace {
	t.on.Store(false)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.left = 0
	out := &Trace{blockSize: t.blockSize, keys: t.keys, takes: [][]traceRun{t.runs}}
	t.keys, t.runs = nil, nil
	if out.Empty() {
		return nil
	}
	return out
}

// Image is an open disk of the point, noted under its key.
func (t *TraceRecorder) Image(m *Image, key int) *TracedImage {
	pages := (m.size>>m.shift)/tracePageBlocks + 1
	return &TracedImage{Image: m, rec: t, key: key, pages: make([]atomic.Pointer[tracePage], pages)}
}

// tracePageBlocks is the number of blocks in a page of the bitmap of blocks that
// were noted: 4 KiB for 2 GiB of disk.
const tracePageBlocks = 32 << 10

type tracePage [tracePageBlocks / 64]atomic.Uint64

// TracedImage is an Image whose reads are noted by a TraceRecorder.
type TracedImage struct {
	*Image
	rec   *TraceRecorder
	key   int
	pages []atomic.Pointer[tracePage]
}

var (
	_ disk.Image        = (*TracedImage)(nil)
	_ disk.Mapper       = (*TracedImage)(nil)
	_ disk.CachedReader = (*TracedImage)(nil)
	_ disk.Usage        = (*TracedImage)(nil)
)

// ReadAt implements disk.Image.
func (m *TracedImage) ReadAt(p []byte, off int64) (int, error) {
	m.rec.waiting.Add(1)
	n, err := m.Image.ReadAt(p, off)
	m.rec.waiting.Add(-1)
	m.note(off, n)
	return n, err
}

// ReadCached implements disk.CachedReader.
func (m *TracedImage) ReadCached(p []byte, off int64) bool {
	ok := m.Image.ReadCached(p, off)
	if ok {
		m.note(off, len(p))
	}
	return ok
}

// note notes a read that was answered.
func (m *TracedImage) note(off int64, n int) {
	if n == 0 || !m.rec.on.Load() {
		return
	}
	last := (off + int64(n) - 1) >> m.shift
	for block := off >> m.shift; block <= last; block++ {
		page := m.pages[block/tracePageBlocks].Load()
		if page == nil || page[block%tracePageBlocks/64].Load()&(1<<(block%64)) == 0 {
			m.touch(block)
		}
	}
}

// touch notes a block for the first time. Blocks of zeros count too: in a later
// point something may be there.
func (m *TracedImage) touch(block int64) {
	m.rec.mu.Lock()
	defer m.rec.mu.Unlock()
	if m.rec.left == 0 {
		return
	}
	page := m.pages[block/tracePageBlocks].Load()
	if page == nil {
		page = new(tracePage)
		m.pages[block/tracePageBlocks].Store(page)
	}
	if before := page[block%tracePageBlocks/64].Or(1 << (block % 64)); before&(1<<(block%64)) != 0 {
		return // somebody was faster
	}
	m.rec.add(m.key, block)
}

// add appends a touch. Caller holds mu.
func (t *TraceRecorder) add(key int, block int64) {
	disk := -1
	for i, k := range t.keys {
		if k == key {
			disk = i
		}
	}
	if disk < 0 {
		disk = len(t.keys)
		t.keys = append(t.keys, key)
	}
	if len(t.runs) == 0 {
		close(t.started)
	}
	t.runs = appendTouch(t.runs, disk, block)
	if t.left--; t.left == 0 {
		t.on.Store(false)
	}
}
