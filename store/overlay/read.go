package overlay

import (
	"errors"
	"fmt"
	"io"

	"lifeboat/disk"
)

// source is a part of a read that comes from one place.
type source struct {
	dst  []byte
	off  int64      // in file, or in the base
	file *localFile // nil: the base
}

// maxSources bounds a plan; a read of more parts is planned in several steps.
const maxSources = 16

// plan says where the next bytes of a read come from. What is in memory or zero
// is filled in while planning.
type plan struct {
	list  [maxSources]source
	n     int
	slot  uint32 // of the gate
	gated bool
}

// add notes that dst comes from file (nil: the base) at off. It reports false if
// there is no more room.
func (pl *plan) add(dst []byte, file *localFile, off int64) bool {
	if pl.n > 0 {
		// Parts that lie one after the other in the same file, and in the read,
		// are one.
		if s := &pl.list[pl.n-1]; s.file == file && s.off+int64(len(s.dst)) == off &&
			cap(s.dst) > len(s.dst) && &s.dst[:len(s.dst)+1][len(s.dst)] == &dst[0] {
			s.dst = s.dst[:len(s.dst)+len(dst)]
			return true
		}
	}
	if pl.n == maxSources {
		return false
	}
	pl.list[pl.n] = source{dst: dst, off: off, file: file}
	pl.n++
	return true
}

// plan plans the read of p at off, which lies inside the disk, as far as it
// goes, and returns how many bytes that is. When the plan is gated, the caller
// leaves the gate once it has read the parts that come from files.
func (o *Overlay) plan(pl *plan, p []byte, off int64) (int, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.closed {
		return 0, o.errClosed()
	}
	done, last := 0, (off+int64(len(p))-1)/pageSize+1
	for done < len(p) {
		at := off + int64(done)
		page := at / pageSize
		st, run := o.state.run(page, last)
		part := p[done:min(int64(len(p)), (page+run)*pageSize-off)]
		n, err := len(part), error(nil)
		switch st {
		case absent:
			if !pl.add(part, nil, at) {
				n = 0
			}
		case holdsZeros:
			clear(part)
		default:
			n, err = o.planData(pl, part, at)
		}
		if err != nil {
			return 0, err
		}
		done += n
		if n < len(part) {
			break
		}
	}
	for i := range pl.n {
		if pl.list[i].file != nil {
			pl.slot, pl.gated = o.gate.enter(), true
			break
		}
	}
	return done, nil
}

// planData plans the read of pages that hold data. Caller holds mu, shared.
func (o *Overlay) planData(pl *plan, p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		at := off + int64(done)
		page, in := at/pageSize, at%pageSize
		part := p[done:min(len(p), done+int(pageSize-in))]
		pos := o.lookup(page)
		if pos == 0 {
			file, start := o.data.at(page)
			if file == nil {
				return 0, o.data.missing(page)
			}
			if !pl.add(part, file, start+in) {
				return done, nil
			}
		} else if content := o.inMemory(pos); content != nil {
			copy(part, content[in:])
		} else if o.failed != nil && pos >= o.durableEnd {
			return 0, fmt.Errorf("page at %d was written before the failure, but never became durable: %w", page*pageSize, o.failed)
		} else if !pl.add(part, o.files[pos.file()].f, int64(pos.page())*pageSize+in) {
			return done, nil
		}
		done += len(part)
	}
	return len(p), nil
}

// lookup returns where in the log the newest content of a page lies that holds
// data; 0: not in the log. Caller holds mu, shared at least.
func (o *Overlay) lookup(page int64) position {
	if p := o.active.get(page); p != 0 {
		return p
	}
	if o.frozen != nil {
		return o.frozen.index.get(page)
	}
	return 0
}

// ReadAt implements io.ReaderAt.
func (o *Overlay) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("overlay %s: read at %d: %w", o.dir, off, disk.ErrOutOfRange)
	}
	if off >= o.size {
		o.mu.RLock()
		defer o.mu.RUnlock()
		if o.closed {
			return 0, o.errClosed()
		}
		return 0, io.EOF
	}
	short := int64(len(p)) > o.size-off
	p = p[:min(int64(len(p)), o.size-off)]
	for done := 0; done < len(p); {
		var pl plan
		n, err := o.plan(&pl, p[done:], off+int64(done))
		if err == nil {
			err = o.fetch(&pl)
		}
		if err != nil {
			return done, fmt.Errorf("overlay %s: read of %d bytes at %d: %w", o.dir, len(p), off, err)
		}
		done += n
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

// fetch reads the parts of a plan: those in files first, so that a slow base
// does not hold up a checkpoint. That is safe because the base never changes.
func (o *Overlay) fetch(pl *plan) error {
	if pl.gated {
		err := o.fetchLocal(pl)
		o.gate.leave(pl.slot)
		if err != nil {
			return err
		}
	}
	for i := range pl.n {
		s := &pl.list[i]
		if s.file != nil {
			continue
		}
		if n, err := o.base.ReadAt(s.dst, s.off); n < len(s.dst) {
			return fmt.Errorf("base image: %w", unexpected(err))
		}
	}
	return nil
}

func (o *Overlay) fetchLocal(pl *plan) error {
	for i := range pl.n {
		s := &pl.list[i]
		if s.file == nil {
			continue
		}
		n, err := s.file.ReadAt(s.dst, s.off)
		if n < len(s.dst) && errors.Is(err, io.EOF) {
			return &DamageError{File: s.file.Name(), Offset: s.off + int64(n), Reason: "it ends before a page that was written"}
		}
		if n < len(s.dst) {
			return err
		}
	}
	return nil
}

// unexpected is the error of a read that came back short inside a disk.
func unexpected(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// ReadCached implements disk.CachedReader.
func (o *Overlay) ReadCached(p []byte, off int64) bool {
	if off < 0 || off > o.size-int64(len(p)) {
		return false
	}
	for done := 0; done < len(p); {
		var pl plan
		n, err := o.plan(&pl, p[done:], off+int64(done))
		if err != nil || !o.fetchCached(&pl) {
			return false
		}
		done += n
	}
	return true
}

func (o *Overlay) fetchCached(pl *plan) bool {
	if pl.gated {
		defer o.gate.leave(pl.slot)
	}
	for i := range pl.n {
		s := &pl.list[i]
		switch {
		case s.file == nil:
			if o.cached == nil || !o.cached.ReadCached(s.dst, s.off) {
				return false
			}
		case s.file.noWait == nil || !s.file.noWait.ReadAtNoWait(s.dst, s.off):
			return false
		}
	}
	return true
}
