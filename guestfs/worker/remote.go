package worker

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"sync"

	"lifeboat/disk"
)

// Pages of the disks that the worker keeps. A page has the size of what the
// repository decodes at once. A reader that goes through a disk in order gets
// more at a time; what is larger than a few pages is not kept.
const (
	pageSize   = 16 << 10
	aheadPages = 8
	bypassSize = 64 << 10
	cachePages = 1024 // 16 MiB
)

// remotes are the guest's disks as the worker has them: all through one socket.
//
// mu guards pending and pages; it is not held while anything is sent or waited
// for. A read registers itself before it is sent; the goroutine that receives
// fills its buffer and wakes it.
type remotes struct {
	conn *conn

	mu      sync.Mutex
	next    uint32
	pending map[uint32]*blockRead
	failed  error
	pages   map[pageKey]*list.Element
	order   list.List // of *page, latest in front
}

type blockRead struct {
	p    []byte
	err  error
	done chan struct{}
}

type pageKey struct {
	disk   int
	number int64
}

type page struct {
	key  pageKey
	data []byte
}

func newRemotes(c *conn) *remotes {
	return &remotes{conn: c, pending: map[uint32]*blockRead{}, pages: map[pageKey]*list.Element{}}
}

// receive takes in what was read, until the socket ends.
func (r *remotes) receive() error {
	for {
		n, id, code, err := r.conn.receiveHeader(maxRead)
		if err == nil {
			err = r.take(n, id, code)
		}
		if err != nil {
			r.fail(err)
			return err
		}
	}
}

func (r *remotes) take(n int, id uint32, code byte) error {
	r.mu.Lock()
	b := r.pending[id]
	delete(r.pending, id)
	r.mu.Unlock()
	if b == nil || code == codeOK && n != len(b.p) {
		return errProtocol
	}
	defer close(b.done)
	if code == codeOK {
		_, b.err = io.ReadFull(r.conn.file, b.p)
		return b.err
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r.conn.file, text); err != nil {
		b.err = err
		return err
	}
	b.err = decodeError(code, string(text))
	return nil
}

func (r *remotes) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = err
	for id, b := range r.pending {
		b.err = err
		close(b.done)
		delete(r.pending, id)
	}
}

// fetch reads p, of at most maxRead bytes, from a disk.
func (r *remotes) fetch(number int, p []byte, off int64) error {
	b := &blockRead{p: p, done: make(chan struct{})}
	r.mu.Lock()
	if r.failed != nil {
		r.mu.Unlock()
		return r.failed
	}
	r.next++
	id := r.next
	r.pending[id] = b
	r.mu.Unlock()
	e := newEncoder(16)
	e.u32(uint32(number))
	e.i64(off)
	e.u32(uint32(len(p)))
	if err := r.conn.send(id, 0, e.b); err != nil {
		return err // nobody waits for it: the socket has ended, and all with it
	}
	<-b.done
	return b.err
}

// remote is one disk.
type remote struct {
	all    *remotes
	number int
	size   int64
}

func (d *remote) Size() int64  { return d.size }
func (d *remote) Close() error { return nil }

// ReadAt implements [disk.Image].
func (d *remote) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, disk.ErrOutOfRange)
	}
	var short error
	if int64(len(p)) > d.size-off {
		p, short = p[:max(0, d.size-off)], io.EOF
	}
	done := 0
	for done < len(p) {
		n, err := d.some(p[done:], off+int64(done))
		if err != nil {
			return done, err
		}
		done += n
	}
	return done, short
}

// some reads the beginning of p.
func (d *remote) some(p []byte, off int64) (int, error) {
	if len(p) >= bypassSize {
		p = p[:min(len(p), maxRead)]
		return len(p), d.all.fetch(d.number, p, off)
	}
	number := off / pageSize
	data, err := d.page(number)
	if err != nil {
		return 0, err
	}
	return copy(p, data[off-number*pageSize:]), nil
}

// page returns a page, which is not to be changed.
func (d *remote) page(number int64) ([]byte, error) {
	if data := d.all.cached(pageKey{d.number, number}); data != nil {
		return data, nil
	}
	count := int64(1)
	if number > 0 && d.all.cached(pageKey{d.number, number - 1}) != nil {
		count = aheadPages
	}
	off := number * pageSize
	run := make([]byte, min(count*pageSize, d.size-off))
	if err := d.all.fetch(d.number, run, off); err != nil {
		return nil, err
	}
	first := run[:min(pageSize, len(run))]
	for i := int64(0); len(run) > 0; i++ {
		n := min(pageSize, len(run))
		// Each page on its own, so that a run is not kept for the sake of one.
		d.all.keep(pageKey{d.number, number + i}, append([]byte(nil), run[:n]...))
		run = run[n:]
	}
	return first, nil
}

func (r *remotes) cached(key pageKey) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.pages[key]
	if e == nil {
		return nil
	}
	r.order.MoveToFront(e)
	return e.Value.(*page).data
}

func (r *remotes) keep(key pageKey, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pages[key] != nil {
		return
	}
	r.pages[key] = r.order.PushFront(&page{key, data})
	if len(r.pages) > cachePages {
		delete(r.pages, r.order.Remove(r.order.Back()).(*page).key)
	}
}

// serveBlocks answers a worker's reads from the disks, until the socket ends.
// begin and end hear of each, so that waiting for a slow disk is not taken for a
// hang of the worker.
func serveBlocks(c *conn, disks []disk.Image, begin, end func()) error {
	const atOnce = 16
	slots := make(chan struct{}, atOnce)
	var frames sync.Pool // of *[]byte: a new one for each read costs more than the read
	var running sync.WaitGroup
	defer running.Wait()
	for {
		id, _, body, err := c.receive(64)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		d := decoder{b: body}
		number, off, n := d.u32(), d.i64(), d.u32()
		if d.end() != nil || number >= uint32(len(disks)) || n > maxRead || off < 0 || off > disks[number].Size()-int64(n) {
			return nonsense("a read outside the disks")
		}
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			begin()
			defer end()
			answerRead(c, id, disks[number], off, int(n), &frames)
		})
	}
}

// answerRead sends what was read, or why it was not. That nobody listens any more
// shows elsewhere.
func answerRead(c *conn, id uint32, img disk.Image, off int64, n int, frames *sync.Pool) {
	frame, ok := frames.Get().(*[]byte)
	if !ok || cap(*frame) < headerSize+n {
		frame = new([]byte)
		*frame = make([]byte, headerSize+n)
	}
	defer frames.Put(frame)
	b := (*frame)[:headerSize+n]
	m, err := img.ReadAt(b[headerSize:], off)
	if m == n {
		_ = c.send(id, codeOK, b)
		return
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	code, text := encodeError(err)
	_ = c.send(id, code, append(make([]byte, headerSize), text...))
}
