package worker

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"lifeboat/disk"
)

// process is a worker that runs, as the appliance sees it. It has three
// goroutines, which end with it: one receives replies, one serves blocks, one
// watches the time. gone closes when they and the child have ended.
type process struct {
	child *child
	opts  Options
	gone  chan struct{}
	ended chan struct{} // closed when it has failed: the first thing to happen

	mu      sync.Mutex
	pending map[uint32]*pendingCall
	next    uint32
	err     error // why it failed; nil: it runs
	clock   blockClock
}

type pendingCall struct {
	reply chan reply // of one
	began time.Time
	disks time.Duration // that the disks had taken when it began
	limit time.Duration
}

type reply struct {
	body []byte
	err  error
}

// blockClock is how long at least one read of the disks was under way.
type blockClock struct {
	reads int
	since time.Time
	total time.Duration
}

func (b *blockClock) at(now time.Time) time.Duration {
	if b.reads > 0 {
		return b.total + now.Sub(b.since)
	}
	return b.total
}

func newProcess(c *child, disks []disk.Image, opts Options) *process {
	p := &process{child: c, opts: opts, gone: make(chan struct{}), ended: make(chan struct{}), pending: map[uint32]*pendingCall{}}
	var running sync.WaitGroup
	running.Go(p.receive)
	running.Go(func() {
		// Any other end of the socket is that of the child, which says why.
		if err := serveBlocks(c.blocks, disks, p.reading(1), p.reading(-1)); errors.Is(err, errProtocol) {
			p.fail(&FailureError{Reason: err.Error()})
		}
	})
	running.Go(p.watch)
	go func() {
		err := c.cmd.Wait()
		p.fail(&FailureError{Reason: p.death(err)})
		running.Wait()
		close(p.gone)
	}()
	return p
}

// death says what ended the child.
func (p *process) death(err error) string {
	said := p.child.stderr.reason()
	var exit *exec.ExitError
	switch {
	case said != "":
		p.opts.Logger.Warn("the reader of a guest's file system died", "said", p.child.stderr.all())
		return "it died: " + said
	case errors.As(err, &exit) && exit.Sys() != nil:
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return fmt.Sprintf("it was killed (%v)", ws.Signal())
		}
		return fmt.Sprintf("it ended (%v)", err)
	}
	return "it ended"
}

// fail ends the process: everybody who waits for it gets err. Only the first
// reason counts.
func (p *process) fail(err error) {
	p.mu.Lock()
	if p.err != nil {
		p.mu.Unlock()
		return
	}
	p.err = err
	calls := p.pending
	p.pending = nil
	p.mu.Unlock()
	close(p.ended)
	p.child.kill()
	p.child.hangUp()
	for _, c := range calls {
		c.reply <- reply{err: err}
	}
}

func (p *process) failed() bool { return p.why() != nil }

func (p *process) why() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// receive hands replies to who waits for them.
func (p *process) receive() {
	for {
		id, code, body, err := p.child.control.receive(maxReply)
		if errors.Is(err, errProtocol) {
			p.fail(&FailureError{Reason: err.Error()})
		}
		if err != nil {
			return // the child's end says why
		}
		p.mu.Lock()
		c := p.pending[id]
		delete(p.pending, id)
		p.mu.Unlock()
		switch {
		case c == nil: // its caller has gone
		case code == codeOK:
			c.reply <- reply{body: body}
		default:
			c.reply <- reply{err: decodeError(code, string(body))}
		}
	}
}

// call sends a request and waits for the reply.
func (p *process) call(ctx context.Context, op byte, body []byte, limit time.Duration) ([]byte, error) {
	c := &pendingCall{reply: make(chan reply, 1), began: time.Now(), limit: limit}
	p.mu.Lock()
	if p.err != nil {
		p.mu.Unlock()
		return nil, p.err
	}
	id := p.next
	p.next++
	c.disks = p.clock.at(c.began)
	p.pending[id] = c
	p.mu.Unlock()
	if len(body) > headerSize+maxRequest {
		p.forget(id)
		return nil, errors.New("a request that is too long")
	}
	// If it cannot be sent the child is dying, and will answer by that.
	_ = p.child.control.send(id, op, body)
	select {
	case r := <-c.reply:
		return r.body, r.err
	case <-ctx.Done():
		if p.forget(id) {
			_ = p.child.control.send(id, opCancel, make([]byte, headerSize))
		}
		return nil, context.Cause(ctx)
	}
}

// forget takes a call back and reports whether it was still open.
func (p *process) forget(id uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.pending[id]
	delete(p.pending, id)
	return ok
}

// reading notes that reads of the disks begin (1) or end (-1).
func (p *process) reading(change int) func() {
	return func() {
		now := time.Now()
		p.mu.Lock()
		defer p.mu.Unlock()
		b := &p.clock
		b.total = b.at(now)
		b.since = now
		b.reads += change
	}
}

// watch ends a process that takes too long for a request.
func (p *process) watch() {
	tick := time.NewTicker(min(p.opts.Timeout/4, time.Second))
	defer tick.Stop()
	for {
		select {
		case <-p.ended:
			return
		case now := <-tick.C:
			if limit := p.late(now); limit > 0 {
				p.fail(&FailureError{Reason: fmt.Sprintf("it did not answer within %v", limit)})
				return
			}
		}
	}
}

// late is the limit that a call has passed, or 0.
func (p *process) late(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.pending {
		if now.Sub(c.began)-(p.clock.at(now)-c.disks) > c.limit {
			return c.limit
		}
	}
	return 0
}
