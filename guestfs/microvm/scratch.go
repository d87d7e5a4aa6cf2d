package microvm

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/vddk/nbd"
)

// scratch is a disk that can be written and forgets: what the kernel replays and
// marks goes to memory, page by page, and the disk below stays as it is. It
// serves QEMU through NBD.
type scratch struct {
	img   disk.Image
	limit int // pages

	mu    sync.RWMutex
	pages map[int64]*[scratchPage]byte
	full  bool
}

const (
	scratchPage = 4096
	sectorSize  = disk.SectorSize
)

var _ nbd.Backend = (*scratch)(nil)

func newScratch(img disk.Image, limit int64) *scratch {
	return &scratch{img: img, limit: int(limit / scratchPage), pages: map[int64]*[scratchPage]byte{}}
}

// size is the disk in whole sectors: the last, if it is not whole, ends in zeros.
func (s *scratch) size() int64 { return (s.img.Size() + sectorSize - 1) &^ (sectorSize - 1) }

// Read implements [nbd.Backend].
func (s *scratch) Read(_ int, p []byte, off int64) error {
	if err := s.below(p, off); err != nil {
		return err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.pages) == 0 {
		return nil
	}
	for n := off / scratchPage; n*scratchPage < off+int64(len(p)); n++ {
		if page := s.pages[n]; page != nil {
			from, to := max(off, n*scratchPage), min(off+int64(len(p)), (n+1)*scratchPage)
			copy(p[from-off:to-off], page[from-n*scratchPage:])
		}
	}
	return nil
}

// below reads the disk as it is.
func (s *scratch) below(p []byte, off int64) error {
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

// Write implements [nbd.Backend].
func (s *scratch) Write(_ int, p []byte, off int64) error {
	for len(p) > 0 {
		n := off / scratchPage
		at := off - n*scratchPage
		m := min(int64(len(p)), scratchPage-at)
		page, err := s.page(n)
		if err != nil {
			return err
		}
		s.mu.Lock()
		copy(page[at:], p[:m])
		s.mu.Unlock()
		p, off = p[m:], off+m
	}
	return nil
}

// page returns a page that can be written, with what was there before.
func (s *scratch) page(n int64) (*[scratchPage]byte, error) {
	s.mu.RLock()
	page := s.pages[n]
	s.mu.RUnlock()
	if page != nil {
		return page, nil
	}
	page = new([scratchPage]byte)
	off := n * scratchPage
	if err := s.below(page[:min(scratchPage, s.size()-off)], off); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if was := s.pages[n]; was != nil {
		return was, nil
	}
	if len(s.pages) >= s.limit {
		s.full = true
		return nil, fmt.Errorf("the kernel wrote more than %d MiB: %w", int64(s.limit)*scratchPage>>20, unix.ENOSPC)
	}
	s.pages[n] = page
	return page, nil
}

// Flush implements [nbd.Backend]: there is nothing to make durable.
func (s *scratch) Flush() error { return nil }

// Extents implements [nbd.Backend]; it is not offered.
func (s *scratch) Extents(_, length int64) ([]nbd.Extent, error) {
	return []nbd.Extent{{Length: length}}, nil
}
