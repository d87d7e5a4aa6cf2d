package ntfs_test

import (
	"encoding/binary"
	"slices"
	"testing"
	"unicode/utf16"

	"lifeboat/guestfs/ntfs"
)

// logWriter writes a $LogFile as LFS does: records in a ring of pages, tail
// copies, restart pages. It knows nothing of the reader.
type logWriter struct {
	t       testing.TB
	buf     []byte
	v2      bool
	seqBits uint
	page    int // where the page in hand begins
	pos     int // in it
	round   uint64
	last    uint64
	oldest  uint64
	chain   map[uint32]uint64  // last record of a transaction
	firsts  map[uint32]uint64  // and the first
	pages   map[pageKey]uint64 // first change of a page
}

type pageKey struct {
	attr uint16
	page int64
}

const (
	logPage = 4096
	logData = 64
)

// newLogWriter makes a log of size bytes that begins at a page of the ring, in
// some round.
func newLogWriter(t testing.TB, size int, v2 bool, page int, round uint64) *logWriter {
	w := &logWriter{t: t, buf: make([]byte, size), v2: v2, round: round, chain: map[uint32]uint64{}, firsts: map[uint32]uint64{}, pages: map[pageKey]uint64{}}
	for i := range w.buf {
		w.buf[i] = 0xff
	}
	bits := 0
	for n := size; n > 0; n >>= 1 {
		bits++
	}
	w.seqBits = uint(67 - bits)
	w.page = w.first() + page*logPage
	w.begin()
	for range 300 { // what happened before
		w.end(0x18)
	}
	return w
}

func (w *logWriter) first() int {
	if w.v2 {
		return 34 * logPage
	}
	return 4 * logPage
}

// begin begins a page.
func (w *logWriter) begin() {
	b := w.buf[w.page : w.page+logPage]
	clear(b)
	le := binary.LittleEndian
	copy(b, "RCRD")
	le.PutUint16(b[4:], 40)
	le.PutUint16(b[6:], logPage/512+1)
	le.PutUint16(b[20:], 1)
	le.PutUint16(b[22:], 1)
	le.PutUint64(b[32:], w.last)
	le.PutUint16(b[40:], 1) // the update sequence number
	w.pos = logData
}

func (w *logWriter) next() {
	if w.page += logPage; w.page >= len(w.buf) {
		w.page = w.first()
		w.round++
	}
	w.begin()
}

// add writes a record and returns its LSN.
func (w *logWriter) add(kind, transaction uint32, undoNext uint64, data []byte) uint64 {
	le := binary.LittleEndian
	if logPage-w.pos < 48 {
		w.next()
	}
	lsn := w.round<<(64-w.seqBits) | uint64(w.page+w.pos)>>3
	h := make([]byte, 48)
	le.PutUint64(h, lsn)
	le.PutUint64(h[8:], w.chain[transaction])
	le.PutUint64(h[16:], undoNext)
	le.PutUint32(h[24:], uint32(len(data)))
	le.PutUint32(h[32:], kind)
	le.PutUint32(h[36:], transaction)
	if w.pos+48+len(data) > logPage {
		h[40] = 1
	}
	w.chain[transaction] = lsn
	all := slices.Concat(h, data)
	for {
		b := w.buf[w.page : w.page+logPage]
		n := copy(b[w.pos:], all)
		all, w.pos = all[n:], w.pos+n
		le.PutUint64(b[8:], lsn)
		if len(all) == 0 {
			w.pos = (w.pos + 7) &^ 7
			le.PutUint32(b[16:], 1)
			le.PutUint16(b[24:], uint16(w.pos))
			le.PutUint64(b[32:], lsn)
			break
		}
		w.next()
	}
	w.last = lsn
	return lsn
}

// act is an operation as a test thinks of it.
type act struct {
	redoOp, undoOp uint16
	redo, undo     []byte
	attr           uint16
	recordAt, at   int
	vcn            int64
	block          int // in 512 bytes
	lcns           []uint64
}

func (a act) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, 32+8*max(1, len(a.lcns)))
	for i, lcn := range a.lcns {
		le.PutUint64(b[32+8*i:], lcn)
	}
	at := len(b)
	b = append(append(b, a.redo...), make([]byte, -len(a.redo)&7)...)
	undoAt := len(b)
	b = append(append(b, a.undo...), make([]byte, -len(a.undo)&7)...)
	for i, n := range []int{int(a.redoOp), int(a.undoOp), at, len(a.redo), undoAt, len(a.undo), int(a.attr), len(a.lcns), a.recordAt, a.at, a.block} {
		le.PutUint16(b[2*i:], uint16(n))
	}
	le.PutUint64(b[24:], uint64(a.vcn))
	return b
}

// do logs an operation of a transaction; undo goes on at the one before.
func (w *logWriter) do(transaction uint32, a act) uint64 {
	lsn := w.add(1, transaction, w.chain[transaction], a.encode())
	if w.firsts[transaction] == 0 {
		w.firsts[transaction] = lsn
	}
	if key := (pageKey{a.attr, a.vcn / 4}); len(a.lcns) > 0 && w.pages[key] == 0 {
		w.pages[key] = lsn
	}
	return lsn
}

// end ends a transaction.
func (w *logWriter) end(transaction uint32) {
	w.do(transaction, act{redoOp: 0x1b, undoOp: 1})
	delete(w.chain, transaction)
}

// table makes a restart table.
func table(size int, entries ...[]byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, 24)
	le.PutUint16(b, uint16(size))
	le.PutUint16(b[2:], uint16(len(entries)))
	le.PutUint16(b[4:], uint16(len(entries)))
	le.PutUint32(b[12:], 0xffffffff)
	for _, e := range entries {
		if e == nil { // free
			b = append(b, make([]byte, size)...)
			continue
		}
		e = slices.Concat(e, make([]byte, size-len(e)))
		le.PutUint32(e, 0xffffffff)
		b = append(b, e...)
	}
	return b
}

// openEntry is an entry of the table of open attributes, of version 1.
func openEntry(kind uint32, ref uint64, blockSize uint32) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x28)
	le.PutUint32(b[4:], blockSize)
	le.PutUint32(b[8:], kind)
	le.PutUint64(b[16:], ref)
	return b
}

// attrID is what refers to the i-th open attribute.
func attrID(i int) uint16 { return uint16(24 + 0x28*i) }

// checkpoint writes the tables and the record that leads to them; names are of
// the open attributes, dirty the entries of the pages' table.
func (w *logWriter) checkpoint(open [][]byte, names []string, dirty, transactions [][]byte) uint64 {
	le := binary.LittleEndian
	start := w.add(1, 0x18, 0, act{}.encode()) // analysis begins behind it
	if w.oldest == 0 {
		w.oldest = start
	}
	restart := make([]byte, 64)
	le.PutUint32(restart, 1)
	le.PutUint64(restart[8:], start)
	dump := func(op uint16, lsnAt, lengthAt int, data []byte) {
		if data == nil {
			return
		}
		lsn := w.add(1, 0x18, 0, act{redoOp: op, redo: data}.encode())
		le.PutUint64(restart[lsnAt:], lsn)
		le.PutUint32(restart[lengthAt:], uint32(len(data)))
	}
	dump(0x1d, 16, 48, table(0x28, open...))
	var list []byte
	for i, name := range names {
		if units := utf16.Encode([]rune(name)); len(units) > 0 {
			list = le.AppendUint16(le.AppendUint16(list, attrID(i)), uint16(2*len(units)))
			for _, u := range append(units, 0) {
				list = le.AppendUint16(list, u)
			}
		}
	}
	dump(0x1e, 24, 52, append(list, 0, 0, 0, 0))
	if len(dirty) > 0 {
		dump(0x1f, 32, 56, table(len(dirty[0]), dirty...))
	}
	if len(transactions) > 0 {
		dump(0x20, 40, 60, table(0x28, transactions...))
	}
	return w.add(2, 0x18, 0, restart)
}

// finish writes the restart pages and the update sequences, and returns the log.
func (w *logWriter) finish(checkpoint, known uint64) []byte {
	le := binary.LittleEndian
	for i := range 2 {
		b := w.buf[i*logPage : (i+1)*logPage]
		clear(b)
		copy(b, "RSTR")
		le.PutUint16(b[4:], 30)
		le.PutUint16(b[6:], logPage/512+1)
		le.PutUint32(b[16:], logPage)
		le.PutUint32(b[20:], logPage)
		le.PutUint16(b[24:], 48)
		if le.PutUint16(b[28:], 2); !w.v2 {
			le.PutUint16(b[26:], 1)
			le.PutUint16(b[28:], 1)
		}
		le.PutUint16(b[30:], 1)
		area := b[48:]
		le.PutUint64(area, known)
		le.PutUint16(area[8:], 1)
		le.PutUint16(area[10:], 0xffff)
		le.PutUint32(area[16:], uint32(w.seqBits))
		le.PutUint16(area[20:], 64+160)
		le.PutUint16(area[22:], 64)
		le.PutUint64(area[24:], uint64(len(w.buf)))
		le.PutUint16(area[36:], 48)
		le.PutUint16(area[38:], logData)
		client := area[64:]
		le.PutUint64(client, w.oldest)
		le.PutUint64(client[8:], checkpoint)
		le.PutUint16(client[16:], 0xffff)
		le.PutUint16(client[18:], 0xffff)
		le.PutUint32(client[28:], 8)
		for j, c := range "NTFS" {
			client[32+2*j] = byte(c)
		}
	}
	if w.v2 {
		w.copyTo(2, w.page)
		w.copyTo(18, w.page)
	} else {
		w.copyTo(2, w.first())
		w.copyTo(3, w.page)
	}
	for at := 0; at < len(w.buf); at += logPage {
		if b := w.buf[at : at+logPage]; string(b[:4]) == "RCRD" || string(b[:4]) == "RSTR" {
			ntfs.Fix(b)
		}
	}
	return w.buf
}

// copyTo makes a tail copy of a page.
func (w *logWriter) copyTo(tail, page int) {
	to := w.buf[tail*logPage : (tail+1)*logPage]
	copy(to, w.buf[page:page+logPage])
	if le := binary.LittleEndian; w.v2 {
		le.PutUint32(to[60:], uint32(page))
	} else {
		le.PutUint64(to[8:], uint64(page))
	}
}

// tear leaves of the last page a torn one: its tail copies are all there is.
func (w *logWriter) tear() {
	page := w.buf[w.page : w.page+logPage]
	clear(page[1024:2048])
	page[1022] ^= 0x55
}
