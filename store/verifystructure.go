package store

import (
	"context"
	"errors"
	"fmt"

	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/segment"
)

// maxHurts is how many hurt areas a damage lists.
const maxHurts = 1000

// configBlocks is where the point's configuration files are.
func (rec *pointRecord) configBlocks() []segment.Addr {
	var out []segment.Addr
	for _, c := range rec.Config {
		for _, a := range c.Blocks {
			if segment.Addr(a).Stored() {
				out = append(out, segment.Addr(a))
			}
		}
	}
	return out
}

// structure walks the block maps of all points down to the addresses of their
// blocks, checks that each leads somewhere, and adds to each damage the points
// and areas that it hurts. A subtree that was found to be whole once is not
// walked again, so the cost is that of the distinct nodes plus what is damaged.
func (v *verification) structure(ctx context.Context, recs []*pointRecord) error {
	s := &structure{v: v, whole: newAddrBits(), checked: newAddrBits()}
	for _, rec := range recs {
		for i, d := range rec.Disks {
			if err := s.disk(ctx, rec, i, d); err != nil {
				return err
			}
		}
		for _, c := range rec.Config {
			for i, a := range c.Blocks {
				bad, err := s.check(ctx, segment.Addr(a))
				if err != nil {
					return err
				}
				off := int64(i * v.r.blockSize)
				v.hurt(bad, Hurt{Point: rec.ID, Disk: -1, File: c.Name, Offset: off, Length: min(int64(v.r.blockSize), c.Size-off)})
			}
		}
	}
	return nil
}

// structure is the walk over block maps.
type structure struct {
	v       *verification
	whole   *addrBits // nodes below which nothing is damaged
	checked *addrBits // addresses that were looked up

	stack []pathNode // from the root to the node last visited
}

type pathNode struct {
	addr  segment.Addr
	level int
	bad   bool
}

func (s *structure) disk(ctx context.Context, rec *pointRecord, index int, d diskRecord) error {
	s.stack = s.stack[:0]
	unknown := func(addr segment.Addr) bool { return !s.whole.has(addr) }
	err := s.v.maps.Visit(ctx, d.tree(s.v.r.blockSize), unknown, func(n blockmap.Node) error {
		s.leave(n.Level)
		off := n.Block << s.v.r.shift
		length := d.Size - off
		if n.Blocks() < length>>s.v.r.shift {
			length = n.Blocks() << s.v.r.shift
		}
		s.stack = append(s.stack, pathNode{addr: n.Addr, level: n.Level})
		return s.node(ctx, n, Hurt{Point: rec.ID, Disk: index, Offset: off, Length: length})
	})
	s.leave(blockmap.MaxLevels)
	return err
}

// leave takes the nodes at level and below off the path: they are done.
func (s *structure) leave(level int) {
	for len(s.stack) > 0 && s.stack[len(s.stack)-1].level <= level {
		n := s.stack[len(s.stack)-1]
		s.stack = s.stack[:len(s.stack)-1]
		switch {
		case !n.bad:
			s.whole.add(n.addr)
		case len(s.stack) > 0:
			s.stack[len(s.stack)-1].bad = true
		}
	}
}

// node checks one node, which can be read, and in a leaf all addresses. at is
// the area that it maps.
func (s *structure) node(ctx context.Context, n blockmap.Node, at Hurt) error {
	top := &s.stack[len(s.stack)-1]
	bad := s.v.badAt(n.Addr) // also of a node that is in memory and not readable any more
	if n.Err != nil {
		bad = s.v.blame(n.Addr, n.Err)
	}
	if len(bad) > 0 {
		top.bad = true
		s.v.hurtAll(bad, at)
		return nil
	}
	if n.Level > 0 {
		return nil
	}
	size := int64(1) << s.v.r.shift
	for i, addr := range n.Entries {
		bad, err := s.check(ctx, addr)
		if err != nil {
			return err
		}
		if len(bad) > 0 {
			off := int64(i) * size
			top.bad = true
			s.v.hurt(bad, Hurt{Point: at.Point, Disk: at.Disk, Offset: at.Offset + off, Length: min(size, at.Length-off)})
		}
	}
	return nil
}

// check finds out whether the block at addr is there, once, and returns the
// damages that keep it from being read.
func (s *structure) check(ctx context.Context, addr segment.Addr) ([]int, error) {
	if addr == segment.Hole {
		return nil, nil
	}
	if bad := s.v.badAt(addr); len(bad) > 0 {
		return bad, nil
	}
	if addr != segment.Unreadable && !s.checked.add(addr) {
		return nil, nil
	}
	err := s.lookAt(ctx, addr)
	if err == nil {
		return nil, nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return s.v.blame(addr, err), nil
}

func (s *structure) lookAt(ctx context.Context, addr segment.Addr) error {
	if addr == segment.Unreadable {
		return errors.New("a repair marked it as lost")
	}
	if !addr.Stored() {
		return fmt.Errorf("%v is not an address", addr)
	}
	slot, err := s.v.segments.Stat(ctx, addr)
	switch {
	case err != nil:
		return err
	case slot.Lost != 0:
		return slot.Damage()
	case slot.Kind != segment.Data:
		return fmt.Errorf("at %v is a %v, not a block", addr, slot.Kind)
	case slot.RawLen != s.v.r.blockSize:
		return fmt.Errorf("the block at %v has %d bytes", addr, slot.RawLen)
	}
	return nil
}

// badAt returns the damages known to keep addr from being read.
func (v *verification) badAt(addr segment.Addr) []int {
	return v.bad[addr.Segment()].of(addr)
}

// blame records why addr can't be read and returns the damages it is down to:
// those known already, or a new one.
func (v *verification) blame(addr segment.Addr, err error) []int {
	if bad := v.badAt(addr); len(bad) > 0 {
		return bad
	}
	var d *segment.DamageError
	if !errors.As(err, &d) {
		d = &segment.DamageError{Object: segment.Prefix(addr.Segment()), Part: segment.PartFrame, Addr: addr, Frame: -1, Page: -1, Offset: -1, Err: err}
	}
	v.damagedOnce(addr.Segment(), d)
	return v.badAt(addr)
}

// hurt adds a block to what the damages hurt, of one in a frame only that.
func (v *verification) hurt(damages []int, h Hurt) {
	for _, i := range damages {
		part := h
		if i != unlisted && v.report.Damages[i].frame >= 0 {
			at := int64(v.report.Damages[i].frame) * segment.FrameSize
			part.Offset, part.Length = h.Offset+at, min(segment.FrameSize, h.Length-at)
		}
		if part.Length > 0 {
			v.hurtAll([]int{i}, part)
		}
	}
}

// hurtAll adds an area to what the damages hurt. An area that continues the last
// one is joined to it.
func (v *verification) hurtAll(damages []int, h Hurt) {
	if len(damages) > 0 {
		v.hurtPoints[h.Point] = struct{}{}
	}
	for _, i := range damages {
		if i == unlisted {
			continue
		}
		d := &v.report.Damages[i]
		if n := len(d.Hurts); n > 0 {
			last := &d.Hurts[n-1]
			if last.Point == h.Point && last.Disk == h.Disk && last.File == h.File && last.Offset+last.Length == h.Offset {
				last.Length += h.Length
				continue
			}
		}
		if len(d.Hurts) >= maxHurts {
			d.MoreHurts++
			continue
		}
		d.Hurts = append(d.Hurts, h)
	}
}
