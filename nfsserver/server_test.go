package nfsserver

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/nfsserver/datastore"
	"lifeboat/nfsserver/nfstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testFSID = 0x1234567890abcdef

// world is a running server over a tree with one session, "s1", that holds one
// folder, "vm", with one virtual disk, "vm-flat.vmdk", bound to dev.
type world struct {
	t    *testing.T
	root string
	dev  disk.Device
	opt  Options
	tree *datastore.Tree
	srv  *Server
	addr string
	log  *logBuffer
	stop func() error
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const diskPath = "s1/vm/vm-flat.vmdk"

func newWorld(t *testing.T, dev disk.Device, change ...func(*Options)) *world {
	t.Helper()
	w := &world{t: t, root: t.TempDir(), dev: dev, log: &logBuffer{}}
	must(t, os.MkdirAll(filepath.Join(w.root, "s1/vm"), 0o755))
	must(t, os.WriteFile(filepath.Join(w.root, diskPath), nil, 0o644))
	for _, f := range change {
		f(&w.opt)
	}
	w.start()
	return w
}

// start opens the tree and runs a server; the test's end stops both.
func (w *world) start() {
	w.t.Helper()
	tree, err := datastore.Open(datastore.Options{Root: w.root, FSID: testFSID, Key: [32]byte{7}})
	must(w.t, err)
	if w.dev != nil {
		must(w.t, tree.Bind(diskPath, w.dev))
	}
	must(w.t, tree.Attach("s1"))
	opt := w.opt
	opt.Tree, opt.NFSAddr = tree, "127.0.0.1:0"
	opt.Logger = slog.New(slog.NewTextHandler(io.MultiWriter(w.log), &slog.HandlerOptions{Level: slog.LevelDebug}))
	srv, err := New(opt)
	must(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	must(w.t, srv.Listen(ctx))
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	w.tree, w.srv, w.addr = tree, srv, srv.Addrs().NFS.String()
	w.stop = sync.OnceValue(func() error {
		cancel()
		err := <-ended
		tree.Close()
		return err
	})
	w.t.Cleanup(func() {
		if err := w.stop(); err != nil {
			w.t.Errorf("Run: %v", err)
		}
		if w.t.Failed() {
			w.t.Logf("server log:\n%s", w.log)
		}
	})
}

func (w *world) dial() *nfstest.Client {
	w.t.Helper()
	c, err := nfstest.Dial(w.addr)
	must(w.t, err)
	w.t.Cleanup(func() { c.Close() })
	return c
}

// mount returns a client, and the handles of the session's directory and of
// its virtual disk.
func (w *world) mount() (c *nfstest.Client, dir, flat nfstest.Handle) {
	w.t.Helper()
	c = w.dial()
	dir, err := c.Mount(ExportPath + "/s1")
	must(w.t, err)
	flat, err = c.Walk(dir, "vm/vm-flat.vmdk")
	must(w.t, err)
	return c, dir, flat
}

// failer is what testing.TB and rapid.T have in common.
type failer interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func must(t failer, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want[T comparable](t failer, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

// within runs f and fails the test if it takes longer than a test may hang.
func within(t failer, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: no end after 20 s", what)
	}
}

func TestMountReadWrite(t *testing.T) {
	mem := disktest.Random(1, 4<<20, 0.7)
	w := newWorld(t, mem)
	c, _, flat := w.mount()
	a, err := c.Getattr(flat)
	must(t, err)
	want(t, "size", a.Size, 4<<20)
	r, err := c.Read(flat, 4096, 1<<20)
	must(t, err)
	if !bytes.Equal(r.Data, mem.Bytes()[4096:4096+1<<20]) || r.EOF {
		t.Fatal("wrong data")
	}
	data := bytes.Repeat([]byte("lifeboat"), 1024)
	wr, err := c.Write(flat, 12288, data, nfstest.FileSync)
	must(t, err)
	want(t, "count", wr.Count, uint32(len(data)))
	want(t, "committed", wr.Committed, nfstest.FileSync)
	want(t, "verifier", wr.Verifier, w.srv.verifier)
	got, err := c.Read(flat, 12288, uint32(len(data)))
	must(t, err)
	if !bytes.Equal(got.Data, data) || !bytes.Equal(mem.Durable().Bytes()[12288:12288+len(data)], data) {
		t.Fatal("the write is not there, or not durable")
	}
}
