package disk

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
)

// scratchPage is what a Scratch keeps at once, in bytes.
const scratchPage = 4096

// Scratch is a disk that can be written and forgets: what is written stays in
// memory, page by page, and the disk below stays as it is. It is for a kernel
// that wants to replay a journal before it shows a file system.
//
// Its size is the disk's in whole sectors: the last one, if it is not whole, ends
// in zeros. mu guards the pages and is not held while the disk is read.
type Scratch struct {
	img   Image
	limit int // pages

	mu    sync.RWMutex
	pages map[int64]*[scratchPage]byte
	full  bool
}

var _ Device = (*Scratch)(nil)

// NewScratch makes img writable. More than limit bytes cannot be written: such a
// write fails with an error that matches syscall.ENOSPC. Close leaves img open.
func NewScratch(img Image, limit int64) *Scratch {
	return &Scratch{img: img, limit: int(limit / scratchPage), pages: map[int64]*[scratchPage]byte{}}
}

// Size implements [Image].
func (s *Scratch) Size() int64 { return (s.img.Size() + SectorSize - 1) &^ (SectorSize - 1) }

// Close implements [Image].
func (s *Scratch) Close() error { return nil }

// Sync implements [Device]: there is nothing to make durable.
func (s *Scratch) Sync() error { return nil }

// Full reports whether a write has failed for want of room.
func (s *Scratch) Full() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.full
}

// ReadAt implements [Image].
func (s *Scratch) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: %w", off, ErrOutOfRange)
	}
	var short error
	if int64(len(p)) > s.Size()-off {
		p, short = p[:max(0, s.Size()-off)], io.EOF
	}
	if err := s.below(p, off); err != nil {
		return 0, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for n := off / scratchPage; len(s.pages) > 0 && n*scratchPage < off+int64(len(p)); n++ {
		if page := s.pages[n]; page != nil {
			from, to := max(off, n*scratchPage), min(off+int64(len(p)), (n+1)*scratchPage)
			copy(p[from-off:to-off], page[from-n*scratchPage:])
		}
	}
	return len(p), short
}

// below reads the disk as it is.
func (s *Scratch) below(p []byte, off int64) error {
	n, err := s.img.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) && off+int64(n) >= s.img.Size() {
		clear(p[n:])
		return nil
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}

// WriteAt implements [Device].
func (s *Scratch) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || int64(len(p)) > s.Size()-off {
		return 0, fmt.Errorf("write %d bytes at %d: %w", len(p), off, ErrOutOfRange)
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		n := at / scratchPage
		page, err := s.page(n)
		if err != nil {
			return done, err
		}
		s.mu.Lock()
		done += copy(page[at-n*scratchPage:], p[done:])
		s.mu.Unlock()
	}
	return done, nil
}

// page returns a page that can be written, with what was there before.
func (s *Scratch) page(n int64) (*[scratchPage]byte, error) {
	s.mu.RLock()
	page := s.pages[n]
	s.mu.RUnlock()
	if page != nil {
		return page, nil
	}
	page = new([scratchPage]byte)
	off := n * scratchPage
	if err := s.below(page[:min(scratchPage, s.Size()-off)], off); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if was := s.pages[n]; was != nil {
		return was, nil
	}
	if len(s.pages) >= s.limit {
		s.full = true
		return nil, fmt.Errorf("more than %d MiB were written to a disk that keeps them in memory: %w", int64(s.limit)*scratchPage>>20, syscall.ENOSPC)
	}
	s.pages[n] = page
	return page, nil
}
