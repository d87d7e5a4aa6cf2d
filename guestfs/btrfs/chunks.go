package btrfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"

	"lifeboat/disk"
)

// All addresses are logical. Chunks say where on which devices a range of them
// stands, and in how many copies. The chunk tree tells; the chunks that it stands
// in itself are in the superblock.
const (
	raid0   = 1 << 3
	raid1   = 1 << 4
	dup     = 1 << 5
	raid10  = 1 << 6
	raid5   = 1 << 7
	raid6   = 1 << 8
	raid1c3 = 1 << 9
	raid1c4 = 1 << 10
	raids   = raid0 | raid1 | dup | raid10 | raid5 | raid6 | raid1c3 | raid1c4

	chunkHead   = 48
	stripeBytes = 32
	maxStripes  = 1024
	maxChunks   = 1 << 20
)

// stripe is a range of a device that a chunk stands in.
type stripe struct {
	device uint64
	at     uint64
}

type chunk struct {
	start, length uint64
	raid          uint64
	stripe        uint64 // bytes before the next device's turn
	sub           int    // copies, RAID10
	stripes       []stripe
}

// volume is the devices of a file system.
type volume struct {
	devices map[uint64]disk.Image
	chunks  []chunk // by start
}

// parseChunk reads a chunk (struct btrfs_chunk) and says how long it is.
func parseChunk(start uint64, b []byte) (chunk, int, error) {
	le := binary.LittleEndian
	if len(b) < chunkHead {
		return chunk{}, 0, corrupt("a chunk of %d bytes", len(b))
	}
	c := chunk{start: start, length: le.Uint64(b), stripe: le.Uint64(b[16:]), raid: le.Uint64(b[24:]) & raids, sub: int(le.Uint16(b[46:]))}
	n := int(le.Uint16(b[44:]))
	size := chunkHead + n*stripeBytes
	switch {
	case n == 0 || n > maxStripes || size > len(b):
		return c, 0, corrupt("the chunk at %d has %d stripes in %d bytes", start, n, len(b))
	case c.length == 0 || start+c.length < start || start+c.length > 1<<63:
		return c, 0, corrupt("the chunk at %d is of %d bytes", start, c.length)
	case c.stripe < 4096 || c.stripe > 1<<30 || c.stripe&(c.stripe-1) != 0:
		return c, 0, corrupt("the chunk at %d has stripes of %d bytes", start, c.stripe)
	case c.raid == raid10 && (c.sub == 0 || n%c.sub != 0), c.raid == raid5 && n < 2, c.raid == raid6 && n < 3, c.raid&(c.raid-1) != 0:
		return c, 0, corrupt("the chunk at %d has %d stripes of profile %#x", start, n, c.raid)
	}
	for i := range n {
		p := b[chunkHead+i*stripeBytes:]
		c.stripes = append(c.stripes, stripe{device: le.Uint64(p), at: le.Uint64(p[8:])})
	}
	return c, size, nil
}

// add takes a chunk over; the chunk tree repeats what the superblock has.
func (v *volume) add(c chunk) error {
	i := sort.Search(len(v.chunks), func(i int) bool { return v.chunks[i].start >= c.start })
	if i < len(v.chunks) && v.chunks[i].start == c.start {
		return nil
	}
	if i > 0 && v.chunks[i-1].start+v.chunks[i-1].length > c.start || i < len(v.chunks) && c.start+c.length > v.chunks[i].start || len(v.chunks) >= maxChunks {
		return corrupt("the chunk at %d overlaps another", c.start)
	}
	v.chunks = slices.Insert(v.chunks, i, c)
	return nil
}

// bootstrap reads the chunks in the superblock: key and chunk, again and again.
func (v *volume) bootstrap(sys []byte) error {
	for len(sys) > 0 {
		if len(sys) < keyBytes {
			return corrupt("the chunks in the superblock are cut off")
		}
		c, n, err := parseChunk(parseKey(sys).offset, sys[keyBytes:])
		if err != nil {
			return err
		}
		if err := v.add(c); err != nil {
			return err
		}
		sys = sys[keyBytes+n:]
	}
	return nil
}

func (v *volume) chunk(at uint64) (*chunk, error) {
	i := sort.Search(len(v.chunks), func(i int) bool { return v.chunks[i].start > at })
	if i == 0 || at-v.chunks[i-1].start >= v.chunks[i-1].length {
		return nil, corrupt("address %d is in no chunk", at)
	}
	return &v.chunks[i-1], nil
}

// copies is how many of everything there are.
func (c *chunk) copies() int {
	switch c.raid {
	case raid1, raid1c3, raid1c4, dup:
		return len(c.stripes)
	case raid10:
		return c.sub
	}
	return 1
}

// place is where one copy of what is at an address stands, and for how many bytes
// that holds.
func (c *chunk) place(at uint64, mirror int) (s stripe, n uint64) {
	off := at - c.start
	row, within := off/c.stripe, off%c.stripe
	left := c.length - off
	turn := min(left, c.stripe-within)
	count := uint64(len(c.stripes))
	pick := func(i, row uint64) (stripe, uint64) {
		s := c.stripes[i]
		return stripe{s.device, s.at + row*c.stripe + within}, turn
	}
	switch c.raid {
	case raid0:
		return pick(row%count, row/count)
	case raid10:
		groups := count / uint64(c.sub)
		return pick(row%groups*uint64(c.sub)+uint64(mirror), row/groups)
	case raid5, raid6: // the checks move on by one device every row
		data := count - 1
		if c.raid == raid6 {
			data--
		}
		return pick((row%data+row/data)%count, row/data)
	}
	return stripe{c.stripes[mirror].device, c.stripes[mirror].at + off}, left
}

// errMissing says that a device is not there.
var errMissing = errors.New("a device is missing")

// read reads one copy of what is at an address.
func (v *volume) read(ctx context.Context, p []byte, at uint64, mirror int) error {
	for len(p) > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c, err := v.chunk(at)
		if err != nil {
			return err
		}
		s, n := c.place(at, mirror%c.copies())
		img := v.devices[s.device]
		if img == nil {
			return fmt.Errorf("btrfs: %d bytes at %d are on device %d: %w", len(p), at, s.device, errMissing)
		}
		part := p[:min(uint64(len(p)), n)]
		if s.at > 1<<62 {
			return corrupt("address %d is at %d of device %d", at, s.at, s.device)
		}
		if m, err := img.ReadAt(part, int64(s.at)); m < len(part) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("btrfs: read %d bytes at %d of device %d: %w", len(part), s.at, s.device, err)
		}
		p = p[len(part):]
		at += uint64(len(part))
	}
	return nil
}

// copies is how many of what is at an address there are.
func (v *volume) copies(at uint64) int {
	c, err := v.chunk(at)
	if err != nil {
		return 1
	}
	return c.copies()
}

// Member says which file system a device is of, and how many devices that has.
// guestfs.ErrNoFS where it is of none.
func Member(img disk.Image) (fsid [16]byte, devices int, err error) {
	s, err := readSuper(img)
	if err != nil {
		return fsid, 0, err
	}
	return s.fsid, int(s.devices), nil
}
