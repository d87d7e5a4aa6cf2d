package disk

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"github.com/klauspost/compress/zstd"
)

// Compression is how a writer compresses.
type Compression string

// The compressions of [WriteQCOW2].
const (
	CompressNone Compression = ""
	CompressZstd Compression = "zstd" // read by QEMU 5.1 and later
)

// QCOW2Options are the choices of [WriteQCOW2]. The zero value is good.
type QCOW2Options struct {
	Compress Compression
	// ClusterSize in bytes: a power of two from 4 KiB to 1 MiB. 0 = 64 KiB.
	ClusterSize int64
	Progress    func(done, total int64) // bytes of the disk; nil = none
}

const (
	qcow2Copied      = 1 << 63 // in L1 and L2: the reference count is exactly one
	qcow2WHeader     = 112
	qcow2WMinCluster = 4 << 10
	qcow2WMaxCluster = batchSize
)

// WriteQCOW2 writes the content of img to w, an empty file, as a qcow2 image of
// version 3 without a backing file. Holes and clusters of zeros are left out.
// Its size is rounded up to sectors, the only sizes that QEMU knows.
//
// Data goes out once and in order; w is sought only at the end, to put the
// header and the L1 table in their place at the start. A file whose writing was
// broken off therefore has no header and is no image.
func WriteQCOW2(ctx context.Context, w io.WriteSeeker, img Image, opts QCOW2Options) error {
	if opts.ClusterSize == 0 {
		opts.ClusterSize = 64 << 10
	}
	q := &qcow2Writer{w: w, out: bufio.NewWriterSize(w, batchSize), opts: opts, l2Index: -1, refs: map[int64][]uint16{}}
	if err := q.write(ctx, img); err != nil {
		return fmt.Errorf("write qcow2 image: %w", err)
	}
	return nil
}

// qcow2Writer appends clusters, and each table when it is known whole:
//
//	header, L1 table (filled in last) | clusters … L2 table | clusters … L2 table | … | refcount table
//
// with a refcount block after as much of the file as it can count (2 GiB, with
// clusters of 64 KiB). It keeps the L1 table, one L2 table and at most three
// refcount blocks in memory.
type qcow2Writer struct {
	w    io.WriteSeeker
	out  *bufio.Writer
	pos  int64 // bytes written: where the next one goes
	opts QCOW2Options

	cluster  int64 // bytes
	perL2    int64 // entries of an L2 table
	perBlock int64 // 16-bit counts of a refcount block

	l1      []uint64
	l2      []uint64
	l2Index int64 // the table that l2 is; -1 = none yet
	refs    map[int64][]uint16
	blocks  []uint64 // places of the refcount blocks written
}

func (q *qcow2Writer) write(ctx context.Context, img Image) error {
	size, err := q.layout(img.Size())
	if err != nil {
		return err
	}
	if err := q.zeros(q.cluster + int64(len(q.l1))*8); err != nil {
		return err
	}
	if err := q.align(); err != nil {
		return err
	}
	q.count(0, q.pos)
	c := copier{img: img, unit: q.cluster, progress: q.opts.Progress, emit: q.emit}
	switch q.opts.Compress {
	case CompressNone:
	case CompressZstd:
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(int(q.cluster)), zstd.WithEncoderCRC(false))
		if err != nil {
			return err
		}
		defer enc.Close()
		c.work = zstdPacker(enc)
	default:
		return fmt.Errorf("compression %q: %w", q.opts.Compress, ErrUnsupported)
	}
	if err := c.run(ctx); err != nil {
		return err
	}
	return q.finish(size)
}

// layout makes the tables and returns the size that the image will have.
func (q *qcow2Writer) layout(size int64) (int64, error) {
	q.cluster = q.opts.ClusterSize
	if q.cluster < qcow2WMinCluster || q.cluster > qcow2WMaxCluster || q.cluster&(q.cluster-1) != 0 {
		return 0, fmt.Errorf("clusters of %d bytes: %w", q.cluster, ErrUnsupported)
	}
	q.perL2, q.perBlock = q.cluster/8, q.cluster/2
	size = (size + SectorSize - 1) &^ (SectorSize - 1)
	tables := (size + q.cluster*q.perL2 - 1) / (q.cluster * q.perL2)
	if tables*8 > qcow2MaxL1 {
		return 0, fmt.Errorf("a disk of %d bytes in clusters of %d: %w", size, q.cluster, ErrUnsupported)
	}
	q.l1, q.l2 = make([]uint64, tables), make([]uint64, q.perL2)
	return size, nil
}

// zstdPacker compresses the units of a batch. QEMU wants frames without a
// checksum: it stops reading when a cluster is full.
func zstdPacker(enc *zstd.Encoder) func(b *batch) error {
	return func(b *batch) error {
		for i := range b.units {
			u := &b.units[i]
			from := len(b.packed)
			b.packed = enc.EncodeAll(u.data, b.packed)
			if len(b.packed)-from > len(u.data)-SectorSize {
				b.packed = b.packed[:from] // not worth it
				continue
			}
			u.packed = b.packed[from:len(b.packed):len(b.packed)]
		}
		return nil
	}
}

func (q *qcow2Writer) emit(b *batch) error {
	for _, u := range b.units {
		if err := q.startUnit(u.off / q.cluster / q.perL2); err != nil {
			return err
		}
		entry, err := q.appendUnit(u)
		if err != nil {
			return err
		}
		q.l2[u.off/q.cluster%q.perL2] = entry
	}
	return nil
}

// startUnit writes the tables that cannot change any more.
func (q *qcow2Writer) startUnit(l2Index int64) error {
	if l2Index != q.l2Index {
		if err := q.flushL2(); err != nil {
			return err
		}
		q.l2Index = l2Index
	}
	for q.pos/q.cluster/q.perBlock > int64(len(q.blocks)) {
		if err := q.flushRefs(); err != nil {
			return err
		}
	}
	return nil
}

// appendUnit writes a cluster and returns its L2 entry.
func (q *qcow2Writer) appendUnit(u unit) (uint64, error) {
	if u.packed == nil {
		at, err := q.append(u.data)
		return uint64(at) | qcow2Copied, err
	}
	at := q.pos
	if err := q.bytes(u.packed); err != nil {
		return 0, err
	}
	q.count(at, q.pos)
	further := (q.pos-1)/SectorSize - at/SectorSize
	return uint64(at) | uint64(further)<<q.offsetBits() | qcow2Compressed, nil
}

// offsetBits is where the number of sectors begins in a compressed L2 entry.
func (q *qcow2Writer) offsetBits() int { return 62 - (bits.TrailingZeros64(uint64(q.cluster)) - 8) }

// append writes p, one cluster, at a cluster's start, and counts it.
func (q *qcow2Writer) append(p []byte) (at int64, err error) {
	if err := q.align(); err != nil {
		return 0, err
	}
	at = q.pos
	q.count(at, at+q.cluster)
	return at, q.bytes(p)
}

func (q *qcow2Writer) bytes(p []byte) error {
	n, err := q.out.Write(p)
	q.pos += int64(n)
	return err
}

func (q *qcow2Writer) zeros(n int64) error {
	q.pos += n
	return writeZeros(q.out, n)
}

func (q *qcow2Writer) align() error { return q.zeros(-q.pos & (q.cluster - 1)) }

// count adds one reference to each cluster that [from, to) touches.
func (q *qcow2Writer) count(from, to int64) {
	for c := from / q.cluster; c <= (to-1)/q.cluster; c++ {
		block := c / q.perBlock
		if q.refs[block] == nil {
			q.refs[block] = make([]uint16, q.perBlock)
		}
		q.refs[block][c%q.perBlock]++
	}
}

func (q *qcow2Writer) flushL2() error {
	if q.l2Index < 0 {
		return nil
	}
	at, err := q.append(bigEndian64(q.l2))
	q.l1[q.l2Index] = uint64(at) | qcow2Copied
	clear(q.l2)
	return err
}

// flushRefs appends the first refcount block that is not written yet.
func (q *qcow2Writer) flushRefs() error {
	block := int64(len(q.blocks))
	counts := q.refs[block]
	if counts == nil {
		counts = make([]uint16, q.perBlock)
	}
	b := make([]byte, 0, q.cluster)
	for _, n := range counts {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	delete(q.refs, block)
	at, err := q.append(b)
	q.blocks = append(q.blocks, uint64(at))
	return err
}

// finish writes the tables that are left, then the header.
//
// The refcount blocks and the table count themselves. How many there are
// depends on how many clusters they make the file have; the loop finds it.
// They are counted before they are written.
func (q *qcow2Writer) finish(size int64) error {
	if err := q.flushL2(); err != nil {
		return err
	}
	if err := q.align(); err != nil {
		return err
	}
	clusters := q.pos / q.cluster
	written := int64(len(q.blocks))
	blocks, table := written, int64(1)
	for {
		total := clusters + blocks - written + table
		needBlocks := (total + q.perBlock - 1) / q.perBlock
		needTable := (needBlocks*8 + q.cluster - 1) / q.cluster
		if needBlocks <= blocks && needTable <= table {
			break
		}
		blocks, table = max(blocks, needBlocks), max(table, needTable)
	}
	tableAt := q.pos + (blocks-written)*q.cluster
	q.count(q.pos, tableAt+table*q.cluster)
	pending := q.refs
	for block := written; block < blocks; block++ {
		q.refs = map[int64][]uint16{block: pending[block]}
		if err := q.flushRefs(); err != nil {
			return err
		}
	}
	if err := q.bytes(bigEndian64(q.blocks)); err != nil {
		return err
	}
	if err := q.align(); err != nil {
		return err
	}
	return q.header(size, tableAt, table)
}

// header flushes what is buffered and writes L1 table and header, in this
// order, so that a file with a header is whole.
func (q *qcow2Writer) header(size, tableAt, tableClusters int64) error {
	if err := q.out.Flush(); err != nil {
		return err
	}
	h := make([]byte, qcow2WHeader)
	copy(h, qcow2Magic)
	put := binary.BigEndian
	put.PutUint32(h[4:], 3)
	put.PutUint32(h[20:], uint32(bits.TrailingZeros64(uint64(q.cluster))))
	put.PutUint64(h[24:], uint64(size))
	put.PutUint32(h[36:], uint32(len(q.l1)))
	put.PutUint64(h[40:], uint64(q.cluster))
	put.PutUint64(h[48:], uint64(tableAt))
	put.PutUint32(h[56:], uint32(tableClusters))
	put.PutUint32(h[96:], 4) // refcount order: 2^4 bits
	put.PutUint32(h[100:], qcow2WHeader)
	if q.opts.Compress == CompressZstd {
		put.PutUint64(h[72:], qcow2Compress)
		h[104] = qcow2Zstd
	}
	for _, part := range []struct {
		at      int64
		content []byte
	}{{q.cluster, bigEndian64(q.l1)}, {0, h}} {
		if _, err := q.w.Seek(part.at, io.SeekStart); err != nil {
			return err
		}
		if _, err := q.w.Write(part.content); err != nil {
			return err
		}
	}
	return nil
}

func bigEndian64(values []uint64) []byte {
	b := make([]byte, 0, len(values)*8)
	for _, v := range values {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return b
}
