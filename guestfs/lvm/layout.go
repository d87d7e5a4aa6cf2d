package lvm

import (
	"errors"
	"fmt"
	"slices"
	"sort"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// layout says where the bytes of a logical volume are.
type layout struct {
	size     int64
	segments []segment // ascending, without gaps
}

// segment is a run of a logical volume. One stripe is a linear segment.
type segment struct {
	offset, length int64
	stripe         int64 // bytes in a row on one leg; length where there is one leg
	legs           []leg // none: it reads as zeros
}

// leg is where a stripe lives: on a physical volume, or in another volume of
// the group.
type leg struct {
	img   disk.Image
	start int64
	lv    *layout // instead of img
}

const (
	maxNesting = 8
	maxLegs    = 256
	maxPieces  = 1 << 20
)

// piece implements what disk.Assemble asks.
func (l *layout) piece(off int64) (disk.Piece, error) {
	i := sort.Search(len(l.segments), func(i int) bool { return l.segments[i].offset+l.segments[i].length > off })
	if i == len(l.segments) {
		return disk.Piece{}, corrupt("nothing is known of offset %d", off)
	}
	s := &l.segments[i]
	within := off - s.offset
	if len(s.legs) == 0 {
		return disk.Piece{Offset: off, Length: s.length - within}, nil
	}
	row := within / s.stripe
	n := int64(len(s.legs))
	lg := s.legs[row%n]
	inLeg := row/n*s.stripe + within%s.stripe
	rest := min(s.stripe-within%s.stripe, s.length-within)
	if lg.lv == nil {
		return disk.Piece{Offset: off, Length: rest, From: lg.img, At: lg.start + inLeg}, nil
	}
	pc, err := lg.lv.piece(lg.start + inLeg)
	if err != nil {
		return pc, err
	}
	skip := lg.start + inLeg - pc.Offset
	return disk.Piece{Offset: off, Length: min(rest, pc.Length-skip), From: pc.From, At: pc.At + skip}, nil
}

// layoutOf puts a logical volume together. A volume that cannot be read has an
// error, and a layout with nothing but its size where that is known.
func (g *group) layoutOf(name string, depth int) (*layout, error) {
	if l := g.built[name]; l != nil {
		return l, nil
	}
	lv := g.lvs[name]
	if lv == nil || depth > maxNesting {
		return nil, corrupt("volume %.100s is made of itself or of nothing", name)
	}
	l := &layout{}
	var problem error
	segments, err := g.sortedSegments(lv)
	if err != nil {
		return nil, err
	}
	for _, s := range segments {
		seg, err := g.segment(s, depth)
		if err != nil {
			problem = errors.Join(problem, err)
		}
		if seg.offset != l.size || seg.length <= 0 || seg.length > maxVolume-l.size {
			return nil, corrupt("volume %.100s has a gap or overlap at %d", name, l.size)
		}
		l.size += seg.length
		l.segments = append(l.segments, seg)
	}
	if problem != nil {
		return &layout{size: l.size}, problem
	}
	g.built[name] = l
	return l, nil
}

// sortedSegments are the segment1, segment2, … of a volume by where they begin.
func (g *group) sortedSegments(lv *section) ([]*section, error) {
	count, err := lv.num("segment_count")
	if err != nil {
		return nil, err
	}
	if count > maxPieces {
		return nil, corrupt("a volume of %d segments", count)
	}
	var out []*section
	for i := range count {
		s := lv.sections[fmt.Sprintf("segment%d", i+1)]
		if s == nil {
			return nil, corrupt("segment %d of %d is not described", i+1, count)
		}
		if _, err := s.num("start_extent"); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	slices.SortStableFunc(out, func(a, b *section) int {
		x, y := a.values["start_extent"].number, b.values["start_extent"].number
		return int(min(1, max(-1, x-y)))
	})
	return out, nil
}

// segment reads one segment. Where it cannot be read, what comes back has the
// right place and length nevertheless.
func (g *group) segment(s *section, depth int) (segment, error) {
	first, _ := s.num("start_extent")
	count, err := s.num("extent_count")
	if err != nil {
		return segment{}, err
	}
	if first > maxVolume/g.extent || count > maxVolume/g.extent {
		return segment{}, corrupt("a segment of %d extents at extent %d", count, first)
	}
	seg := segment{offset: first * g.extent, length: count * g.extent}
	seg.stripe = seg.length
	switch kind := s.str("type"); kind {
	case "striped":
		return g.striped(seg, s, depth)
	case "mirror":
		return g.copies(seg, s.values["mirrors"].list, depth, func(pair []value) (string, int64) {
			return pair[0].text, pair[1].number
		})
	case "raid1":
		return g.copies(seg, s.values["raids"].list, depth, func(pair []value) (string, int64) {
			return pair[1].text, 0 // the first is the copy's own metadata
		})
	case "zero":
		return seg, nil
	default:
		return seg, &guestfs.UnsupportedError{FS: "lvm", What: fmt.Sprintf("a volume of type %.40q", kind)}
	}
}

// striped reads the legs of a striped or linear segment: pairs of a physical
// volume or volume, and the extent where the leg begins.
func (g *group) striped(seg segment, s *section, depth int) (segment, error) {
	list := s.values["stripes"].list
	if len(list) == 0 || len(list)%2 != 0 || len(list)/2 > maxLegs {
		return seg, corrupt("a segment of %d stripes", len(list)/2)
	}
	if n := int64(len(list) / 2); n > 1 {
		sectors, err := s.num("stripe_size")
		if err != nil {
			return seg, err
		}
		if sectors == 0 || sectors > maxExtent/sector || seg.length%n != 0 {
			return seg, corrupt("stripes of %d sectors", sectors)
		}
		seg.stripe = sectors * sector
	}
	for pair := range slices.Chunk(list, 2) {
		lg, err := g.leg(pair[0].text, pair[1].number, depth)
		if err != nil {
			return seg, err
		}
		seg.legs = append(seg.legs, lg)
	}
	return seg, nil
}

// leg finds a physical volume or volume and the extent in it.
func (g *group) leg(name string, extent int64, depth int) (leg, error) {
	if extent < 0 || extent > maxVolume/g.extent {
		return leg{}, corrupt("a leg at extent %d of %.100s", extent, name)
	}
	if d := g.devices[name]; d != nil {
		if d.img == nil {
			return leg{}, fmt.Errorf("physical volume %s: %w", name, ErrMissing)
		}
		return leg{img: d.img, start: d.start + extent*g.extent}, nil
	}
	l, err := g.layoutOf(name, depth+1)
	if err != nil {
		return leg{}, err
	}
	return leg{lv: l, start: extent * g.extent}, nil
}

// copies reads a segment whose legs hold the same; of each pair in list, image
// tells the volume and extent. The first copy that is whole is read: a backup
// has one instant, and copies that were being resynchronised then are not told
// apart.
func (g *group) copies(seg segment, list []value, depth int, image func(pair []value) (string, int64)) (segment, error) {
	if len(list) == 0 || len(list)%2 != 0 || len(list)/2 > maxLegs {
		return seg, corrupt("a segment of %d copies", len(list)/2)
	}
	var problem error
	for pair := range slices.Chunk(list, 2) {
		name, extent := image(pair)
		lg, err := g.leg(name, extent, depth)
		if err == nil {
			seg.legs = []leg{lg}
			return seg, nil
		}
		problem = errors.Join(problem, err)
	}
	return seg, problem
}
