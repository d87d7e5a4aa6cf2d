package overlay

import (
	"errors"
	"fmt"
	"io"
	"math"
)

// replay brings the state and the index up to the end of the log.
//
// Records are numbered without gaps. A file's records end where the next one
// expected is not there whole: nothing was ever written there, it was never
// synced and is torn, or it is damaged. The three are told apart by what
// follows. A later file has records only if everything before it was durable
// when the file was begun (writeOut), so its first record says where this file
// must have ended. And each record says up to which one all was durable when it
// was written: one that lies further on in the same file and counts the missing
// one as durable proves damage. A missing record without either was never
// acknowledged, and what follows it neither.
type replay struct {
	overlay *Overlay
	logs    []*logFile // in order
	next    uint64     // record expected
	records int64      // applied

	buf   []byte // window on a file
	in    *logFile
	start int64
}

// windowBytes is how much of a log file is read at a time. A whole record fits.
const windowBytes = 4 << 20

// searchBytes is how far behind a missing record one is looked for that proves
// it was durable.
const searchBytes = 16 << 20

func (r *replay) run() error {
	longest := int64(0)
	for _, f := range r.logs {
		longest = max(longest, int64(f.pages)*pageSize)
	}
	r.buf = make([]byte, 0, min(windowBytes, longest))
	for i, f := range r.logs {
		limit, err := r.firstOf(r.logs[i+1:])
		if err != nil {
			return err
		}
		if err := r.file(f, limit); err != nil {
			return err
		}
		if f.used == 0 {
			continue
		}
		// What a killed process wrote may not be on the device yet. We build on
		// it from here on.
		if err := f.f.Sync(); err != nil {
			return fmt.Errorf("overlay %s: sync of %s: %w", r.overlay.dir, f.name, err)
		}
	}
	return nil
}

// firstOf returns the number of the first record of the first of files that has
// any, or MaxUint64.
func (r *replay) firstOf(files []*logFile) (uint64, error) {
	for _, f := range files {
		h, _, err := r.record(f, 0)
		if err != nil {
			return 0, err
		}
		if h != nil {
			return h.seq, nil
		}
	}
	return math.MaxUint64, nil
}

// file applies the records of f, which are those before limit.
func (r *replay) file(f *logFile, limit uint64) error {
	for f.used < f.pages && r.next < limit {
		h, at, err := r.record(f, f.used)
		if err != nil {
			return err
		}
		if h == nil || (f.used > 0 && h.epoch != f.epoch) {
			break
		}
		if h.seq != r.next {
			if f.used == 0 {
				return r.missing(f, at)
			}
			break
		}
		f.epoch = h.epoch
		r.apply(f, h)
	}
	if limit != math.MaxUint64 && r.next != limit {
		return r.missing(f, int64(f.used)*pageSize)
	}
	if limit == math.MaxUint64 {
		return r.search(f)
	}
	return nil
}

func (r *replay) missing(f *logFile, at int64) error {
	return &DamageError{File: f.name, Offset: at, Reason: fmt.Sprintf("record %d should follow here, which was durable", r.next)}
}

// search looks behind the end of f's records for proof that one is missing.
func (r *replay) search(f *logFile) error {
	end := min(int64(f.pages), int64(f.used)+searchBytes/pageSize)
	for page := int64(f.used); page < end; page++ {
		h, _, err := r.record(f, uint32(page))
		if err != nil {
			return err
		}
		if h != nil && h.durable >= r.next && (f.used == 0 || h.epoch == f.epoch) {
			return r.missing(f, int64(f.used)*pageSize)
		}
	}
	return nil
}

// record returns the record at a page of f and its offset, or nil if there is
// none whole that was written to this place in this file by this overlay.
func (r *replay) record(f *logFile, page uint32) (*recordHeader, int64, error) {
	at := int64(page) * pageSize
	p, err := r.window(f, at, pageSize)
	if err != nil || len(p) < pageSize || string(p[:len(recordMagic)]) != recordMagic {
		return nil, at, err
	}
	h, ok := parseHeader(p, r.overlay.pages)
	if !ok || h.overlay != r.overlay.meta.key() || h.file != f.seq || h.at != page || h.durable >= h.seq {
		return nil, at, nil
	}
	p, err = r.window(f, at, h.size())
	if err != nil || len(p) < h.size() || !intact(p) {
		return nil, at, err
	}
	return &h, at, nil
}

// window returns n bytes of f at off, or fewer where the file ends.
func (r *replay) window(f *logFile, off int64, n int) ([]byte, error) {
	if r.in != f || off < r.start || off+int64(n) > r.start+int64(len(r.buf)) {
		length := min(int64(cap(r.buf)), int64(f.pages)*pageSize-off)
		got, err := f.f.ReadAt(r.buf[:max(0, length)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("overlay %s: reading log file %s: %w", r.overlay.dir, f.name, err)
		}
		r.in, r.start, r.buf = f, off, r.buf[:got]
	}
	p := r.buf[off-r.start:]
	return p[:min(n, len(p))], nil
}

// apply does to state and index what writing the record did.
func (r *replay) apply(f *logFile, h *recordHeader) {
	o := r.overlay
	pos := positionOf(f.seq, f.used+1)
	for _, run := range h.runs {
		if run.zero {
			o.state.set(run.page, run.count, holdsZeros)
			continue
		}
		o.state.set(run.page, run.count, holdsData)
		for page := run.page; page < run.page+run.count; page++ {
			*o.active.ref(page) = pos
			pos++
		}
	}
	f.used += uint32(1 + h.pages)
	r.next++
	r.records++
}
