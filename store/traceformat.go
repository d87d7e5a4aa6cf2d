package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// The encoding of a trace is in docs/repository-format.md, section Boot traces.
const (
	traceVersion = 1
	// maxTraceObject bounds a trace as it is stored, in bytes: 2 GiB in single
	// blocks of 64 KiB, 14 bytes for each, and 1024 disks.
	maxTraceObject = 512 << 10
)

// encode is the trace as it is stored.
func (t *Trace) encode() []byte {
	b := []byte{traceVersion, byte(bits.TrailingZeros(uint(t.blockSize)))}
	b = binary.AppendUvarint(b, uint64(len(t.keys)))
	for _, key := range t.keys {
		b = binary.AppendVarint(b, int64(key))
	}
	b = binary.AppendUvarint(b, uint64(len(t.takes)))
	for _, take := range t.takes {
		b = binary.AppendUvarint(b, uint64(len(take)))
		c := traceCursor{next: make([]int64, len(t.keys))}
		for _, r := range take {
			b = c.append(b, r)
		}
	}
	return b
}

// traceCursor is what a run is encoded against: the disk of the run before it,
// and where the last run of each disk ended.
type traceCursor struct {
	disk int
	next []int64
}

func (c *traceCursor) append(b []byte, r traceRun) []byte {
	head := uint64(r.count-1) << 1
	if r.disk == c.disk {
		b = binary.AppendUvarint(b, head)
	} else {
		b = binary.AppendUvarint(b, head|1)
		b = binary.AppendUvarint(b, uint64(r.disk))
	}
	b = binary.AppendVarint(b, r.block-c.next[r.disk])
	c.disk, c.next[r.disk] = r.disk, r.block+r.count
	return b
}

var errTrace = errors.New("not a boot trace")

// decodeTrace reads a trace as untrusted input: what it returns is bounded and
// names blocks that a disk can have.
func decodeTrace(data []byte, blockSize int) (*Trace, error) {
	if len(data) < 2 {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, errTrace)
	}
	if data[0] != traceVersion {
		return nil, fmt.Errorf("%w: a boot trace of version %d, this Lifeboat knows %d", ErrVersion, data[0], traceVersion)
	}
	if 1<<(data[1]&63) != blockSize {
		return nil, fmt.Errorf("%w: a boot trace in blocks of 2^%d bytes", ErrDamaged, data[1])
	}
	d := traceDecoder{rest: data[2:], t: &Trace{blockSize: blockSize}, left: maxTraceBytes / int64(blockSize)}
	d.keys()
	takes := d.number(maxTraceAge)
	for range takes {
		d.take()
	}
	if d.bad || len(d.rest) > 0 {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, errTrace)
	}
	return d.t, nil
}

type traceDecoder struct {
	rest []byte
	t    *Trace
	left int64 // blocks that may still be named
	bad  bool  // whatever comes is of no use
}

// number reads a number of at most limit.
func (d *traceDecoder) number(limit uint64) int64 {
	v, n := binary.Uvarint(d.rest)
	if d.bad || n <= 0 || v > limit {
		d.bad = true
		return 0
	}
	d.rest = d.rest[n:]
	return int64(v)
}

func (d *traceDecoder) signed() int64 {
	v, n := binary.Varint(d.rest)
	if d.bad || n <= 0 {
		d.bad = true
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *traceDecoder) keys() {
	n := d.number(maxDisks)
	for range n {
		d.t.keys = append(d.t.keys, int(d.signed()))
		if d.bad {
			return
		}
	}
}

func (d *traceDecoder) take() {
	n := d.number(uint64(d.left))
	take := make([]traceRun, 0, min(n, int64(len(d.rest)))) // a run takes two bytes and more
	c := traceCursor{next: make([]int64, len(d.t.keys))}
	for range n {
		r := d.run(&c)
		if d.bad {
			return
		}
		take = append(take, r)
	}
	d.t.takes = append(d.t.takes, take)
}

func (d *traceDecoder) run(c *traceCursor) traceRun {
	head := d.number(uint64(d.left)<<1 | 1)
	r := traceRun{disk: c.disk, count: head>>1 + 1}
	if head&1 != 0 {
		r.disk = int(d.number(maxDisks))
	}
	if r.disk >= len(c.next) || r.count > d.left {
		d.bad = true
		return r
	}
	r.block = c.next[r.disk] + d.signed()
	if end := maxDiskSize / int64(d.t.blockSize); r.block < 0 || r.block > end-r.count {
		d.bad = true
		return r
	}
	d.left -= r.count
	c.disk, c.next[r.disk] = r.disk, r.block+r.count
	return r
}
