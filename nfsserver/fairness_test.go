package nfsserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lifeboat/disk"
	"lifeboat/disk/disktest"
	"lifeboat/nfsserver/nfstest"
)

func awaitHeld(t *testing.T, g *disktest.Gate, op disktest.Op, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	must(t, g.AwaitHeld(ctx, op, n))
}

// With every worker that READs may have stuck in a disk, and a thousand more
// READs waiting on the same connection, that connection's GETATTR and NULL are
// answered, and so is everything that needs a worker but is no READ.
func TestGetattrNotBehindReads(t *testing.T) {
	g := disktest.NewGate(disktest.NewMemory(64 << 20))
	w := newWorld(t, g, func(o *Options) {
		o.Limits = Limits{Workers: 16, InFlight: 32, Waiting: 1024}
	})
	g.Hold(disktest.Read)
	c, dir, flat := w.mount()
	var reads []*nfstest.Call
	for i := range 1000 {
		reads = append(reads, c.GoRead(flat, uint64(i)*4096, 4096))
	}
	awaitHeld(t, g, disktest.Read, 8)
	within(t, "requests beside stuck READs", func() {
		for range 100 {
			must(t, c.Null())
			_, err := c.Getattr(flat)
			must(t, err)
		}
		_, _, err := c.Access(flat, 1)
		must(t, err)
		_, _, err = c.Lookup(dir, "vm")
		must(t, err)
		f, err := c.CreateExclusive(dir, ".lck-1", [8]byte{1})
		must(t, err)
		_, err = c.Write(f.Handle, 0, make([]byte, 84), nfstest.FileSync)
		must(t, err)
		_, err = c.Write(flat, 0, make([]byte, 4096), nfstest.FileSync)
		must(t, err)
		other, otherDir, _ := w.mount() // another client
		_, err = other.Readdir(otherDir, 0, 0, 4096)
		must(t, err)
	})
	for i, r := range reads {
		select {
		case <-r.Done():
			t.Fatalf("read %d was answered: the gate does not hold", i)
		default:
		}
	}
	g.Release(disktest.Read)
	within(t, "the READs", func() {
		for _, r := range reads {
			_, err := r.ReadResult()
			must(t, err)
		}
	})
}

// The same for WRITEs that cannot be taken at once.
func TestMetadataNotBehindWrites(t *testing.T) {
	g := disktest.NewGate(disktest.NewMemory(64 << 20))
	w := newWorld(t, g, func(o *Options) { o.Limits = Limits{Workers: 16} })
	g.Hold(disktest.Write)
	c, dir, flat := w.mount()
	var writes []*nfstest.Call
	for i := range 200 {
		writes = append(writes, c.GoWrite(flat, uint64(i)*4096, make([]byte, 4096), nfstest.Unstable))
	}
	awaitHeld(t, g, disktest.Write, 4)
	within(t, "requests beside stuck WRITEs", func() {
		_, err := c.Read(flat, 0, 4096)
		must(t, err)
		_, _, err = c.Lookup(dir, "vm")
		must(t, err)
		_, err = c.Getattr(flat)
		must(t, err)
	})
	g.Release(disktest.Write)
	for _, r := range writes {
		_, err := r.WriteResult()
		must(t, err)
	}
}

// One client's thousand READs do not make another client's single READ wait
// behind them: connections take turns.
func TestConnectionsTakeTurns(t *testing.T) {
	g := disktest.NewGate(disktest.NewMemory(64 << 20))
	w := newWorld(t, g, func(o *Options) { o.Limits = Limits{Workers: 4, InFlight: 1000} })
	g.Hold(disktest.Read)
	greedy, _, flat := w.mount()
	for i := range 500 {
		greedy.GoRead(flat, uint64(i)*4096, 4096)
	}
	awaitHeld(t, g, disktest.Read, 2)
	modest, _, _ := w.mount()
	r := modest.GoRead(flat, 0, 4096)
	must(t, modest.Null()) // the READ before it has been queued
	g.Pass(disktest.Read, 4)
	within(t, "the modest client", func() {
		_, err := r.ReadResult()
		must(t, err)
	})
	g.Release(disktest.Read)
}

// A client that sends and does not take its replies is held at its memory
// limit, does not disturb others, and is cut off in the end.
func TestSlowClient(t *testing.T) {
	mem := disktest.Random(8, 64<<20, 1)
	t.Run("inline", func(t *testing.T) { testSlowClient(t, newWorld(t, mem, slowLimits)) })
	t.Run("worker", func(t *testing.T) { testSlowClient(t, newWorld(t, disktest.DeviceOnly(mem), slowLimits)) })
}

func slowLimits(o *Options) {
	o.Limits = Limits{MemoryPerConnection: 4 << 20, WriteTimeout: 500 * time.Millisecond}
}

func testSlowClient(t *testing.T, w *world) {
	good, _, flat := w.mount()
	nc, err := net.Dial("tcp", w.addr)
	must(t, err)
	defer nc.Close()
	closed := make(chan error, 1)
	go func() { // sends READs for as long as the server takes them, and reads nothing
		call := nfstest.Record(nfstest.Message(1, nfstest.ProgNFS, 3, 6, nfstest.Cred{}, nfstest.ReadArgs(flat, 0, 1<<20)), 0)
		for {
			if _, err := nc.Write(call); err != nil {
				closed <- err
				return
			}
		}
	}()
	within(t, "cutting the slow client off", func() {
		for {
			select {
			case <-closed:
				return
			default:
				_, err := good.Read(flat, 4096, 4096)
				must(t, err)
			}
		}
	})
	must(t, w.stop())
	if !strings.Contains(w.log.String(), "does not take its replies") {
		t.Error("the log does not say why the client was cut off")
	}
}

// Stable WRITEs of one turn share a sync; their replies wait for it, and what
// comes after them on the connection does not.
func TestStableWritesWaitForSync(t *testing.T) {
	d := newSyncDisk(1 << 20)
	w := newWorld(t, d)
	c, _, flat := w.mount()
	var burst []byte
	var writes []*nfstest.Call
	for i := range uint32(20) {
		writes = append(writes, c.Expect(i+1))
		args := nfstest.WriteArgs(flat, uint64(i)*512, make([]byte, 512), nfstest.FileSync)
		burst = append(burst, nfstest.Record(nfstest.Message(i+1, nfstest.ProgNFS, 3, 7, nfstest.Cred{}, args), 0)...)
	}
	must(t, c.SendRaw(burst))
	<-d.arrived
	_, err := c.Getattr(flat)
	must(t, err)
	un, err := c.Write(flat, 0, []byte("unstable"), nfstest.Unstable)
	must(t, err)
	want(t, "committed", un.Committed, nfstest.Unstable)
	for _, wr := range writes {
		select {
		case <-wr.Done():
			t.Fatal("a FILE_SYNC WRITE was answered before it was durable")
		default:
		}
	}
	if n := d.finish(nil); n > 3 {
		t.Errorf("%d syncs for one burst of writes", n)
	}
	for _, wr := range writes {
		r, err := wr.WriteResult()
		must(t, err)
		want(t, "committed", r.Committed, nfstest.FileSync)
	}

	commit := c.Go(nfstest.ProgNFS, 3, 21, nfstest.Enc{}.Bytes(flat).U64(0).U32(0))
	<-d.arrived
	stable := c.GoWrite(flat, 0, []byte("x"), nfstest.DataSync)
	<-d.arrived
	d.finish(fmt.Errorf("log: %w", errNoSpace))
	_, st, err := commit.Status()
	must(t, err)
	want(t, "COMMIT whose sync fails", st, nfstest.NoSpc)
	_, err = stable.WriteResult()
	wantStatus(t, "WRITE whose sync fails", err, nfstest.NoSpc)
}

// The same for a disk that takes writes only slowly: the worker that wrote does
// not wait for the sync.
func TestStableWritesOnWorkers(t *testing.T) {
	d := newSyncDisk(1 << 20)
	w := newWorld(t, slowWriter{d, d}, func(o *Options) { o.Limits = Limits{Workers: 4, InFlight: 64} })
	c, _, flat := w.mount()
	var writes []*nfstest.Call
	for i := range 10 {
		writes = append(writes, c.GoWrite(flat, uint64(i)*512, make([]byte, 512), nfstest.FileSync))
	}
	within(t, "ten syncs under way with one worker for WRITEs", func() {
		for range writes {
			<-d.arrived
		}
	})
	for _, wr := range writes {
		want(t, "answered before it was durable", replied(wr), false)
	}
	d.finish(nil)
	for _, wr := range writes {
		_, err := wr.WriteResult()
		must(t, err)
	}
	failing := c.GoWrite(flat, 0, make([]byte, 512), nfstest.FileSync)
	<-d.arrived
	d.finish(errNoSpace)
	_, err := failing.WriteResult()
	wantStatus(t, "WRITE whose sync fails", err, nfstest.NoSpc)
}

// slowWriter has no TryWriter.
type slowWriter struct {
	disk.Device
	disk.AsyncSyncer
}

// Two disks written in one turn are synced each by itself.
func TestHeldRepliesPerDisk(t *testing.T) {
	d := newSyncDisk(1 << 20)
	w := newWorld(t, d)
	c, dir, flat := w.mount()
	other := newSyncDisk(1 << 20)
	must(t, writeHostFile(w, "s1/vm/two-flat.vmdk"))
	must(t, w.tree.Bind("s1/vm/two-flat.vmdk", other))
	two, err := c.Walk(dir, "vm/two-flat.vmdk")
	must(t, err)
	var burst []byte
	for i, h := range []nfstest.Handle{flat, two, flat, two} {
		args := nfstest.WriteArgs(h, 0, make([]byte, 512), nfstest.FileSync)
		burst = append(burst, nfstest.Record(nfstest.Message(uint32(i+1), nfstest.ProgNFS, 3, 7, nfstest.Cred{}, args), 0)...)
	}
	calls := []*nfstest.Call{c.Expect(1), c.Expect(2), c.Expect(3), c.Expect(4)}
	must(t, c.SendRaw(burst))
	<-other.arrived
	for !replied(calls[3]) { // 2 and 4 may have come in two turns
		other.finish(nil)
	}
	_, err = calls[1].WriteResult()
	must(t, err)
	want(t, "the other disk's write is held", replied(calls[0]) || replied(calls[2]), false)
	for !replied(calls[0]) || !replied(calls[2]) {
		d.finish(nil)
	}
}

func replied(c *nfstest.Call) bool {
	select {
	case <-c.Done():
		return true
	default:
		return false
	}
}

// Stopping the server answers what was taken, then ends.
func TestStopFlushesReplies(t *testing.T) {
	g := disktest.NewGate(disktest.DeviceOnly(disktest.Random(9, 8<<20, 1)))
	w := newWorld(t, g)
	g.Hold(disktest.Read)
	c, _, flat := w.mount()
	var reads []*nfstest.Call
	for i := range 50 {
		reads = append(reads, c.GoRead(flat, uint64(i)*65536, 65536))
	}
	awaitHeld(t, g, disktest.Read, 50)
	ended := make(chan error, 1)
	go func() { ended <- w.stop() }()
	within(t, "the listener", func() { // closed before requests are waited for
		for {
			nc, err := net.Dial("tcp", w.addr)
			if err != nil {
				return
			}
			nc.Close()
		}
	})
	g.Release(disktest.Read)
	for _, r := range reads {
		_, err := r.ReadResult()
		must(t, err)
	}
	within(t, "Run", func() { must(t, <-ended) })
}

// A request that never ends delays the stop no longer than Drain, twice, and is
// reported.
func TestStopWithStuckRequest(t *testing.T) {
	g := disktest.NewGate(disktest.DeviceOnly(disktest.NewMemory(1 << 20)))
	w := newWorld(t, g, func(o *Options) { o.Limits.Drain = 50 * time.Millisecond })
	g.Hold(disktest.Read)
	c, _, flat := w.mount()
	read := c.GoRead(flat, 0, 512)
	awaitHeld(t, g, disktest.Read, 1)
	err := w.stop()
	if err == nil || !strings.Contains(err.Error(), "still inside their disks") {
		t.Fatalf("Run: %v", err)
	}
	g.Release(disktest.Read)
	if _, err := read.ReadResult(); err == nil {
		t.Fatal("the read was answered on a closed connection")
	}
	w.stop = func() error { return nil }
}

func TestPanicIsContained(t *testing.T) {
	f := &disktest.Faulty{Device: disktest.NewMemory(1 << 20)}
	f.OnRead = func(int64, int) error { panic("boom") }
	w := newWorld(t, f)
	c, _, flat := w.mount()
	_, err := c.Read(flat, 0, 512)
	want(t, "a panic on a worker", rpcError(t, err).Stat, acceptSystemErr)
	_, err = c.Write(flat, 0, make([]byte, 512), nfstest.FileSync)
	must(t, err)

	w2 := newWorld(t, &panicky{disktest.NewMemory(1 << 20)})
	c2, _, flat2 := w2.mount()
	_, err = c2.Read(flat2, 0, 512)
	want(t, "a panic inline", rpcError(t, err).Stat, acceptSystemErr)
	must(t, c2.Null())
	if !strings.Contains(w2.log.String(), "cached boom") {
		t.Error("the panic is not in the log")
	}
}

type panicky struct{ *disktest.Memory }

func (*panicky) ReadCached([]byte, int64) bool { panic("cached boom") }

func TestConnectionLimits(t *testing.T) {
	w := newWorld(t, nil, func(o *Options) { o.Limits.ConnectionsPerClient = 3 })
	var clients []*nfstest.Client
	for range 3 {
		c := w.dial()
		must(t, c.Null())
		clients = append(clients, c)
	}
	extra := w.dial()
	within(t, "refusal", func() { <-extra.Closed() })
	clients[0].Close()
	within(t, "a place for another", func() {
		for {
			c := w.dial()
			if err := c.Null(); err == nil {
				return
			} else if errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	})
}

func writeHostFile(w *world, path string) error {
	return os.WriteFile(filepath.Join(w.root, path), nil, 0o644)
}
