package store

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"lifeboat/disk/disktest"
	"lifeboat/internal/vfs"
	"lifeboat/store/backend"
)

// plain is a disk in one piece of memory, so that the source costs nothing.
type plain []byte

func (p plain) Size() int64  { return int64(len(p)) }
func (p plain) Close() error { return nil }
func (p plain) ReadAt(b []byte, off int64) (int, error) {
	n := copy(b, p[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// benchDisk makes data that zstd compresses about as a system disk (2.6 times):
// words of a small vocabulary, records with counters, and noise.
func benchDisk(size int) plain {
	rng := rand.New(rand.NewPCG(42, 42))
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = make([]byte, 2+rng.IntN(12))
		for j := range words[i] {
			words[i][j] = byte('a' + rng.IntN(26))
		}
	}
	out := make([]byte, 0, size+1<<16)
	for len(out) < size {
		switch rng.IntN(10) {
		case 0, 1:
			for range 1024 {
				out = append(out, byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32()))
			}
		case 2, 3, 4:
			for i := range 400 {
				out = fmt.Appendf(out, "%08x\x00\x01%c%c\x00\x00", len(out)+i, byte(rng.Uint32()), byte(i))
			}
		default:
			for range 600 {
				out = append(append(out, words[int(rng.ExpFloat64()*600)%len(words)]...), ' ')
			}
		}
	}
	return plain(out[:size])
}

const benchSize = 128 << 20

// benchRepo is a repository on the host's file system.
func benchRepo(b *testing.B, cache int64) *Repository {
	b.Helper()
	dir, err := backend.NewDir(vfs.OS(), filepath.Join(b.TempDir(), "repo"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { dir.Close() })
	if err := Init(b.Context(), dir, testPassword, cheap); err != nil {
		b.Fatal(err)
	}
	r, err := Open(b.Context(), dir, testPassword, Options{CacheBytes: cache, Logger: quiet()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close() })
	return r
}

// cpuTime is the processor time that this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// perCore reports the rate per second of processor time.
func perCore(b *testing.B, bytes int64, used time.Duration) {
	b.ReportMetric(float64(bytes)*float64(b.N)/1e6/used.Seconds(), "MB/s/core")
}

func BenchmarkIngest(b *testing.B) {
	r := benchRepo(b, 0)
	src := benchDisk(benchSize)
	b.SetBytes(benchSize)
	b.ReportAllocs()
	var used time.Duration
	var p *Point
	b.ResetTimer()
	for i := range b.N {
		for off := 0; off < len(src); off += testBlock { // all blocks are new
			src[off]++
			src[off+1] = byte(i)
		}
		start := cpuTime()
		p = backup(b, r, "vm", nil, src, nil)
		used += cpuTime() - start
	}
	perCore(b, benchSize, used)
	b.ReportMetric(float64(p.ReadBytes)/float64(p.StoredBytes), "ratio")
}

func BenchmarkIngestDuplicate(b *testing.B) {
	r := benchRepo(b, 0)
	src := benchDisk(benchSize)
	backup(b, r, "vm", nil, src, nil)
	b.SetBytes(benchSize)
	b.ReportAllocs()
	start := cpuTime()
	for b.Loop() {
		if p := backup(b, r, "other", nil, src, nil); p.NewBytes != 0 {
			b.Fatal("stored again")
		}
	}
	perCore(b, benchSize, cpuTime()-start)
}

func BenchmarkIngestIncremental(b *testing.B) {
	r := benchRepo(b, 0)
	src := benchDisk(benchSize)
	parent := backup(b, r, "vm", nil, src, nil)
	b.SetBytes(benchSize)
	b.ReportAllocs()
	start := cpuTime()
	for b.Loop() {
		parent = backup(b, r, "vm", parent, src, nil)
	}
	perCore(b, benchSize, cpuTime()-start)
}

func benchImage(b *testing.B, cache int64) *Image {
	b.Helper()
	r := benchRepo(b, cache)
	p := backup(b, r, "vm", nil, benchDisk(benchSize), nil)
	img, err := r.OpenDisk(context.Background(), p, 0)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { img.Close() })
	return img
}

func BenchmarkRead4KCold(b *testing.B) {
	img := benchImage(b, 1<<20)
	rng := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 4096)
	b.ReportAllocs()
	start := cpuTime()
	for b.Loop() {
		if _, err := img.ReadAt(p, rng.Int64N(benchSize/4096)*4096); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/(cpuTime()-start).Seconds(), "reads/s/core")
}

func BenchmarkReadSequential(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size>>10, "K"), func(b *testing.B) {
			img := benchImage(b, 32<<20)
			p := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			off := int64(0)
			start := cpuTime()
			for b.Loop() {
				if !img.ReadCached(p, off) {
					if _, err := img.ReadAt(p, off); err != nil {
						b.Fatal(err)
					}
				}
				off = (off + int64(size)) % benchSize
			}
			perCore(b, int64(size), cpuTime()-start)
		})
	}
}

func BenchmarkRead4KHot(b *testing.B) {
	img := benchImage(b, 2*benchSize)
	if _, err := img.ReadAt(make([]byte, benchSize), 0); err != nil {
		b.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 4096)
	b.ReportAllocs()
	misses := 0
	start := cpuTime()
	for b.Loop() {
		if !img.ReadCached(p, rng.Int64N(benchSize/4096)*4096) {
			misses++
		}
	}
	b.ReportMetric(float64((cpuTime()-start).Nanoseconds())/float64(b.N), "cpu-ns/op")
	if misses > b.N/50 {
		b.Errorf("%d of %d reads were not in the cache", misses, b.N)
	}
}

// BenchmarkRead4KPread is the peer of BenchmarkRead4KHot: the same reads of a
// plain file in the page cache.
func BenchmarkRead4KPread(b *testing.B) {
	name := filepath.Join(b.TempDir(), "raw")
	if err := os.WriteFile(name, benchDisk(benchSize), 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 4096)
	start := cpuTime()
	for b.Loop() {
		if _, err := f.ReadAt(p, rng.Int64N(benchSize/4096)*4096); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((cpuTime()-start).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

func BenchmarkOpen(b *testing.B) {
	for _, size := range []int64{1 << 30, 62 << 40} {
		b.Run(fmt.Sprint(size>>30, "GiB"), func(b *testing.B) {
			r := benchRepo(b, 0)
			src := disktest.NewMemory(size)
			for i := range int64(200) {
				src.WriteAt([]byte{byte(i), 1}, i*(size/200))
			}
			p := backup(b, r, "vm", nil, src, nil)
			b.ReportAllocs()
			for b.Loop() {
				p, err := r.Point(b.Context(), p.ID)
				if err != nil {
					b.Fatal(err)
				}
				img, err := r.OpenDisk(b.Context(), p, 0)
				if err != nil {
					b.Fatal(err)
				}
				img.Close()
			}
		})
	}
}

func BenchmarkPoints(b *testing.B) {
	r := benchRepo(b, 0)
	in, err := r.NewIngest(b.Context(), IngestOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer in.Close()
	rec := &pointRecord{VM: "vm", Consistency: CrashConsistent, Disks: []diskRecord{{Key: 1, Label: "d", Size: 1 << 30, Levels: 2}}}
	for range 10_000 {
		rec.ID = newPointID()
		data, err := rec.encode()
		if err != nil {
			b.Fatal(err)
		}
		sealed, err := r.keys.Seal(pointName(rec.ID), data)
		if err != nil {
			b.Fatal(err)
		}
		name := filepath.Join(r.backend.(*backend.Dir).String(), pointName(rec.ID))
		os.MkdirAll(filepath.Dir(name), 0o700)
		if err := os.WriteFile(name, sealed, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	for _, first := range []bool{true, false} {
		b.Run(map[bool]string{true: "first", false: "again"}[first], func(b *testing.B) {
			for b.Loop() {
				if first {
					r.points.keep(nil)
				}
				if points, err := r.Points(b.Context()); err != nil || len(points) != 10_000 {
					b.Fatal(len(points), err)
				}
			}
		})
	}
}
