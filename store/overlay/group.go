package overlay

import "errors"

// group is a record being filled, or waiting to be written: the unit of group
// commit. Its place in the log is known from the start, so that what is put in
// it has its final position at once; only its length is open until it is sealed.
type group struct {
	file  *logFile
	at    uint32 // page in file of its header
	seq   uint64 // number of the record
	buf   []byte // header page, then payload
	cap   int    // payload pages that it may take
	pages int    // payload pages that it has
	runs  []run
	zeros bool // a run of zeros is among runs
}

// base is the position of the header; payload page i is at base+1+i.
func (g *group) base() position { return positionOf(g.file.seq, g.at) }
func (g *group) end() position  { return g.base() + position(1+g.pages) }

// payload returns the page at p, which lies in the group.
func (g *group) payload(p position) []byte {
	i := int(p-g.base()) * pageSize
	return g.buf[i : i+pageSize : i+pageSize]
}

// add takes a payload page for page, and returns where its content goes and its
// position.
func (g *group) add(page int64) ([]byte, position) {
	if last := len(g.runs) - 1; last >= 0 && !g.runs[last].zero && g.runs[last].page+g.runs[last].count == page {
		g.runs[last].count++
	} else {
		g.runs = append(g.runs, run{page: page, count: 1})
	}
	g.pages++
	p := g.base() + position(g.pages)
	return g.payload(p), p
}

// addZeros takes a run of zeros, of at most maxRunLength pages.
func (g *group) addZeros(page, count int64) {
	g.zeros = true
	if last := len(g.runs) - 1; last >= 0 && g.runs[last].zero &&
		g.runs[last].page+g.runs[last].count == page && g.runs[last].count+count <= maxRunLength {
		g.runs[last].count += count
		return
	}
	g.runs = append(g.runs, run{page: page, count: count, zero: true})
}

// record returns the bytes to be written, sealed.
func (g *group) record(key, durable uint64) []byte {
	h := recordHeader{
		overlay: key, file: g.file.seq, epoch: g.file.epoch, seq: g.seq,
		durable: durable, at: g.at, pages: g.pages, runs: g.runs,
	}
	buf := g.buf[:h.size()]
	h.seal(buf)
	return buf
}

// Why a write cannot be taken at once. They do not leave the package.
var (
	errNoBuffer  = errors.New("all buffers are waiting to be written")
	errNoFile    = errors.New("the next log file is not ready")
	errLogFull   = errors.New("the log is full until the checkpoint ends")
	errNoContent = errors.New("the old content of a page is not in memory")
)

// reserve sees to it that the open group has room for so many payload pages and
// runs: buffer, log space and all, so that what follows cannot fail. Where that
// takes waiting it waits or, without wait, fails at once. Caller holds mu, which
// is released while waiting: what the caller looked up before is stale then.
func (o *Overlay) reserve(pages, runs int, wait bool) error {
	for {
		if err := o.usable(); err != nil {
			return err
		}
		if g := o.open; g != nil {
			if g.pages+pages <= g.cap && len(g.runs)+runs <= recordRuns {
				return nil
			}
			o.seal()
			ring(o.wakers.write)
		}
		err := o.openGroup(pages)
		switch {
		case err == nil:
			continue
		case !wait:
			o.hasten(err)
			return err
		case err == errNoBuffer:
			o.change.Wait()
			err = nil
		case err == errNoFile:
			err = o.waitFile()
		case err == errLogFull:
			err = o.waitCheckpoint()
		}
		if err != nil {
			return err
		}
	}
}

// hasten starts what a writer that could not wait will wait for when it comes
// again. Caller holds mu.
func (o *Overlay) hasten(err error) {
	switch err {
	case errNoFile:
		o.shelf.urgent = true
		ring(o.wakers.prepare)
	case errLogFull:
		o.wantCheckpoint()
	}
}

// openGroup opens a group with room for so many pages. Caller holds mu, and
// there is no open group.
func (o *Overlay) openGroup(need int) error {
	if o.logged >= o.logBytes {
		if o.frozen != nil {
			return errLogFull
		}
		o.wantCheckpoint()
	}
	if o.buffers >= maxBuffers {
		return errNoBuffer
	}
	f := o.cur
	full := f == nil || f.pages-f.used < uint32(need)+1
	if next := o.shelf.next; next != nil && (full || !f.prepared() && next.prepared()) {
		f, o.cur, o.shelf.next = next, next, nil
		o.files[f.seq] = f
	} else if full {
		return errNoFile
	}
	o.wantFile()
	g := o.takeGroup()
	*g = group{
		file: f, at: f.used, seq: o.nextRec, buf: g.buf, runs: g.runs[:0],
		cap: min(o.recPages, int(f.pages-f.used)-1),
	}
	o.open = g
	return nil
}

func (o *Overlay) takeGroup() *group {
	o.buffers++
	if last := len(o.free) - 1; last >= 0 {
		g := o.free[last]
		o.free = o.free[:last]
		return g
	}
	return &group{buf: make([]byte, (1+o.recPages)*pageSize), runs: make([]run, 0, recordRuns)}
}

// release takes back a group that nobody reads from any more. Caller holds mu.
func (o *Overlay) release(g *group) {
	o.buffers--
	if len(o.free) < keptBuffers {
		o.free = append(o.free, g)
	}
	o.change.Broadcast()
}

// seal closes the open group, if there is one, and queues it to be written.
// Caller holds mu.
func (o *Overlay) seal() {
	g := o.open
	if g == nil {
		return
	}
	o.open = nil
	if len(g.runs) == 0 {
		o.release(g)
		return
	}
	g.file.used = g.at + 1 + uint32(g.pages)
	o.nextRec++
	o.logged += int64(1+g.pages) * pageSize
	o.stats.pages += int64(1 + g.pages)
	o.queue = append(o.queue, g)
}

// inMemory returns the content of the page at p if it has not reached the file,
// else nil. Positions ascend, and groups leave memory in order: what lies
// behind the start of a group in memory lies in it or in a later one. Caller
// holds mu, shared at least, as long as it uses the content.
func (o *Overlay) inMemory(p position) []byte {
	if g := o.open; g != nil && p > g.base() {
		return g.payload(p)
	}
	for i := len(o.queue) - 1; i >= 0; i-- {
		if g := o.queue[i]; p > g.base() {
			return g.payload(p)
		}
	}
	return nil
}
