package overlay

import (
	"bytes"
	"fmt"
	"io"

	"lifeboat/disk"
)

// WriteAt implements disk.Device. A piece that covers up to 1 MiB (256 pages) is
// taken or refused as a whole.
func (o *Overlay) WriteAt(p []byte, off int64) (int, error) {
	if err := o.inside(off, int64(len(p))); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		n := min(len(p)-done, o.recPages*pageSize-int(at%pageSize))
		if err := o.writePiece(p[done:done+n], at, true); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

// TryWriteAt implements disk.TryWriter.
func (o *Overlay) TryWriteAt(p []byte, off int64) (bool, error) {
	if err := o.inside(off, int64(len(p))); err != nil {
		return true, err
	}
	if len(p) == 0 {
		return true, nil
	}
	if len(p) > o.recPages*pageSize-int(off%pageSize) {
		return false, nil
	}
	switch err := o.writePiece(p, off, false); err {
	case errNoBuffer, errNoFile, errLogFull, errNoContent:
		return false, nil
	default:
		return true, err
	}
}

func (o *Overlay) inside(off, length int64) error {
	if off < 0 || length < 0 || off > o.size-length {
		return fmt.Errorf("overlay %s: write of %d bytes at %d on a disk of %d: %w", o.dir, length, off, o.size, disk.ErrOutOfRange)
	}
	return nil
}

// piece is a write of at most recPages pages, and what was found out about it
// before the lock is taken.
type piece struct {
	p     []byte
	off   int64
	first int64 // page
	count int   // pages
	zero  [recordPages/64 + 1]uint64
	data  int // pages that are not all zeros
	runs  int // runs of the two kinds
}

func (o *Overlay) newPiece(p []byte, off int64) piece {
	w := piece{p: p, off: off, first: off / pageSize}
	w.count = int((off+int64(len(p))-1)/pageSize-w.first) + 1
	was := -1
	for i := range w.count {
		is := 0
		if part, _ := w.part(i); !o.partial(&w, i) && isZero(part) {
			w.zero[i/64] |= 1 << (i % 64)
			is = 1
		} else {
			w.data++
		}
		if is != was {
			w.runs++
			was = is
		}
	}
	return w
}

// isZero compares p with itself, shifted by one byte.
func isZero(p []byte) bool {
	return p[0] == 0 && (len(p) == 1 || bytes.Equal(p[1:], p[:len(p)-1]))
}

func (w *piece) isZero(i int) bool { return w.zero[i/64]&(1<<(i%64)) != 0 }

// part returns what the piece has for its page i, and where in the page that
// begins.
func (w *piece) part(i int) ([]byte, int) {
	from := (w.first+int64(i))*pageSize - w.off
	if from < 0 {
		return w.p[:min(int64(len(w.p)), from+pageSize)], int(-from)
	}
	return w.p[from:min(int64(len(w.p)), from+pageSize)], 0
}

// partial reports whether page i keeps some of its old content. Of the page in
// which the disk ends, only what lies before the end counts.
func (o *Overlay) partial(w *piece, i int) bool {
	part, at := w.part(i)
	page := w.first + int64(i)
	return at > 0 || int64(len(part)) < min(pageSize, o.size-page*pageSize)
}

// writePiece writes one piece. All of it becomes visible at once.
func (o *Overlay) writePiece(p []byte, off int64, wait bool) error {
	w := o.newPiece(p, off)
	if !o.partial(&w, 0) && (w.count == 1 || !o.partial(&w, w.count-1)) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if err := o.reserve(w.data, w.runs, wait); err != nil {
			return err
		}
		o.take(&w, nil)
		return nil
	}
	edges := o.edges.Get().(*edges)
	defer o.edges.Put(edges)
	return o.writeEdged(&w, edges, wait)
}

// edges are the first and the last page of a piece, completed with their old
// content where the piece does not cover them.
type edges [2]edge

type edge struct {
	page   int64 // -1: the piece covers it
	loaded bool
	seen   version
	buf    [pageSize]byte // old content
}

// of returns the edge that is page; e may be nil.
func (e *edges) of(page int64) *edge {
	for i := range e {
		if e != nil && e[i].page == page {
			return &e[i]
		}
	}
	return nil
}

// version identifies the content of a page that is not in memory: as long as it
// is the same, so is the content. The epoch changes with every checkpoint, so
// that a page that went through the log into the data file never looks as if it
// had stayed there.
type version struct {
	state pageState
	pos   position
	epoch uint32
}

// version returns the version of page, or its content if that is in memory.
// Caller holds mu, shared at least.
func (o *Overlay) version(page int64) (version, []byte) {
	v := version{state: o.state.get(page), epoch: o.gate.epoch}
	if v.state == holdsData {
		if v.pos = o.lookup(page); v.pos != 0 {
			return v, o.inMemory(v.pos)
		}
	}
	return v, nil
}

// writeEdged is read-modify-write without a lock over the reading: the old
// content is read, and used only if it is still the page's when the lock is held
// again. Each new round means that another write went through, and pages just
// written are in memory, so that there are few.
func (o *Overlay) writeEdged(w *piece, e *edges, wait bool) error {
	for i := range e {
		e[i].page, e[i].loaded = -1, false
	}
	if o.partial(w, 0) {
		e[0].page = w.first
	}
	if last := w.count - 1; last > 0 && o.partial(w, last) {
		e[1].page = w.first + int64(last)
	}
	for {
		need, err := o.tryEdged(w, e, wait)
		if err != nil || need == nil {
			return err
		}
		if err := o.load(need, wait); err != nil {
			return err
		}
	}
}

// tryEdged writes the piece if the old content of its edges is known, and
// otherwise returns the edge to load first.
func (o *Overlay) tryEdged(w *piece, e *edges, wait bool) (*edge, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.reserve(w.data, w.runs, wait); err != nil {
		return nil, err
	}
	for i := range e {
		if e[i].page >= 0 && !o.current(&e[i]) {
			return &e[i], nil
		}
	}
	o.take(w, e)
	return nil, nil
}

// current reports whether e.buf is the page's content now; if not, e.seen says
// what would be. Caller holds mu.
func (o *Overlay) current(e *edge) bool {
	v, content := o.version(e.page)
	switch {
	case content != nil:
		copy(e.buf[:], content)
		return true
	case v.state == holdsZeros:
		clear(e.buf[:])
		return true
	case e.loaded && v == e.seen:
		return true
	}
	e.seen, e.loaded = v, false
	return false
}

// load reads the old content of e's page.
func (o *Overlay) load(e *edge, wait bool) error {
	off := e.page * pageSize
	p := e.buf[:min(pageSize, o.size-off)]
	clear(e.buf[len(p):])
	e.loaded = true
	if o.ReadCached(p, off) {
		return nil
	}
	if !wait {
		return errNoContent
	}
	if n, err := o.ReadAt(p, off); n < len(p) && err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("overlay: page at %d, of which a part is to be written: %w", off, err)
	}
	return nil
}

// take puts the piece into the open group, where reserve made room for it.
// Caller holds mu, and the edges are current.
func (o *Overlay) take(w *piece, e *edges) {
	for i := 0; i < w.count; {
		n := 1
		for i+n < w.count && w.isZero(i+n) == w.isZero(i) {
			n++
		}
		page := w.first + int64(i)
		if w.isZero(i) {
			o.putZeros(page, int64(n))
		} else {
			for j := i; j < i+n; j++ {
				o.put(w, j, e)
			}
			o.state.set(page, int64(n), holdsData)
		}
		i += n
	}
	o.stats.bytes += int64(len(w.p))
	o.stats.writes++
}

// put copies page i of the piece into the open group: over what the group
// already has for it, where that changes nothing for replay.
func (o *Overlay) put(w *piece, i int, e *edges) {
	g, page := o.open, w.first+int64(i)
	ref := o.active.ref(page)
	var dst []byte
	if *ref > g.base() && !g.zeros {
		dst = g.payload(*ref)
	} else {
		dst, *ref = g.add(page)
	}
	part, in := w.part(i)
	if old := e.of(page); old != nil {
		copy(dst, old.buf[:])
	} else {
		clear(dst[len(part):]) // nothing, but where the disk ends within the page
	}
	copy(dst[in:], part)
}

// putZeros makes pages read as zeros, unless they do by the overlay's doing.
// Caller holds mu and has reserved the runs.
func (o *Overlay) putZeros(page, count int64) {
	if o.allZeros(page, count) {
		return
	}
	o.state.set(page, count, holdsZeros)
	for count > 0 {
		n := min(count, maxRunLength)
		o.open.addZeros(page, n)
		page, count = page+n, count-n
	}
}

func (o *Overlay) allZeros(page, count int64) bool {
	for end := page + count; page < end; {
		st, n := o.state.run(page, end)
		if st != holdsZeros {
			return false
		}
		page += n
	}
	return true
}

// Zero implements disk.Zeroer. Whole pages cost a few bytes of log, however
// many they are.
func (o *Overlay) Zero(off, length int64) error {
	if err := o.inside(off, length); err != nil {
		return err
	}
	end := off + length
	first, last := (off+pageSize-1)/pageSize, end/pageSize
	if end == o.size {
		last = o.pages
	}
	if first >= last { // within a page, or two
		_, err := o.WriteAt(make([]byte, length), off)
		return err
	}
	if head := first*pageSize - off; head > 0 {
		if _, err := o.WriteAt(make([]byte, head), off); err != nil {
			return err
		}
	}
	if err := o.zeroPages(first, last-first); err != nil {
		return err
	}
	if tail := end - last*pageSize; tail > 0 {
		_, err := o.WriteAt(make([]byte, tail), last*pageSize)
		return err
	}
	return nil
}

func (o *Overlay) zeroPages(page, count int64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.reserve(0, int(count/maxRunLength)+2, true); err != nil {
		return err
	}
	o.putZeros(page, count)
	o.stats.writes++
	return nil
}
