package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"lifeboat/store/backend"
)

// largeSize is more than two parts of an upload, and no multiple of anything.
const largeSize = 11<<20 + 12_345

// noise is reproducible content.
func noise(seed byte, n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(data) // never fails
	return data
}

// testLarge: an object that a backend may have to send in parts.
func testLarge(t *testing.T, b backend.Backend) {
	data := noise(1, largeSize)
	w, err := b.Create(context.Background(), "segments/0a/x.0", backend.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for rest := data; len(rest) > 0; {
		n := min(len(rest), 1<<20+7)
		if m, err := w.Write(rest[:n]); m != n || err != nil {
			t.Fatalf("Write = %d, %v", m, err)
		}
		rest = rest[n:]
	}
	wantNames(t, b, "")
	wantAbsent(t, b, "segments/0a/x.0")
	if err := w.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	wantNames(t, b, "segments/0a/", "segments/0a/x.0")
	if !bytes.Equal(Get(t, b, "segments/0a/x.0"), data) {
		t.Error("the content differs")
	}
	o, err := b.Open(context.Background(), "segments/0a/x.0")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		off := rng.IntN(largeSize)
		p := make([]byte, 1+rng.IntN(1<<18))
		n, err := o.ReadAt(p, int64(off))
		want := data[off:min(largeSize, off+len(p))]
		if !bytes.Equal(p[:n], want) || (err != nil) != (n < len(p)) || err != nil && !errors.Is(err, io.EOF) {
			t.Fatalf("%d bytes at %d: %d, %v", len(p), off, n, err)
		}
	}
}

// testSizes: what lies around the sizes that buffers and parts have.
func testSizes(t *testing.T, b backend.Backend) {
	for i, size := range []int{1, 511, 4095, 4097, 65_535, 65_536, 131_071, 131_072, 131_073, 262_145, 5 << 20, 5<<20 + 1} {
		name := fmt.Sprintf("sizes/%d", size)
		data := noise(byte(i), size)
		Put(t, b, name, data, backend.Exclusive)
		if !bytes.Equal(Get(t, b, name), data) {
			t.Errorf("%d bytes: the content differs", size)
		}
		for info, err := range b.List(context.Background(), name) {
			if err != nil {
				t.Fatal(err)
			}
			if info.Name == name && info.Size != int64(size) {
				t.Errorf("%d bytes are listed as %d", size, info.Size)
			}
		}
	}
}

// testExclusiveLarge: what is sent in parts is exclusive, too.
func testExclusiveLarge(t *testing.T, b backend.Backend) {
	const racers = 3
	var wins atomic.Int32
	var winner atomic.Uint32
	var wg sync.WaitGroup
	for i := range byte(racers) {
		wg.Go(func() {
			switch err := put(b, "x", noise(i, 6<<20), backend.Exclusive); {
			case err == nil:
				wins.Add(1)
				winner.Store(uint32(i))
			case !errors.Is(err, fs.ErrExist):
				t.Errorf("the loser got %v, want fs.ErrExist", err)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 {
		t.Fatalf("%d of %d won", wins.Load(), racers)
	}
	if !bytes.Equal(Get(t, b, "x"), noise(byte(winner.Load()), 6<<20)) {
		t.Error("the object is not the winner's")
	}
}

// testReplaceWhileReading: an open object reads as it was, or not at all.
func testReplaceWhileReading(t *testing.T, b backend.Backend) {
	before, after := noise(1, 1<<20), noise(2, 1<<20)
	Put(t, b, "x", before, backend.Replace)
	o, err := b.Open(context.Background(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	Put(t, b, "x", after, backend.Replace)
	for _, off := range []int{0, 300_000, 1<<20 - 1000, 1000} {
		p := make([]byte, 1000)
		_, err := o.ReadAt(p, int64(off))
		if err != nil && !errors.Is(err, syscall.ESTALE) && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("at %d: %v", off, err)
		}
		if err == nil && !bytes.Equal(p, before[off:off+1000]) {
			t.Errorf("at %d: it reads what came later", off)
		}
	}
	if !bytes.Equal(Get(t, b, "x"), after) {
		t.Error("the replacement is not there")
	}
}

// testCancelledWhileWriting: a writer whose context ends in the middle of a
// large object leaves nothing that is seen.
func testCancelledWhileWriting(t *testing.T, b backend.Backend) {
	for _, early := range []bool{true, false} {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		w, err := b.Create(ctx, "x", backend.Exclusive)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 7 {
			if early && i == 4 {
				cancel()
			}
			if _, err = w.Write(noise(byte(i), 1<<20)); err != nil {
				break
			}
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Write: %v, want context.Canceled", err)
		}
		cancel()
		if err := w.Commit(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Commit: %v, want context.Canceled", err)
		}
		w.Abort()
		wantAbsent(t, b, "x")
		wantNames(t, b, "")
	}
	Put(t, b, "x", noise(9, 6<<20), backend.Exclusive) // nothing is in the way
}

// testAbortLarge: what was sent already is dropped.
func testAbortLarge(t *testing.T, b backend.Backend) {
	Put(t, b, "x", []byte("old"), backend.Exclusive)
	w, err := b.Create(context.Background(), "x", backend.Replace)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(noise(1, largeSize)); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if got := Get(t, b, "x"); string(got) != "old" {
		t.Errorf("the object became %d bytes", len(got))
	}
	wantNames(t, b, "", "x")
}

// testListFrom: names that share beginnings, in the order of their bytes.
func testListFrom(t *testing.T, b backend.Backend) {
	var want []string
	for i := range 48 {
		want = append(want, fmt.Sprintf("segments/%02x/%012x.%d", i%3*9, i, i%2))
	}
	var wg sync.WaitGroup
	for _, name := range want {
		wg.Go(func() {
			if err := put(b, name, []byte(name), backend.Exclusive); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	slices.Sort(want)
	wantNames(t, b, "", want...)
	wantNames(t, b, "segments/09/", slices.DeleteFunc(slices.Clone(want), func(n string) bool { return n[:12] != "segments/09/" })...)
	wantNames(t, b, want[5], want[5])
	wantNames(t, b, "segments/0a/")
}
