// Package nfstest is a small NFSv3, MOUNT and portmap client for tests: every
// procedure, many calls in flight on one connection, and raw bytes for those
// who want to send what no client would. Its encoding is its own, so that an
// error in the server's is not made twice.
package nfstest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Program numbers and versions.
const (
	ProgPortmap = 100000
	VersPortmap = 2
	ProgNFS     = 100003
	VersNFS     = 3
	ProgMount   = 100005
	VersMount   = 3
)

// Cred is an AUTH_SYS credential. The zero value is root.
type Cred struct {
	UID, GID uint32
	Groups   []uint32
	// None sends AUTH_NONE instead.
	None bool
}

// Client is one connection. Its methods may be called from many goroutines;
// each call waits for its own reply only.
type Client struct {
	nc   net.Conn
	cred atomic.Pointer[Cred]
	xid  atomic.Uint32
	// Fragment, if > 0, cuts every record sent into fragments of this many
	// bytes. Set it before the first call.
	Fragment int

	write sync.Mutex

	mu      sync.Mutex
	pending map[uint32]*Call
	err     error // of the connection; sticky
	done    chan struct{}
}

// Call is a call in flight.
type Call struct {
	XID   uint32
	reply chan struct{}
	body  []byte // from msg_type on
	err   error
}

// RPCError is a call that the RPC layer did not perform (RFC 5531 §9).
type RPCError struct {
	Denied bool   // MSG_DENIED
	Stat   uint32 // accept_stat, or reject_stat if Denied
	// Detail: low and high version after a mismatch, auth_stat after AUTH_ERROR.
	Detail []uint32
}

func (e *RPCError) Error() string {
	return fmt.Sprintf("rpc: denied=%t stat=%d detail=%v", e.Denied, e.Stat, e.Detail)
}

// Dial connects to a server.
func Dial(addr string) (*Client, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return NewClient(nc), nil
}

// NewClient speaks over nc, which it closes.
func NewClient(nc net.Conn) *Client {
	c := &Client{nc: nc, pending: map[uint32]*Call{}, done: make(chan struct{})}
	c.xid.Store(uint32(time.Now().UnixNano()))
	c.cred.Store(&Cred{})
	go c.receive()
	return c
}

// Close ends the connection; calls in flight fail.
func (c *Client) Close() error {
	err := c.nc.Close()
	<-c.done
	return err
}

// Conn is the connection, for tests of what happens below RPC.
func (c *Client) Conn() net.Conn { return c.nc }

// SetCred changes the credential of later calls.
func (c *Client) SetCred(cred Cred) { c.cred.Store(&cred) }

// Closed is closed when the server has ended the connection (or Close has).
func (c *Client) Closed() <-chan struct{} { return c.done }

func (c *Client) receive() {
	defer close(c.done)
	r := bufio.NewReaderSize(c.nc, 256<<10)
	for {
		rec, err := ReadRecord(r)
		if err != nil {
			c.fail(err)
			return
		}
		if len(rec) < 8 {
			c.fail(errors.New("nfstest: short reply"))
			return
		}
		xid := binary.BigEndian.Uint32(rec)
		c.mu.Lock()
		call := c.pending[xid]
		delete(c.pending, xid)
		c.mu.Unlock()
		if call == nil {
			continue // a reply to raw bytes, or a second one
		}
		call.body = rec[4:]
		close(call.reply)
	}
}

func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = fmt.Errorf("nfstest: connection: %w", err)
	for xid, call := range c.pending {
		call.err = c.err
		close(call.reply)
		delete(c.pending, xid)
	}
}

// ReadRecord reads one RPC record, joining its fragments.
func ReadRecord(r io.Reader) ([]byte, error) {
	var rec []byte
	for {
		var mark [4]byte
		if _, err := io.ReadFull(r, mark[:]); err != nil {
			return nil, err
		}
		m := binary.BigEndian.Uint32(mark[:])
		n := int(m &^ (1 << 31))
		if n > 64<<20 {
			return nil, fmt.Errorf("nfstest: fragment of %d bytes", n)
		}
		part := make([]byte, n)
		if _, err := io.ReadFull(r, part); err != nil {
			return nil, err
		}
		rec = append(rec, part...)
		if m>>31 == 1 {
			return rec, nil
		}
	}
}

// Record frames a message as one record of fragments of at most size bytes
// (0: one fragment).
func Record(msg []byte, size int) []byte {
	if size <= 0 {
		size = len(msg)
	}
	var out []byte
	for {
		n := min(size, len(msg))
		mark := uint32(n)
		if n == len(msg) {
			mark |= 1 << 31
		}
		out = binary.BigEndian.AppendUint32(out, mark)
		out = append(out, msg[:n]...)
		if msg = msg[n:]; len(msg) == 0 {
			return out
		}
	}
}

// Message encodes a call without record mark.
func Message(xid, prog, vers, proc uint32, cred Cred, args []byte) []byte {
	e := Enc{}.U32(xid, 0, 2, prog, vers, proc)
	if cred.None {
		e = e.U32(0, 0)
	} else {
		body := Enc{}.U32(uint32(0)).Str("nfstest").U32(cred.UID, cred.GID, uint32(len(cred.Groups))).U32(cred.Groups...)
		e = e.U32(1).Bytes(body)
	}
	return append(e.U32(0, 0), args...)
}

// Go starts a call.
func (c *Client) Go(prog, vers, proc uint32, args []byte) *Call {
	return c.GoXID(c.xid.Add(1), prog, vers, proc, args)
}

// GoXID starts a call with a given xid, for tests of retransmission.
func (c *Client) GoXID(xid, prog, vers, proc uint32, args []byte) *Call {
	call := c.Expect(xid)
	if err := c.SendRaw(Record(Message(xid, prog, vers, proc, *c.cred.Load(), args), c.Fragment)); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.pending[xid] == call {
			delete(c.pending, xid)
			call.err = err
			close(call.reply)
		}
	}
	return call
}

// Expect waits for a reply with the given xid to something sent by SendRaw.
func (c *Client) Expect(xid uint32) *Call {
	call := &Call{XID: xid, reply: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	if call.err = c.err; c.err != nil {
		close(call.reply)
		return call
	}
	c.pending[xid] = call
	return call
}

// SendRaw writes bytes to the connection as they are.
func (c *Client) SendRaw(b []byte) error {
	c.write.Lock()
	defer c.write.Unlock()
	_, err := c.nc.Write(b)
	return err
}

// Done is closed when the reply is there.
func (c *Call) Done() <-chan struct{} { return c.reply }

// Wait returns the results of a call that was performed, an *RPCError for one
// that was not.
func (c *Call) Wait() (*Dec, error) {
	<-c.reply
	if c.err != nil {
		return nil, c.err
	}
	d := &Dec{B: c.body}
	if d.U32() != 1 {
		return nil, errors.New("nfstest: not a reply")
	}
	if d.U32() == 1 {
		e := &RPCError{Denied: true, Stat: d.U32()}
		for len(d.B) >= 4 {
			e.Detail = append(e.Detail, d.U32())
		}
		return nil, e
	}
	d.U32()
	d.Opaque()
	if stat := d.U32(); stat != 0 {
		e := &RPCError{Stat: stat}
		for len(d.B) >= 4 {
			e.Detail = append(e.Detail, d.U32())
		}
		return nil, e
	}
	return d, d.Err()
}

// Call performs one call.
func (c *Client) Call(prog, vers, proc uint32, args []byte) (*Dec, error) {
	return c.Go(prog, vers, proc, args).Wait()
}
