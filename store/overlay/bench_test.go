package overlay

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/internal/vfs"
)

const benchSize = 4 << 30

func benchOverlay(b *testing.B, logBytes int64) *Overlay {
	o, err := Open(Options{Dir: b.TempDir(), Base: disktest.NewMemory(benchSize), BaseID: "b", LogBytes: logBytes, Logger: quiet()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := o.Close(); err != nil {
			b.Error(err)
		}
	})
	return o
}

// durable is what a durable write needs.
type durable interface {
	WriteAt(p []byte, off int64) (int, error)
	SyncAsync(done func(error))
}

// durableWrites keeps depth durable writes of size bytes in flight, from one
// goroutine as a connection's loop does, and counts those that are done.
func durableWrites(b *testing.B, dev durable, depth, size int) {
	rng := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	try, _ := dev.(disk.TryWriter)
	slots := make(chan struct{}, depth)
	var failed atomic.Pointer[error]
	done := func(err error) {
		if err != nil {
			failed.Store(&err)
		}
		<-slots
	}
	b.SetBytes(int64(size))
	b.ResetTimer()
	for i := range b.N {
		slots <- struct{}{}
		p[8] = byte(i)
		off := rng.Int64N(benchSize/int64(size)) * int64(size)
		taken := false
		if try != nil {
			taken, _ = try.TryWriteAt(p, off)
		}
		if !taken {
			if _, err := dev.WriteAt(p, off); err != nil {
				b.Fatal(err)
			}
		}
		dev.SyncAsync(done)
	}
	for range depth {
		slots <- struct{}{}
	}
	b.StopTimer()
	if err := failed.Load(); err != nil {
		b.Fatal(*err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "IOPS")
}

var benchShapes = []struct{ depth, size int }{{1, 4096}, {8, 4096}, {32, 4096}, {128, 4096}, {32, 65536}}

// BenchmarkDurableWrite is the figure that counts: writes that survive power
// loss when they are acknowledged.
func BenchmarkDurableWrite(b *testing.B) {
	for _, s := range benchShapes {
		b.Run(fmt.Sprintf("overlay/%dK/QD%d", s.size>>10, s.depth), func(b *testing.B) {
			o := benchOverlay(b, 0)
			warm(b, o)
			durableWrites(b, o, s.depth, s.size)
		})
	}
	for _, s := range benchShapes {
		b.Run(fmt.Sprintf("plain/%dK/QD%d", s.size>>10, s.depth), func(b *testing.B) {
			durableWrites(b, newPlain(b), s.depth, s.size)
		})
	}
}

// warm waits until the next log file is prepared, as it is some tenths of a second
// after the first write, and goes over to it.
func warm(b *testing.B, o *Overlay) {
	if _, err := o.WriteAt([]byte{1}, 0); err != nil {
		b.Fatal(err)
	}
	o.mu.Lock()
	for o.shelf.next == nil {
		o.change.Wait()
	}
	o.mu.Unlock()
	if err := o.Sync(); err != nil {
		b.Fatal(err)
	}
}

// plain is the way without a log: a sparse file, written in place, with one
// fdatasync for all who wait.
type plain struct {
	f    vfs.File
	mu   sync.Mutex
	list []func(error)
	wake chan struct{}
}

func newPlain(b *testing.B) *plain {
	f, err := vfs.OS().OpenFile(filepath.Join(b.TempDir(), "plain"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	p := &plain{f: f, wake: make(chan struct{}, 1)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range p.wake {
			p.mu.Lock()
			list := p.list
			p.list = nil
			p.mu.Unlock()
			err := f.Sync()
			for _, done := range list {
				done(err)
			}
		}
	}()
	b.Cleanup(func() {
		close(p.wake)
		<-ended
		if err := errors.Join(f.Close()); err != nil {
			b.Error(err)
		}
	})
	return p
}

func (p *plain) WriteAt(b []byte, off int64) (int, error) { return p.f.WriteAt(b, off) }

func (p *plain) SyncAsync(done func(error)) {
	p.mu.Lock()
	p.list = append(p.list, done)
	p.mu.Unlock()
	ring(p.wake)
}

// BenchmarkTryWrite is what a connection's loop pays for a write.
func BenchmarkTryWrite(b *testing.B) {
	for _, size := range []int{512, 4096, 65536} {
		b.Run(fmt.Sprintf("%d", size), func(b *testing.B) {
			o := benchOverlay(b, 1<<30)
			warm(b, o)
			p := make([]byte, size)
			for i := range p {
				p[i] = byte(i + 1)
			}
			rng := rand.New(rand.NewPCG(1, 2))
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				off := rng.Int64N(64<<20/int64(size)) * int64(size)
				if done, _ := o.TryWriteAt(p, off); !done {
					b.StopTimer()
					if _, err := o.WriteAt(p, off); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			}
		})
	}
}

// BenchmarkReadCached is what a connection's loop pays for a read, by where the
// page is.
func BenchmarkReadCached(b *testing.B) {
	for _, where := range []string{"memory", "log", "data", "base"} {
		for _, size := range []int{4096, 65536} {
			b.Run(fmt.Sprintf("%s/%d", where, size), func(b *testing.B) { benchRead(b, where, size) })
		}
	}
}

func benchRead(b *testing.B, where string, size int) {
	o := benchOverlay(b, 0)
	const area = 512 << 10
	p := make([]byte, area)
	for i := range p {
		p[i] = byte(i + 1)
	}
	if where != "base" {
		if _, err := o.WriteAt(p, 0); err != nil {
			b.Fatal(err)
		}
	}
	if where == "log" || where == "data" {
		if err := o.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	if where == "data" {
		if err := o.Checkpoint(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if !o.ReadCached(p[:size], rng.Int64N(area/int64(size))*int64(size)) {
			b.Fatal("not cached")
		}
	}
}
