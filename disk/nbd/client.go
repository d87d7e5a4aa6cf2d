package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// ClientOptions are choices for [Connect]. The zero value is good.
type ClientOptions struct {
	Export string // name of the export; "" is the server's default
	// Timeout bounds how long a request may be without its answer. 0 = none.
	Timeout time.Duration
}

// Client reads and writes a disk over one connection, on which any number of
// requests may be in flight. Its methods are safe for concurrent use.
//
// One goroutine receives. It puts what comes straight into the memory of the
// call that it is for; therefore a call only ever returns when it was answered
// or when the receiver has stopped. A call that cannot wait for its answer (its
// context ends, time is up) ends the connection, and all calls with it.
//
// Locks: send is held while one request goes out; mu, taken inside it or alone,
// guards calls, next and dead, and is never held during I/O.
type Client struct {
	conn    net.Conn
	in      *bufio.Reader
	timeout time.Duration
	size    int64
	flags   uint16
	block   int64  // requests are multiples of it, bytes
	most    int64  // longest read or write, bytes
	meta    uint32 // the server's ID for base:allocation
	mapped  bool   // it has one
	done    chan struct{}

	send sync.Mutex

	mu    sync.Mutex
	calls map[uint64]*call
	next  uint64
	dead  error // why the connection is of no use any more
}

// call is one request on its way.
type call struct {
	kind    uint16
	buf     []byte // read: to be filled; write: to be sent
	off     int64
	length  uint32
	filled  int // read: bytes of buf that came
	extents []Extent
	err     error
	done    chan struct{}
}

// Connect shakes hands on conn, which is the client's from then on. ctx and
// Timeout bound the handshake only.
func Connect(ctx context.Context, conn net.Conn, opts ClientOptions) (*Client, error) {
	c := &Client{
		conn: conn, in: bufio.NewReaderSize(conn, 4096), timeout: opts.Timeout,
		block: 1, most: MaxRequest, calls: map[uint64]*call{}, done: make(chan struct{}),
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	if c.timeout > 0 {
		_ = conn.SetDeadline(time.Now().Add(c.timeout))
	}
	err := c.shake(opts.Export)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("NBD handshake: %w", kind(err))
	}
	_ = conn.SetDeadline(time.Time{})
	go c.receive()
	return c, nil
}

// kind gives an error of the connection its kind.
func kind(err error) error {
	var refused *Error
	switch {
	case errors.Is(err, ErrProtocol), errors.As(err, &refused), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w (%w)", ErrTimeout, err)
	case errors.Is(err, io.EOF): // which must not be taken for the end of a disk
		return fmt.Errorf("%w: the other side closed it", ErrLost)
	}
	return fmt.Errorf("%w: %w", ErrLost, err)
}

// Size is the disk's size in bytes.
func (c *Client) Size() int64 { return c.size }

// Block is what offsets and lengths of requests are multiples of, bytes.
func (c *Client) Block() int64 { return c.block }

// Most is the longest read or write, bytes.
func (c *Client) Most() int64 { return c.most }

// ReadOnly says that the server takes no writes.
func (c *Client) ReadOnly() bool { return c.flags&hasReadOnly != 0 }

// Read fills p, which is at most Most bytes, from off.
func (c *Client) Read(ctx context.Context, p []byte, off int64) error {
	return c.do(ctx, &call{kind: cmdRead, buf: p, off: off, length: uint32(len(p))})
}

// Write writes p, which is at most Most bytes, at off.
func (c *Client) Write(ctx context.Context, p []byte, off int64) error {
	return c.do(ctx, &call{kind: cmdWrite, buf: p, off: off, length: uint32(len(p))})
}

// Flush makes durable what was written before.
func (c *Client) Flush(ctx context.Context) error {
	if c.flags&hasFlush == 0 {
		return nil
	}
	return c.do(ctx, &call{kind: cmdFlush})
}

// Extents says how the disk is allocated from off on: at least one run, all of
// them together at most length bytes long. They are all data where the server
// does not tell.
func (c *Client) Extents(ctx context.Context, off, length int64) ([]Extent, error) {
	if !c.mapped {
		return []Extent{{Length: length}}, nil
	}
	k := &call{kind: cmdStatus, off: off, length: uint32(min(length, maxStatus))}
	if err := c.do(ctx, k); err != nil {
		return nil, err
	}
	return k.extents, nil
}

// do sends a call and waits until the receiver has done with it.
func (c *Client) do(ctx context.Context, k *call) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	k.done = make(chan struct{})
	stop := context.AfterFunc(ctx, func() { c.fail(context.Cause(ctx)) })
	defer stop()
	if c.timeout > 0 {
		timer := time.AfterFunc(c.timeout, func() {
			c.fail(fmt.Errorf("%w: %v since %s of %d bytes at %d was asked for", ErrTimeout, c.timeout, kindName(k.kind), k.length, k.off))
		})
		defer timer.Stop()
	}
	if err := c.post(k); err != nil {
		return err
	}
	<-k.done
	return k.err
}

func kindName(kind uint16) string {
	switch kind {
	case cmdRead:
		return "a read"
	case cmdWrite:
		return "a write"
	case cmdFlush:
		return "a flush"
	}
	return "the allocation"
}

// post sends the request. When it returns nil, the receiver answers for the
// call, come what may.
func (c *Client) post(k *call) error {
	c.send.Lock()
	defer c.send.Unlock()
	c.mu.Lock()
	if c.dead != nil {
		defer c.mu.Unlock()
		return c.dead
	}
	c.next++
	cookie := c.next
	c.calls[cookie] = k
	c.mu.Unlock()

	head := be(make([]byte, 0, 28)).u32(magicRequest).u16(0).u16(k.kind).u64(cookie).u64(uint64(k.off)).u32(k.length)
	message := net.Buffers{head}
	if k.kind == cmdWrite {
		message = append(message, k.buf)
	}
	if _, err := message.WriteTo(c.conn); err != nil {
		c.fail(fmt.Errorf("%w: %w", ErrLost, err))
	}
	return nil
}

// fail ends the connection for the first reason that there is.
func (c *Client) fail(why error) {
	c.mu.Lock()
	if c.dead == nil {
		c.dead = why
	}
	c.mu.Unlock()
	c.conn.Close()
}

// Close says goodbye and ends the connection. Calls in flight fail.
func (c *Client) Close() error {
	c.mu.Lock()
	first := c.dead == nil
	if first {
		c.dead = net.ErrClosed
	}
	c.mu.Unlock()
	if first {
		// Whoever is sending is not waited for: it may hang.
		_ = c.conn.SetWriteDeadline(time.Now().Add(time.Second))
		if c.send.TryLock() {
			_, _ = c.conn.Write(be(nil).u32(magicRequest).u16(0).u16(cmdDisc).u64(0).u64(0).u32(0))
			c.send.Unlock()
		}
	}
	err := c.conn.Close()
	<-c.done
	if !first {
		return nil
	}
	return err
}

// receive takes replies until the connection ends, and then answers all calls
// that are left with the reason.
func (c *Client) receive() {
	defer close(c.done)
	var err error
	for err == nil {
		err = c.reply()
	}
	c.fail(kind(err))
	c.mu.Lock()
	defer c.mu.Unlock()
	for cookie, k := range c.calls {
		delete(c.calls, cookie)
		k.err = c.dead
		close(k.done)
	}
}

func (c *Client) find(cookie uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.calls[cookie]
	if k == nil {
		return nil, protocolError("an answer to request %d, which is not open", cookie)
	}
	return k, nil
}

// finish answers a call.
func (c *Client) finish(cookie uint64, k *call) {
	c.mu.Lock()
	delete(c.calls, cookie)
	c.mu.Unlock()
	close(k.done)
}

func (c *Client) full(p []byte) error {
	_, err := io.ReadFull(c.in, p)
	return err
}
