package nfsserver

import (
	"net"
	"sync"
	"time"
)

// The output of a connection has one discipline: whoever writes to the socket
// holds the turn (busy), and everybody else appends whole replies to the queue.
//
//	reader goroutine   writes its batch of inline replies itself when nobody
//	                   has the turn and nothing is queued (the fast path: no
//	                   hand-over), else queues it and waits while too much is queued
//	workers, syncs     only ever queue: they are never held up by a slow client
//	writer goroutine   takes the turn and writes what is queued, in one writev
//
// What workers may queue is bounded before they start, by the memory that the
// scheduler reserves for their replies and that release gives back after the
// write.

// chunk is a run of whole replies on its way out.
type chunk struct {
	b    []byte
	own  *buffer // to be recycled after the write; may be nil
	cost int     // reserved memory to be released after the write, bytes
}

type outbox struct {
	nc      net.Conn
	pool    *buffers
	timeout time.Duration
	limit   int // bytes queued above which the reader waits
	// release gives back reserved memory. It is called without mu.
	release func(cost int)

	wake chan struct{} // of the writer goroutine; capacity 1

	mu     sync.Mutex
	turn   sync.Cond // queue shrank, or err was set
	queue  []chunk
	bytes  int // in queue and in the writer's hands
	busy   bool
	err    error // sticky
	spare  []chunk
	vector net.Buffers // the writer's, reused
}

func newOutbox(nc net.Conn, pool *buffers, timeout time.Duration, limit int, release func(int)) *outbox {
	o := &outbox{nc: nc, pool: pool, timeout: timeout, limit: limit, release: release, wake: make(chan struct{}, 1)}
	o.turn.L = &o.mu
	return o
}

// send writes replies at once if it can, and reports whether it did; otherwise
// they have been queued and the caller no longer owns the buffer.
func (o *outbox) send(b *buffer) (written bool, err error) {
	o.mu.Lock()
	if o.err != nil {
		defer o.mu.Unlock()
		return true, o.err
	}
	if o.busy || len(o.queue) > 0 {
		defer o.mu.Unlock()
		o.add(chunk{b: b.b, own: b})
		for o.bytes > o.limit && o.err == nil {
			o.turn.Wait()
		}
		return false, o.err
	}
	o.busy = true
	o.mu.Unlock()
	_ = o.nc.SetWriteDeadline(time.Now().Add(o.timeout))
	_, err = o.nc.Write(b.b)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.busy = false
	if err != nil {
		o.fail(err)
	}
	if len(o.queue) > 0 {
		o.poke()
	}
	return true, err
}

// post queues replies for the writer goroutine. It never blocks.
func (o *outbox) post(c chunk) {
	o.mu.Lock()
	if o.err != nil {
		o.mu.Unlock()
		o.drop(c)
		return
	}
	o.add(c)
	if !o.busy {
		o.poke()
	}
	o.mu.Unlock()
}

func (o *outbox) add(c chunk) {
	o.queue = append(o.queue, c)
	o.bytes += len(c.b)
}

func (o *outbox) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// fail makes err sticky and ends the connection: its reader may be waiting for
// a client that will never send again. The caller holds mu.
func (o *outbox) fail(err error) {
	if o.err == nil {
		o.err = err
		_ = o.nc.Close()
	}
	o.turn.Broadcast()
}

// failure is the error that ended the output, if one did.
func (o *outbox) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// run is the writer goroutine. It ends when done is closed and the queue is
// empty, or when the socket fails.
func (o *outbox) run(done <-chan struct{}) {
	for {
		more := true
		select {
		case <-o.wake:
		case <-done:
			more = false
		}
		if !o.drain() || !more {
			return
		}
	}
}

// drain writes everything queued, and reports whether the socket still works.
func (o *outbox) drain() bool {
	o.mu.Lock()
	for len(o.queue) > 0 && !o.busy && o.err == nil {
		taken := o.queue
		o.queue, o.spare = o.spare[:0], nil
		o.busy = true
		o.mu.Unlock()
		n, err := o.write(taken)
		o.mu.Lock()
		o.busy = false
		o.bytes -= n
		o.spare = taken[:0]
		if err != nil {
			o.fail(err)
		}
		o.turn.Broadcast()
	}
	lost := o.queue
	if o.err != nil {
		o.queue, o.bytes = nil, 0
	}
	failed := o.err != nil
	o.mu.Unlock()
	if failed {
		for _, c := range lost {
			o.drop(c)
		}
	}
	return !failed
}

// write sends the chunks in one writev and recycles them.
func (o *outbox) write(chunks []chunk) (n int, err error) {
	o.vector = o.vector[:0]
	for _, c := range chunks {
		o.vector = append(o.vector, c.b)
		n += len(c.b)
	}
	_ = o.nc.SetWriteDeadline(time.Now().Add(o.timeout))
	v := o.vector // WriteTo consumes its receiver
	_, err = v.WriteTo(o.nc)
	clear(o.vector)
	for i, c := range chunks {
		o.drop(c)
		chunks[i] = chunk{}
	}
	return n, err
}

// drop recycles a chunk that was written or never will be.
func (o *outbox) drop(c chunk) {
	if c.own != nil {
		o.pool.put(c.own)
	}
	if c.cost > 0 {
		o.release(c.cost)
	}
}
