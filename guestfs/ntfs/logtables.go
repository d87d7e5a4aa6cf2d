package ntfs

import (
	"encoding/binary"
)

// Operations of NTFS in the log. Each record has one to do and one to undo.
const (
	opNoop = iota
	opCompensation
	opInitRecord
	opFreeRecord
	opEndOfRecord
	opCreateAttr
	opDeleteAttr
	opResidentValue
	opNonresidentValue
	opMapping
	opDeleteDirtyClusters
	opSizes
	opAddEntryRoot
	opDeleteEntryRoot
	opAddEntryBlock
	opDeleteEntryBlock
	opEndOfBlock
	opEntryChildRoot
	opEntryChildBlock
	opFileNameRoot
	opFileNameBlock
	opSetBits
	opClearBits
	opHotFix
	opEndTopLevel
	opPrepare
	opCommit
	opForget
	opOpenAttr
	opDumpAttrs
	opDumpNames
	opDumpPages
	opDumpTransactions
	opEntryDataRoot
	opEntryDataBlock
	opRelativeData
	opRelativeData2
	opZeroEnd
)

const (
	actionHeader  = 32
	tableHeader   = 24
	tableInUse    = 0xffffffff
	maxTableBytes = 64 << 20
	maxLCNs       = 256 // of one record: a page has at most 128 clusters
)

// action is what a record of NTFS says: what to do, where, and how to undo it.
type action struct {
	redoOp, undoOp uint16
	redo, undo     []byte
	attr           uint16 // in the table of open attributes
	recordAt       int    // bytes
	attrAt         int
	blockAt        int64 // in 512 bytes, from the cluster
	vcn            int64
	lcns           []uint64
}

// parseAction reads the data of a record.
func parseAction(b []byte) (*action, error) {
	le := binary.LittleEndian
	if len(b) < actionHeader {
		return nil, corrupt("a record of %d bytes in the log", len(b))
	}
	a := &action{
		redoOp: le.Uint16(b), undoOp: le.Uint16(b[2:]), attr: le.Uint16(b[12:]), recordAt: int(le.Uint16(b[16:])), attrAt: int(le.Uint16(b[18:])),
		blockAt: int64(le.Uint16(b[20:])), vcn: int64(le.Uint64(b[24:])),
	}
	count := int(le.Uint16(b[14:]))
	if count > maxLCNs || actionHeader+8*count > len(b) || a.vcn < 0 || a.vcn > maxVCN {
		return nil, corrupt("a record of the log about %d clusters at %d", count, a.vcn)
	}
	for i := range count {
		a.lcns = append(a.lcns, le.Uint64(b[actionHeader+8*i:]))
	}
	a.redo = within(b, le.Uint16(b[4:]), le.Uint16(b[6:]))
	a.undo = within(b, le.Uint16(b[8:]), le.Uint16(b[10:]))
	return a, nil
}

// within is n bytes of a record. Where they are not in it, they are zeros, which
// NTFS does not log.
func within(b []byte, at, n uint16) []byte {
	if int(at)+int(n) > len(b) {
		return make([]byte, n)
	}
	return b[at : int(at)+int(n)]
}

// openAttr is an entry of the table of open attributes: what the targets of
// records are.
type openAttr struct {
	kind   uint32
	record uint64 // of the MFT
}

// transaction is what is known of a transaction at the end of the log.
type transaction struct {
	active          bool
	first, undoNext uint64
}

// gone says that a cluster is no longer where it was.
const gone = 1<<64 - 1

// dirtyPage is a page that may not have been written when the log ends. lcns are
// where its clusters are: 0 where that is not known.
type dirtyPage struct {
	vcn    int64
	oldest uint64
	lcns   []uint64
}

// known reports whether it is known where a cluster of the page is.
func (p *dirtyPage) known(vcn int64) bool {
	lcn := p.lcns[vcn-p.vcn]
	return lcn != 0 && lcn != gone
}

// tables is what the last checkpoint says, brought up to date.
type tables struct {
	version      uint32 // of the tables: 0 was made on 32 bits
	perPage      int64  // clusters of a page
	attrs        map[uint16]openAttr
	transactions map[uint32]*transaction
	pages        map[uint16]map[int64]*dirtyPage // by attribute and first cluster
	count        int                             // of pages
	work         int                             // done by forget
}

// Bounds of what a hostile log may cost.
const (
	maxPages = 1 << 17
	maxWork  = 1 << 27
)

// parseTable calls yield with the entries of a table that are in use, and where
// they stand in it: that is what refers to them.
func parseTable(b []byte, least int, yield func(at uint32, entry []byte) error) (entrySize int, err error) {
	le := binary.LittleEndian
	if len(b) < tableHeader || len(b) > maxTableBytes {
		return 0, corrupt("a table of %d bytes in the log", len(b))
	}
	size, count := int(le.Uint16(b)), int(le.Uint16(b[2:]))
	if size < least || tableHeader+size*count > len(b) {
		return 0, corrupt("a table of %d entries of %d bytes in the log", count, size)
	}
	for i := range count {
		at := tableHeader + i*size
		if e := b[at : at+size]; le.Uint32(e) == tableInUse {
			if err := yield(uint32(at), e); err != nil {
				return 0, err
			}
		}
	}
	return size, nil
}

func (t *tables) parseAttr(e []byte) (openAttr, error) {
	le := binary.LittleEndian
	switch {
	case t.version == 0 && len(e) >= 0x2c:
		return openAttr{le.Uint32(e[0x1c:]), le.Uint64(e[8:]) & numberMask}, nil
	case t.version > 0 && len(e) >= 0x28:
		return openAttr{le.Uint32(e[8:]), le.Uint64(e[16:]) & numberMask}, nil
	}
	return openAttr{}, corrupt("an open attribute of %d bytes in the log", len(e))
}

func (t *tables) loadAttrs(b []byte) error {
	_, err := parseTable(b, 0x28, func(at uint32, e []byte) error {
		a, err := t.parseAttr(e)
		t.attrs[uint16(at)] = a
		return err
	})
	return err
}

func (t *tables) loadTransactions(b []byte) error {
	le := binary.LittleEndian
	_, err := parseTable(b, 0x28, func(at uint32, e []byte) error {
		const active = 1
		t.transactions[at] = &transaction{active: e[4] == active, first: le.Uint64(e[8:]), undoNext: le.Uint64(e[24:])}
		return nil
	})
	return err
}

func (t *tables) loadPages(b []byte) error {
	le := binary.LittleEndian
	at := 0x10 // of the cluster, in version 0 not aligned
	if t.version == 0 {
		at = 0x14
	}
	size, err := parseTable(b, at+16, func(_ uint32, e []byte) error {
		p := &dirtyPage{vcn: int64(le.Uint64(e[at:])), oldest: le.Uint64(e[at+8:])}
		count := int(le.Uint32(e[12:]))
		if count < 0 || count > (len(e)-at-16)/8 || p.vcn < 0 || p.vcn > maxVCN {
			return corrupt("a dirty page of %d clusters in the log", count)
		}
		for i := range count {
			p.lcns = append(p.lcns, le.Uint64(e[at+16+8*i:]))
		}
		t.add(uint16(le.Uint32(e[4:])), p)
		return nil
	})
	if n := (size - at - 16) / 8; err == nil && n > 0 {
		if n > maxLCNs {
			return corrupt("pages of %d clusters in the log", n)
		}
		t.perPage = int64(n)
	}
	return err
}

// add takes a page into the table; of two that are the same, the older one
// counts.
func (t *tables) add(attr uint16, p *dirtyPage) {
	if t.pages[attr] == nil {
		t.pages[attr] = map[int64]*dirtyPage{}
	}
	if old := t.pages[attr][p.vcn]; old != nil {
		old.oldest = min(old.oldest, p.oldest)
		return
	}
	t.pages[attr][p.vcn] = p
	t.count++
}

// page finds the dirty page that has a cluster.
func (t *tables) page(attr uint16, vcn int64) *dirtyPage {
	pages := t.pages[attr]
	for first := vcn; first > vcn-maxLCNs && first >= 0; first-- {
		if p := pages[first]; p != nil {
			if vcn < p.vcn+int64(len(p.lcns)) {
				return p
			}
			return nil
		}
	}
	return nil
}

// touch notes that a record changes a page.
func (t *tables) touch(a *action, lsn uint64) error {
	p := t.page(a.attr, a.vcn)
	if p == nil {
		p = &dirtyPage{vcn: a.vcn / t.perPage * t.perPage, oldest: lsn, lcns: make([]uint64, t.perPage)}
		t.add(a.attr, p)
		p = t.page(a.attr, a.vcn)
	}
	if t.count > maxPages {
		return corrupt("a log with %d dirty pages", t.count)
	}
	if p == nil || a.vcn-p.vcn+int64(len(a.lcns)) > int64(len(p.lcns)) {
		return corrupt("a record of the log changes more than a page")
	}
	copy(p.lcns[a.vcn-p.vcn:], a.lcns)
	return nil
}

// forget notes that clusters were given back: what stands there now is another
// file's.
func (t *tables) forget(ranges []byte) error {
	if t.work += len(ranges) / 16 * t.count; t.work > maxWork {
		return corrupt("a log that gives too many clusters back")
	}
	le := binary.LittleEndian
	for ; len(ranges) >= 16; ranges = ranges[16:] {
		from, n := le.Uint64(ranges), le.Uint64(ranges[8:])
		for _, pages := range t.pages {
			for _, p := range pages {
				for i, lcn := range p.lcns {
					if lcn >= from && lcn-from < n {
						p.lcns[i] = gone
					}
				}
			}
		}
	}
	return nil
}
