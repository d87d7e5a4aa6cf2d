package nfsserver

import (
	"io"
	"math/rand/v2"
	"sync"
	"syscall"

	"lifeboat/disk/disktest"
)

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

// pieces is a reader that returns its data in pieces of random sizes.
type pieces struct {
	data []byte
	rng  *rand.Rand
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), 1+p.rng.IntN(1<<p.rng.IntN(17)))], p.data)
	p.data = p.data[n:]
	return n, nil
}

// syncDisk is a disk whose syncs end when the test says so.
type syncDisk struct {
	*disktest.Memory
	mu      sync.Mutex
	waiting []func(error)
	arrived chan struct{} // one for each SyncAsync
}

func newSyncDisk(size int64) *syncDisk {
	return &syncDisk{Memory: disktest.NewMemory(size), arrived: make(chan struct{}, 10_000)}
}

func (d *syncDisk) SyncAsync(done func(error)) {
	d.mu.Lock()
	d.waiting = append(d.waiting, done)
	d.mu.Unlock()
	d.arrived <- struct{}{}
}

// finish ends all syncs under way with err and returns how many there were.
func (d *syncDisk) finish(err error) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := len(d.waiting)
	if err == nil {
		err = d.Sync()
	}
	for _, done := range d.waiting {
		done(err)
	}
	d.waiting = nil
	return n
}

const errNoSpace = syscall.ENOSPC

// fault is an error that a test switches on and off.
type fault struct {
	mu  sync.Mutex
	err error
}

func (f *fault) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fault) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}
