package ntfs

import (
	"context"
	"fmt"
	"sync"

	"lifeboat/guestfs/ntfs/internal/lznt1"
)

// compressed is a stream that NTFS compresses, in units of usually 16 clusters.
// A unit that takes no clusters is zeros, one that takes all is as it is, and
// one that takes fewer is compressed; its clusters come first, then a hole.
type compressed struct {
	s     *stream
	bytes int64 // of a unit
	spare sync.Pool
}

// newCompressed decompresses a stream. A window is one unit or several.
func newCompressed(ctx context.Context, s *stream) *encoded {
	c := &compressed{s: s, bytes: s.unit * s.fs.geo.cluster}
	c.spare.New = func() any { b := make([]byte, c.bytes); return &b }
	return newEncoded(ctx, s.size, max(c.bytes, windowSize/c.bytes*c.bytes), c)
}

// stored is the number of clusters that a unit takes.
func (c *compressed) stored(ctx context.Context, vcn int64) (count int64, err error) {
	hole := false
	for at := vcn; at < vcn+c.s.unit; {
		r, err := c.s.run(ctx, at)
		if err != nil {
			return 0, err
		}
		n := min(r.vcn+r.count, vcn+c.s.unit) - at
		switch {
		case r.lcn < 0:
			hole = true
		case hole:
			return 0, corrupt("record %d: a compressed unit with a hole before its end", c.s.number)
		default:
			count += n
		}
		at += n
	}
	return count, nil
}

func (c *compressed) decode(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n := min(int64(len(p)), c.bytes)
		if err := c.unit(ctx, p[:n], off); err != nil {
			return fmt.Errorf("record %d: compressed content at %d: %w", c.s.number, off, err)
		}
		p, off = p[n:], off+n
	}
	return nil
}

// unit decompresses one unit, or the beginning of one.
func (c *compressed) unit(ctx context.Context, p []byte, off int64) error {
	if off >= c.s.init {
		clear(p)
		return nil
	}
	vcn := off / c.s.fs.geo.cluster
	count, err := c.stored(ctx, vcn)
	if err != nil {
		return err
	}
	switch count {
	case 0:
		clear(p)
		return nil
	case c.s.unit:
		if err := c.read(ctx, p, off); err != nil {
			return err
		}
	default:
		buf := c.spare.Get().(*[]byte)
		defer c.spare.Put(buf)
		packed := (*buf)[:count*c.s.fs.geo.cluster]
		if err := c.read(ctx, packed, off); err != nil {
			return err
		}
		n, err := lznt1.Decode(p, packed)
		if err != nil {
			return corrupt("%v", err)
		}
		clear(p[n:])
	}
	if c.s.init-off < int64(len(p)) { // what was not written reads as zeros
		clear(p[c.s.init-off:])
	}
	return nil
}

// read reads clusters as they are on the volume.
func (c *compressed) read(ctx context.Context, p []byte, off int64) error {
	cluster := c.s.fs.geo.cluster
	for len(p) > 0 {
		r, err := c.s.run(ctx, off/cluster)
		if err != nil {
			return err
		}
		if r.lcn < 0 {
			return corrupt("a hole where there is none")
		}
		skip := off - r.vcn*cluster
		n := min(int64(len(p)), r.count*cluster-skip)
		if m, err := c.s.fs.disk.ReadAt(p[:n], r.lcn*cluster+skip); int64(m) < n {
			return unexpected(err)
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (c *compressed) hole(ctx context.Context, off int64) (int64, error) {
	if off >= c.s.init {
		return c.s.size - off, nil
	}
	cluster := c.s.fs.geo.cluster
	r, err := c.s.run(ctx, off/cluster)
	if err != nil || r.lcn >= 0 {
		return 0, err
	}
	// A hole that begins before this unit may be what is left of the unit before;
	// this one it fills whole, or it is none.
	window := max(c.bytes, windowSize/c.bytes*c.bytes)
	n := (r.vcn+r.count)*cluster - off
	if end := off + n; end >= min(c.s.init, c.s.size) {
		return n, nil
	}
	return n / window * window, nil
}
