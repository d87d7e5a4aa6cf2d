package disktest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"lifeboat/disk"
)

// deviceSize is odd in pages and sectors on purpose.
const deviceSize = 3<<20 + 5*disk.SectorSize

// RunDevice is the conformance suite of disk.Device and of the abilities that
// the device has. create makes a new device of size bytes that reads as zeros.
func RunDevice(t *testing.T, create func(t *testing.T, size int64) disk.Device) {
	t.Helper()
	t.Run("Image", func(t *testing.T) {
		want := Random(3, deviceSize, 0.4)
		RunImage(t, want, func(t *testing.T) disk.Image {
			dev := create(t, deviceSize)
			copyDisk(t, dev, want)
			return dev
		})
	})
	tests := []struct {
		name string
		run  func(t *testing.T, dev disk.Device)
	}{
		{"Model", testModel},
		{"OutOfRange", testOutOfRange},
		{"DisjointWriters", testDisjointWriters},
		{"Sync", testSync},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dev := create(t, deviceSize)
			defer dev.Close()
			test.run(t, dev)
		})
	}
}

func copyDisk(t *testing.T, dev disk.Device, from *Memory) {
	t.Helper()
	buf := make([]byte, from.Size())
	for _, run := range from.runs(0, from.Size()) {
		if run.Hole {
			continue
		}
		p := buf[run.Offset:run.End()]
		readFull(t, from, p, run.Offset)
		if n, err := dev.WriteAt(p, run.Offset); n != len(p) || err != nil {
			t.Fatalf("WriteAt(%d bytes at %d) = %d, %v", len(p), run.Offset, n, err)
		}
	}
}

// testModel does random operations on the device and on a plain byte slice.
func testModel(t *testing.T, dev disk.Device) {
	rng := rand.New(rand.NewPCG(11, 12))
	model := make([]byte, dev.Size())
	for step := range 400 {
		n := 1 + rng.Int64N(1+rng.Int64N(100_000))
		off := rng.Int64N(dev.Size() - n + 1)
		switch rng.IntN(5) {
		case 0:
			zeroSome(t, dev, model, off, n)
		case 1, 2:
			writeSome(t, rng, dev, model, off, n)
		case 3:
			if err := dev.Sync(); err != nil {
				t.Fatalf("Sync: %v", err)
			}
		}
		got := make([]byte, n)
		readFull(t, dev, got, off)
		if !bytes.Equal(got, model[off:off+n]) {
			t.Fatalf("step %d: content differs at byte %d", step, off+int64(firstDifference(got, model[off:])))
		}
	}
	Equal(t, dev, FromBytes(model))
	CheckExtents(t, dev, disk.Whole(dev))
}

func zeroSome(t *testing.T, dev disk.Device, model []byte, off, n int64) {
	t.Helper()
	z, ok := dev.(disk.Zeroer)
	if !ok {
		return
	}
	if err := z.Zero(off, n); err != nil {
		t.Fatalf("Zero(%d, %d): %v", off, n, err)
	}
	clear(model[off : off+n])
}

func writeSome(t *testing.T, rng *rand.Rand, dev disk.Device, model []byte, off, n int64) {
	t.Helper()
	p := model[off : off+n]
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	if w, ok := dev.(disk.TryWriter); ok && rng.IntN(2) == 0 {
		if done, err := w.TryWriteAt(p, off); err != nil {
			t.Fatalf("TryWriteAt: %v", err)
		} else if done {
			return
		}
	}
	if wrote, err := dev.WriteAt(p, off); int64(wrote) != n || err != nil {
		t.Fatalf("WriteAt(%d bytes at %d) = %d, %v", n, off, wrote, err)
	}
}

func testOutOfRange(t *testing.T, dev disk.Device) {
	size := dev.Size()
	buf := bytes.Repeat([]byte{0xff}, 1024)
	for _, off := range []int64{-1, -1024, size - 1023, size, size + 1, 1<<63 - 1} {
		if _, err := dev.WriteAt(buf, off); !errors.Is(err, disk.ErrOutOfRange) {
			t.Errorf("WriteAt at %d of %d: %v, want ErrOutOfRange", off, size, err)
		}
		if w, ok := dev.(disk.TryWriter); ok {
			if done, err := w.TryWriteAt(buf, off); done && !errors.Is(err, disk.ErrOutOfRange) {
				t.Errorf("TryWriteAt at %d of %d: %v, want ErrOutOfRange", off, size, err)
			}
		}
		if z, ok := dev.(disk.Zeroer); ok {
			if err := z.Zero(off, 1024); !errors.Is(err, disk.ErrOutOfRange) {
				t.Errorf("Zero at %d of %d: %v, want ErrOutOfRange", off, size, err)
			}
		}
	}
	if n, err := dev.WriteAt(nil, size); n != 0 || err != nil {
		t.Errorf("WriteAt of nothing at the end = %d, %v", n, err)
	}
	checkZero(t, dev, 0, size)
}

func testDisjointWriters(t *testing.T, dev disk.Device) {
	const writers = 8
	area := dev.Size() / writers
	model := make([]byte, dev.Size())
	var wg sync.WaitGroup
	for w := range int64(writers) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 5))
			for range 40 {
				n := 1 + rng.Int64N(20_000)
				off := w*area + rng.Int64N(area-n)
				p := model[off : off+n]
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				if _, err := dev.WriteAt(p, off); err != nil {
					t.Errorf("WriteAt: %v", err)
				}
			}
			if err := dev.Sync(); err != nil {
				t.Errorf("Sync: %v", err)
			}
		})
	}
	wg.Wait()
	Equal(t, dev, FromBytes(model))
}

func testSync(t *testing.T, dev disk.Device) {
	if _, err := dev.WriteAt([]byte("durable"), 12345); err != nil {
		t.Fatal(err)
	}
	if err := dev.Sync(); err != nil {
		t.Fatalf("Sync: %v", err)
	}
	a, ok := dev.(disk.AsyncSyncer)
	if !ok {
		return
	}
	const calls = 20
	results := make(chan error, 2*calls)
	for range calls {
		a.SyncAsync(func(err error) { results <- err })
	}
	for range calls {
		if err := <-results; err != nil {
			t.Errorf("SyncAsync: %v", err)
		}
	}
	// A Sync after the last answer cannot bring further ones.
	if err := dev.Sync(); err != nil {
		t.Fatalf("Sync: %v", err)
	}
	if extra := len(results); extra != 0 {
		t.Errorf("SyncAsync answered %d times too often", extra)
	}
}
