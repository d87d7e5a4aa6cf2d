// Package disktest helps to test what is made of disks: an in-memory device
// that knows what would survive power loss, wrappers that fail, wait, shrink or
// hide abilities, and conformance suites that every [disk.Image] and
// [disk.Device] of the project runs.
package disktest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"

	"lifeboat/disk"
)

// PageSize is the granularity in which a [Memory] stores, and reports holes.
const PageSize = 4096

type page [PageSize]byte

// Memory is a sparse device in memory with every optional ability of package
// disk. Its size may be tens of terabytes: only pages that were written take
// room. The zero value is not usable; call [NewMemory].
type Memory struct {
	size int64

	mu     sync.RWMutex
	pages  map[int64]*page // page number → content; absent = hole
	before map[int64]*page // content at the last Sync of what changed since; nil = hole
	syncs  int
	closed bool
}

// NewMemory makes an empty device of size bytes.
func NewMemory(size int64) *Memory {
	return &Memory{size: size, pages: map[int64]*page{}, before: map[int64]*page{}}
}

// FromBytes makes a device with the content b, durable already. Pages of zeros
// become holes.
func FromBytes(b []byte) *Memory {
	m := NewMemory(int64(len(b)))
	for off := 0; off < len(b); off += PageSize {
		chunk := b[off:min(off+PageSize, len(b))]
		if !allZero(chunk) {
			m.pages[int64(off/PageSize)] = new(page)
			copy(m.pages[int64(off/PageSize)][:], chunk)
		}
	}
	return m
}

// Random makes a device of size bytes in which about fill (0 to 1) of the
// space, in runs of up to 64 pages, holds random bytes that follow from seed.
func Random(seed uint64, size int64, fill float64) *Memory {
	m := NewMemory(size)
	rng := rand.New(rand.NewPCG(seed, 0xd15c))
	count := (size + PageSize - 1) / PageSize
	for n := int64(0); n < count; {
		run := min(1+rng.Int64N(64), count-n)
		if rng.Float64() < fill {
			for i := range run {
				m.pages[n+i] = randomPage(rng, size-(n+i)*PageSize)
			}
		}
		n += run
	}
	return m
}

// randomPage is noise, or, three times in four, words in random order, which
// compress as real data does. Bytes beyond limit stay zero.
func randomPage(rng *rand.Rand, limit int64) *page {
	p := new(page)
	noise := rng.IntN(4) == 0
	for i := 0; i < PageSize; i += 8 {
		word := rng.Uint64()
		if !noise {
			word = (word&0x3f + 1) * 0x9e3779b97f4a7c15
		}
		binary.LittleEndian.PutUint64(p[i:], word)
	}
	if limit < PageSize {
		clear(p[limit:])
	}
	return p
}

// Size implements disk.Image.
func (m *Memory) Size() int64 { return m.size }

// Close implements disk.Image: whatever comes later fails with os.ErrClosed.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

// ReadAt implements disk.Image.
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return 0, os.ErrClosed
	}
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, disk.ErrOutOfRange)
	}
	if off >= m.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), m.size-off))
	m.read(p[:n], off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *Memory) read(p []byte, off int64) {
	for len(p) > 0 {
		n, at := off/PageSize, int(off%PageSize)
		l := min(PageSize-at, len(p))
		if pg := m.pages[n]; pg != nil {
			copy(p[:l], pg[at:])
		} else {
			clear(p[:l])
		}
		p, off = p[l:], off+int64(l)
	}
}

// ReadCached implements disk.CachedReader.
func (m *Memory) ReadCached(p []byte, off int64) bool {
	if off < 0 || off > m.size-int64(len(p)) {
		return false
	}
	n, err := m.ReadAt(p, off)
	return n == len(p) && (err == nil || errors.Is(err, io.EOF))
}

// WriteAt implements disk.Device.
func (m *Memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	written := len(p)
	for len(p) > 0 {
		n, at := off/PageSize, int(off%PageSize)
		l := min(PageSize-at, len(p))
		copy(m.writable(n)[at:], p[:l])
		p, off = p[l:], off+int64(l)
	}
	return written, nil
}

func (m *Memory) check(off, length int64) error {
	if m.closed {
		return os.ErrClosed
	}
	if off < 0 || length < 0 || off > m.size || length > m.size-off {
		return fmt.Errorf("write of %d bytes at %d to a disk of %d: %w", length, off, m.size, disk.ErrOutOfRange)
	}
	return nil
}

// writable returns page n ready to be changed, with what it held at the last
// Sync put aside.
func (m *Memory) writable(n int64) *page {
	m.remember(n)
	if m.pages[n] == nil {
		m.pages[n] = new(page)
	}
	return m.pages[n]
}

func (m *Memory) remember(n int64) {
	if _, known := m.before[n]; known {
		return
	}
	var old *page
	if pg := m.pages[n]; pg != nil {
		c := *pg
		old = &c
	}
	m.before[n] = old
}

// TryWriteAt implements disk.TryWriter.
func (m *Memory) TryWriteAt(p []byte, off int64) (bool, error) {
	_, err := m.WriteAt(p, off)
	return true, err
}

// Zero implements disk.Zeroer.
func (m *Memory) Zero(off, length int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(off, length); err != nil {
		return err
	}
	for length > 0 {
		n, at := off/PageSize, off%PageSize
		l := min(PageSize-at, length)
		switch {
		case m.pages[n] == nil:
		case l == PageSize:
			m.remember(n)
			delete(m.pages, n)
		default:
			clear(m.writable(n)[at : at+l])
		}
		off, length = off+l, length-l
	}
	return nil
}

// Sync implements disk.Device.
func (m *Memory) Sync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return os.ErrClosed
	}
	clear(m.before)
	m.syncs++
	return nil
}

// SyncAsync implements disk.AsyncSyncer.
func (m *Memory) SyncAsync(done func(error)) { done(m.Sync()) }

// Syncs is how often the device was synced.
func (m *Memory) Syncs() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.syncs
}

// Durable is what would be left after power loss now, with nothing that was not
// synced: a new device.
func (m *Memory) Durable() *Memory {
	c := m.Clone()
	for n, pg := range c.before {
		if pg == nil {
			delete(c.pages, n)
		} else {
			c.pages[n] = pg
		}
	}
	c.before = map[int64]*page{}
	return c
}

// Clone is a copy of the device as it is, synced or not; also of a closed one.
func (m *Memory) Clone() *Memory {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return &Memory{size: m.size, pages: clonePages(m.pages), before: clonePages(m.before), syncs: m.syncs}
}

func clonePages(pages map[int64]*page) map[int64]*page {
	out := make(map[int64]*page, len(pages))
	for n, pg := range pages {
		if pg != nil {
			c := *pg
			pg = &c
		}
		out[n] = pg
	}
	return out
}

// Bytes is the whole content. For small disks.
func (m *Memory) Bytes() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	b := make([]byte, m.size)
	m.read(b, 0)
	return b
}

// Used implements disk.Usage.
func (m *Memory) Used() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return int64(len(m.pages)) * PageSize
}

// Extents implements disk.Mapper.
func (m *Memory) Extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		start, end := max(within.Offset, 0), min(within.End(), m.size)
		for _, run := range m.runs(start, end) {
			if err := ctx.Err(); err != nil {
				yield(disk.Extent{}, err)
				return
			}
			if !yield(run, nil) {
				return
			}
		}
	}
}

// runs lists the runs in [start, end); it costs what is stored, not the size.
func (m *Memory) runs(start, end int64) []disk.Extent {
	m.mu.RLock()
	numbers := slices.Sorted(maps.Keys(m.pages))
	m.mu.RUnlock()
	var out []disk.Extent
	add := func(from, to int64, hole bool) {
		if from >= to {
			return
		}
		if n := len(out); n > 0 && out[n-1].Hole == hole {
			out[n-1].Length += to - from
			return
		}
		out = append(out, disk.Extent{Offset: from, Length: to - from, Hole: hole})
	}
	at := start
	for _, n := range numbers {
		from, to := max(n*PageSize, start), min((n+1)*PageSize, end)
		if from >= to {
			continue
		}
		add(at, from, true)
		add(from, to, false)
		at = to
	}
	add(at, end, true)
	return out
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
