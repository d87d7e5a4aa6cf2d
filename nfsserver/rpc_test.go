package nfsserver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"lifeboat/disk/disktest"
	"lifeboat/nfsserver/nfstest"
)

// rpcError returns how the RPC layer refused a call.
func rpcError(t *testing.T, err error) nfstest.RPCError {
	t.Helper()
	var e *nfstest.RPCError
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want a refusal by the RPC layer", err)
	}
	return *e
}

func TestRPCRefusals(t *testing.T) {
	w := newWorld(t, disktest.NewMemory(1<<20))
	c := w.dial()
	for _, x := range []struct {
		name             string
		prog, vers, proc uint32
		args             nfstest.Enc
		want             nfstest.RPCError
	}{
		{"program", 100021, 4, 0, nil, nfstest.RPCError{Stat: acceptProgUnavail}},
		{"portmap on the NFS port", nfstest.ProgPortmap, 2, 0, nil, nfstest.RPCError{Stat: acceptProgUnavail}},
		{"NFS version 2", nfstest.ProgNFS, 2, 0, nil, nfstest.RPCError{Stat: acceptProgMismatch, Detail: []uint32{3, 3}}},
		{"NFS version 4", nfstest.ProgNFS, 4, 1, nil, nfstest.RPCError{Stat: acceptProgMismatch, Detail: []uint32{3, 3}}},
		{"MOUNT version 1", nfstest.ProgMount, 1, 1, nil, nfstest.RPCError{Stat: acceptProgMismatch, Detail: []uint32{3, 3}}},
		{"NFS procedure", nfstest.ProgNFS, 3, 22, nil, nfstest.RPCError{Stat: acceptProcUnavail}},
		{"MOUNT procedure", nfstest.ProgMount, 3, 6, nil, nfstest.RPCError{Stat: acceptProcUnavail}},
		{"no arguments", nfstest.ProgNFS, 3, 1, nil, nfstest.RPCError{Stat: acceptGarbageArgs}},
		{"handle of 65 bytes", nfstest.ProgNFS, 3, 1, nfstest.Enc{}.Bytes(make([]byte, 65)), nfstest.RPCError{Stat: acceptGarbageArgs}},
		{"handle of 4 GiB", nfstest.ProgNFS, 3, 1, nfstest.Enc{}.U32(1<<32 - 1), nfstest.RPCError{Stat: acceptGarbageArgs}},
		{"mount path of 4 GiB", nfstest.ProgMount, 3, 1, nfstest.Enc{}.U32(1<<32 - 1), nfstest.RPCError{Stat: acceptGarbageArgs}},
		{"no mount path", nfstest.ProgMount, 3, 1, nil, nfstest.RPCError{Stat: acceptGarbageArgs}},
	} {
		_, err := c.Call(x.prog, x.vers, x.proc, x.args)
		if diff := cmp.Diff(x.want, rpcError(t, err)); diff != "" {
			t.Errorf("%s: %s", x.name, diff)
		}
	}
	must(t, c.Null()) // the connection lives
}

// A call whose header is refused gets an answer, and the connection lives.
func TestRPCHeaders(t *testing.T) {
	w := newWorld(t, nil)
	call := func(words ...uint32) nfstest.Enc { return nfstest.Enc{}.U32(words...) }
	badCred := nfstest.RPCError{Denied: true, Stat: rejectAuthError, Detail: []uint32{authBadCred}}
	for _, x := range []struct {
		name string
		msg  nfstest.Enc
		want nfstest.RPCError
	}{
		{"RPC version 3", call(9, 0, 3, nfstest.ProgNFS, 3, 0, 0, 0, 0, 0), nfstest.RPCError{Denied: true, Stat: rejectRPCMismatch, Detail: []uint32{2, 2}}},
		{"RPCSEC_GSS", call(9, 0, 2, nfstest.ProgNFS, 3, 0, 6, 0, 0, 0), badCred},
		{"credential of 404 bytes", call(9, 0, 2, nfstest.ProgNFS, 3, 0, 1).Bytes(make([]byte, 404)), badCred},
		{"credential cut short", call(9, 0, 2, nfstest.ProgNFS, 3, 0, 1, 100), badCred},
		{"17 groups", call(9, 0, 2, nfstest.ProgNFS, 3, 0, 1).Bytes(nfstest.Enc{}.U32(0).Str("x").U32(0, 0, 17).U32(make([]uint32, 17)...)).U32(0, 0), badCred},
		{"no verifier", call(9, 0, 2, nfstest.ProgNFS, 3, 0, 0, 0), badCred},
		{"machine name of 2 GiB", call(9, 0, 2, nfstest.ProgNFS, 3, 0, 1).Bytes(nfstest.Enc{}.U32(0, 1<<31)).U32(0, 0), badCred},
	} {
		c := w.dial()
		reply := c.Expect(9)
		must(t, c.SendRaw(nfstest.Record(x.msg, 0)))
		_, err := reply.Wait()
		if diff := cmp.Diff(x.want, rpcError(t, err)); diff != "" {
			t.Errorf("%s: %s", x.name, diff)
		}
		must(t, c.Null())
	}
}

// Each of these ends its connection, and no other.
func TestMalformedRecords(t *testing.T) {
	w := newWorld(t, nil)
	bystander := w.dial()
	must(t, bystander.Null())
	for name, raw := range map[string][]byte{
		"record of 2 GiB":     {0xff, 0xff, 0xff, 0xff},
		"fragment of 1.9 GiB": {0x7f, 0xff, 0xff, 0xff},
		"just too long":       binary.BigEndian.AppendUint32(nil, lastFragment|(maxRecord+1)),
		"empty record":        {0x80, 0, 0, 0},
		"no call":             nfstest.Record(nfstest.Enc{}.U32(1, 2, 3, 4, 5, 6, 7, 8), 0),
		"a reply":             nfstest.Record(nfstest.Enc{}.U32(1, 1, 0, 0, 0, 0), 0),
		"xid only":            nfstest.Record(nfstest.Enc{}.U32(1), 0),
		"HTTP":                []byte("GET / HTTP/1.1\r\nHost: lifeboat\r\n\r\n"),
		"empty fragments":     make([]byte, 4*(maxFragments+2)),
		"fragments add up":    bytes.Repeat(append(binary.BigEndian.AppendUint32(nil, 1<<19), make([]byte, 1<<19)...), 3),
	} {
		c := w.dial()
		must(t, c.Null())
		_ = c.SendRaw(raw) // the server may have closed while we write
		within(t, name, func() { <-c.Closed() })
		must(t, bystander.Null())
	}
	within(t, "closing", func() {
		for w.srv.Connections() > 1 {
			must(t, bystander.Null())
		}
	})
	if !strings.Contains(w.log.String(), "not RPC") {
		t.Error("the log does not say that the input was malformed")
	}
}

func TestFragments(t *testing.T) {
	mem := disktest.Random(4, 4<<20, 1)
	w := newWorld(t, mem)
	_, _, flat := w.mount()
	for _, size := range []int{1, 3, 4, 7, 64, 4096, 100_000, 1 << 20} {
		c := w.dial()
		c.Fragment = size
		data := bytes.Repeat([]byte{byte(size), 1}, 100*size/2)
		if len(data) > MaxTransfer {
			data = data[:MaxTransfer]
		}
		if size < 64 {
			data = data[:min(len(data), 200*size)]
		}
		_, err := c.Write(flat, 8192, data, nfstest.Unstable)
		must(t, err)
		r, err := c.Read(flat, 8192, uint32(len(data)))
		must(t, err)
		if !bytes.Equal(r.Data, data) {
			t.Fatalf("fragments of %d bytes: wrong data", size)
		}
	}
}

// A record arrives byte by byte, and many arrive in one segment.
func TestDribbleAndBurst(t *testing.T) {
	w := newWorld(t, disktest.NewMemory(1<<20))
	c, _, flat := w.mount()
	call := c.Expect(77)
	for _, b := range nfstest.Record(nfstest.Message(77, nfstest.ProgNFS, 3, 1, nfstest.Cred{}, nfstest.Enc{}.Bytes(flat)), 0) {
		must(t, c.SendRaw([]byte{b}))
	}
	_, st, err := call.Status()
	must(t, err)
	want(t, "status", st, 0)

	var burst []byte
	var calls []*nfstest.Call
	for i := range uint32(5000) {
		calls = append(calls, c.Expect(1000+i))
		burst = append(burst, nfstest.Record(nfstest.Message(1000+i, nfstest.ProgNFS, 3, 1, nfstest.Cred{}, nfstest.Enc{}.Bytes(flat)), 0)...)
	}
	must(t, c.SendRaw(burst))
	for i, call := range calls {
		d, st, err := call.Status()
		must(t, err)
		want(t, fmt.Sprintf("status of call %d", i), st, 0)
		want(t, "size", d.Attr().Size, 1<<20)
	}
}

// A client that shuts down its sending side still gets its replies.
func TestHalfClose(t *testing.T) {
	w := newWorld(t, disktest.NewMemory(1<<20))
	c, _, flat := w.mount()
	call := c.GoRead(flat, 0, 512)
	must(t, c.Conn().(interface{ CloseWrite() error }).CloseWrite())
	_, err := call.ReadResult()
	must(t, err)
	within(t, "close", func() { <-c.Closed() })
}

func TestRecordReaderProperty(t *testing.T) {
	// Records of many sizes, cut into fragments at random, read in pieces of
	// random sizes, come out as they went in.
	for seed := range uint64(20) {
		rng := newRand(seed)
		var stream []byte
		var records [][]byte
		for range 40 {
			rec := make([]byte, 1+rng.IntN(1<<rng.IntN(18)))
			for i := range rec {
				rec[i] = byte(rng.Uint32())
			}
			records = append(records, rec)
			stream = append(stream, nfstest.Record(rec, rng.IntN(2)*(1+len(rec)/(1+rng.IntN(8))))...)
		}
		rr := newRecordReader(&pieces{data: stream, rng: rng}, maxRecord)
		for i := 0; i < len(records); {
			rec, ok, err := rr.next()
			must(t, err)
			if !ok {
				must(t, rr.fill())
				continue
			}
			if !bytes.Equal(rec, records[i]) {
				t.Fatalf("seed %d: record %d differs", seed, i)
			}
			i++
		}
		if err := rr.fill(); !errors.Is(err, io.EOF) {
			t.Fatalf("at the end: %v", err)
		}
		if len(rr.buf) > 2*(maxRecord+minInput) {
			t.Fatalf("the buffer has grown to %d bytes", len(rr.buf))
		}
	}
}
