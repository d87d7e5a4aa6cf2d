package disk

import "fmt"

// Bits of L1 and L2 table entries.
const (
	qcow2OffsetMask  = 0x00fffffffffffe00
	qcow2Compressed  = 1 << 62
	qcow2ZeroCluster = 1 << 0
)

// qcow2 is the mapping of a qcow2 image: L1 table → L2 tables → clusters.
type qcow2 struct {
	qcow2Header
	host     *hostFile
	tables   *pageCache
	clusters *pageCache
	codecs   *codecs
	l1       table
	// subBits is log2 of the bytes of a subcluster: of a cluster, where the
	// image has none.
	subBits uint
}

func openQCOW2(o *opener, host *hostFile, n node) (layer, error) {
	h, err := parseQCOW2(host, o.opts.Logger)
	if err != nil {
		return nil, err
	}
	q := &qcow2{qcow2Header: *h, host: host, tables: o.tables, clusters: o.clusters, codecs: o.codecs}
	q.l1 = table{host, o.tables, h.l1Offset, h.l1Entries * 8}
	q.subBits = h.clusterBits
	if h.incompatible&qcow2ExtL2 != 0 {
		q.subBits -= 5
	}
	l := &over{length: h.size, tables: q}
	if h.backing != "" {
		if l.below, err = o.below(n, h.backing, h.backingFormat); err != nil {
			return nil, fmt.Errorf("backing file of %s: %w", host.name, err)
		}
	}
	return l, nil
}

func (q *qcow2) bad(where string, args ...any) error {
	return &FormatError{Path: q.host.name, Format: FormatQCOW2, Where: where, What: fmt.Sprint(args...), Err: ErrFormat}
}

// l2 finds the L2 table that covers off. ok == false: there is none.
func (q *qcow2) l2(off int64) (t table, ok bool, err error) {
	index := off >> (q.clusterBits + q.l2Bits())
	page, start, err := q.l1.page(index * 8)
	if err != nil {
		return table{}, false, fmt.Errorf("L1 entry %d: %w", index, err)
	}
	at := int64(be64(page[index*8-start:]) & qcow2OffsetMask)
	if at == 0 {
		return table{}, false, nil
	}
	cluster := int64(1) << q.clusterBits
	if at&(cluster-1) != 0 || at > q.host.size-cluster {
		return table{}, false, q.bad(fmt.Sprintf("L1 entry %d", index), "L2 table at ", at, ": not a cluster of this file, which ends at ", q.host.size)
	}
	return table{q.host, q.tables, at, cluster}, true, nil
}

// at implements mapping. The piece ends where its kind, its run in the file or
// the cached page of the L2 table ends.
func (q *qcow2) at(off, limit int64) (piece, error) {
	span := int64(1) << (q.clusterBits + q.l2Bits())
	limit = min(limit, span-off&(span-1))
	t, ok, err := q.l2(off)
	if err != nil {
		return piece{}, err
	}
	if !ok {
		return piece{kind: absent, off: off, length: limit}, nil
	}
	index := off & (span - 1) >> q.clusterBits
	page, start, err := t.page(index << q.entryBits())
	if err != nil {
		return piece{}, fmt.Errorf("L2 table at %d: %w", t.off, err)
	}
	page = page[index<<q.entryBits()-start:]
	pc, err := q.element(page, off)
	if err != nil {
		return piece{}, err
	}
	for step := 1 << q.entryBits(); pc.length < limit && pc.kind != compressed; {
		// The next element is in this entry, or begins the next one.
		next := off + pc.length
		if next&(1<<q.clusterBits-1) == 0 {
			if len(page) <= step {
				break
			}
			page = page[step:]
		}
		more, err := q.element(page, next)
		if err != nil || more.kind != pc.kind || (pc.kind == data && more.host != pc.host+pc.length) {
			break // an error is found again, and told, by the read that needs it
		}
		pc.length += more.length
	}
	pc.length = min(pc.length, limit)
	return pc, nil //nolint:nilerr // see the break above
}

// element is the (sub)cluster that contains off, from off to its end, given its
// L2 entry.
func (q *qcow2) element(entry []byte, off int64) (piece, error) {
	e := be64(entry)
	unit := int64(1) << q.subBits
	pc := piece{off: off, length: unit - off&(unit-1)}
	inCluster := off & (1<<q.clusterBits - 1)
	if e&qcow2Compressed != 0 {
		pc.kind, pc.entry = compressed, e
		pc.length = 1<<q.clusterBits - inCluster
		return pc, nil
	}
	var err error
	if q.subBits != q.clusterBits {
		pc.kind, err = q.subclusterKind(e, be64(entry[8:]), int(inCluster>>q.subBits))
	} else {
		pc.kind, err = q.clusterKind(e)
	}
	if err != nil {
		return pc, fmt.Errorf("offset %d: %w", off, err)
	}
	if pc.kind != data {
		return pc, nil
	}
	at := int64(e & qcow2OffsetMask)
	if at&(1<<q.clusterBits-1) != 0 {
		return pc, q.bad("L2 entry", fmt.Sprintf("%#x of offset %d does not point at a cluster's start", e, off))
	}
	pc.host = at + inCluster
	return pc, nil
}

func (q *qcow2) clusterKind(e uint64) (pieceKind, error) {
	switch {
	case e&qcow2ZeroCluster != 0 && q.version < 3:
		return 0, q.bad("L2 entry", "a zero cluster in an image of version 2")
	case e&qcow2ZeroCluster != 0:
		return zeros, nil
	case e&qcow2OffsetMask == 0:
		return absent, nil
	}
	return data, nil
}

// subclusterKind reads the bitmap of an extended L2 entry: the lower half says
// what is allocated, the upper half what reads as zeros.
func (q *qcow2) subclusterKind(e, bitmap uint64, sub int) (pieceKind, error) {
	allocated, zero := bitmap>>sub&1 != 0, bitmap>>(sub+qcow2Subclusters)&1 != 0
	switch {
	case allocated && zero:
		return 0, q.bad("L2 entry", "subcluster ", sub, " is both data and zeros")
	case zero:
		return zeros, nil
	case !allocated:
		return absent, nil
	case e&qcow2OffsetMask == 0:
		return 0, q.bad("L2 entry", "subcluster ", sub, " is data without a place")
	}
	return data, nil
}

// readPiece implements mapping.
func (q *qcow2) readPiece(pc piece, p []byte) error {
	if pc.kind == compressed {
		return q.readCompressed(pc, p)
	}
	return q.readData(p, pc.host)
}

// readData reads clusters as they are. The last cluster of a file may be cut
// (what is missing reads as zeros, as in QEMU); one that lies beyond the end
// means that the file was cut.
func (q *qcow2) readData(p []byte, at int64) error {
	end := at + int64(len(p))
	if end <= q.host.size {
		return q.host.readFull(p, at)
	}
	if lastCluster := (end - 1) &^ (1<<q.clusterBits - 1); lastCluster >= q.host.size {
		return q.bad("cluster", "data up to ", end, " is expected, the file ends at ", q.host.size, ": it was cut")
	}
	have := max(0, q.host.size-at)
	clear(p[have:])
	return q.host.readFull(p[:have], at)
}

// readCompressed reads a part of a compressed cluster: whole clusters past the
// cache, straight to where they are wanted; parts through it.
func (q *qcow2) readCompressed(pc piece, p []byte) error {
	cluster := int64(1) << q.clusterBits
	inside := pc.off & (cluster - 1)
	if inside == 0 && int64(len(p)) == cluster {
		return q.decompress(pc, p)
	}
	key := pageKey{q.host, int64(pc.entry), cluster}
	whole, err := q.clusters.get(q.host.ctx, key, func() ([]byte, error) {
		b := make([]byte, cluster)
		return b, q.decompress(pc, b)
	})
	if err != nil {
		return err
	}
	copy(p, whole[inside:])
	return nil
}

// decompress unpacks the cluster that pc is (part of) into dst.
func (q *qcow2) decompress(pc piece, dst []byte) error {
	// The entry: offset in the low bits, then the number of further sectors.
	offsetBits := 62 - (q.clusterBits - 8)
	at := int64(pc.entry & (1<<offsetBits - 1))
	sectors := int64(pc.entry&^qcow2Compressed>>offsetBits) & (1<<(q.clusterBits-8) - 1)
	buf := q.codecs.buffer((sectors+1)*SectorSize - at&(SectorSize-1))
	defer q.codecs.release(buf)
	src, err := q.host.readUpTo(*buf, at)
	if err != nil {
		return fmt.Errorf("compressed cluster of offset %d: %w", pc.off, err)
	}
	if q.compression == qcow2Zstd {
		err = q.codecs.unzstd(dst, src)
	} else {
		err = q.codecs.inflate(dst, src)
	}
	if err != nil {
		return q.bad("compressed cluster", fmt.Sprintf("of offset %d, %d bytes at %d: %v", pc.off, len(src), at, err))
	}
	return nil
}
