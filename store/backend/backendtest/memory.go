package backendtest

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"lifeboat/store/backend"
)

// Memory is a backend in memory whose objects a test can damage.
type Memory struct {
	mu      sync.Mutex
	objects map[string]memoryObject
}

type memoryObject struct {
	data     []byte // never changed in place
	modified time.Time
}

var _ backend.Backend = (*Memory)(nil)

// NewMemory is an empty backend.
func NewMemory() *Memory { return &Memory{objects: map[string]memoryObject{}} }

// Clone is a copy that shares nothing.
func (m *Memory) Clone() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Memory{objects: maps.Clone(m.objects)}
}

// Change replaces an object by what change makes of a copy of its bytes. It
// reports false where there is no such object.
func (m *Memory) Change(name string, change func([]byte) []byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[name]
	if ok {
		o.data = change(bytes.Clone(o.data))
		m.objects[name] = o
	}
	return ok
}

// Flip inverts one bit of an object. It reports false where there is none.
func (m *Memory) Flip(name string, bit int) bool {
	return m.Change(name, func(p []byte) []byte {
		p[bit/8] ^= 1 << (bit % 8)
		return p
	})
}

// Create implements [backend.Backend].
func (m *Memory) Create(ctx context.Context, name string, mode backend.Mode) (backend.Writer, error) {
	if err := check(ctx, backend.CheckName, name); err != nil {
		return nil, err
	}
	return &memoryWriter{m: m, name: name, mode: mode}, nil
}

// Open implements [backend.Backend].
func (m *Memory) Open(ctx context.Context, name string) (backend.Object, error) {
	if err := check(ctx, backend.CheckName, name); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[name]
	if !ok {
		return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
	}
	return &memoryReader{bytes.NewReader(o.data), ctx}, nil
}

// List implements [backend.Backend].
func (m *Memory) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		if err := check(ctx, backend.CheckPrefix, prefix); err != nil {
			yield(backend.Info{}, err)
			return
		}
		for _, info := range m.infos(prefix) {
			if !yield(info, nil) {
				return
			}
		}
	}
}

func (m *Memory) infos(prefix string) []backend.Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	var infos []backend.Info
	for _, name := range slices.Sorted(maps.Keys(m.objects)) {
		if o := m.objects[name]; strings.HasPrefix(name, prefix) {
			infos = append(infos, backend.Info{Name: name, Size: int64(len(o.data)), Modified: o.modified})
		}
	}
	return infos
}

// Remove implements [backend.Backend].
func (m *Memory) Remove(ctx context.Context, name string) error {
	if err := check(ctx, backend.CheckName, name); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
	return nil
}

func check(ctx context.Context, valid func(string) error, name string) error {
	if err := valid(name); err != nil {
		return err
	}
	return ctx.Err()
}

type memoryReader struct {
	*bytes.Reader
	ctx context.Context
}

func (r *memoryReader) Close() error { return nil }

func (r *memoryReader) ReadAt(p []byte, off int64) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.ReadAt(p, off)
}

type memoryWriter struct {
	m     *Memory // nil when spent
	name  string
	mode  backend.Mode
	bytes bytes.Buffer
}

func (w *memoryWriter) Write(p []byte) (int, error) {
	if w.m == nil {
		return 0, fmt.Errorf("write %s: %w", w.name, fs.ErrClosed)
	}
	return w.bytes.Write(p)
}

func (w *memoryWriter) Abort() { w.m = nil }

func (w *memoryWriter) Commit(ctx context.Context) error {
	m := w.m
	if m == nil {
		return fmt.Errorf("commit %s: %w", w.name, fs.ErrClosed)
	}
	w.m = nil
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[w.name]; ok && w.mode == backend.Exclusive {
		return fmt.Errorf("commit %s: %w", w.name, fs.ErrExist)
	}
	m.objects[w.name] = memoryObject{w.bytes.Bytes(), time.Now()}
	return nil
}
