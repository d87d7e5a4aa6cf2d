package store

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"lifeboat/disk"
	"lifeboat/store/backend"
	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/segment"
)

// repairSource is another repository that holds copies of our points. Its blocks
// have other identities and addresses; what is the same is the content of a disk
// at an offset.
type repairSource struct {
	r, from *Repository
	points  []*Point            // of the source, newest first
	copies  map[Origin]*Point   // by where they were first made
	byID    map[string]*Point   // by their ID there
	images  map[imageKey]*Image // open
	hasher  *segment.Hasher
	packer  *segment.Packer

	writer *PointWriter // of blobs that rebuilt nodes lead to; never committed
	wrote  bool         // since they were last made to stay
}

type imageKey struct {
	point string
	disk  int
}

// otherPoints is how many other points of a VM are tried for a block whose
// identity is known.
const otherPoints = 8

func newRepairSource(ctx context.Context, r, from *Repository) (*repairSource, error) {
	s := &repairSource{
		r: r, from: from, copies: make(map[Origin]*Point), byID: make(map[string]*Point), images: make(map[imageKey]*Image),
		hasher: segment.NewHasher(r.keys), packer: segment.NewPacker(),
	}
	points, err := from.Points(ctx)
	if err != nil {
		return nil, fmt.Errorf("the repository to repair from: %w", err)
	}
	slices.Reverse(points)
	s.points = points
	for _, p := range points {
		origin := Origin{Repository: from.id, Point: p.ID}
		if p.Origin != nil {
			origin = *p.Origin
		}
		s.copies[origin], s.byID[p.ID] = p, p
	}
	return s, nil
}

func (s *repairSource) close() {
	if s.writer != nil {
		s.writer.Abort()
	}
	for _, img := range s.images {
		_ = img.Close()
	}
}

// copyOf is the copy of our point with that ID, nil where there is none.
func (s *repairSource) copyOf(id string) *Point {
	return s.copies[Origin{Repository: s.r.id, Point: id}]
}

// copyOfRecord is the copy of a point of ours, which may itself be one.
func (s *repairSource) copyOfRecord(rec *pointRecord) *Point {
	if rec.Origin != nil {
		return s.copies[*rec.Origin]
	}
	return s.copyOf(rec.ID)
}

// find brings the content of a place. Where its identity is known any point of
// the VM will do that has it there; where not, only the copy of the point itself.
func (s *repairSource) find(ctx context.Context, in *Ingest, at place, id *segment.Identity) (segment.Content, bool, error) {
	exact := s.copyOfRecord(at.rec)
	candidates := make([]*Point, 0, 1+otherPoints)
	if exact != nil {
		candidates = append(candidates, exact)
	}
	if id != nil && at.level == blockLevel {
		for _, p := range s.points {
			if p.VM == at.rec.VM && p != exact && len(candidates) <= otherPoints {
				candidates = append(candidates, p)
			}
		}
	}
	for _, p := range candidates {
		c, err := s.content(ctx, in, p, at)
		switch {
		case errors.Is(err, ErrDamaged), errors.Is(err, ErrNotFound):
			continue
		case err != nil:
			return c, false, fmt.Errorf("the repository to repair from: %w", err)
		case id == nil || c.Instead || s.hasher.Identity(c.Kind, c.Plain) == *id:
			return c, true, nil
		}
	}
	return segment.Content{}, false, nil
}

// content is what the point of the source has in the place.
func (s *repairSource) content(ctx context.Context, in *Ingest, p *Point, at place) (segment.Content, error) {
	block := make([]byte, s.r.blockSize)
	if at.file != "" {
		data, err := s.from.Config(ctx, p, at.file)
		if off := at.block << s.r.shift; err == nil && off < int64(len(data)) {
			copy(block, data[off:])
		}
		return segment.Content{Kind: segment.Data, Plain: block}, err
	}
	img, err := s.image(ctx, p, at.rec.Disks[at.disk])
	if err != nil {
		return segment.Content{}, err
	}
	if at.level == blockLevel {
		err := s.block(img, at.block, block)
		return segment.Content{Kind: segment.Data, Plain: block}, err
	}
	node, err := s.node(ctx, in, img, at)
	return segment.Content{Kind: segment.MapNode, Plain: node, Instead: true}, err
}

// image opens the source's disk for one of ours.
func (s *repairSource) image(ctx context.Context, p *Point, d diskRecord) (*Image, error) {
	for i, theirs := range p.Disks {
		if theirs.Key != d.Key || theirs.Size != d.Size {
			continue
		}
		key := imageKey{p.ID, i}
		if img := s.images[key]; img != nil {
			return img, nil
		}
		img, err := s.from.OpenDisk(ctx, p, i)
		if err == nil {
			s.images[key] = img
		}
		return img, err
	}
	return nil, fmt.Errorf("point %s has no disk %d of %d bytes: %w", p.ID, d.Key, d.Size, ErrNotFound)
}

// block reads one of our blocks; what is beyond the end is zeros.
func (s *repairSource) block(img *Image, block int64, dst []byte) error {
	off := block << s.r.shift
	n := max(0, min(int64(len(dst)), img.Size()-off))
	clear(dst[n:])
	if n == 0 {
		return nil
	}
	got, err := img.ReadAt(dst[:n], off)
	if int64(got) == n {
		return nil
	}
	return err
}

// node makes a node of our map anew from what the disk holds below it: the map
// of a disk that is just as large as what the node covers. Its blocks are found
// in our repository, or stored again.
func (s *repairSource) node(ctx context.Context, in *Ingest, img *Image, at place) ([]byte, error) {
	if err := s.begin(in); err != nil {
		return nil, err
	}
	blocks := int64(1)
	for range at.level + 1 {
		blocks *= blockmap.Fanout
	}
	sink := &lastNode{nodeSink: nodeSink{w: s.writer, hasher: s.hasher, packer: s.packer}}
	builder, err := blockmap.NewBuilder(s.r.maps, blockmap.Tree{}, blocks<<s.r.shift, s.r.blockSize, sink)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, s.r.blockSize)
	from := at.block << s.r.shift
	next := at.block // the first that was not looked at
	for e, err := range img.Extents(ctx, disk.Extent{Offset: from, Length: min(blocks<<s.r.shift, img.Size()-from)}) {
		if err != nil {
			return nil, err
		}
		if e.Hole {
			continue
		}
		end := blocksOf(e.End(), s.r.blockSize)
		for next = max(next, e.Offset>>s.r.shift); next < end; next++ {
			if err := s.block(img, next, buf); err != nil {
				return nil, err
			}
			addr, err := s.writer.putBlob(ctx, laneData, segment.Data, buf, s.hasher, s.packer)
			if err != nil {
				return nil, err
			}
			if err := builder.Set(ctx, next-at.block, addr); err != nil {
				return nil, err
			}
		}
	}
	s.wrote = true
	if _, err := builder.Finish(ctx); err != nil {
		return nil, err
	}
	if sink.last == nil {
		return nil, fmt.Errorf("the copy has nothing there: %w", ErrNotFound)
	}
	return sink.last, nil
}

// begin starts a point that is never committed, for the blobs of rebuilt nodes.
func (s *repairSource) begin(in *Ingest) (err error) {
	if s.writer == nil {
		s.writer, err = in.Begin(PointSpec{VM: "repair"})
	}
	return err
}

// lastNode keeps the bytes of the node written last: the root.
type lastNode struct {
	nodeSink
	last []byte
}

// WriteNode implements blockmap.NodeSink.
func (s *lastNode) WriteNode(ctx context.Context, node []byte) (segment.Addr, error) {
	s.last = append(s.last[:0], node...)
	return s.nodeSink.WriteNode(ctx, node)
}

// restorePoint makes our point id anew from its copy. The damaged object is
// replaced in one step, once all that the new one needs is durable and kept.
func (s *repairSource) restorePoint(ctx context.Context, in *Ingest, p *Point, id string) error {
	files := make(map[string][]byte, len(p.Config))
	for _, c := range p.Config {
		data, err := s.from.Config(ctx, p, c.Name)
		if err != nil {
			return err
		}
		files[c.Name] = data
	}
	w, err := in.Begin(PointSpec{VM: p.VM, VMID: p.VMID, Time: p.Time, Consistency: p.Consistency, Config: files, Labels: p.Labels})
	if err != nil {
		return err
	}
	defer w.Abort()
	for i, d := range p.Disks {
		img, err := s.from.OpenDisk(ctx, p, i)
		if err != nil {
			return err
		}
		err = w.AddDisk(ctx, DiskSpec{Key: d.Key, Label: d.Label}, img, nil, nil)
		_ = img.Close()
		if err != nil {
			return err
		}
	}
	rec := &w.rec
	rec.ReadBytes, rec.NewBytes, rec.StoredBytes, rec.Tool = p.ReadBytes, p.NewBytes, p.StoredBytes, p.Tool
	return in.replacePoint(ctx, rec, id)
}

// replacePoint writes a point anew in the place of one that cannot be read.
func (in *Ingest) replacePoint(ctx context.Context, rec *pointRecord, id string) error {
	in.app.mu.Lock()
	defer in.app.mu.Unlock()
	through, err := in.app.flush(ctx)
	if err != nil {
		return err
	}
	for i := range rec.Disks {
		d := &rec.Disks[i]
		blocks, err := in.r.maps.Used(ctx, d.tree(in.r.blockSize))
		if err != nil {
			return damaged(err)
		}
		d.Used = blocks << in.r.shift
	}
	if err := in.keep(ctx, through, ""); err != nil {
		return in.app.fail(err)
	}
	in.publish(ctx)
	rec.ID, rec.Claim, rec.Through = id, in.claim.record().Number, through
	if err := in.r.stampLock(ctx, rec); err != nil {
		return err
	}
	data, err := rec.encode()
	if err != nil {
		return err
	}
	return in.r.putSealed(ctx, pointName(id), data, backend.Replace)
}
