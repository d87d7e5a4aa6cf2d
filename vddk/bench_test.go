package vddk_test

import (
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/vddk"
)

// The benchmarks read one disk by every transport, as a backup does: in pieces
// of 1 MiB, several at once. In "read" the bytes are only read; in "backup" they
// are also hashed and compressed, which is what a backup does with them, so
// that the ratio to file is the ratio of backups. All is in the page cache: a
// disk of this machine that had to be waited for would only make the other
// transports look better.
const benchSize = 256 << 20

func benchmark(b *testing.B, request func(b *testing.B, raw string) vddk.Request) {
	img := disktest.Random(99, benchSize, 0.9)
	raw := rawFile(b, img)
	src, err := vddk.Open(b.Context(), request(b, raw), vddk.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer src.Close()
	b.Run("read", func(b *testing.B) { benchReaders(b, src, func([]byte) {}) })
	b.Run("backup", func(b *testing.B) {
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
		if err != nil {
			b.Fatal(err)
		}
		defer enc.Close()
		benchReaders(b, src, func(p []byte) {
			for ; len(p) > 0; p = p[64<<10:] {
				blake3.Sum256(p[:64<<10])
				enc.EncodeAll(p[:64<<10], nil)
			}
		})
	})
}

func benchReaders(b *testing.B, src vddk.Source, use func(p []byte)) {
	b.SetBytes(benchSize)
	for b.Loop() {
		var next atomic.Int64
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				p := make([]byte, 1<<20)
				for {
					off := next.Add(1<<20) - 1<<20
					if off >= benchSize {
						return
					}
					if n, err := src.ReadAt(p, off); n < len(p) && !errors.Is(err, io.EOF) {
						b.Errorf("read at %d: %v", off, err)
						return
					}
					use(p)
				}
			})
		}
		wg.Wait()
	}
}

func BenchmarkFile(b *testing.B) {
	benchmark(b, func(_ *testing.B, raw string) vddk.Request {
		return vddk.Request{LocalPath: raw, Size: benchSize}
	})
}

func BenchmarkVDDK(b *testing.B) {
	benchmark(b, func(b *testing.B, raw string) vddk.Request { return libraryRequest(b, install(b), raw) })
}

// BenchmarkFolder goes through package vsphere and TLS to the simulated vCenter,
// which shares the processors with us.
func BenchmarkFolder(b *testing.B) {
	img := disktest.Random(99, benchSize, 0.9)
	_, c, vm := simulated(b, img)
	req := frozen(b, c, vm)
	benchmark(b, func(*testing.B, string) vddk.Request { return req })
}

// BenchmarkNFC includes the export: it is what reading waits for.
func BenchmarkNFC(b *testing.B) {
	img := disktest.Random(99, benchSize, 0.9)
	stream := streamOf(b, img)
	b.SetBytes(benchSize)
	for b.Loop() {
		src, err := vddk.Open(b.Context(), vddk.Request{Key: diskKey, Size: benchSize, Lease: &lease{stream: stream}}, vddk.Options{})
		if err != nil {
			b.Fatal(err)
		}
		if err := disk.WriteRawTo(b.Context(), io.Discard, src, nil); err != nil {
			b.Fatal(err)
		}
		src.Close()
	}
}
