package disk_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
)

// TestChanged: a file that is cut or removed while it is read gives ErrChanged,
// from reads and from the map, in every format.
func TestChanged(t *testing.T) {
	source := disktest.Random(9, 4<<20, 1)
	for writer := range writers {
		for what, change := range map[string]func(string) error{
			"cut":     func(name string) error { return os.Truncate(name, 100_000) },
			"empty":   func(name string) error { return os.Truncate(name, 0) },
			"removed": os.Remove,
		} {
			t.Run(writer+" "+what, func(t *testing.T) {
				dir := t.TempDir()
				name := writeWith(t, dir, writer, source)
				img := open(t, name)
				buf := make([]byte, 1<<20)
				if _, err := img.ReadAt(buf, 0); err != nil {
					t.Fatal(err)
				}
				if writer == "vmdkflat" {
					name = filepath.Join(dir, "vmdkflat-flat.vmdk")
				}
				if err := change(name); err != nil {
					t.Fatal(err)
				}
				for _, off := range []int64{0, 3 << 20} {
					if _, err := img.ReadAt(buf, off); !errors.Is(err, disk.ErrChanged) {
						t.Errorf("read at %d: %v, want ErrChanged", off, err)
					}
				}
				if err := lastError(img); writer[:3] == "raw" && !errors.Is(err, disk.ErrChanged) {
					t.Errorf("extents: %v, want ErrChanged", err)
				}
			})
		}
	}
}

func lastError(img disk.Image) (last error) {
	for _, err := range disk.Extents(context.Background(), img, disk.Whole(img)) {
		last = err
	}
	return last
}

// TestGrowing: what is added after Open does not belong to the disk.
func TestGrowing(t *testing.T) {
	name := filepath.Join(t.TempDir(), "raw")
	writeFile(t, name, make([]byte, 1000))
	img := open(t, name)
	if err := os.Truncate(name, 5000); err != nil {
		t.Fatal(err)
	}
	if n, err := img.ReadAt(make([]byte, 2000), 0); n != 1000 || err == nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// TestCancel: the context given to Open governs all that comes later.
func TestCancel(t *testing.T) {
	source := disktest.Random(9, 4<<20, 1)
	for writer := range writers {
		name := writeWith(t, t.TempDir(), writer, source)
		ctx, cancel := context.WithCancel(context.Background())
		img, err := disk.Open(ctx, name, disk.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := img.ReadAt(make([]byte, 100), 0); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: read: %v", writer, err)
		}
		if err := lastError(img); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: extents: %v", writer, err)
		}
		if err := img.Close(); err != nil {
			t.Error(err)
		}
		if _, err := disk.Open(ctx, name, disk.OpenOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: open with a cancelled context: %v", writer, err)
		}
	}
}

// TestCloseDuringReads: reads in flight give their bytes or os.ErrClosed.
func TestCloseDuringReads(t *testing.T) {
	defer goleak.VerifyNone(t)
	source := disktest.Random(9, 4<<20, 1)
	for writer := range writers {
		name := writeWith(t, t.TempDir(), writer, source)
		img, err := disk.Open(context.Background(), name, disk.OpenOptions{CacheBytes: 1 << 16})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var reads atomic.Int64
		started := make(chan struct{}, 4)
		for i := range 4 {
			wg.Go(func() {
				buf := make([]byte, 50_000)
				for n := int64(0); ; n++ {
					_, err := img.ReadAt(buf, (int64(i)*777_777+n*12_345)%(3<<20))
					if n == 3 {
						started <- struct{}{}
					}
					if err != nil {
						if !errors.Is(err, os.ErrClosed) {
							t.Errorf("%s: %v", writer, err)
						}
						return
					}
					reads.Add(1)
				}
			})
		}
		for range 4 {
			<-started
		}
		if err := img.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if reads.Load() < 12 {
			t.Errorf("%s: only %d reads came through", writer, reads.Load())
		}
		if err := img.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Errorf("second Close: %v", err)
		}
	}
}

// TestSmallCache: a cache far smaller than the tables changes nothing but speed.
func TestSmallCache(t *testing.T) {
	source := disktest.Random(10, 1<<20, 0.5)
	dir := t.TempDir()
	raw := filepath.Join(dir, "raw")
	writeDisk(t, raw, source)
	qemu(t, dir, "qemu-img", "convert", "-O", "qcow2", "-c", "-o", "cluster_size=512", "raw", "image")
	disktest.RunImage(t, source, func(t *testing.T) disk.Image {
		img, err := disk.Open(context.Background(), filepath.Join(dir, "image"), disk.OpenOptions{CacheBytes: 1})
		if err != nil {
			t.Fatal(err)
		}
		return img
	})
}

// BenchmarkRead reads images of each format in blocks of 64 KiB, by one reader
// and by one for each core: the two show how compressed clusters scale.
func BenchmarkRead(b *testing.B) {
	const size, block = 64 << 20, 64 << 10
	source := disktest.Random(11, size, 1)
	for _, writer := range []string{"raw", "qcow2", "qcow2zstd", "vmdkstream"} {
		name := writeWith(b, b.TempDir(), writer, source)
		for _, readers := range []int{1, runtime.GOMAXPROCS(0)} {
			b.Run(fmt.Sprintf("%s/%d", writer, readers), func(b *testing.B) {
				img := open(b, name)
				b.SetBytes(block)
				var next atomic.Int64
				var wg sync.WaitGroup
				for range readers {
					wg.Go(func() {
						buf := make([]byte, block)
						for {
							n := next.Add(1) - 1
							if n >= int64(b.N) {
								return
							}
							if _, err := img.ReadAt(buf, n*block%size); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		}
	}
}

// BenchmarkSmallReads reads 4 KiB at random places, as a guest does.
func BenchmarkSmallReads(b *testing.B) {
	const size, block = 64 << 20, 4 << 10
	source := disktest.Random(11, size, 1)
	for _, writer := range []string{"raw", "qcow2", "qcow2zstd", "vmdkstream"} {
		name := writeWith(b, b.TempDir(), writer, source)
		b.Run(writer, func(b *testing.B) {
			img := open(b, name)
			rng := rand.New(rand.NewPCG(1, 1))
			buf := make([]byte, block)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := img.ReadAt(buf, rng.Int64N(size/block)*block); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkWrite writes a disk of 64 MiB in each format.
func BenchmarkWrite(b *testing.B) {
	source := disktest.Random(11, 64<<20, 1)
	for _, writer := range []string{"raw", "qcow2", "qcow2zstd", "vmdkstream"} {
		b.Run(writer, func(b *testing.B) {
			b.SetBytes(source.Size())
			for b.Loop() {
				writeWith(b, b.TempDir(), writer, source)
			}
		})
	}
}
