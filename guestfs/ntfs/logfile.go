package ntfs

import (
	"encoding/binary"

	"lifeboat/disk"
)

// $LogFile is written before anything else is, by a service of the kernel (LFS)
// that keeps its own state in two restart pages at the beginning, one of which
// is always whole. After them come the latest pages once more (tail copies: a
// page that was not full is written there first, so that a torn write loses
// nothing that was on it before), and then a ring of pages with records.
//
// A record is known by its LSN: the number of the round through the ring, and
// its place in units of eight bytes.
const (
	restartHeader = 30
	restartArea   = 48
	restartClean  = 2 // flag: the volume was dismounted
	noClient      = 0xffff
	minLogPage    = 512
	maxLogPage    = 64 << 10
	maxLog        = 4 << 30 // bytes; Windows makes 64 MiB

	pageHeader   = 64
	pageHasEnd   = 1 // flag of a page: a record ends here
	tailPages1   = 2 // tail copies of version 1, each a page
	tailPages2   = 32
	lfsHeader    = 48 // of a record
	lfsClient    = 1  // type of a record: NTFS wrote it
	lfsRestart   = 2  // a checkpoint
	clientRecord = 160
)

// restartPage is what a restart page says.
type restartPage struct {
	major, minor uint16
	pageSize     int64  // of the log, bytes
	lsn          uint64 // of the last record when it was written
	seqBits      uint
	size         int64 // of the log, bytes
	dataAt       int64 // where records begin in a page
	headerLen    int64
	clean        bool
	checkpoint   uint64 // LSN of NTFS's last one
}

// readRestart reads the later one of the restart pages; nil of a log that was
// never used, or was reset.
func readRestart(img disk.Image) (*restartPage, error) {
	size := int64(4096)
	first, unused, err := readRestartPage(img, 0, &size)
	if err != nil || unused {
		return nil, err
	}
	second, _, err := readRestartPage(img, size, &size)
	if err != nil {
		return nil, err
	}
	switch {
	case first == nil && second == nil:
		return nil, corrupt("neither restart page is one")
	case first == nil || second != nil && second.lsn > first.lsn:
		first = second
	}
	return first, nil
}

// readRestartPage reads one, whose size is in it. It is nil where there is none,
// and unused where the page was filled with ones.
func readRestartPage(img disk.Image, at int64, size *int64) (page *restartPage, unused bool, err error) {
	b := make([]byte, *size)
	if n, err := img.ReadAt(b, at); n < len(b) {
		return nil, false, unexpected(err)
	}
	le := binary.LittleEndian
	magic := string(b[:4])
	if magic != "RSTR" && magic != "CHKD" {
		return nil, magic == "\xff\xff\xff\xff", nil
	}
	if n := int64(le.Uint32(b[16:])); n != *size && n >= minLogPage && n <= maxLogPage && powerOfTwo(n) && at == 0 {
		*size = n
		return readRestartPage(img, at, size)
	}
	off := int(le.Uint16(b[24:]))
	if unfix(b) != nil || off < restartHeader || off+restartArea > len(b) {
		return nil, false, nil //nolint:nilerr // it is no restart page, which is all that is asked
	}
	area := b[off:]
	p := &restartPage{
		minor: le.Uint16(b[26:]), major: le.Uint16(b[28:]), pageSize: int64(le.Uint32(b[20:])), lsn: le.Uint64(area),
		seqBits: uint(le.Uint32(area[16:])), size: int64(le.Uint64(area[24:])), headerLen: int64(le.Uint16(area[36:])), dataAt: int64(le.Uint16(area[38:])),
		clean: magic == "CHKD" || le.Uint16(area[14:])&restartClean != 0 || le.Uint16(area[12:]) == noClient,
	}
	if client := int(le.Uint16(area[22:])) + int(le.Uint16(area[12:]))*clientRecord; !p.clean && client+clientRecord <= len(area) {
		p.checkpoint = le.Uint64(area[client+8:])
	}
	return p, false, nil
}

// log reads the records of a log.
type log struct {
	img     disk.Image
	restart *restartPage
	first   int64            // where the ring begins
	tails   map[int64][]byte // tail copies, by the place of their page
	pages   *lru[int64, []byte]
}

// openLog checks what a restart page says of a log, so that nobody has to check
// again, and reads the tail copies.
func openLog(img disk.Image, p *restartPage) (*log, error) {
	version := uint32(p.major)<<16 | uint32(p.minor)
	if version != 1<<16 && version != 1<<16|1 && version != 2<<16 {
		return nil, unsupported("version %d.%d of the log", p.major, p.minor)
	}
	l := &log{img: img, restart: p, tails: map[int64][]byte{}, pages: newLRU[int64, []byte](64)}
	tails := int64(tailPages1)
	if p.major >= 2 {
		tails = tailPages2
	}
	l.first = (2 + tails) * p.pageSize
	if p.pageSize < minLogPage || p.pageSize > maxLogPage || !powerOfTwo(p.pageSize) || p.size > img.Size() || p.size > maxLog || p.size < l.first+p.pageSize ||
		p.size%p.pageSize != 0 || p.seqBits < 24 || p.seqBits > 60 || uint64(p.size) > 1<<(67-p.seqBits) ||
		p.headerLen != lfsHeader || p.dataAt < pageHeader || p.dataAt%8 != 0 || p.dataAt > p.pageSize-lfsHeader {
		return nil, corrupt("a log of %d bytes in pages of %d", p.size, p.pageSize)
	}
	for at := 2 * p.pageSize; at < l.first; at += p.pageSize {
		if err := l.readTail(at); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// readTail reads a tail copy and keeps it if it is the latest of its page. In
// version 1 it has the place of the page where other pages have an LSN.
func (l *log) readTail(at int64) error {
	b, err := l.readPage(at)
	if err != nil || b == nil {
		return err
	}
	le := binary.LittleEndian
	place := int64(le.Uint32(b[60:]))
	if l.restart.major < 2 {
		place = int64(min(le.Uint64(b[8:]), 1<<62))
		copy(b[8:16], b[32:40])
	}
	if place < l.first || place >= l.restart.size || place%l.restart.pageSize != 0 {
		return nil
	}
	if old := l.tails[place]; old == nil || newest(old) < newest(b) {
		l.tails[place] = b
	}
	return nil
}

// pageLSN is the last record that begins, or goes on, on a page; pageEnd the last
// that ends.
func pageLSN(b []byte) uint64 { return binary.LittleEndian.Uint64(b[8:]) }
func pageEnd(b []byte) uint64 { return binary.LittleEndian.Uint64(b[32:]) }
func newest(b []byte) uint64  { return max(pageLSN(b), pageEnd(b)) }

// readPage reads what stands at a place; nil where that is no page, or a torn
// one.
func (l *log) readPage(at int64) ([]byte, error) {
	b := make([]byte, l.restart.pageSize)
	if n, err := l.img.ReadAt(b, at); n < len(b) {
		return nil, unexpected(err)
	}
	if string(b[:4]) != "RCRD" || unfix(b) != nil {
		return nil, nil //nolint:nilerr // it is no page of the log, which is all that is asked
	}
	return b, nil
}

// page is the latest that is known of a page of the ring; nil where there is
// none.
func (l *log) page(at int64) ([]byte, error) {
	if b, ok := l.pages.get(at); ok {
		return b, nil
	}
	b, err := l.readPage(at)
	if err != nil {
		return nil, err
	}
	if tail := l.tails[at]; tail != nil && (b == nil || newest(b) < newest(tail)) {
		b = tail
	}
	l.pages.put(at, b)
	return b, nil
}

// place is where in the log a record stands.
func (l *log) place(lsn uint64) int64 {
	return int64(lsn << l.restart.seqBits >> l.restart.seqBits << 3)
}

// lsnAt is the LSN of what stands at a place in the round of another LSN.
func (l *log) lsnAt(place int64, round uint64) uint64 {
	return round<<(64-l.restart.seqBits) | uint64(place)>>3
}

func (l *log) round(lsn uint64) uint64 { return lsn >> (64 - l.restart.seqBits) }

// after is the page that follows one.
func (l *log) after(page int64) int64 {
	if page += l.restart.pageSize; page < l.restart.size {
		return page
	}
	return l.first
}

// logRecord is a record of the log.
type logRecord struct {
	lsn, undoNext uint64
	kind          uint32
	transaction   uint32
	data          []byte
	next          uint64 // LSN of the record that follows, if there is one
}

// record reads a record; nil where there is none with this LSN, or not all of
// it: there the log ends.
func (l *log) record(lsn uint64) (*logRecord, error) {
	le := binary.LittleEndian
	at := l.place(lsn)
	page := at / l.restart.pageSize * l.restart.pageSize
	if at < l.first || at >= l.restart.size || at-page < l.restart.dataAt || at-page > l.restart.pageSize-lfsHeader {
		return nil, nil
	}
	b, err := l.page(page)
	if err != nil || b == nil || pageLSN(b) < lsn {
		return nil, err
	}
	h := b[at-page:]
	if le.Uint64(h) != lsn {
		return nil, nil
	}
	r := &logRecord{lsn: lsn, undoNext: le.Uint64(h[16:]), kind: le.Uint32(h[32:]), transaction: le.Uint32(h[36:])}
	left := int64(le.Uint32(h[24:]))
	if left > l.restart.size/2 {
		return nil, nil
	}
	round, from := l.round(lsn), at-page+lfsHeader
	for {
		n := min(left, int64(len(b))-from)
		r.data = append(r.data, b[from:from+n]...)
		from, left = from+n, left-n
		if left == 0 {
			break
		}
		if page = l.after(page); page == l.first {
			round++
		}
		if b, err = l.page(page); err != nil || b == nil || pageLSN(b) < lsn {
			return nil, err
		}
		from = l.restart.dataAt
	}
	if le.Uint32(b[16:])&pageHasEnd == 0 || pageEnd(b) < lsn {
		return nil, nil
	}
	if pageLSN(b) == lsn { // the last one of its page
		if page = l.after(page); page == l.first {
			round++
		}
		from = l.restart.dataAt
	}
	r.next = l.lsnAt(page+(from+7)&^7, round)
	return r, nil
}

// checkEnd makes sure that the log ends where reading it ended: nothing that
// was written later stands behind a gap. What one write of several pages left
// behind may.
func (l *log) checkEnd(last uint64) error {
	const together, look = 64, 1024 // pages: more than are written at a time; as far as is looked
	if last < l.restart.lsn && l.place(l.restart.lsn) >= l.first {
		return corrupt("the log ends at %#x, before %#x, which was on disk", last, l.restart.lsn)
	}
	page := l.place(last) / l.restart.pageSize * l.restart.pageSize
	var head [16]byte
	for i := range min(look, (l.restart.size-l.first)/l.restart.pageSize) {
		if page = l.after(page); i < together {
			continue
		}
		if n, err := l.img.ReadAt(head[:], page); n < len(head) {
			return unexpected(err)
		}
		if string(head[:4]) == "RCRD" && pageLSN(head[:]) > last {
			return corrupt("the log ends at %#x, and goes on at %#x", last, pageLSN(head[:]))
		}
	}
	return nil
}
