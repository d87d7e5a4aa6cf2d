package datastore

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"lifeboat/disk"
)

// fixture is a tree over a fresh root with the attached session "s", which
// holds the directory "vm".
type fixture struct {
	*Tree
	t    testing.TB
	root string
	opts Options
	vm   *Node
}

var testKey = [32]byte{1, 2, 3}

func newFixture(t testing.TB, edit ...func(*Options)) *fixture {
	t.Helper()
	root := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(root, "s", "vm"), 0o755))
	f := &fixture{t: t, root: root, opts: Options{Root: root, FSID: 77, Key: testKey}}
	for _, e := range edit {
		e(&f.opts)
	}
	f.open()
	f.attach()
	t.Cleanup(func() { f.Close() })
	return f
}

func (f *fixture) open() {
	f.t.Helper()
	tree, err := Open(f.opts)
	must(f.t, err)
	f.Tree = tree
}

func (f *fixture) attach() {
	f.t.Helper()
	must(f.t, f.Attach("s"))
	f.vm = f.walk("s/vm")
}

// restart replaces the tree by a new one over the same root. Unless clean, the
// old one gets no chance to put anything in order.
func (f *fixture) restart(clean bool) {
	f.t.Helper()
	if clean {
		f.Close()
	} else {
		f.files.close()
	}
	f.open()
	f.attach()
}

func (f *fixture) walk(path string) *Node {
	f.t.Helper()
	n, err := f.Walk(path)
	must(f.t, err)
	return n
}

func (f *fixture) host(path string) string { return filepath.Join(f.root, "s", "vm", path) }

func (f *fixture) create(name string) *Node {
	f.t.Helper()
	n, _, err := f.vm.Create(Cred{}, name, CreateHow{Mode: Guarded})
	must(f.t, err)
	return n
}

func (f *fixture) mkdir(name string) *Node {
	f.t.Helper()
	n, _, err := f.vm.Mkdir(Cred{}, name, SetAttr{})
	must(f.t, err)
	return n
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func attrOf(t testing.TB, n *Node) Attr {
	t.Helper()
	a, err := n.Attr()
	must(t, err)
	return a
}

func ptr[T any](v T) *T { return &v }

// memDisk is a Device in memory.
type memDisk struct {
	mu    sync.RWMutex
	data  []byte
	size  int64
	used  int64
	syncs atomic.Int64
}

func newMemDisk(size int64) *memDisk {
	return &memDisk{data: make([]byte, size), size: size, used: size / 2}
}

func (m *memDisk) Size() int64  { return m.size }
func (m *memDisk) Used() int64  { return m.used }
func (m *memDisk) Close() error { return nil }
func (m *memDisk) Sync() error  { m.syncs.Add(1); return nil }

func (m *memDisk) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if off >= m.size {
		return 0, io.EOF
	}
	n := copy(p, m.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memDisk) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off < 0 || off+int64(len(p)) > m.size {
		return 0, disk.ErrOutOfRange
	}
	return copy(m.data[off:], p), nil
}
