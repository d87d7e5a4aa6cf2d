package nfsserver

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"lifeboat/disk"
	"lifeboat/nfsserver/datastore"
	"lifeboat/nfsserver/nfstest"
)

// ram is a disk in memory that costs nothing beyond the copy: what is measured
// is the server.
type ram struct{ b []byte }

func (r ram) Size() int64                                  { return int64(len(r.b)) }
func (r ram) Close() error                                 { return nil }
func (r ram) ReadAt(p []byte, off int64) (int, error)      { return copy(p, r.b[off:]), nil }
func (r ram) ReadCached(p []byte, off int64) bool          { copy(p, r.b[off:]); return true }
func (r ram) WriteAt(p []byte, off int64) (int, error)     { return copy(r.b[off:], p), nil }
func (r ram) Sync() error                                  { return nil }
func (r ram) SyncAsync(done func(error))                   { done(nil) }
func (r ram) TryWriteAt(p []byte, off int64) (bool, error) { copy(r.b[off:], p); return true, nil }
func (r ram) Used() int64                                  { return int64(len(r.b)) }

// uncached is a disk of which nothing is in memory: all its reads go to workers.
type uncached struct{ disk.Device }

func benchServer(b *testing.B, dev disk.Device) (addr string, flat nfstest.Handle) {
	b.Helper()
	root := b.TempDir()
	must(b, os.MkdirAll(filepath.Join(root, "s1/vm"), 0o755))
	must(b, os.WriteFile(filepath.Join(root, diskPath), nil, 0o644))
	tree, err := datastore.Open(datastore.Options{Root: root, FSID: testFSID})
	must(b, err)
	must(b, tree.Bind(diskPath, dev))
	must(b, tree.Attach("s1"))
	srv, err := New(Options{Tree: tree, NFSAddr: "127.0.0.1:0"})
	must(b, err)
	must(b, srv.Listen(b.Context()))
	ended := make(chan error, 1)
	ctx := b.Context()
	go func() { ended <- srv.Run(ctx) }()
	b.Cleanup(func() {
		must(b, <-ended)
		tree.Close()
	})
	n, err := tree.Walk(diskPath)
	must(b, err)
	return srv.Addrs().NFS.String(), n.Handle()
}

func load(b *testing.B, addr string, depth int, proc uint32, args []byte, patch func([]byte, int)) {
	b.Helper()
	conn, err := net.Dial("tcp", addr)
	must(b, err)
	defer conn.Close()
	l := &nfstest.Load{
		Conn: conn, Depth: depth, Patch: patch, Bare: proc == 0,
		Call: nfstest.Record(nfstest.Message(0, nfstest.ProgNFS, nfstest.VersNFS, proc, nfstest.Cred{}, args), 0),
	}
	must(b, l.Run(depth)) // warm up
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuTime()
	must(b, l.Run(b.N))
	b.StopTimer()
	b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

// cpuTime is what client and server together have used; unlike the clock's time
// it does not depend much on what else the machine does.
func cpuTime() int64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}

const benchDisk = 256 << 20

// strides makes call i go to a place of its own; the offset is the at-th byte
// from the end of the record.
func strides(at, size int) func([]byte, int) {
	return func(rec []byte, i int) {
		off := uint64(i) * 2654435761 % (benchDisk / uint64(size)) * uint64(size)
		binary.BigEndian.PutUint64(rec[len(rec)-at:], off)
	}
}

func BenchmarkRead(b *testing.B) {
	for _, c := range []struct{ size, depth int }{{4 << 10, 1}, {4 << 10, 32}, {64 << 10, 32}, {1 << 20, 8}} {
		b.Run(fmt.Sprintf("%dK/QD%d", c.size>>10, c.depth), func(b *testing.B) {
			addr, flat := benchServer(b, ram{make([]byte, benchDisk)})
			b.SetBytes(int64(c.size))
			load(b, addr, c.depth, 6, nfstest.ReadArgs(flat, 0, uint32(c.size)), strides(12, c.size))
		})
	}
}

func BenchmarkReadWorker(b *testing.B) {
	for _, c := range []struct{ size, depth int }{{4 << 10, 1}, {4 << 10, 32}, {1 << 20, 8}} {
		b.Run(fmt.Sprintf("%dK/QD%d", c.size>>10, c.depth), func(b *testing.B) {
			addr, flat := benchServer(b, uncached{ram{make([]byte, benchDisk)}})
			b.SetBytes(int64(c.size))
			load(b, addr, c.depth, 6, nfstest.ReadArgs(flat, 0, uint32(c.size)), strides(12, c.size))
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, c := range []struct {
		size, depth int
		how         nfstest.Stable
	}{{4 << 10, 1, nfstest.FileSync}, {4 << 10, 32, nfstest.FileSync}, {4 << 10, 32, nfstest.Unstable}, {64 << 10, 32, nfstest.FileSync}, {1 << 20, 8, nfstest.Unstable}} {
		b.Run(fmt.Sprintf("%dK/QD%d/stable%d", c.size>>10, c.depth, c.how), func(b *testing.B) {
			addr, flat := benchServer(b, ram{make([]byte, benchDisk)})
			b.SetBytes(int64(c.size))
			args := nfstest.WriteArgs(flat, 0, make([]byte, c.size), c.how)
			load(b, addr, c.depth, 7, args, strides(c.size+20, c.size))
		})
	}
}

func BenchmarkGetattr(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("QD%d", depth), func(b *testing.B) {
			addr, flat := benchServer(b, ram{make([]byte, benchDisk)})
			load(b, addr, depth, 1, nfstest.Enc{}.Bytes(flat), nil)
		})
	}
}

func BenchmarkNull(b *testing.B) {
	addr, _ := benchServer(b, ram{make([]byte, benchDisk)})
	load(b, addr, 32, 0, nil, nil)
}
