package disktest

import (
	"context"
	"fmt"
	"io"
	"sync"

	"lifeboat/disk"
)

// ImageOnly hides everything but the three methods of disk.Image, so that a
// consumer's slower way is tested.
func ImageOnly(img disk.Image) disk.Image { return struct{ disk.Image }{img} }

// DeviceOnly hides everything but the five methods of disk.Device.
func DeviceOnly(dev disk.Device) disk.Device { return struct{ disk.Device }{dev} }

// Op is a kind of operation on a disk.
type Op int

// The operations that a [Faulty] disk fails and a [Gate] holds.
const (
	Read Op = iota
	Write
	Sync
	numOps
)

// Faulty is a device that fails when its hooks say so. A nil hook never fails.
// What fails has no effect. Set the hooks before the disk is used, or guard
// what they look at.
type Faulty struct {
	disk.Device
	OnRead  func(off int64, n int) error
	OnWrite func(off int64, n int) error
	OnSync  func() error
}

// ReadAt implements disk.Image.
func (f *Faulty) ReadAt(p []byte, off int64) (int, error) {
	if f.OnRead != nil {
		if err := f.OnRead(off, len(p)); err != nil {
			return 0, err
		}
	}
	return f.Device.ReadAt(p, off)
}

// WriteAt implements disk.Device.
func (f *Faulty) WriteAt(p []byte, off int64) (int, error) {
	if f.OnWrite != nil {
		if err := f.OnWrite(off, len(p)); err != nil {
			return 0, err
		}
	}
	return f.Device.WriteAt(p, off)
}

// Sync implements disk.Device.
func (f *Faulty) Sync() error {
	if f.OnSync != nil {
		if err := f.OnSync(); err != nil {
			return err
		}
	}
	return f.Device.Sync()
}

// FailRange makes a hook that fails whatever touches [from, to) with err.
func FailRange(from, to int64, err error) func(off int64, n int) error {
	return func(off int64, n int) error {
		if off < to && off+int64(n) > from {
			return err
		}
		return nil
	}
}

// Gate is a slow device under the test's control: operations of a held kind
// wait, before they have any effect, until they are let go.
type Gate struct {
	disk.Device

	mu      sync.Mutex
	changed *sync.Cond
	closed  [numOps]bool
	waiting [numOps]int
	passes  [numOps]int // held operations that may go although the gate is closed
}

// NewGate makes a gate, open for every operation, before dev.
func NewGate(dev disk.Device) *Gate {
	g := &Gate{Device: dev}
	g.changed = sync.NewCond(&g.mu)
	return g
}

// Hold makes later operations of kind op wait.
func (g *Gate) Hold(op Op) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed[op] = true
}

// Release lets all waiting operations of kind op go, and later ones pass.
func (g *Gate) Release(op Op) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed[op] = false
	g.changed.Broadcast()
}

// Pass lets n operations of kind op through while the gate stays closed.
func (g *Gate) Pass(op Op, n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.passes[op] += n
	g.changed.Broadcast()
}

// AwaitHeld returns when at least n operations of kind op wait at the gate, or
// with ctx's error.
func (g *Gate) AwaitHeld(ctx context.Context, op Op, n int) error {
	stop := context.AfterFunc(ctx, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.changed.Broadcast()
	})
	defer stop()
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.waiting[op] < n {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%d of %d operations are at the gate: %w", g.waiting[op], n, err)
		}
		g.changed.Wait()
	}
	return nil
}

func (g *Gate) wait(op Op) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed[op] {
		return
	}
	g.waiting[op]++
	g.changed.Broadcast()
	for g.closed[op] && g.passes[op] == 0 {
		g.changed.Wait()
	}
	if g.closed[op] {
		g.passes[op]--
	}
	g.waiting[op]--
}

// ReadAt implements disk.Image.
func (g *Gate) ReadAt(p []byte, off int64) (int, error) {
	g.wait(Read)
	return g.Device.ReadAt(p, off)
}

// WriteAt implements disk.Device.
func (g *Gate) WriteAt(p []byte, off int64) (int, error) {
	g.wait(Write)
	return g.Device.WriteAt(p, off)
}

// Sync implements disk.Device.
func (g *Gate) Sync() error {
	g.wait(Sync)
	return g.Device.Sync()
}

// Shrinking is an image that loses its end while it is read, as a file does
// that somebody truncates or removes.
type Shrinking struct {
	disk.Image

	mu   sync.Mutex
	left int64
}

// NewShrinking wraps img, whole for now.
func NewShrinking(img disk.Image) *Shrinking {
	return &Shrinking{Image: img, left: img.Size()}
}

// ShrinkTo cuts the image at n bytes. Size stays what it was, as the contract
// of disk.Image wants; a read that touches what is gone fails with
// disk.ErrChanged. ShrinkTo(-1): the file is gone and every read fails.
func (s *Shrinking) ShrinkTo(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = n
}

// ReadAt implements disk.Image.
func (s *Shrinking) ReadAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	left := s.left
	s.mu.Unlock()
	if off >= s.Size() {
		return 0, io.EOF
	}
	if end := min(off+int64(len(p)), s.Size()); end > left {
		return 0, fmt.Errorf("read of %d bytes at %d: the disk ends at %d now: %w", len(p), off, left, disk.ErrChanged)
	}
	return s.Image.ReadAt(p, off)
}
