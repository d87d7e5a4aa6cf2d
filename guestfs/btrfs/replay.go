package btrfs

import (
	"bytes"
	"encoding/binary"

	"lifeboat/guestfs"
)

// inodeItem is the first round: what was removed from an inode goes, and the inode
// becomes as it was logged. The tail of a file goes, too: extents that were
// allocated behind its end come again with the log.
func (r *replayer) inodeItem(it item) error {
	if it.kind != kindInode {
		return nil
	}
	if err := r.removeXattrs(it.id); err != nil {
		return err
	}
	kind := binary.LittleEndian.Uint32(it.data[inMode:]) & guestfs.TypeMask
	if kind == guestfs.TypeDir {
		if err := r.removeLogged(it.id); err != nil {
			return err
		}
	}
	now, err := r.overwriteInode(it)
	if err != nil {
		return err
	}
	r.fixup[it.id] = true
	if kind != guestfs.TypeFile {
		return nil
	}
	size := uint64(r.f.sb.sectorSize)
	end := (binary.LittleEndian.Uint64(now[inSize:]) + size - 1) &^ (size - 1)
	gone, err := r.dropExtents(it.id, end, ^uint64(0))
	if err != nil {
		return err
	}
	return r.add(it.id, inBytes, -int64(gone))
}

// overwriteInode replaces an inode by what was logged. It keeps its count of bytes,
// and as a directory its size, as these follow from what else is replayed. An inode
// that was only logged to exist, of transaction 0, gives no more than its size.
func (r *replayer) overwriteInode(it item) ([]byte, error) {
	le := binary.LittleEndian
	now, err := r.inode(it.id)
	if err != nil || bytes.Equal(now, it.data) {
		return now, err
	}
	logged := append([]byte(nil), it.data...)
	kind := func(b []byte) uint32 { return le.Uint32(b[inMode:]) & guestfs.TypeMask }
	size := le.Uint64(logged[inSize:])
	le.PutUint64(logged[inBytes:], 0)
	if kind(logged) == guestfs.TypeDir {
		le.PutUint64(logged[inSize:], 0)
	}
	if now != nil {
		copy(logged[inBytes:inBytes+8], now[inBytes:])
		if kind(logged) == guestfs.TypeDir && kind(now) == guestfs.TypeDir {
			copy(logged[inSize:inSize+8], now[inSize:])
		}
		if le.Uint64(logged[inGeneration:]) == 0 {
			if kind(logged) == guestfs.TypeFile && kind(now) == guestfs.TypeFile && size != 0 {
				le.PutUint64(now[inSize:], size)
			}
			logged = now
		}
	}
	if le.Uint64(logged[inGeneration:]) == 0 {
		le.PutUint64(logged[inGeneration:], r.f.sb.generation+1)
	}
	r.set(it.key, logged)
	return logged, nil
}

// removeXattrs removes the attributes that are not in the log.
func (r *replayer) removeXattrs(id uint64) error {
	all, err := r.all(r.sub.view, id, kindXattr, 0, ^uint64(0))
	if err != nil {
		return err
	}
	for _, it := range all {
		logged, _, err := r.log.get(r.ctx, it.key)
		if err != nil {
			return err
		}
		var keep []byte
		names := parseDirItems(logged.data)
		for _, x := range parseDirItems(it.data) {
			for _, l := range names {
				if logged.key == it.key && l.name == x.name {
					keep = x.append(keep)
				}
			}
		}
		switch {
		case len(keep) == 0:
			r.drop(it.key)
		case len(keep) != len(it.data):
			r.set(it.key, keep)
		}
	}
	return nil
}

// append writes an entry as it is stored.
func (d dirItem) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, d.to.id)
	b = append(b, d.to.kind)
	b = le.AppendUint64(b, d.to.offset)
	b = le.AppendUint64(b, 0) // the transaction: no reader cares
	b = le.AppendUint16(b, uint16(len(d.data)))
	b = le.AppendUint16(b, uint16(len(d.name)))
	b = append(b, d.kind)
	b = append(b, d.name...)
	return append(b, d.data...)
}

// removeLogged removes the names of a directory that stand in a range that the log
// knows all about, and are not in it.
func (r *replayer) removeLogged(dir uint64) error {
	ranges, err := r.all(r.log, dir, kindDirLog, 0, ^uint64(0))
	if err != nil {
		return err
	}
	for _, it := range ranges {
		if len(it.data) < 8 {
			return corrupt("a range of directory %d in the log of subvolume %d is of %d bytes", dir, r.sub.id, len(it.data))
		}
		if err := r.removeNames(dir, it.offset, binary.LittleEndian.Uint64(it.data), false); err != nil {
			return err
		}
	}
	return nil
}

// removeNames removes the names of a directory from one place in the order of their
// creation to another, inclusive: all, or those that are not in the log.
func (r *replayer) removeNames(dir, from, to uint64, all bool) error {
	list, err := r.all(r.sub.view, dir, kindDirIndex, from, to)
	if err != nil {
		return err
	}
	for _, it := range list {
		entries := parseDirItems(it.data)
		if len(entries) != 1 {
			return corrupt("entry %d of directory %d of subvolume %d", it.offset, dir, r.sub.id)
		}
		if !all {
			logged, ok, err := r.log.get(r.ctx, it.key)
			if err != nil {
				return err
			}
			if names := parseDirItems(logged.data); ok && len(names) == 1 && names[0].name == entries[0].name {
				continue
			}
		}
		if entries[0].to.kind != kindInode {
			continue
		}
		r.fixup[entries[0].to.id] = true
		if err := r.unlink(dir, entries[0].to.id, entries[0].name); err != nil {
			return err
		}
	}
	return nil
}

// nameItem is the second round: names of inodes that exist and were not logged
// themselves, in directories that were.
func (r *replayer) nameItem(it item) error {
	if it.kind != kindDirIndex {
		return nil
	}
	entries := parseDirItems(it.data)
	if len(entries) != 1 {
		return corrupt("entry %d of directory %d in the log of subvolume %d", it.offset, it.id, r.sub.id)
	}
	e := entries[0]
	if e.to.kind != kindInode {
		return nil
	}
	dir, err := r.exists(it.id)
	if err != nil || !dir {
		return err
	}
	exists, err := r.exists(e.to.id)
	if err != nil {
		return err
	}
	byName, err := r.conflict(it.id, e, exists, func() (dirItem, bool, error) { return r.byName(it.id, e.name) })
	if err != nil {
		return err
	}
	byIndex, err := r.conflict(it.id, e, exists, func() (dirItem, bool, error) { return r.byIndex(it.id, it.offset, e.name) })
	if err != nil || byName && byIndex {
		return err
	}
	logged, err := r.refInLog(e.to.id, it.id, e.name)
	if err != nil || logged || !exists {
		return err // if it is in the log, the third round adds it
	}
	if err := r.link(it.id, e, it.offset, true); err != nil {
		return err
	}
	if e.kind != 2 { // not a directory, which has one name at most
		r.fixup[e.to.id] = true
	}
	return nil
}

// conflict removes an entry that is found, unless it is the same one; it reports
// whether that is so.
func (r *replayer) conflict(dir uint64, e dirItem, exists bool, find func() (dirItem, bool, error)) (same bool, err error) {
	old, ok, err := find()
	if err != nil || !ok {
		return false, err
	}
	if old.to == e.to && old.kind == e.kind {
		return true, nil
	}
	if !exists {
		return false, nil
	}
	return false, r.displace(dir, old)
}

// displace removes an entry that is in the way.
func (r *replayer) displace(dir uint64, old dirItem) error {
	if old.to.kind != kindInode {
		return nil
	}
	r.fixup[old.to.id] = true
	return r.unlink(dir, old.to.id, old.name)
}

// otherItem is the third round.
func (r *replayer) otherItem(it item) error {
	switch it.kind {
	case kindXattr:
		r.set(it.key, it.data)
	case kindRef, kindExtRef:
		return r.refItem(it)
	case kindExtent:
		return r.extentItem(it)
	}
	return nil
}

// extentItem puts an extent in the place of what overlaps it.
func (r *replayer) extentItem(it item) error {
	in := &inode{sub: r.sub, id: it.id}
	e, err := parseExtent(in, it)
	if err != nil {
		return err
	}
	if ok, err := r.exists(it.id); err != nil || !ok {
		return err
	}
	if now, ok, err := r.sub.get(r.ctx, it.key); err != nil || ok && e.kind != typeInline && bytes.Equal(now.data, it.data) {
		return err
	}
	end := e.from + e.length
	if e.kind == typeInline {
		size := uint64(r.f.sb.sectorSize)
		end = (end + size - 1) &^ (size - 1)
	}
	gone, err := r.dropExtents(it.id, e.from, end)
	if err != nil {
		return err
	}
	if e.kind == typeInline || e.at != 0 {
		r.set(it.key, it.data)
	} else {
		e.length = 0 // a hole
	}
	return r.add(it.id, inBytes, int64(e.length)-int64(gone))
}

// dropExtents makes a hole in a file, and says how many bytes were there.
func (r *replayer) dropExtents(id, from, to uint64) (gone uint64, err error) {
	in := &inode{sub: r.sub, id: id}
	if to <= from {
		return 0, nil
	}
	start := from
	if it, ok, err := r.sub.floor(r.ctx, key{id, kindExtent, from}); err != nil {
		return 0, err
	} else if ok && it.id == id && it.kind == kindExtent {
		start = it.offset
	}
	list, err := r.all(r.sub.view, id, kindExtent, start, to-1)
	if err != nil {
		return 0, err
	}
	for _, it := range list {
		e, err := parseExtent(in, it)
		if err != nil {
			return 0, err
		}
		end := e.from + e.length
		if end <= from {
			continue
		}
		if e.kind == typeInline && (e.from < from || end > to) {
			return 0, in.corrupt("part of an extent that stands in it is to go")
		}
		if e.kind == typeInline || e.at != 0 {
			gone += min(end, to) - max(e.from, from)
		}
		r.drop(it.key)
		if e.from < from {
			r.set(it.key, e.cut(it.data, e.from, from))
		}
		if end > to {
			r.set(key{id, kindExtent, to}, e.cut(it.data, to, end))
		}
	}
	return gone, nil
}

// cut is the item of a part of an extent.
func (e extent) cut(b []byte, from, to uint64) []byte {
	le := binary.LittleEndian
	b = append([]byte(nil), b...)
	if e.at != 0 {
		le.PutUint64(b[37:], e.skip+from-e.from)
	}
	le.PutUint64(b[45:], to-from)
	return b
}
