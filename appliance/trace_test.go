package appliance

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/nfsserver/nfstest"
	"lifeboat/store"
	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
)

// heard is a log that tests wait on.
type heard struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{} // closed when something comes
}

func newHeard() *heard { return &heard{more: make(chan struct{})} }

func (h *heard) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.more)
	h.more = make(chan struct{})
	return h.text.Write(p)
}

func (h *heard) logger() *slog.Logger { return slog.New(slog.NewTextHandler(h, nil)) }

// await waits until the log holds a line with all the words.
func (h *heard) await(t *testing.T, words string) string {
	t.Helper()
	for {
		h.mu.Lock()
		more, text := h.more, h.text.String()
		h.mu.Unlock()
		for line := range strings.Lines(text) {
			if strings.Contains(line, words) {
				return line
			}
		}
		select {
		case <-more:
		case <-t.Context().Done():
			t.Fatalf("nobody said %q:\n%s", words, text)
		}
	}
}

// unwritable refuses to create anything, like a repository mounted read-only.
type unwritable struct{ backend.Backend }

func (unwritable) Create(context.Context, string, backend.Mode) (backend.Writer, error) {
	return nil, &fs.PathError{Op: "create", Path: "object", Err: fs.ErrPermission}
}

// traceWorld is a repository with two points of a VM, the second with changes.
type traceWorld struct {
	objects *backendtest.Memory
	disks   [2]*disktest.Memory
	points  [2]*store.Point
	state   *State
}

var tracePassword = []byte("secret")

func newTraceWorld(t *testing.T) *traceWorld {
	t.Helper()
	w := &traceWorld{objects: backendtest.NewMemory(), state: openTestState(t)}
	if err := store.Init(t.Context(), w.objects, tracePassword, store.InitOptions{KDFTime: 1, KDFMemory: 8, KDFThreads: 1}); err != nil {
		t.Fatal(err)
	}
	repo := w.open(t, w.objects)
	defer repo.Close()
	first := disktest.Random(1, 40<<20, 0.9)
	second := first.Clone()
	second.WriteAt(bytes.Repeat([]byte("changed"), 300_000), 10<<20)
	w.disks = [2]*disktest.Memory{first, second}
	for i, d := range w.disks {
		ing, err := repo.NewIngest(t.Context(), store.IngestOptions{})
		if err != nil {
			t.Fatal(err)
		}
		p, err := ing.Begin(store.PointSpec{VM: "vm", Parent: w.points[0]})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.AddDisk(t.Context(), store.DiskSpec{Key: 2000}, d, nil, nil); err != nil {
			t.Fatal(err)
		}
		if w.points[i], err = p.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := ing.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *traceWorld) open(t *testing.T, b backend.Backend) *store.Repository {
	t.Helper()
	repo, err := store.Open(t.Context(), b, tracePassword, store.Options{CacheBytes: 64 << 20, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// publish exports a point over b while use is at work with a client.
func (w *traceWorld) publish(t *testing.T, b backend.Backend, point int, change func(*PublishRequest), use func(log *heard, read func(off int64, n int))) string {
	t.Helper()
	repo := w.open(t, b)
	defer repo.Close()
	log := newHeard()
	req := PublishRequest{Points: []string{w.points[point].ID}, Portmap: "off", Logger: log.logger()}
	if change != nil {
		change(&req)
	}
	pub, err := Publish(t.Context(), w.state, repo, req)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- pub.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		if _, err := pub.End(); err != nil {
			t.Error(err)
		}
	}()
	use(log, w.client(t, pub, w.disks[point]))
	cancel()
	err = <-ran
	ran <- err
	log.mu.Lock()
	defer log.mu.Unlock()
	return log.text.String()
}

// client is a host that reads the published disk and compares.
func (w *traceWorld) client(t *testing.T, pub *Publication, want disk.Image) func(off int64, n int) {
	t.Helper()
	m, err := nfstest.Dial(pub.Ready.MountAddr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	dir, err := m.Mount(pub.Ready.Folders[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := nfstest.Dial(pub.Ready.NFSAddr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	h, _, err := c.Lookup(dir, pub.Ready.Folders[0].Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	return func(off int64, n int) {
		t.Helper()
		r, err := c.Read(h, uint64(off), uint32(n))
		if err != nil {
			t.Fatal(err)
		}
		exp := make([]byte, n)
		if _, err := want.ReadAt(exp, off); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if !bytes.Equal(r.Data, exp) {
			t.Fatalf("%d bytes at %d are wrong", n, off)
		}
	}
}

// boot reads here and there, the same places each time.
func boot(read func(off int64, n int)) {
	rng := rand.New(rand.NewPCG(4, 4))
	for range 60 {
		read(rng.Int64N(39<<20)&^4095, 4096<<rng.IntN(4))
	}
}

// TestBootTrace: what the first publish read, the publish of a later point has in
// memory before anybody asks.
func TestBootTrace(t *testing.T) {
	t.Parallel()
	w := newTraceWorld(t)
	slow := backendtest.NewSlow(w.objects, 0)
	w.publish(t, slow, 0, nil, func(_ *heard, read func(int64, int)) { boot(read) })
	asked := slow.Stats().Reads
	w.publish(t, slow, 1, nil, func(log *heard, read func(int64, int)) {
		line := log.await(t, "read ahead of the boot")
		if !strings.Contains(line, "failed=0") {
			t.Error(line)
		}
		before := slow.Stats()
		boot(read)
		if after := slow.Stats(); after.Reads != 0 {
			t.Errorf("the boot asked %d times; without a trace %d, and the replay %d times", after.Reads, asked, before.Reads)
		}
	})
	text := w.publish(t, slow, 1, func(req *PublishRequest) { req.NoPrefetch = true }, func(_ *heard, read func(int64, int)) {
		slow.Stats()
		boot(read)
		if slow.Stats().Reads == 0 {
			t.Error("without prefetch nothing was read")
		}
	})
	if strings.Contains(text, "read ahead of the boot") {
		t.Error("it was read ahead though nobody wanted it")
	}
}

// TestBootTraceIsOnlyAHelp: a damaged trace, or a repository that takes none, is
// told of and costs nothing else.
func TestBootTraceIsOnlyAHelp(t *testing.T) {
	t.Parallel()
	w := newTraceWorld(t)
	read := func(_ *heard, read func(int64, int)) { boot(read) }
	w.publish(t, w.objects, 0, nil, read)
	repo := w.open(t, w.objects)
	name := repo.TraceName(w.points[0])
	repo.Close()
	if !w.objects.Flip(name, 8*60) {
		t.Fatalf("there is no %s", name)
	}
	if text := w.publish(t, w.objects, 1, nil, read); !strings.Contains(text, "level=WARN") || !strings.Contains(text, name) {
		t.Errorf("nothing said of the damaged trace:\n%s", text)
	}
	if text := w.publish(t, w.objects, 1, nil, read); strings.Contains(text, "level=WARN") {
		t.Errorf("the damaged trace was not replaced:\n%s", text)
	}
	// From now on it cannot be written, and it is lost.
	if err := w.objects.Remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	sealed := unwritable{w.objects}
	w.publish(t, sealed, 0, nil, read)
	w.publish(t, sealed, 1, nil, func(log *heard, read func(int64, int)) {
		log.await(t, "read ahead of the boot")
		boot(read)
	})
	// It takes them again: the trace moves there.
	w.publish(t, w.objects, 1, nil, read)
	if text := w.publish(t, unwritable{w.objects}, 1, func(req *PublishRequest) { req.TraceWindow = -1 }, func(log *heard, _ func(int64, int)) {
		log.await(t, "read ahead of the boot")
	}); strings.Count(text, "read ahead of the boot") != 1 {
		t.Errorf("traces in both places:\n%s", text)
	}
}
