package ntfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	"lifeboat/disk"
)

// keptSegments is how many parts of a map of runs a stream keeps: a file in a
// million pieces costs no more memory than one in a thousand.
const keptSegments = 64

// stream is the content of a non-resident attribute and where it stands.
type stream struct {
	fs     *FS
	number uint64 // of the base record, for messages
	size   int64  // bytes
	init   int64  // bytes that were written; what follows reads as zeros
	unit   int64  // clusters of a compression unit, 0: not compressed
	parts  []part // ascending, the first begins at 0

	mu   sync.Mutex
	kept map[int][]run
}

// part is the runs of one attribute: all of the stream's, or where it has an
// attribute list, those of one of many records.
type part struct {
	lowest int64
	runs   []run // nil: node and entry say where they are
	node   *node
	entry  *listed
}

// streamOf is the stream of an attribute that is all in one record.
func (f *FS) streamOf(r *record, a *attr) (*stream, error) {
	s := &stream{fs: f, number: r.number}
	if err := s.header(a); err != nil {
		return nil, err
	}
	runs, err := f.geo.decodeRuns(a.mapping(), 0)
	if err != nil {
		return nil, fmt.Errorf("record %d: %w", r.number, err)
	}
	s.parts = []part{{runs: runs}}
	return s, nil
}

// stream is that of a non-resident attribute of a file.
func (n *node) stream(a *attr) (*stream, error) {
	if n.list == nil {
		return n.fs.streamOf(n.base, a)
	}
	s := &stream{fs: n.fs, number: n.base.number, kept: map[int][]run{}}
	if err := s.header(a); err != nil {
		return nil, err
	}
	for i := range n.list {
		if e := &n.list[i]; e.kind == a.kind && e.name == a.name {
			s.parts = append(s.parts, part{lowest: e.lowest, node: n, entry: e})
		}
	}
	sort.Slice(s.parts, func(i, j int) bool { return s.parts[i].lowest < s.parts[j].lowest })
	for i := range s.parts {
		if i == 0 && s.parts[i].lowest != 0 || i > 0 && s.parts[i].lowest == s.parts[i-1].lowest {
			return nil, corrupt("record %d: the parts of attribute %#x do not follow each other", n.base.number, a.kind)
		}
	}
	return s, nil
}

// header takes over what the first part says of the whole.
func (s *stream) header(a *attr) error {
	s.size, s.init = int64(a.u64(48)), int64(a.u64(56))
	if s.size < 0 || s.init < 0 || s.size > maxVCN*s.fs.geo.cluster {
		return corrupt("record %d: a stream of %d bytes", s.number, s.size)
	}
	s.init = min(s.init, s.size)
	if a.flags&flagCompressed == 0 {
		return nil
	}
	if a.flags&flagCompressed != 1 {
		return unsupported("compression method %d", a.flags&flagCompressed)
	}
	const maxUnit = 1 << 20
	shift := a.raw[34]
	if shift == 0 || shift > 8 || s.fs.geo.cluster<<shift > maxUnit {
		return corrupt("record %d: compression units of 2^%d clusters", s.number, shift)
	}
	s.unit = 1 << shift
	return nil
}

// runs of a part. A part tells about all clusters up to the next one's.
func (s *stream) runs(ctx context.Context, i int) ([]run, error) {
	p := &s.parts[i]
	if p.entry == nil {
		return p.runs, nil
	}
	s.mu.Lock()
	runs, ok := s.kept[i]
	s.mu.Unlock()
	if ok {
		return runs, nil
	}
	a, err := p.node.listedAttr(ctx, p.entry)
	if err != nil {
		return nil, err
	}
	if a.resident {
		return nil, corrupt("record %d: a part of a stream is resident", s.number)
	}
	if runs, err = s.fs.geo.decodeRuns(a.mapping(), p.lowest); err != nil {
		return nil, fmt.Errorf("record %d: %w", s.number, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept) >= keptSegments {
		clear(s.kept)
	}
	s.kept[i] = runs
	return runs, nil
}

// run finds the run that contains a cluster.
func (s *stream) run(ctx context.Context, vcn int64) (run, error) {
	i := sort.Search(len(s.parts), func(i int) bool { return s.parts[i].lowest > vcn }) - 1
	if i < 0 {
		return run{}, corrupt("record %d: a stream without runs", s.number)
	}
	runs, err := s.runs(ctx, i)
	if err != nil {
		return run{}, err
	}
	r, ok := findRun(runs, vcn)
	if !ok || i+1 < len(s.parts) && r.vcn+r.count > s.parts[i+1].lowest {
		return run{}, corrupt("record %d: its runs do not tell where cluster %d is", s.number, vcn)
	}
	return r, nil
}

// image is the content as it stands on the volume: of a compressed stream, what
// is to be decompressed.
func (s *stream) image(ctx context.Context) disk.Image {
	return disk.Assemble(ctx, s.size, func(off int64) (disk.Piece, error) { return s.piece(ctx, off) })
}

// piece finds the piece of the stream that contains off.
func (s *stream) piece(ctx context.Context, off int64) (disk.Piece, error) {
	if off >= s.init {
		return disk.Piece{Offset: s.init, Length: s.size - s.init}, nil
	}
	cluster := s.fs.geo.cluster
	r, err := s.run(ctx, off/cluster)
	if err != nil {
		return disk.Piece{}, err
	}
	p := disk.Piece{Offset: r.vcn * cluster, Length: r.count * cluster}
	p.Length = min(p.Length, s.init-p.Offset)
	if r.lcn >= 0 {
		p.From, p.At = s.fs.disk, r.lcn*cluster
	}
	return p, nil
}

// readAll reads a small image whole, and closes it.
func readAll(img disk.Image, limit int64) ([]byte, error) {
	defer img.Close()
	if img.Size() > limit {
		return nil, corrupt("%d bytes where at most %d can be", img.Size(), limit)
	}
	b := make([]byte, img.Size())
	if n, err := img.ReadAt(b, 0); n < len(b) {
		return nil, unexpected(err)
	}
	return b, nil
}

// unexpected is the error of a read that had to be full and was not.
func unexpected(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
