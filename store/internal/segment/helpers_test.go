package segment

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"lifeboat/store/backend"
)

// testKeys derives keys as docs/repository-format.md says, from a master key
// of the bytes 0…31 plus shift.
type testKeys struct{ shift byte }

func (k testKeys) derive(purpose string, salt []byte) [32]byte {
	master := make([]byte, 32)
	for i := range master {
		master[i] = byte(i) + k.shift
	}
	key, err := hkdf.Key(sha256.New, master, salt, purpose, 32)
	if err != nil {
		panic(err)
	}
	return [32]byte(key)
}

func (k testKeys) SubKey(purpose string, salt []byte) [32]byte { return k.derive(purpose, salt) }
func (k testKeys) IdentityKey() [32]byte                       { return k.derive("identity", nil) }

// memory is a backend whose objects can be damaged, and whose open objects
// fail once they are removed, as on S3.
type memory struct {
	mu      sync.Mutex
	objects map[string]*[]byte

	writeErr error // what Write fails with
	opens    atomic.Int64
	openNow  atomic.Int64
	openMax  atomic.Int64
	reads    atomic.Int64
}

func newMemory() *memory { return &memory{objects: map[string]*[]byte{}} }

func (m *memory) get(name string) ([]byte, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.objects[name]; p != nil {
		return *p, true
	}
	return nil, false
}

// put replaces an object, also under those who have it open by name.
func (m *memory) put(name string, b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[name] = &b
}

type memoryWriter struct {
	m    *memory
	name string
	mode backend.Mode
	buf  []byte
}

func (m *memory) Create(_ context.Context, name string, mode backend.Mode) (backend.Writer, error) {
	return &memoryWriter{m: m, name: name, mode: mode}, nil
}

func (w *memoryWriter) Write(p []byte) (int, error) {
	if w.m.writeErr != nil {
		return 0, w.m.writeErr
	}
	w.buf = append(w.buf, p...)
	return len(p), nil
}

func (w *memoryWriter) Commit(context.Context) error {
	if _, ok := w.m.get(w.name); ok && w.mode == backend.Exclusive {
		return fs.ErrExist
	}
	w.m.put(w.name, w.buf)
	return nil
}

func (w *memoryWriter) Abort() {}

type memoryObject struct {
	m    *memory
	name string
	data []byte
}

func (m *memory) Open(_ context.Context, name string) (backend.Object, error) {
	b, ok := m.get(name)
	if !ok {
		return nil, fs.ErrNotExist
	}
	m.opens.Add(1)
	now := m.openNow.Add(1)
	for old := m.openMax.Load(); now > old && !m.openMax.CompareAndSwap(old, now); old = m.openMax.Load() {
	}
	return &memoryObject{m: m, name: name, data: b}, nil
}

func (o *memoryObject) ReadAt(p []byte, off int64) (int, error) {
	o.m.reads.Add(1)
	if _, ok := o.m.get(o.name); !ok {
		return 0, fs.ErrNotExist
	}
	if off >= int64(len(o.data)) {
		return 0, io.EOF
	}
	n := copy(p, o.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (o *memoryObject) Close() error { o.m.openNow.Add(-1); return nil }
func (o *memoryObject) Size() int64  { return int64(len(o.data)) }

func (m *memory) List(_ context.Context, prefix string) iter.Seq2[backend.Info, error] {
	m.mu.Lock()
	var names []string
	for n := range m.objects {
		if strings.HasPrefix(n, prefix) {
			names = append(names, n)
		}
	}
	m.mu.Unlock()
	slices.Sort(names)
	return func(yield func(backend.Info, error) bool) {
		for _, n := range names {
			if !yield(backend.Info{Name: n}, nil) {
				return
			}
		}
	}
}

func (m *memory) Remove(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
	return nil
}

// blob is what a test stores and expects back.
type blob struct {
	kind  Kind
	plain []byte
}

// mixed makes a blob of n bytes whose frames are zeros, noise or text.
func mixed(r *rand.Rand, kind Kind, n int) blob {
	b := blob{kind: kind, plain: make([]byte, n)}
	for rest := b.plain; len(rest) > 0; {
		f := rest[:min(FrameSize, len(rest))]
		rest = rest[len(f):]
		switch r.IntN(4) {
		case 0:
		case 1:
			for i := range f {
				f[i] = byte(r.Uint32())
			}
		default:
			copy(f, bytes.Repeat(fmt.Appendf(nil, "%x lorem ipsum ", r.Uint32()), len(f)/20+1))
		}
	}
	return b
}

// write stores blobs as one segment and returns their addresses.
func write(t testing.TB, b backend.Backend, number uint64, o WriterOptions, blobs []blob) ([]Addr, Info) {
	t.Helper()
	w, err := NewWriter(t.Context(), b, testKeys{}, number, o)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	packer, hasher := NewPacker(), NewHasher(testKeys{})
	addrs := make([]Addr, len(blobs))
	for i, bl := range blobs {
		p := packer.Pack(bl.kind, hasher.Identity(bl.kind, bl.plain), bl.plain)
		before := w.Stored()
		if addrs[i], err = w.Append(p); err != nil {
			t.Fatal(err)
		}
		if got := w.Stored() - before; got != int64(p.StoredLen()) {
			t.Fatalf("blob took %d bytes, StoredLen said %d", got, p.StoredLen())
		}
		p.Release()
	}
	info, err := w.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return addrs, info
}

// verify collects what Verify reports.
func verify(t testing.TB, b backend.Backend, name string) []*DamageError {
	t.Helper()
	var all []*DamageError
	if err := Verify(t.Context(), b, testKeys{}, name, func(d *DamageError) { all = append(all, d) }); err != nil {
		t.Fatal(err)
	}
	return all
}

// readsRight reads a blob and fails if it comes back wrong. It reports whether
// it came back at all; any error must be damage.
func readsRight(t testing.TB, r *Reader, addr Addr, want blob) bool {
	t.Helper()
	got := make([]byte, MaxFrames*FrameSize)
	n, err := r.ReadBlock(t.Context(), addr, got)
	if err != nil {
		var d *DamageError
		if !errors.As(err, &d) || !errors.Is(err, ErrDamaged) || d.Addr != addr || d.Object == "" || d.Error() == "" {
			t.Fatalf("%v: %#v: not a DamageError that names what is damaged", addr, err)
		}
		return false
	}
	if !bytes.Equal(got[:n], want.plain) {
		t.Fatalf("%v: wrong content served", addr)
	}
	return true
}

func newTestReader(t testing.TB, b backend.Backend, o ReaderOptions) *Reader {
	r := NewReader(b, testKeys{}, quiet(o))
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func quiet(o ReaderOptions) ReaderOptions {
	o.Logger = slog.New(slog.DiscardHandler)
	return o
}
