package vddk_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
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

func BenchmarkFolder(b *testing.B) {
	benchmark(b, func(b *testing.B, raw string) vddk.Request {
		server := httptest.NewTLSServer(http.FileServer(http.Dir(filepath.Dir(raw))))
		b.Cleanup(server.Close)
		client := server.Client()
		client.Transport.(*http.Transport).MaxIdleConnsPerHost = 8
		client.Transport.(*http.Transport).TLSClientConfig.MinVersion = tls.VersionTLS12
		return vddk.Request{
			Size: benchSize, Path: "[ds] " + filepath.Base(raw),
			Files: &webStore{client: client, url: server.URL + "/"},
		}
	})
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

// webStore reads ranges over HTTPS.
type webStore struct {
	client *http.Client
	url    string
}

func (s *webStore) get(ctx context.Context, method, path string, off, n int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.url+filepath.Base(path[len("[ds] "):]), nil)
	if err != nil {
		return nil, err
	}
	if n > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	}
	return s.client.Do(req)
}

func (s *webStore) ReadRange(ctx context.Context, path string, off int64, p []byte) (int, error) {
	resp, err := s.get(ctx, http.MethodGet, path, off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return 0, errors.New(resp.Status)
	}
	return io.ReadFull(resp.Body, p)
}

func (s *webStore) Size(ctx context.Context, path string) (int64, error) {
	resp, err := s.get(ctx, http.MethodHead, path, 0, 0)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return resp.ContentLength, nil
}
