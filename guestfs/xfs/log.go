package xfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"lifeboat/disk"
)

// The log (the kernel's fs/xfs/libxfs/xfs_log_format.h, fs/xfs/xfs_log_recover.c)
// is a ring of sectors. Every one begins with the number of the round in which it
// was written, the cycle; the word that stood there is kept in the record's
// header. So the head, where the next record goes, is where the cycle falls by
// one. Records reach the disk in any order, so that there may be holes before it,
// and the last ones may be torn: those did not happen.
const (
	sector = 512

	recordMagic    = 0xfeedbabe
	recMagic       = 0
	recCycle       = 4
	recVersion     = 8
	recLen         = 12
	recLSN         = 16
	recTail        = 24
	recCRC         = 32
	recOps         = 40
	recCycles      = 44 // of the first 64 sectors
	recFormat      = 300
	recUUID        = 304
	recSize        = 320 // of the buffer that it was written from
	recBytes       = 328 // as far as it is summed; 324 by 32-bit kernels
	recBytes32     = 324
	extCycles      = 4 // of 64 more, in each further sector of the header
	extBytes       = 260
	littleEndian   = 1
	sectorsPerHead = 64
	maxRecord      = 256 << 10
	maxRecordV1    = 32 << 10
	maxBuffers     = 8 // records that can be on their way at once

	opUnmount = 0x20
)

// xlog is a log while it is replayed.
type xlog struct {
	img  disk.Image
	base int64 // where it begins, bytes
	size int64 // sectors
	v2   bool
	uuid [16]byte
}

// record is a header of one, checked to be possible.
type record struct {
	at, header, sectors int64 // where; sectors of the header and of the rest
	size                int64 // of the buffer, bytes
	lsn, tail           uint64
	ops                 uint32
	raw                 []byte // the header
}

// end is the sector after it, in a log of size sectors.
func (r *record) end(size int64) int64 { return (r.at + r.header + r.sectors) % size }

// errTorn says that something in the log is not as it was written.
var errTorn = errors.New("torn")

// sectors reads n sectors from at on, around the end.
func (l *xlog) sectors(ctx context.Context, at, n int64) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	at %= l.size
	b := make([]byte, n*sector)
	first := min(n, l.size-at) * sector
	if m, err := l.img.ReadAt(b[:first], l.base+at*sector); int64(m) < first {
		return nil, fmt.Errorf("read sector %d: %w", at, err)
	}
	if m, err := l.img.ReadAt(b[first:], l.base); m < len(b[first:]) {
		return nil, fmt.Errorf("read sector 0: %w", err)
	}
	return b, nil
}

// cycleOf is the cycle that a sector was written in.
func cycleOf(b []byte) uint32 {
	if c := binary.BigEndian.Uint32(b); c != recordMagic {
		return c
	}
	return binary.BigEndian.Uint32(b[recCycle:])
}

func (l *xlog) cycle(ctx context.Context, at int64) (uint32, error) {
	b, err := l.sectors(ctx, at, 1)
	if err != nil {
		return 0, err
	}
	return cycleOf(b), nil
}

// first finds the first of n sectors from at on that is of a cycle; -1 where none
// is.
func (l *xlog) first(ctx context.Context, at, n int64, cycle uint32) (int64, error) {
	const step = 512
	for done := int64(0); done < n; done += step {
		b, err := l.sectors(ctx, at+done, min(step, n-done))
		if err != nil {
			return 0, err
		}
		for i := 0; i < len(b); i += sector {
			if cycleOf(b[i:]) == cycle {
				return at + done + int64(i/sector), nil
			}
		}
	}
	return -1, nil
}

// window is how many sectors can be on their way at once.
func (l *xlog) window() int64 {
	n := int64(maxBuffers * maxRecord / sector)
	if !l.v2 {
		n = maxBuffers * maxRecordV1 / sector
	}
	return min(n, l.size)
}

// head finds the sector where the next record goes; empty where none was ever
// written.
func (l *xlog) head(ctx context.Context) (head int64, empty bool, err error) {
	first, err := l.cycle(ctx, 0)
	if err != nil || first == 0 {
		return 0, true, err
	}
	last, err := l.cycle(ctx, l.size-1)
	if err != nil {
		return 0, false, err
	}
	head = l.size
	if first != last {
		// The cycles are first … first, last … last, but for the holes.
		lo := int64(0)
		for head = l.size - 1; head-lo > 1; {
			middle := (lo + head) / 2
			c, err := l.cycle(ctx, middle)
			if err != nil {
				return 0, false, err
			}
			if c == last {
				head = middle
			} else {
				lo = middle
			}
		}
	}
	if head, err = l.hole(ctx, head, first, last); err != nil {
		return 0, false, err
	}
	// What ends there must be a whole record.
	r, err := l.before(ctx, head, l.window())
	if err != nil {
		return 0, false, err
	}
	if r == nil {
		return 0, false, corrupt("its log has no record before sector %d", head)
	}
	if r.end(l.size) != head%l.size {
		head = r.at
	}
	return head % l.size, false, nil
}

// hole moves the head back to the first sector, of those that may have been on
// their way, that was not written in this round.
func (l *xlog) hole(ctx context.Context, head int64, first, last uint32) (int64, error) {
	n := l.window()
	stop := last
	if first == last {
		stop = last - 1 // all of the log is of one cycle
	}
	if rest := n - head; rest > 0 && last != 0 { // the end of the ring was written in this round, too
		at, err := l.first(ctx, l.size-rest, rest, stop-1)
		if err != nil || at >= 0 {
			return at, err
		}
	}
	n = min(n, head)
	at, err := l.first(ctx, head-n, n, stop)
	if err != nil || at < 0 {
		return head, err
	}
	return at, nil
}

// before finds the last header of a record before a sector, not further back than
// n sectors; nil where there is none.
func (l *xlog) before(ctx context.Context, at, n int64) (*record, error) {
	const step = 128
	for done := int64(0); done < n; done += step {
		m := min(step, n-done)
		from := (at - done - m + 2*l.size) % l.size
		b, err := l.sectors(ctx, from, m)
		if err != nil {
			return nil, err
		}
		for i := m - 1; i >= 0; i-- {
			if binary.BigEndian.Uint32(b[i*sector:]) == recordMagic {
				return l.parse(b[i*sector:(i+1)*sector], (from+i)%l.size)
			}
		}
	}
	return nil, nil
}

// parse reads a header. A header that cannot be is errTorn.
func (l *xlog) parse(b []byte, at int64) (*record, error) {
	be := binary.BigEndian
	length, version := int64(be.Uint32(b[recLen:])), be.Uint32(b[recVersion:])
	r := &record{
		at: at, header: 1, sectors: (length + sector - 1) / sector, size: maxRecordV1, lsn: be.Uint64(b[recLSN:]), tail: be.Uint64(b[recTail:]),
		ops: be.Uint32(b[recOps:]), raw: b,
	}
	if l.v2 && version&2 != 0 {
		r.size = int64(be.Uint32(b[recSize:]))
		r.header = max(1, (r.size+maxRecordV1-1)/maxRecordV1)
	}
	limit := r.size
	if r.ops == 1 {
		limit = maxRecord // mkfs writes a record that is larger than it says its buffer is
	}
	switch {
	case be.Uint32(b) != recordMagic || version == 0 || version > 3:
	case r.size > maxRecord || length == 0 || length > max(limit, sector) || r.header+r.sectors > l.size:
	default:
		return r, nil
	}
	return nil, fmt.Errorf("its log has no record at sector %d: %w", at, errTorn)
}

// read reads the record at a sector and verifies it: errTorn where it is not as
// it was written. What it returns is as it was before the cycles were put in.
func (l *xlog) read(ctx context.Context, at int64) (*record, []byte, error) {
	b, err := l.sectors(ctx, at, 1)
	if err != nil {
		return nil, nil, err
	}
	r, err := l.parse(b, at%l.size)
	if err != nil {
		return nil, nil, err
	}
	b, err = l.sectors(ctx, at, r.header+r.sectors)
	if err != nil {
		return nil, nil, err
	}
	r.raw = b[:r.header*sector]
	be := binary.BigEndian
	length := int64(be.Uint32(b[recLen:]))
	data := b[r.header*sector:][:length]
	want := binary.LittleEndian.Uint32(b[recCRC:])
	if want != 0 && want != l.sum(r, data, recBytes) && want != l.sum(r, data, recBytes32) {
		return nil, nil, fmt.Errorf("the record at sector %d of its log has a wrong checksum: %w", at, errTorn)
	}
	for i := range r.sectors {
		word := recCycles + 4*i
		if h := i / sectorsPerHead; h > 0 {
			word = h*sector + extCycles + 4*(i%sectorsPerHead)
		}
		if word+4 > int64(len(r.raw)) {
			break // longer than its buffer: only mkfs does that
		}
		copy(b[(r.header+i)*sector:][:4], r.raw[word:])
	}
	return r, data, nil
}

// sum is the checksum of a record: header, further sectors of it, data.
func (l *xlog) sum(r *record, data []byte, head int) uint32 {
	c := crc32.Update(0, castagnoli, r.raw[:recCRC])
	c = crc32.Update(c, castagnoli, []byte{0, 0, 0, 0})
	c = crc32.Update(c, castagnoli, r.raw[recCRC+4:head])
	if l.v2 {
		for i := int64(1); i < min(r.header, int64(len(data)+maxRecordV1-1)/maxRecordV1); i++ {
			c = crc32.Update(c, castagnoli, r.raw[i*sector:i*sector+extBytes])
		}
	}
	return crc32.Update(c, castagnoli, data)
}

// unmounted reports whether a record says that the file system was unmounted, and
// nothing follows it.
func (l *xlog) unmounted(ctx context.Context, r *record, head int64) (bool, error) {
	if r.ops != 1 || r.end(l.size) != head {
		return false, nil
	}
	b, err := l.sectors(ctx, r.at+r.header, 1)
	return err == nil && b[opFlags]&opUnmount != 0, err
}

// ours checks that a record was written for this file system, by a machine of our
// byte order.
func (l *xlog) ours(r *record) error {
	if !bytes.Equal(r.raw[recUUID:recUUID+16], l.uuid[:]) {
		return corrupt("its log is of another file system")
	}
	if format := binary.BigEndian.Uint32(r.raw[recFormat:]); format != littleEndian {
		return fmt.Errorf("its log was written by a big-endian machine: %w", errUnsupported)
	}
	return nil
}

// tail finds what of the log is to be replayed: records from tail up to head.
// They are equal where nothing is.
func (l *xlog) tail(ctx context.Context) (tail, head int64, err error) {
	head, empty, err := l.head(ctx)
	if err != nil || empty {
		return 0, 0, err
	}
	for {
		last, err := l.before(ctx, head, l.size)
		if err != nil || last == nil {
			return 0, 0, errors.Join(corrupt("its log has no record before sector %d", head), err)
		}
		if done, err := l.unmounted(ctx, last, head); err != nil || done {
			return head, head, err
		}
		tail = int64(last.tail & 0xffffffff)
		if tail >= l.size {
			return 0, 0, corrupt("its log says that it begins at sector %d of %d", tail, l.size)
		}
		bad, err := l.tornFrom(ctx, tail, head)
		if err != nil || bad < 0 || bad == tail {
			return tail, head, err
		}
		head = bad // strictly nearer to the tail, so this ends
	}
}

// tornFrom verifies the last records before the head, as many as can have been on
// their way, and returns where the first one stands that is torn; -1 where all are
// whole.
func (l *xlog) tornFrom(ctx context.Context, tail, head int64) (int64, error) {
	at := head
	for range maxBuffers {
		if at == tail {
			break
		}
		r, err := l.before(ctx, at, l.distance(tail, at))
		if err != nil && !errors.Is(err, errTorn) {
			return 0, err
		}
		if r == nil {
			break
		}
		at = r.at
	}
	for at != head {
		r, _, err := l.read(ctx, at)
		if errors.Is(err, errTorn) {
			return at, nil
		}
		if err != nil {
			return 0, err
		}
		if l.distance(at, head) < r.header+r.sectors {
			return at, nil
		}
		at = r.end(l.size)
	}
	return -1, nil
}

// distance is how many sectors lie from one to another, around the ring.
func (l *xlog) distance(from, to int64) int64 { return (to - from + l.size) % l.size }
