package blockcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
)

// TestLikeThePlainBackend plays reads, evictions, damage to the files, restarts
// and removals against the backend itself.
func TestLikeThePlainBackend(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := &far{Backend: backendtest.NewMemory()}
		all := map[string][]byte{}
		for i := range rapid.IntRange(1, 4).Draw(t, "objects") {
			name := fmt.Sprintf("segments/%c", 'a'+i)
			all[name] = content(uint64(i), rapid.IntRange(1, 6*ChunkSize).Draw(t, "size"))
			w, _ := f.Create(context.Background(), name, backend.Exclusive)
			_, _ = w.Write(all[name])
			if err := w.Commit(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		dir, err := os.MkdirTemp("", "blockcache")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		o := options(dir, rapid.Int64Range(1, 8).Draw(t, "slots"))
		o.Memory = ChunkSize
		c := New(f, o)
		defer func() { c.Close() }()
		names := rapid.SampledFrom([]string{"segments/a", "segments/b", "segments/c", "segments/d"})
		t.Repeat(map[string]func(*rapid.T){
			"read": func(t *rapid.T) {
				name := names.Draw(t, "name")
				data, ok := all[name]
				if !ok {
					t.Skip()
				}
				off := rapid.Int64Range(0, int64(len(data))).Draw(t, "off")
				if err := check(c, name, data, off, rapid.IntRange(1, 3*ChunkSize).Draw(t, "n")); err != nil {
					t.Fatal(err)
				}
			},
			"settle": func(*rapid.T) { settle(c) },
			"restart": func(t *rapid.T) {
				c.Close()
				o.Bytes = rapid.Int64Range(1, 8).Draw(t, "slots") * ChunkSize
				c = New(f, o)
			},
			"damage": func(t *rapid.T) {
				settle(c)
				file := filepath.Join(dir, rapid.SampledFrom([]string{"blocks", "index"}).Draw(t, "file"))
				data, err := os.ReadFile(file)
				if err != nil || len(data) == 0 {
					t.Skip()
				}
				from := rapid.IntRange(0, len(data)-1).Draw(t, "from")
				for i := from; i < min(from+rapid.IntRange(1, 200).Draw(t, "n"), len(data)); i++ {
					data[i] ^= 0x55
				}
				overwrite(t, file, data)
			},
			"truncate": func(t *rapid.T) {
				settle(c)
				file := filepath.Join(dir, rapid.SampledFrom([]string{"blocks", "index"}).Draw(t, "file"))
				if err := os.Truncate(file, rapid.Int64Range(0, 4*ChunkSize).Draw(t, "to")); err != nil {
					t.Fatal(err)
				}
			},
			"remove": func(t *rapid.T) {
				name := names.Draw(t, "name")
				if err := c.Remove(context.Background(), name); err != nil {
					t.Fatal(err)
				}
				delete(all, name)
				if _, err := c.Open(context.Background(), name); !errors.Is(err, fs.ErrNotExist) {
					t.Fatalf("open of a removed object: %v", err)
				}
			},
		})
	})
}

// overwrite changes a file in place, as it is open.
func overwrite(t *rapid.T, name string, data []byte) {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(data, 0)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func FuzzReadIndex(f *testing.F) {
	h := newHasher([32]byte{1})
	head := header(h)
	r := record{id: chunkID{number: tailChunk}, length: 5, size: 5}
	b := r.encode()
	f.Add(append(head[:], b[:]...))
	f.Add(head[:20])
	f.Fuzz(func(t *testing.T, data []byte) {
		const slots = 16
		records, ok, err := readIndex(bytes.NewReader(data), newHasher([32]byte{1}), slots)
		if err != nil || len(records) > slots || !ok && len(records) > 0 {
			t.Fatalf("%d records, %v, %v", len(records), ok, err)
		}
		for _, r := range records {
			if r == (record{}) {
				continue
			}
			if r.length > ChunkSize || r.size <= 0 || int64(r.length) > r.size {
				t.Fatalf("a record that cannot be: %+v", r)
			}
			if b := r.encode(); parseRecord(b[:]) != r {
				t.Fatalf("%+v does not survive", r)
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	for _, tier := range []string{"memory", "disk"} {
		b.Run(tier, func(b *testing.B) {
			f, _ := newFar(b, 256*ChunkSize)
			o := options(b.TempDir(), 512)
			if tier == "memory" {
				o.Memory = 64 << 20
			}
			c := newCache(b, f, o)
			obj, err := c.Open(b.Context(), "segments/a")
			if err != nil {
				b.Fatal(err)
			}
			for n := range int64(256) {
				if _, err := obj.ReadAt(make([]byte, 1), n*ChunkSize); err != nil && err != io.EOF {
					b.Fatal(err)
				}
			}
			settle(c)
			p, rng := make([]byte, 8<<10), rand.New(rand.NewPCG(1, 1))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := obj.ReadAt(p, rng.Int64N(255*ChunkSize)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
