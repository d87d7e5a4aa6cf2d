package nfsserver

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
)

// flushAt is how many bytes of inline replies are gathered before they are
// written although more requests are in the input.
const flushAt = 256 << 10

// conn is one client connection. Its reader goroutine owns everything below
// that is not said to be shared.
type conn struct {
	srv    *Server
	nc     net.Conn
	client netip.Addr
	serves programs
	log    *slog.Logger

	in    *recordReader
	out   *outbox      // shared
	lane  *lane        // shared, under the scheduler's lock
	batch *buffer      // replies of this turn, not yet sent; nil between turns
	wide  bool         // the last turn needed more than a middle buffer
	held  []*syncGroup // replies of this turn that wait for a sync
	call  call         // the request being answered
	// replyAt is where in the batch its reply begins.
	replyAt int
}

func newConn(s *Server, nc net.Conn, client netip.Addr, serves programs) *conn {
	c := &conn{srv: s, nc: nc, client: client, serves: serves}
	c.log = s.log.With(slog.String("client", nc.RemoteAddr().String()))
	c.in = newRecordReader(nc, maxRecord)
	c.lane = s.sched.newLane()
	c.out = newOutbox(nc, &s.buffers, s.opt.Limits.WriteTimeout, s.opt.Limits.MemoryPerConnection/2,
		func(n int) { s.sched.release(c.lane, n) })
	return c
}

// serve answers the connection's requests until the client leaves, sends
// something that is no RPC record, or stop interrupts the reading. All requests
// taken by then are answered and flushed before it returns.
func (c *conn) serve() {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		c.out.run(done)
	}()
	err := c.loop()
	if !errors.Is(err, io.EOF) && !c.srv.stopping() {
		// Nobody waits for the answers to what has not been started.
		c.srv.sched.discard(c.lane, c.srv.freeTask)
	}
	c.srv.sched.settle(c.lane)
	close(done)
	<-ended
	_ = c.nc.Close()
	c.logEnd(err, c.out.failure())
}

// logEnd says why the connection ended, where that is of interest.
func (c *conn) logEnd(in, out error) {
	switch {
	case errors.Is(in, errRecord), errors.Is(in, errNotCall):
		c.log.Warn("nfs: connection closed: its input is not RPC", "err", in)
	case errors.Is(out, os.ErrDeadlineExceeded):
		c.log.Warn("nfs: connection closed: the client does not take its replies", "timeout", c.srv.opt.Limits.WriteTimeout)
	case out != nil:
		c.log.Debug("nfs: connection lost", "err", out)
	case !errors.Is(in, io.EOF) && !c.srv.stopping():
		c.log.Debug("nfs: connection lost", "err", in)
	}
}

// loop is one turn after the other: read once, answer every complete request
// in the input, flush once.
func (c *conn) loop() error {
	for {
		if err := c.in.fill(); err != nil {
			return err
		}
		c.batch = c.newBatch()
		err := c.turn()
		if err = errors.Join(err, c.endTurn()); err != nil {
			return err
		}
	}
}

func (c *conn) turn() error {
	c.wide = false
	for {
		rec, ok, err := c.in.next()
		if err != nil || !ok {
			return err
		}
		if err := c.answer(rec); err != nil {
			return err
		}
		if len(c.batch.b) >= flushAt {
			if err := c.flush(); err != nil {
				return err
			}
		}
	}
}

// endTurn starts the syncs that replies wait for, sends the other replies and
// gives the batch's memory back: an idle connection holds none.
func (c *conn) endTurn() error {
	c.startSyncs()
	err := c.flush()
	c.srv.buffers.put(c.batch)
	c.batch = nil
	return err
}

// beforeWaiting is called when the reader is about to wait for room: nothing
// that is ready may wait with it.
func (c *conn) beforeWaiting() {
	c.startSyncs()
	_ = c.flush() // an error is the outbox's, and comes again at the end of the turn
	c.replyAt = 0
}

func (c *conn) newBatch() *buffer {
	if c.wide {
		return c.srv.buffers.get(largeBuffer)
	}
	return c.srv.buffers.get(middleBuffer)
}

// flush sends the gathered replies.
func (c *conn) flush() error {
	if len(c.batch.b) == 0 {
		return nil
	}
	written, err := c.out.send(c.batch)
	if written {
		c.batch.b = c.batch.b[:0]
	} else {
		c.batch = c.newBatch()
	}
	return err
}

// makeRoom sees to it that n bytes can be appended to the batch without the
// batch being moved by append, which would leave the pools behind.
func (c *conn) makeRoom(n int) {
	have := len(c.batch.b)
	if cap(c.batch.b)-have >= n {
		return
	}
	if have > 0 && have+n > largeBuffer {
		_ = c.flush() // an error is the outbox's, and comes again at the end of the turn
		have = 0
	}
	c.wide = true
	b := c.srv.buffers.get(max(have+n, largeBuffer))
	b.b = append(b.b, c.batch.b...)
	c.srv.buffers.put(c.batch)
	c.batch = b
}

// answer takes care of one record: it appends the reply to the batch, or hands
// the request on. An error ends the connection.
//
// A panic is contained: what the request had appended is cut off, and it is
// answered with SYSTEM_ERR.
func (c *conn) answer(rec []byte) (err error) {
	c.replyAt = len(c.batch.b)
	x := &c.call
	defer func() {
		if p := recover(); p != nil {
			c.srv.logPanic(x, p)
			c.batch.b = appendAccepted(c.batch.b[:c.replyAt], x.xid, acceptSystemErr)
		}
	}()
	*x = call{srv: c.srv, client: c.client, args: decoder{b: rec}}
	if err := parseHeader(&x.args, &x.header); err != nil {
		if errors.Is(err, errNotCall) {
			return err
		}
		c.batch.b = appendHeaderError(c.batch.b, x.xid, err)
		return nil
	}
	p, out := c.srv.route(x, c.serves, c.batch.b)
	if p == nil {
		c.batch.b = out
		return nil
	}
	c.run(x, p)
	return nil
}

// run answers x inline if its procedure can, and gives it to a worker if not.
func (c *conn) run(x *call, p *procedure) {
	x.proc = p
	x.begin()
	if p.inline == nil {
		c.enqueue(x)
		return
	}
	if p.room != nil {
		c.makeRoom(replyOverhead + p.room(x))
	}
	start := len(c.batch.b)
	c.replyAt = start
	args := x.args
	out, v := p.inline(x, beginReply(c.batch.b, x.xid, acceptSuccess))
	switch v {
	case done:
		c.batch.b = endReply(out, start)
		x.count(len(out) - start)
	case garbage:
		c.batch.b = appendAccepted(out[:start], x.xid, acceptGarbageArgs)
		x.count(replyOverhead)
	case wait:
		c.batch.b = out[:start]
		x.args = args
		c.enqueue(x)
	case held:
		c.hold(x, out[start:])
		c.batch.b = out[:start]
	}
}

// enqueue queues x for a worker, with a copy of its arguments: the record's
// memory is the reader's.
func (c *conn) enqueue(x *call) {
	t := c.srv.newTask()
	t.args = c.srv.buffers.get(len(x.args.b))
	t.args.b = append(t.args.b, x.args.b...)
	t.conn, t.call = c, *x
	t.call.onWorker = true
	t.call.args = decoder{b: t.args.b}
	t.class, t.outCost = x.proc.class, replyOverhead+x.proc.roomFor(x)
	t.argCost = len(x.args.b) + taskOverhead
	if !c.srv.sched.submit(c.lane, t) {
		c.beforeWaiting()
		c.srv.sched.awaitRoom(c.lane)
	}
}

// taskOverhead is what a waiting request costs beside its arguments, bytes.
const taskOverhead = 1024

// logPanic records a contained panic.
func (s *Server) logPanic(x *call, p any) {
	s.log.Error("nfs: a request failed inside the server (panic); it was answered with SYSTEM_ERR: please report this",
		"client", x.client.String(), "prog", x.prog, "proc", x.header.proc, "panic", p, "stack", string(debug.Stack()))
}
