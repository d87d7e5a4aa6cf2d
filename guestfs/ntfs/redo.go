package ntfs

import (
	"encoding/binary"
	"fmt"

	"lifeboat/guestfs/internal/patch"
)

// subject says what an operation changes.
type subject int

const (
	onNothing subject = iota
	onRecord          // a record of the MFT
	onBlock           // a block of an index
	onBytes           // content that has no LSN: bitmaps, and what else is logged
)

// change is how an operation changes a record, or a block of an index, whose
// update sequence is undone. It checks that it can before it changes anything.
type change func(b []byte, a *action, data []byte) error

// operations of NTFS, by number; those that are missing change nothing on the
// volume.
func operation(op uint16) (subject, change) {
	switch op {
	case opInitRecord:
		return onRecord, initRecord
	case opFreeRecord:
		return onRecord, freeRecord
	case opEndOfRecord:
		return onRecord, endOfRecord
	case opCreateAttr:
		return onRecord, createAttr
	case opDeleteAttr:
		return onRecord, deleteAttr
	case opResidentValue:
		return onRecord, residentValue
	case opMapping:
		return onRecord, mapping
	case opSizes:
		return onRecord, sizes
	case opZeroEnd:
		return onRecord, zeroEnd
	case opAddEntryRoot, opDeleteEntryRoot, opEntryChildRoot, opFileNameRoot, opEntryDataRoot:
		return onRecord, inRoot(op)
	case opAddEntryBlock, opDeleteEntryBlock, opEndOfBlock, opEntryChildBlock, opFileNameBlock, opEntryDataBlock:
		return onBlock, inBlock(op)
	case opNonresidentValue, opSetBits, opClearBits:
		return onBytes, nil
	}
	return onNothing, nil
}

// cannot says why an operation does not fit what it is for.
func cannot(what string) error { return corrupt("a change in the log does not fit: %s", what) }

func recordUsed(b []byte) int { return int(binary.LittleEndian.Uint32(b[24:])) }

func setRecordUsed(b []byte, n int) { binary.LittleEndian.PutUint32(b[24:], uint32(n)) }

// attrAt is the attribute that begins at a place in a record, or what follows
// the last one.
func attrAt(b []byte, at int) ([]byte, error) {
	le := binary.LittleEndian
	used := recordUsed(b)
	for off := int(le.Uint16(b[20:])); off+8 <= used && off <= at; off += int(le.Uint32(b[off+4:])) {
		if off == at {
			return b[off:used], nil
		}
		if n := int(le.Uint32(b[off+4:])); le.Uint32(b[off:]) == attrEnd || n < 24 || n > used-off {
			break
		}
	}
	return nil, cannot("no attribute begins there")
}

// attrOf is attrAt of an attribute that is one.
func attrOf(b []byte, at int) ([]byte, error) {
	rest, err := attrAt(b, at)
	if err != nil {
		return nil, err
	}
	n := int(binary.LittleEndian.Uint32(rest[4:]))
	if binary.LittleEndian.Uint32(rest) == attrEnd || n < 24 || n > len(rest) {
		return nil, cannot("no attribute")
	}
	return rest[:n], nil
}

// resize makes an attribute longer or shorter and moves what follows.
func resize(b []byte, at, old, now int) error {
	used := recordUsed(b)
	if now < 24 || now%8 != 0 || used-old+now > len(b) {
		return cannot("the record is full")
	}
	copy(b[at+now:], b[at+old:used])
	setRecordUsed(b, used-old+now)
	binary.LittleEndian.PutUint32(b[at+4:], uint32(now))
	return nil
}

func initRecord(b []byte, a *action, data []byte) error {
	if a.recordAt+len(data) > len(b) {
		return cannot("a record that is too long")
	}
	copy(b[a.recordAt:], data)
	return nil
}

func freeRecord(b []byte, _ *action, _ []byte) error {
	le := binary.LittleEndian
	le.PutUint16(b[22:], le.Uint16(b[22:])&^recordInUse)
	le.PutUint16(b[16:], le.Uint16(b[16:])+1)
	return nil
}

func endOfRecord(b []byte, a *action, data []byte) error {
	if _, err := attrAt(b, a.recordAt); err != nil {
		return err
	}
	end := (a.recordAt + len(data) + 7) &^ 7
	if end > len(b) {
		return cannot("the record is full")
	}
	copy(b[a.recordAt:], data)
	setRecordUsed(b, end)
	return nil
}

// indexed reports whether an attribute is a name in a directory: those are
// counted as links.
func indexed(attr []byte) bool { return attr[8] == 0 && attr[22]&1 != 0 }

func addLinks(b []byte, n int) {
	le := binary.LittleEndian
	le.PutUint16(b[18:], uint16(int(le.Uint16(b[18:]))+n))
}

func createAttr(b []byte, a *action, data []byte) error {
	le := binary.LittleEndian
	if _, err := attrAt(b, a.recordAt); err != nil {
		return err
	}
	if len(data) < 24 {
		return cannot("a short attribute")
	}
	n, used := int(le.Uint32(data[4:])), recordUsed(b)
	if n < 24 || n%8 != 0 || n > len(data) || used+n > len(b) {
		return cannot("a new attribute is too long")
	}
	copy(b[a.recordAt+n:], b[a.recordAt:used])
	copy(b[a.recordAt:], data[:n])
	setRecordUsed(b, used+n)
	if id := le.Uint16(data[14:]); le.Uint16(b[40:]) <= id {
		le.PutUint16(b[40:], id+1)
	}
	if indexed(data) {
		addLinks(b, 1)
	}
	return nil
}

func deleteAttr(b []byte, a *action, _ []byte) error {
	attr, err := attrOf(b, a.recordAt)
	if err != nil {
		return err
	}
	if indexed(attr) {
		addLinks(b, -1)
	}
	used := recordUsed(b)
	copy(b[a.recordAt:], b[a.recordAt+len(attr):used])
	setRecordUsed(b, used-len(attr))
	return nil
}

func residentValue(b []byte, a *action, data []byte) error {
	le := binary.LittleEndian
	attr, err := attrOf(b, a.recordAt)
	if err != nil {
		return err
	}
	if attr[8] != 0 || a.attrAt < int(le.Uint16(attr[20:])) || a.attrAt > len(attr) {
		return cannot("no resident value")
	}
	end := a.attrAt + len(data)
	if len(a.redo) != len(a.undo) {
		if err := resize(b, a.recordAt, len(attr), (end+7)&^7); err != nil {
			return err
		}
		le.PutUint32(b[a.recordAt+16:], uint32(end-int(le.Uint16(attr[20:]))))
	} else if end > len(attr) {
		return cannot("a value that is too long")
	}
	copy(b[a.recordAt+a.attrAt:], data)
	return nil
}

func mapping(b []byte, a *action, data []byte) error {
	le := binary.LittleEndian
	attr, err := attrOf(b, a.recordAt)
	if err != nil {
		return err
	}
	if attr[8] == 0 || len(attr) < 64 || a.attrAt < int(le.Uint16(attr[32:])) || a.attrAt > len(attr) {
		return cannot("no runs")
	}
	end := a.attrAt + len(data)
	if err := resize(b, a.recordAt, len(attr), (end+7)&^7); err != nil {
		return err
	}
	copy(b[a.recordAt+a.attrAt:], data)
	clear(b[a.recordAt+end : a.recordAt+(end+7)&^7])
	attr = b[a.recordAt : a.recordAt+(end+7)&^7]
	vcn := int64(le.Uint64(attr[16:]))
	last, ok := lastVCN(attr[le.Uint16(attr[32:]):], vcn)
	if !ok {
		return cannot("its runs")
	}
	le.PutUint64(attr[24:], uint64(last))
	return nil
}

// lastVCN is the last cluster that mapping pairs tell about.
func lastVCN(b []byte, vcn int64) (int64, bool) {
	for len(b) > 0 && b[0] != 0 {
		n, m := int(b[0]&15), int(b[0]>>4)
		if n == 0 || n > 8 || 1+n+m > len(b) {
			return 0, false
		}
		count := signed(b[1 : 1+n])
		if count <= 0 || count > maxVCN-vcn {
			return 0, false
		}
		vcn += count
		b = b[1+n+m:]
	}
	return vcn - 1, true
}

// sizes sets how much is allocated, written, and content. Those who have
// described the log do not agree on which of the last two comes first; what is
// written is never more than what there is.
func sizes(b []byte, a *action, data []byte) error {
	attr, err := attrOf(b, a.recordAt)
	if err != nil {
		return err
	}
	if attr[8] == 0 || len(attr) < 64 || len(data) < 24 {
		return cannot("no sizes")
	}
	le := binary.LittleEndian
	x, y := le.Uint64(data[8:]), le.Uint64(data[16:])
	copy(attr[40:48], data)
	le.PutUint64(attr[48:], max(x, y))
	le.PutUint64(attr[56:], min(x, y))
	if len(data) >= 32 && len(attr) >= 72 && le.Uint16(attr[32:]) >= 72 {
		copy(attr[64:72], data[24:32])
	}
	return nil
}

func zeroEnd(b []byte, a *action, data []byte) error {
	if a.recordAt+len(data) > len(b) {
		return cannot("a record that is too long")
	}
	clear(b[a.recordAt : a.recordAt+len(data)])
	return nil
}

// scratch is the volume with the changes of the log.
type scratch struct {
	fs     *FS
	blocks map[int64]patch.Block
}

const (
	scratchBlock = 4096
	maxScratch   = 64 << 20 / scratchBlock
)

func (s *scratch) block(n int64) ([]byte, error) {
	if b, ok := s.blocks[n]; ok {
		return b.Data, nil
	}
	if len(s.blocks) >= maxScratch {
		return nil, corrupt("the log changes more than %d MiB", maxScratch*scratchBlock>>20)
	}
	if n*scratchBlock >= s.fs.disk.Size() {
		return nil, cannot("it is behind the end of the volume")
	}
	b := make([]byte, scratchBlock)
	if m, err := s.fs.disk.ReadAt(b, n*scratchBlock); int64(m) < min(int64(len(b)), s.fs.disk.Size()-n*scratchBlock) {
		return nil, fmt.Errorf("ntfs: read what the log changes: %w", unexpected(err))
	}
	s.blocks[n] = patch.Block{Data: b}
	return b, nil
}

// access copies between p and the volume. What was not changed is read where it
// is.
func (s *scratch) access(p []byte, at int64, write bool) error {
	for len(p) > 0 {
		n := min(int64(len(p)), scratchBlock-at%scratchBlock)
		b, changed := s.blocks[at/scratchBlock]
		switch {
		case changed && !write:
			copy(p[:n], b.Data[at%scratchBlock:])
		case !write:
			if at+n > s.fs.disk.Size() {
				return cannot("it is behind the end of the volume")
			}
			if m, err := s.fs.disk.ReadAt(p[:n], at); int64(m) < n {
				return fmt.Errorf("ntfs: read what the log changes: %w", unexpected(err))
			}
		default:
			data, err := s.block(at / scratchBlock)
			if err != nil {
				return err
			}
			copy(data[at%scratchBlock:], p[:n])
		}
		p, at = p[n:], at+n
	}
	return nil
}
