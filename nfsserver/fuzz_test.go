package nfsserver

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lifeboat/disk/disktest"
	"lifeboat/nfsserver/datastore"
	"lifeboat/nfsserver/nfstest"
)

// fuzzServer runs one server for all inputs; in-memory connections lead to it.
func fuzzServer(f *testing.F) (dial func() net.Conn, dir, flat []byte) {
	f.Helper()
	root := f.TempDir()
	must(f, os.MkdirAll(filepath.Join(root, "s1/vm"), 0o755))
	must(f, os.WriteFile(filepath.Join(root, diskPath), nil, 0o644))
	tree, err := datastore.Open(datastore.Options{Root: root, FSID: testFSID})
	must(f, err)
	must(f, tree.Bind(diskPath, disktest.NewMemory(1<<20)))
	must(f, tree.Attach("s1"))
	srv, err := New(Options{Tree: tree, Logger: slog.New(slog.DiscardHandler), Limits: Limits{
		MemoryPerConnection: 4 << 20,
		// A connection ends a little later than its client closes it.
		Connections: 1 << 20, ConnectionsPerClient: 1 << 20,
	}})
	must(f, err)
	l := pipeListener{make(chan net.Conn), make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ctx, &Listeners{NFS: l}) }()
	f.Cleanup(func() {
		cancel()
		must(f, <-ended)
		tree.Close()
	})
	d, err := tree.Walk("s1")
	must(f, err)
	n, err := tree.Walk(diskPath)
	must(f, err)
	return func() net.Conn {
		ours, theirs := net.Pipe()
		l.conns <- theirs
		return ours
	}, d.Handle(), n.Handle()
}

type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l pipeListener) Close() error   { close(l.closed); return nil }
func (l pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "fuzz", Net: "pipe"} }

// converse sends raw bytes, then closes its side for writing in effect by
// waiting for the server to answer what it can; it returns the replies.
func converse(t *testing.T, nc net.Conn, raw []byte) []byte {
	t.Helper()
	must(t, nc.SetDeadline(time.Now().Add(20*time.Second)))
	var got bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(&got, nc)
	}()
	// A call at the end, so that there is an answer to wait for; if the bytes
	// before it were not a whole record it is swallowed, so the connection is
	// closed as soon as the server has taken everything.
	_, _ = nc.Write(raw)
	_ = nc.Close()
	<-read
	return got.Bytes()
}

// FuzzRecords sends arbitrary bytes as a connection's input. The server must
// live, end the connection, and send nothing that is not a whole RPC record
// (the last one may be cut off by the close).
func FuzzRecords(f *testing.F) {
	dial, dir, flat := fuzzServer(f)
	call := func(prog, proc uint32, args nfstest.Enc) []byte {
		return nfstest.Record(nfstest.Message(1, prog, 3, proc, nfstest.Cred{Groups: []uint32{1, 2}}, args), 0)
	}
	f.Add(call(nfstest.ProgNFS, 0, nil))
	f.Add(call(nfstest.ProgNFS, 6, nfstest.ReadArgs(flat, 0, 1<<20)))
	f.Add(call(nfstest.ProgNFS, 17, nfstest.Enc{}.Bytes(dir).U64(0, 0).U32(1<<32-1, 1<<32-1)))
	f.Add(call(nfstest.ProgMount, 1, nfstest.Enc{}.Str(ExportPath)))
	f.Add(nfstest.Record(nfstest.Message(1, nfstest.ProgNFS, 3, 1, nfstest.Cred{}, nfstest.Enc{}.Bytes(flat)), 5))
	f.Add([]byte{0x80, 0, 0, 4, 0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 1<<20 {
			return
		}
		out := bytes.NewReader(converse(t, dial(), raw))
		for out.Len() > 0 {
			rec, err := nfstest.ReadRecord(out)
			if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
				return
			}
			must(t, err)
			if len(rec) < 16 {
				t.Fatalf("a reply of %d bytes", len(rec))
			}
		}
		c := nfstest.NewClient(dial())
		defer c.Close()
		must(t, c.Null())
	})
}

// FuzzArguments sends arbitrary arguments to each procedure behind a good
// header. There is always exactly one reply, with the call's xid.
func FuzzArguments(f *testing.F) {
	dial, dir, flat := fuzzServer(f)
	for proc := range uint32(22) {
		f.Add(true, proc, []byte(nfstest.Enc{}.Bytes(flat).U64(0).U32(100, 2).Str("abc")))
		f.Add(true, proc, []byte(nfstest.Enc{}.Bytes(dir).Str("name").U32(0).SetAttr(nfstest.SetAttr{})))
		f.Add(true, proc, []byte(nfstest.Enc{}.Bytes(dir).Str("name").Bytes(dir).Str("other")))
	}
	f.Add(true, uint32(17), []byte(nfstest.Enc{}.Bytes(dir).U64(0, 0).U32(4096, 4096)))
	f.Add(false, uint32(1), []byte(nfstest.Enc{}.Str(ExportPath+"/s1/../..")))
	f.Add(false, uint32(3), []byte(nfstest.Enc{}.Str("\x00")))
	f.Fuzz(func(t *testing.T, nfs bool, proc uint32, args []byte) {
		if len(args) > 1<<20 {
			return
		}
		prog := uint32(nfstest.ProgMount)
		if nfs {
			prog = nfstest.ProgNFS
		}
		nc := dial()
		must(t, nc.SetDeadline(time.Now().Add(20*time.Second)))
		c := nfstest.NewClient(nc)
		defer c.Close()
		_, err := c.Call(prog, 3, proc, args)
		var refused *nfstest.RPCError
		if err != nil && (!errors.As(err, &refused) || refused.Stat == acceptSystemErr) {
			t.Fatalf("procedure %d: %v", proc, err)
		}
		must(t, c.Null())
	})
}

// FuzzHeader decodes arbitrary call headers.
func FuzzHeader(f *testing.F) {
	f.Add(nfstest.Message(1, nfstest.ProgNFS, 3, 0, nfstest.Cred{UID: 1, GID: 2, Groups: []uint32{3}}, nil))
	f.Add(nfstest.Message(1, nfstest.ProgNFS, 3, 0, nfstest.Cred{None: true}, nil))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, h := decoder{b: raw}, header{}
		if err := parseHeader(&d, &h); err == nil && h.cred.ngroups > maxSysGroups {
			t.Fatal("too many groups")
		}
	})
}
