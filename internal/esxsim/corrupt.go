package esxsim

import (
	"fmt"
	"io"
)

// corruption is one byte that backup readers get wrong.
type corruption struct {
	layer *layer
	off   int64
}

// CorruptRead makes every reader through /folder and leases get one bit of the
// byte at off of a disk wrong; the guest, and the file, have it right. off < 0
// ends it.
func (s *Sim) CorruptRead(name string, disk int, off int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.vmByName(name)
	if v == nil || disk >= len(v.disks) {
		return fmt.Errorf("esxsim: there is no disk %d of a VM %q", disk, name)
	}
	base := v.disks[disk].top
	for base.parent != nil {
		base = base.parent
	}
	s.corrupt = nil
	if off >= 0 {
		s.corrupt = &corruption{base, off}
	}
	return nil
}

// corrupting is r, which reads a file from an offset, with the injected error.
func (s *Sim) corrupting(at dsPath, r io.Reader, from int64) io.Reader {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.corrupt
	if c == nil || c.layer.at.ds != at.ds || c.layer.data != at.path || c.off < from {
		return r
	}
	return &flipper{r: r, left: c.off - from}
}

// flipper flips a bit of one byte that passes.
type flipper struct {
	r    io.Reader
	left int64 // before that byte; < 0: it has passed
}

func (f *flipper) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if f.left >= 0 && f.left < int64(n) {
		p[f.left] ^= 0x10
	}
	f.left -= int64(n)
	return n, err
}
