package blockcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// far is a backend that counts and can hold back what is asked of it.
type far struct {
	backend.Backend
	hold chan struct{} // if not nil, reads wait for it to be closed

	mu    sync.Mutex
	opens int
	reads []string // name offset length
	fail  error
}

func (f *far) Open(ctx context.Context, name string) (backend.Object, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.opens++
	o, err := f.Backend.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return &farObject{o, f, ctx, name}, nil
}

func (f *far) counts() (opens int, reads []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	opens, reads = f.opens, f.reads
	f.opens, f.reads = 0, nil
	return opens, reads
}

type farObject struct {
	backend.Object
	f    *far
	ctx  context.Context
	name string
}

func (o *farObject) ReadAt(p []byte, off int64) (int, error) {
	o.f.mu.Lock()
	o.f.reads = append(o.f.reads, fmt.Sprintf("%s %d %d", o.name, off, len(p)))
	err, hold := o.f.fail, o.f.hold
	o.f.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-o.ctx.Done():
			return 0, o.ctx.Err()
		}
	}
	if err != nil {
		return 0, err
	}
	return o.Object.ReadAt(p, off)
}

func content(seed uint64, size int) []byte {
	p := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = rng.Read(p)
	return p
}

// newFar is a backend with objects segments/a, b… of the sizes.
func newFar(t testing.TB, sizes ...int) (*far, map[string][]byte) {
	t.Helper()
	f := &far{Backend: backendtest.NewMemory()}
	all := map[string][]byte{}
	for i, size := range sizes {
		name := fmt.Sprintf("segments/%c", 'a'+i)
		all[name] = content(uint64(i), size)
		backendtest.Put(t, f.Backend, name, all[name], backend.Exclusive)
	}
	return f, all
}

func options(dir string, chunks int64) Options {
	return Options{
		Dir: dir, Bytes: chunks * ChunkSize, Memory: 4 * ChunkSize, Prefixes: []string{"segments/", "points/"},
		Logger: slog.New(slog.DiscardHandler), Key: [32]byte{1, 2, 3},
	}
}

func newCache(t testing.TB, b backend.Backend, o Options) *Cache {
	t.Helper()
	c := New(b, o)
	t.Cleanup(func() { c.Close() })
	return c
}

func wantRead(t testing.TB, c backend.Backend, name string, all []byte, off int64, n int) {
	t.Helper()
	if err := check(c, name, all, off, n); err != nil {
		t.Fatal(err)
	}
}

func check(c backend.Backend, name string, all []byte, off int64, n int) error {
	o, err := c.Open(context.Background(), name)
	if err != nil {
		return err
	}
	defer o.Close()
	if o.Size() != int64(len(all)) {
		return fmt.Errorf("%s: size %d, want %d", name, o.Size(), len(all))
	}
	got, want := make([]byte, n), make([]byte, n)
	m, err := o.ReadAt(got, off)
	m2, err2 := bytes.NewReader(all).ReadAt(want, off)
	if m != m2 || !errors.Is(err, err2) || !bytes.Equal(got[:m], want[:m2]) {
		return fmt.Errorf("%s at %d: %d bytes, %w; want %d, %w, or they differ", name, off, m, err, m2, err2)
	}
	return nil
}

func TestRandomReadsAreExact(t *testing.T) {
	f, all := newFar(t, 20*ChunkSize+777)
	c := newCache(t, f, options("", 0))
	wantRead(t, c, "segments/a", all["segments/a"], 5*ChunkSize+100, 4096)
	wantRead(t, c, "segments/a", all["segments/a"], 9*ChunkSize-1, 2)
	wantRead(t, c, "segments/a", all["segments/a"], 5*ChunkSize, ChunkSize)
	opens, reads := f.counts()
	want := []string{
		fmt.Sprintf("segments/a %d %d", 5*ChunkSize, ChunkSize),
		fmt.Sprintf("segments/a %d %d", 8*ChunkSize, 2*ChunkSize),
	}
	if opens != 1 || fmt.Sprint(reads) != fmt.Sprint(want) {
		t.Errorf("%d opens, reads %v; want 1 and %v", opens, reads, want)
	}
}

func TestConcurrentMissesAreOneRequest(t *testing.T) {
	f, all := newFar(t, 3*ChunkSize)
	f.hold = make(chan struct{})
	c := newCache(t, f, options("", 0))
	var group sync.WaitGroup
	errs := make(chan error, 20)
	for i := range 20 {
		group.Go(func() { errs <- check(c, "segments/a", all["segments/a"], int64(i)*100, 100) })
	}
	// The first is in the air; whoever comes later waits for it or finds it.
	for {
		f.mu.Lock()
		n := len(f.reads)
		f.mu.Unlock()
		if n > 0 {
			break
		}
	}
	close(f.hold)
	group.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if opens, reads := f.counts(); opens != 1 || len(reads) != 1 {
		t.Errorf("%d opens and %d reads, want 1 and 1", opens, len(reads))
	}
}

func TestAdjacentChunksAreOneRequest(t *testing.T) {
	f, all := newFar(t, 200*ChunkSize+5)
	o := options("", 0)
	o.Memory = 32 << 20
	c := newCache(t, f, o)
	c.Fetch(t.Context(), Range{"segments/a", 0, int64(len(all["segments/a"]))})
	wantRead(t, c, "segments/a", all["segments/a"], 0, len(all["segments/a"]))
	if _, reads := f.counts(); len(reads) != 4 {
		t.Errorf("%d requests for 12.5 MiB, want 4 of at most %d: %v", len(reads), maxRequest, reads)
	}
	if s := c.Stats(); s.Ahead != int64(len(all["segments/a"])) || s.Wasted != 0 {
		t.Errorf("%+v", s)
	}
}

func TestWasteIsCounted(t *testing.T) {
	f, all := newFar(t, 20*ChunkSize)
	c := newCache(t, f, options("", 0)) // four chunks in memory
	c.Fetch(t.Context(), Range{"segments/a", 0, 2 * ChunkSize})
	wantRead(t, c, "segments/a", all["segments/a"], 0, ChunkSize)
	wantRead(t, c, "segments/a", all["segments/a"], 10*ChunkSize, 4*ChunkSize)
	if s := c.Stats(); s.Wasted != ChunkSize {
		t.Errorf("%d bytes wasted, want %d", s.Wasted, ChunkSize)
	}
}

func TestCancelledReaderLeavesTheRequestToOthers(t *testing.T) {
	f, all := newFar(t, ChunkSize)
	f.hold = make(chan struct{})
	c := newCache(t, f, options("", 0))
	ctx, cancel := context.WithCancel(t.Context())
	o, err := c.Open(ctx, "segments/a")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := o.ReadAt(make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	close(f.hold)
	wantRead(t, c, "segments/a", all["segments/a"], 0, ChunkSize)
	if _, reads := f.counts(); len(reads) != 1 {
		t.Errorf("reads %v, want one", reads)
	}
}

func TestErrorsAreNotKept(t *testing.T) {
	f, all := newFar(t, 2*ChunkSize)
	c := newCache(t, f, options(t.TempDir(), 10))
	f.fail = errors.New("out of order")
	if err := check(c, "segments/a", all["segments/a"], 0, 10); err == nil {
		t.Fatal("no error")
	}
	f.fail = nil
	wantRead(t, c, "segments/a", all["segments/a"], 0, 2*ChunkSize)
	if _, err := c.Open(t.Context(), "segments/missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

// settle waits until all that arrived is on disk.
func settle(c *Cache) { c.running.Wait() }

func TestRestartServesWithoutRequests(t *testing.T) {
	dir := t.TempDir()
	f, all := newFar(t, 10*ChunkSize+123, 50)
	c := New(f, options(dir, 100))
	for name, data := range all {
		wantRead(t, c, name, data, 0, len(data))
	}
	settle(c)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	f.counts()
	c = newCache(t, f, options(dir, 100))
	for name, data := range all {
		wantRead(t, c, name, data, 0, len(data))
	}
	if opens, reads := f.counts(); opens != 0 || len(reads) != 0 {
		t.Errorf("%d opens and reads %v after a restart, want none", opens, reads)
	}
	other := options(dir, 100)
	other.Key[0] ^= 1
	c.Close()
	c = newCache(t, f, other)
	wantRead(t, c, "segments/b", all["segments/b"], 0, 50)
	if opens, _ := f.counts(); opens != 1 {
		t.Errorf("another repository's cache was believed")
	}
}

func TestSecondProcessReadsOnly(t *testing.T) {
	dir := t.TempDir()
	f, all := newFar(t, 4*ChunkSize, 4*ChunkSize)
	first := newCache(t, f, options(dir, 100))
	wantRead(t, first, "segments/a", all["segments/a"], 0, 4*ChunkSize)
	settle(first)
	f.counts()
	second := newCache(t, f, options(dir, 100))
	if second.OnDisk() || !first.OnDisk() {
		t.Fatalf("first writes: %v, second writes: %v", first.OnDisk(), second.OnDisk())
	}
	wantRead(t, second, "segments/a", all["segments/a"], 0, 4*ChunkSize)
	if opens, reads := f.counts(); opens != 0 || len(reads) != 0 {
		t.Errorf("the second asked for what the first has: %d opens, %v", opens, reads)
	}
	wantRead(t, second, "segments/b", all["segments/b"], 0, 4*ChunkSize)
	settle(second)
	if second.Stats().Stored != 0 {
		t.Error("the second wrote")
	}
}

func TestRemovedObjectIsForgotten(t *testing.T) {
	f, all := newFar(t, 8*ChunkSize)
	c := newCache(t, f, options(t.TempDir(), 100))
	wantRead(t, c, "segments/a", all["segments/a"], 7*ChunkSize, ChunkSize)
	settle(c)
	o, err := c.Open(t.Context(), "segments/a")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Remove(t.Context(), "segments/a"); err != nil { // by somebody else
		t.Fatal(err)
	}
	c.sources.forget("segments/a")
	if _, err := o.ReadAt(make([]byte, 10), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("read of a removed object: %v", err)
	}
	settle(c)
	if _, err := c.Open(t.Context(), "segments/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open of a removed object: %v", err)
	}
}

func TestFilesRemovedWhileInUse(t *testing.T) {
	dir := t.TempDir()
	f, all := newFar(t, 2*removedEvery*ChunkSize)
	c := newCache(t, f, options(dir, 4*removedEvery))
	wantRead(t, c, "segments/a", all["segments/a"], 0, ChunkSize)
	settle(c)
	for _, name := range []string{"blocks", "index", "lock"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	wantRead(t, c, "segments/a", all["segments/a"], 0, len(all["segments/a"]))
	settle(c)
	info, err := c.disk.data.Stat()
	if err != nil || info.Size() != 0 {
		t.Errorf("the removed file still holds %d bytes (%v)", info.Size(), err)
	}
	wantRead(t, c, "segments/a", all["segments/a"], 0, len(all["segments/a"]))
}

// TestConcurrentUse is for the race detector: many readers over a cache that is
// too small for them.
func TestConcurrentUse(t *testing.T) {
	f, all := newFar(t, 30*ChunkSize, 30*ChunkSize+9, 100)
	c := newCache(t, f, options(t.TempDir(), 16))
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			for range 300 {
				name := fmt.Sprintf("segments/%c", 'a'+rng.IntN(3))
				if err := check(c, name, all[name], rng.Int64N(int64(len(all[name]))), 1+rng.IntN(2*ChunkSize)); err != nil {
					t.Error(err)
				}
				if rng.IntN(50) == 0 {
					c.Forget(name)
				}
			}
		})
	}
	group.Wait()
	if s := c.Stats(); s.Corrupt != 0 || s.Disk == 0 {
		t.Errorf("%+v", s)
	}
}

// TestWhatIsAskedForStays: a scan through a cache on disk does not take with it
// what is asked for again and again.
func TestWhatIsAskedForStays(t *testing.T) {
	f, all := newFar(t, 8*ChunkSize, 200*ChunkSize)
	o := options(t.TempDir(), 32)
	o.Memory = 1
	c := newCache(t, f, o)
	for range 4 {
		wantRead(t, c, "segments/a", all["segments/a"], 0, 8*ChunkSize)
		settle(c)
	}
	for n := range int64(40) {
		wantRead(t, c, "segments/b", all["segments/b"], n*ChunkSize, ChunkSize)
		settle(c)
	}
	f.counts()
	wantRead(t, c, "segments/a", all["segments/a"], 0, 8*ChunkSize)
	if opens, reads := f.counts(); opens+len(reads) != 0 {
		t.Errorf("%d opens, reads %v", opens, reads)
	}
}
