package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lifeboat/disk/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a backend in memory with a hole from 1 MiB to 2 MiB.
type memory struct {
	mu      sync.Mutex
	b       []byte
	fail    func(off int64) error
	flushes int
}

const (
	holeFrom = 1 << 20
	holeTo   = 2 << 20
)

func newMemory(size int) *memory {
	m := &memory{b: make([]byte, size)}
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(m.b[:holeFrom])
	rng.Read(m.b[holeTo:])
	return m
}

func (m *memory) Read(_ int, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		if err := m.fail(off); err != nil {
			return err
		}
	}
	copy(p, m.b[off:])
	return nil
}

func (m *memory) Write(_ int, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.b[off:], p)
	return nil
}

func (m *memory) Flush() error { m.flushes++; return nil }

func (m *memory) Extents(off, length int64) ([]nbd.Extent, error) {
	switch {
	case off < holeFrom:
		return []nbd.Extent{{Length: min(length, holeFrom-off)}}, nil
	case off < holeTo:
		return []nbd.Extent{{Length: min(length, holeTo-off), Hole: true}}, nil
	}
	return []nbd.Extent{{Length: length}}, nil
}

func options(m *memory) nbd.ServerOptions {
	buffers := make([][]byte, 3)
	for i := range buffers {
		buffers[i] = make([]byte, nbd.MaxRequest)
	}
	return nbd.ServerOptions{Size: int64(len(m.b)), Mapped: true, Buffers: buffers}
}

// connect makes a client and the server that it talks to.
func connect(t *testing.T, m *memory, o nbd.ServerOptions, timeout time.Duration) *nbd.Client {
	t.Helper()
	near, far := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- nbd.Serve(far, m, o) }()
	c, err := nbd.Connect(context.Background(), near, nbd.ClientOptions{Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		if err := <-served; err != nil {
			t.Errorf("server: %v", err)
		}
	})
	return c
}

func TestManyReadsAtOnce(t *testing.T) {
	m := newMemory(4 << 20)
	c := connect(t, m, options(m), time.Minute)
	if c.Size() != 4<<20 || c.Block() != 512 || c.Most() != nbd.MaxRequest || c.ReadOnly() {
		t.Errorf("size %d, block %d, most %d, read-only %v", c.Size(), c.Block(), c.Most(), c.ReadOnly())
	}
	var wg sync.WaitGroup
	for seed := range uint64(16) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 1))
			for range 20 {
				n := 512 * (1 + rng.Int64N(2048))
				off := 512 * rng.Int64N((c.Size()-n)/512+1)
				p := make([]byte, n)
				if err := c.Read(t.Context(), p, off); err != nil {
					t.Errorf("read %d at %d: %v", n, off, err)
				} else if !bytes.Equal(p, m.b[off:off+n]) {
					t.Errorf("read %d at %d: content differs", n, off)
				}
			}
		})
	}
	wg.Wait()
}

func TestWriteFlushExtents(t *testing.T) {
	m := newMemory(4 << 20)
	c := connect(t, m, options(m), time.Minute)
	want := bytes.Repeat([]byte("written!"), 128)
	if err := c.Write(t.Context(), want, 3<<20); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(t.Context()); err != nil || m.flushes != 1 {
		t.Fatalf("flush: %v, %d flushes", err, m.flushes)
	}
	if !bytes.Equal(m.b[3<<20:3<<20+1024], want) {
		t.Error("what was written did not arrive")
	}
	runs, err := c.Extents(t.Context(), holeFrom, 3<<20)
	if err != nil || len(runs) != 1 || !runs[0].Hole || runs[0].Length != holeTo-holeFrom {
		t.Errorf("extents: %v, %v", runs, err)
	}
}

func TestErrorsOfTheServer(t *testing.T) {
	m := newMemory(4 << 20)
	m.fail = func(off int64) error {
		if off == 512 {
			return &nbd.Error{Code: nbd.ESHUTDOWN, Message: "the host went\x1b away"}
		}
		return nil
	}
	o := options(m)
	o.ReadOnly = true
	c := connect(t, m, o, time.Minute)
	p := make([]byte, 512)
	var e *nbd.Error
	if err := c.Read(t.Context(), p, 512); !errors.As(err, &e) || e.Code != nbd.ESHUTDOWN || e.Message != "the host went  away" {
		t.Errorf("read: %#v", err)
	}
	if err := c.Write(t.Context(), p, 0); !errors.As(err, &e) || e.Code != nbd.EPERM {
		t.Errorf("write to a read-only disk: %v", err)
	}
	for _, off := range []int64{4 << 20, 4<<20 - 256, 100} {
		if err := c.Read(t.Context(), p, off); !errors.As(err, &e) || e.Code != nbd.EINVAL {
			t.Errorf("read at %d: %v", off, err)
		}
	}
	if err := c.Read(t.Context(), p, 1024); err != nil {
		t.Errorf("a read after those that failed: %v", err)
	}
}

func TestHungServer(t *testing.T) {
	m := newMemory(4 << 20)
	hold := make(chan struct{})
	m.fail = func(int64) error { <-hold; return nil }
	c := connect(t, m, options(m), 50*time.Millisecond)
	if err := c.Read(t.Context(), make([]byte, 512), 0); !errors.Is(err, nbd.ErrTimeout) {
		t.Errorf("read of a server that hangs: %v", err)
	}
	close(hold)
	if err := c.Read(t.Context(), make([]byte, 512), 0); !errors.Is(err, nbd.ErrTimeout) {
		t.Errorf("read after the timeout: %v", err)
	}
}

func TestCancel(t *testing.T) {
	m := newMemory(4 << 20)
	hold := make(chan struct{})
	m.fail = func(int64) error { <-hold; return nil }
	c := connect(t, m, options(m), 0)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() { failed <- c.Read(ctx, make([]byte, 512), 0) }()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled read: %v", err)
	}
	close(hold)
}

// TestHostileServer feeds the client beginnings of conversations, each of which
// has to end in an error.
func TestHostileServer(t *testing.T) {
	for name, reply := range map[string]string{
		"not NBD":       strings.Repeat("HTTP/1.1 400 ", 4),
		"old style":     "NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53" + strings.Repeat("\x00", 200),
		"cut":           "NBDMAGICIHAVE",
		"empty":         "",
		"giant payload": "NBDMAGICIHAVEOPT\x00\x03\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x08\x00\x00\x00\x01\xff\xff\xff\xff",
	} {
		t.Run(name, func(t *testing.T) {
			near, far := net.Pipe()
			go func() {
				defer far.Close()
				far.Write([]byte(reply))
			}()
			go func() {
				var b [512]byte
				for {
					if _, err := far.Read(b[:]); err != nil {
						return
					}
				}
			}()
			c, err := nbd.Connect(t.Context(), near, nbd.ClientOptions{Timeout: time.Minute})
			if err == nil {
				c.Close()
				t.Fatal("the handshake succeeds")
			}
			if !errors.Is(err, nbd.ErrProtocol) && !errors.Is(err, nbd.ErrLost) {
				t.Errorf("the error has no kind: %v", err)
			}
		})
	}
}

// TestAgainstQEMU reads and writes a disk that QEMU serves, and lets QEMU
// compare a disk that we serve.
func TestAgainstQEMU(t *testing.T) {
	for _, tool := range []string{"qemu-nbd", "qemu-img"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed (tools/provision.sh test)", tool)
		}
	}
	m := newMemory(4 << 20)
	raw := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(raw, m.b, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("client", func(t *testing.T) { qemuServes(t, m, raw) })
	t.Run("server", func(t *testing.T) { qemuReads(t, m, raw) })
}

func qemuServes(t *testing.T, m *memory, raw string) {
	socket := filepath.Join(t.TempDir(), "nbd.sock")
	out, err := exec.Command("qemu-nbd", "--fork", "--format=raw", "--socket="+socket, "--detect-zeroes=on", raw).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-nbd: %v\n%s", err, out)
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	// It ends with its only client.
	c, err := nbd.Connect(t.Context(), conn, nbd.ClientOptions{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p := make([]byte, nbd.MaxRequest)
	for off := int64(0); off < c.Size(); off += nbd.MaxRequest / 2 {
		n := min(nbd.MaxRequest, c.Size()-off)
		if err := c.Read(t.Context(), p[:n], off); err != nil || !bytes.Equal(p[:n], m.b[off:off+n]) {
			t.Fatalf("read %d at %d: %v, equal %v", n, off, err, bytes.Equal(p[:n], m.b[off:off+n]))
		}
	}
	if err := c.Write(t.Context(), p[:4096], 8192); err != nil {
		t.Fatal(err)
	}
	copy(m.b[8192:], p[:4096])
	if err := c.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(raw); err != nil || !bytes.Equal(got, m.b) {
		t.Errorf("what was written did not arrive (%v)", err)
	}
	for off := int64(0); off < c.Size(); {
		runs, err := c.Extents(t.Context(), off, c.Size()-off)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range runs {
			if r.Hole && len(bytes.Trim(m.b[off:off+r.Length], "\x00")) > 0 {
				t.Errorf("%d bytes at %d are said to be a hole", r.Length, off)
			}
			off += r.Length
		}
	}
}

func qemuReads(t *testing.T, m *memory, raw string) {
	socket := filepath.Join(t.TempDir(), "nbd.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			err = nbd.Serve(conn, m, options(m))
		}
		served <- err
	}()
	out, err := exec.Command("qemu-img", "compare", "-p", "-f", "raw", raw, "-F", "raw", "nbd+unix:///?socket="+socket).CombinedOutput()
	l.Close()
	if err != nil {
		t.Errorf("qemu-img compare: %v\n%s", err, out)
	}
	if err := <-served; err != nil {
		t.Errorf("server: %v", err)
	}
}
