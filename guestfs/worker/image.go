package worker

import (
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"sort"
	"sync"

	"golang.org/x/sync/errgroup"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// image is the content of a file. What stands on the disks as it is, is read
// there; what has to be decoded comes from the worker.
type image struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	fs     *remoteFS
	inode  guestfs.Inode
	named  bool
	stream string
	size   int64
	inline []byte // the whole content; nil: it is not here

	mu   sync.Mutex
	runs []mapped // what is known of where it stands: ascending, gaps are not known
}

// maxRuns bounds what is kept of a very fragmented file.
const maxRuns = 1 << 16

var _ disk.Mapper = (*image)(nil)

func newImage(ctx context.Context, f *remoteFS, inode guestfs.Inode, named bool, stream string) *image {
	ctx, cancel := context.WithCancelCause(ctx)
	return &image{ctx: ctx, cancel: cancel, fs: f, inode: inode, named: named, stream: stream}
}

// request begins a question about the file.
func (i *image) request() *encoder {
	e := i.fs.request(i.inode)
	e.bool(i.named)
	e.str(i.stream)
	return e
}

// Size implements [disk.Image].
func (i *image) Size() int64 { return i.size }

// Close implements [disk.Image].
func (i *image) Close() error {
	i.cancel(os.ErrClosed)
	return nil
}

// ReadAt implements [disk.Image].
func (i *image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, disk.ErrOutOfRange
	}
	var short error
	if int64(len(p)) > i.size-off {
		p, short = p[:max(0, i.size-off)], io.EOF
	}
	if i.inline != nil {
		if len(p) == 0 {
			return 0, short
		}
		return copy(p, i.inline[off:]), short
	}
	done := 0
	for done < len(p) {
		n, err := i.some(p[done:], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, short
}

// some reads the beginning of p.
func (i *image) some(p []byte, off int64) (int, error) {
	if i.ctx.Err() != nil {
		return 0, context.Cause(i.ctx)
	}
	m, err := i.run(i.ctx, off)
	if err != nil {
		return 0, err
	}
	p = p[:min(int64(len(p)), m.length)]
	switch m.kind {
	case pieceZero:
		clear(p)
		return len(p), nil
	case pieceDecoded:
		p = p[:min(len(p), maxRead)]
		return len(p), i.decoded(p, off)
	}
	n, err := i.fs.s.disks[m.disk].ReadAt(p, m.at)
	if n == len(p) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// decodeAtOnce is what one goroutine of the worker decodes of a large read: a few
// units of any compression there is.
const decodeAtOnce = 256 << 10

// decoded reads through the worker, which decodes on all its cores.
func (i *image) decoded(p []byte, off int64) error {
	var parts errgroup.Group
	for len(p) > decodeAtOnce {
		n := decodeAtOnce - int(off%decodeAtOnce)
		part, at := p[:n], off
		parts.Go(func() error { return i.decode(part, at) })
		p, off = p[n:], off+int64(n)
	}
	return errors.Join(i.decode(p, off), parts.Wait())
}

func (i *image) decode(p []byte, off int64) error {
	e := i.request()
	e.i64(off)
	e.u32(uint32(len(p)))
	d, err := i.fs.s.call(i.ctx, opRead, e.b)
	if err != nil {
		return err
	}
	if n := copy(p, d.bytes()); n != len(p) {
		d.bad = true
	}
	d.recycle()
	return i.fs.s.check(d)
}

// run is the rest of the run that off is in.
func (i *image) run(ctx context.Context, off int64) (mapped, error) {
	if m, ok := i.known(off); ok {
		return m, nil
	}
	e := i.request()
	e.i64(off)
	d, err := i.fs.s.call(ctx, opMap, e.b)
	if err != nil {
		return mapped{}, err
	}
	more := d.runs(off, i.size, i.fs.s.disks)
	if len(more) == 0 {
		d.bad = true
	}
	if err := i.fs.s.check(d); err != nil {
		return mapped{}, err
	}
	i.learn(more)
	return more[0], nil
}

func (i *image) known(off int64) (mapped, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := sort.Search(len(i.runs), func(n int) bool { return i.runs[n].off+i.runs[n].length > off })
	if n == len(i.runs) || i.runs[n].off > off {
		return mapped{}, false
	}
	return i.runs[n].from(off), true
}

// from is the rest of a run.
func (m mapped) from(off int64) mapped {
	skip := off - m.off
	m.off, m.length = off, m.length-skip
	if m.kind == pieceDisk {
		m.at += skip
	}
	return m
}

// learn adds runs that begin in a gap. What they say of what is known already is
// left out.
func (i *image) learn(more []mapped) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.runs)+len(more) > maxRuns {
		i.runs = nil
	}
	first := more[0].off
	n := sort.Search(len(i.runs), func(n int) bool { return i.runs[n].off >= first })
	if n > 0 {
		if end := i.runs[n-1].off + i.runs[n-1].length; end > first {
			return // somebody else was faster
		}
	}
	if n < len(i.runs) {
		more = until(more, i.runs[n].off)
	}
	runs := make([]mapped, 0, len(i.runs)+len(more))
	runs = append(append(append(runs, i.runs[:n]...), more...), i.runs[n:]...)
	i.runs = runs
}

// until cuts runs off at an offset.
func until(list []mapped, end int64) []mapped {
	n := sort.Search(len(list), func(n int) bool { return list[n].off >= end })
	list = append([]mapped(nil), list[:n]...)
	if n > 0 {
		last := &list[n-1]
		last.length = min(last.length, end-last.off)
	}
	return list
}

// Extents implements [disk.Mapper], as finely as the disks can tell.
func (i *image) Extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		end := min(within.End(), i.size)
		for off := max(0, within.Offset); off < end; {
			if i.inline != nil {
				yield(disk.Extent{Offset: off, Length: end - off}, nil)
				return
			}
			m, err := i.run(ctx, off)
			if err != nil {
				yield(disk.Extent{}, err)
				return
			}
			m.length = min(m.length, end-off)
			if !i.extents(ctx, m, yield) {
				return
			}
			off += m.length
		}
	}
}

// extents yields what a run is made of and reports whether to go on.
func (i *image) extents(ctx context.Context, m mapped, yield func(disk.Extent, error) bool) bool {
	if m.kind != pieceDisk {
		return yield(disk.Extent{Offset: m.off, Length: m.length, Hole: m.kind == pieceZero}, nil)
	}
	for e, err := range disk.Extents(ctx, i.fs.s.disks[m.disk], disk.Extent{Offset: m.at, Length: m.length}) {
		if err != nil {
			yield(disk.Extent{}, err)
			return false
		}
		if !yield(disk.Extent{Offset: m.off + e.Offset - m.at, Length: e.Length, Hole: e.Hole}, nil) {
			return false
		}
	}
	return true
}
