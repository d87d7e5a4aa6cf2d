package ntfs

import "encoding/binary"

// entryList is a list of entries of an index as an operation changes it: header,
// 16 bytes, and entries.
type entryList struct {
	header []byte // and what follows
}

func (l entryList) used() int { return int(binary.LittleEndian.Uint32(l.header[4:])) }
func (l entryList) room() int { return int(binary.LittleEndian.Uint32(l.header[8:])) }

func (l entryList) setUsed(n int) { binary.LittleEndian.PutUint32(l.header[4:], uint32(n)) }
func (l entryList) setRoom(n int) { binary.LittleEndian.PutUint32(l.header[8:], uint32(n)) }

// entryAt is the entry that begins at a place, from the header; or the place
// behind the last one.
func (l entryList) entryAt(at int) ([]byte, error) {
	le := binary.LittleEndian
	used := l.used()
	if used < indexHeader || used > len(l.header) {
		return nil, cannot("an index")
	}
	for off := int(le.Uint32(l.header)); off >= indexHeader && off+entryHeader <= used && off <= at; {
		n := int(le.Uint16(l.header[off+8:]))
		if n < entryHeader || n%8 != 0 || n > used-off {
			break
		}
		if off == at {
			return l.header[off : off+n], nil
		}
		if le.Uint16(l.header[off+12:])&entryLast != 0 {
			break
		}
		off += n
	}
	return nil, cannot("no entry begins there")
}

// newEntry is the entry that the data of an operation is.
func newEntry(data []byte) ([]byte, error) {
	if len(data) < entryHeader {
		return nil, cannot("a short entry")
	}
	n := int(binary.LittleEndian.Uint16(data[8:]))
	if n < entryHeader || n%8 != 0 || n > len(data) {
		return nil, cannot("an entry")
	}
	return data[:n], nil
}

// insert puts an entry before the one at a place. There must be room.
func (l entryList) insert(at int, e []byte) {
	used := l.used()
	copy(l.header[at+len(e):used+len(e)], l.header[at:used])
	copy(l.header[at:], e)
	l.setUsed(used + len(e))
}

// remove takes n bytes out.
func (l entryList) remove(at, n int) {
	used := l.used()
	copy(l.header[at:], l.header[at+n:used])
	l.setUsed(used - n)
}

// alter changes an entry where it is.
func alter(op uint16, e, data []byte) error {
	le := binary.LittleEndian
	switch op {
	case opEntryChildRoot, opEntryChildBlock:
		if le.Uint16(e[12:])&entryChild == 0 || len(data) < 8 || len(e) < entryHeader+8 {
			return cannot("an entry without a child")
		}
		copy(e[len(e)-8:], data[:8])
	case opFileNameRoot, opFileNameBlock:
		const at, size = entryHeader + 8, 56 // times, sizes and attributes
		if len(e) < at+size || len(data) < size {
			return cannot("an entry without a name")
		}
		copy(e[at:], data[:size])
	case opEntryDataRoot, opEntryDataBlock:
		at := int(le.Uint16(e))
		if at < entryHeader || at+len(data) > len(e) {
			return cannot("an entry without data")
		}
		copy(e[at:], data)
	}
	return nil
}

// inRoot changes the root of an index, which is an attribute of a record. The
// place of the entry counts from the attribute.
func inRoot(op uint16) change {
	return func(b []byte, a *action, data []byte) error {
		le := binary.LittleEndian
		attr, err := attrOf(b, a.recordAt)
		if err != nil {
			return err
		}
		at := int(le.Uint16(attr[20:])) + 16 // of the list
		if le.Uint32(attr) != attrIndexRoot || attr[8] != 0 || at+indexHeader > len(attr) {
			return cannot("no index")
		}
		l := entryList{attr[at:]}
		e, err := l.entryAt(a.attrAt - at)
		if err != nil {
			return err
		}
		switch op {
		case opAddEntryRoot:
			if e, err = newEntry(data); err != nil {
				return err
			}
			return growRoot(b, a, at, len(attr), e)
		case opDeleteEntryRoot:
			n := len(e)
			l.remove(a.attrAt-at, n)
			l.setRoom(l.room() - n)
			le.PutUint32(attr[16:], le.Uint32(attr[16:])-uint32(n))
			return resize(b, a.recordAt, len(attr), len(attr)-n)
		}
		return alter(op, e, data)
	}
}

// growRoot makes a root longer by an entry.
func growRoot(b []byte, a *action, at, old int, e []byte) error {
	if err := resize(b, a.recordAt, old, old+len(e)); err != nil {
		return err
	}
	le := binary.LittleEndian
	attr := b[a.recordAt : a.recordAt+old+len(e)]
	l := entryList{attr[at:]}
	if l.used()+len(e) > len(l.header) {
		return cannot("the root of an index is full")
	}
	l.insert(a.attrAt-at, e)
	l.setRoom(l.room() + len(e))
	le.PutUint32(attr[16:], le.Uint32(attr[16:])+uint32(len(e)))
	return nil
}

// inBlock changes a block of an index. The place of the entry counts from the
// beginning of the block.
func inBlock(op uint16) change {
	return func(b []byte, a *action, data []byte) error {
		const at = 24 // of the list
		l := entryList{b[at:]}
		place := a.attrAt - at
		if l.room() > len(l.header) {
			return cannot("a block of an index")
		}
		e, err := l.entryAt(place)
		if err != nil {
			return err
		}
		switch op {
		case opAddEntryBlock:
			if e, err = newEntry(data); err != nil {
				return err
			}
			if l.used()+len(e) > l.room() {
				return cannot("a block of an index is full")
			}
			l.insert(place, e)
			return nil
		case opDeleteEntryBlock:
			l.remove(place, len(e))
			return nil
		case opEndOfBlock:
			if place+len(data) > l.room() {
				return cannot("a block of an index is full")
			}
			copy(l.header[place:], data)
			l.setUsed(place + len(data))
			return nil
		}
		return alter(op, e, data)
	}
}
