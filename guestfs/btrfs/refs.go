package btrfs

import (
	"encoding/binary"
	"hash/crc32"
	"slices"

	"lifeboat/guestfs"
)

// An inode knows its names: by parent, a list of place in the order of creation 8,
// length 2 and name; where that is more than an item can hold, by hash of parent
// and name, a list of parent 8, place 8, length 2 and name.
const (
	refHead    = 10
	extRefHead = 18
	maxRefItem = 4000 // where the second way begins: nobody but us sees what is replayed
)

// ref is a name of an inode.
type ref struct {
	key    key // of the item that it stands in
	parent uint64
	index  uint64
	name   string
}

// parseRefs reads an item of names; false where one is cut off.
func parseRefs(it item) (out []ref, ok bool) {
	le := binary.LittleEndian
	for b := it.data; len(b) > 0; {
		head, x := refHead, ref{key: it.key, parent: it.offset}
		if it.kind == kindExtRef {
			head = extRefHead
		}
		if len(b) < head || len(b) < head+int(le.Uint16(b[head-2:])) {
			return nil, false
		}
		x.index = le.Uint64(b[head-refHead:])
		if it.kind == kindExtRef {
			x.parent = le.Uint64(b)
		}
		n := int(le.Uint16(b[head-2:]))
		x.name = string(b[head : head+n])
		out = append(out, x)
		b = b[head+n:]
	}
	return out, true
}

func (x ref) append(b []byte) []byte {
	le := binary.LittleEndian
	if x.key.kind == kindExtRef {
		b = le.AppendUint64(b, x.parent)
	}
	b = le.AppendUint64(b, x.index)
	b = le.AppendUint16(b, uint16(len(x.name)))
	return append(b, x.name...)
}

// extRefKey is the key of the second way.
func extRefKey(id, parent uint64, name string) key {
	return key{id, kindExtRef, uint64(^crc32.Update(^uint32(parent), castagnoli, []byte(name)))}
}

// refs lists the names of an inode in a tree.
func (r *replayer) refs(v view, id uint64) ([]ref, error) {
	var out []ref
	for _, kind := range []byte{kindRef, kindExtRef} {
		list, err := r.all(v, id, kind, 0, ^uint64(0))
		if err != nil {
			return nil, err
		}
		for _, it := range list {
			more, ok := parseRefs(it)
			if !ok {
				return nil, corrupt("the names of inode %d of subvolume %d", id, r.sub.id)
			}
			out = append(out, more...)
		}
	}
	return out, nil
}

// refInLog reports whether the log has a name of an inode.
func (r *replayer) refInLog(id, parent uint64, name string) (bool, error) {
	for _, k := range []key{{id, kindRef, parent}, extRefKey(id, parent, name)} {
		it, ok, err := r.log.get(r.ctx, k)
		if err != nil {
			return false, err
		}
		if !ok {
			continue
		}
		list, _ := parseRefs(it)
		if slices.ContainsFunc(list, func(x ref) bool { return x.parent == parent && x.name == name }) {
			return true, nil
		}
	}
	return false, nil
}

// byName and byIndex find an entry of a directory.
func (r *replayer) byName(dir uint64, name string) (dirItem, bool, error) {
	return r.entry(key{dir, kindDirItem, nameHash(name)}, name)
}

func (r *replayer) byIndex(dir, index uint64, name string) (dirItem, bool, error) {
	return r.entry(key{dir, kindDirIndex, index}, name)
}

func (r *replayer) entry(k key, name string) (dirItem, bool, error) {
	it, ok, err := r.sub.get(r.ctx, k)
	if err != nil || !ok {
		return dirItem{}, false, err
	}
	if err := r.spend(1 + len(it.data)/32); err != nil {
		return dirItem{}, false, err
	}
	for _, d := range parseDirItems(it.data) {
		if d.name == name {
			return d, true, nil
		}
	}
	return dirItem{}, false, nil
}

// unlink removes a name of an inode: from the directory, in both orders, and from
// the inode.
func (r *replayer) unlink(dir, id uint64, name string) error {
	k := key{dir, kindDirItem, nameHash(name)}
	it, ok, err := r.sub.get(r.ctx, k)
	if err != nil {
		return err
	}
	if ok {
		var keep []byte
		for _, d := range parseDirItems(it.data) {
			if d.name != name {
				keep = d.append(keep)
			}
		}
		if len(keep) > 0 {
			r.set(k, keep)
		} else {
			r.drop(k)
		}
	}
	refs, err := r.refs(r.sub.view, id)
	if err != nil {
		return err
	}
	for i, x := range refs {
		if x.parent != dir || x.name != name {
			continue
		}
		r.drop(key{dir, kindDirIndex, x.index})
		var keep []byte
		for j, y := range refs {
			if y.key == x.key && j != i {
				keep = y.append(keep)
			}
		}
		if len(keep) > 0 {
			r.set(x.key, keep)
		} else {
			r.drop(x.key)
		}
		break
	}
	return r.add(dir, inSize, -2*int64(len(name)))
}

// link adds a name of an inode to a directory and, if it is asked to, to the inode.
// A name that is there already stays.
func (r *replayer) link(dir uint64, e dirItem, index uint64, back bool) error {
	k := key{dir, kindDirItem, nameHash(e.name)}
	it, _, err := r.sub.get(r.ctx, k)
	if err != nil {
		return err
	}
	list := parseDirItems(it.data)
	if it.key != k {
		list = nil
	}
	if slices.ContainsFunc(list, func(d dirItem) bool { return d.name == e.name }) {
		return nil
	}
	var data []byte
	for _, d := range append(list, e) {
		data = d.append(data)
	}
	r.set(k, data)
	r.set(key{dir, kindDirIndex, index}, e.append(nil))
	if back {
		if err := r.addRef(ref{parent: dir, index: index, name: e.name}, e.to.id); err != nil {
			return err
		}
	}
	return r.add(dir, inSize, 2*int64(len(e.name)))
}

func (r *replayer) addRef(x ref, id uint64) error {
	x.key = key{id, kindRef, x.parent}
	it, ok, err := r.sub.get(r.ctx, x.key)
	if err == nil && ok && len(it.data)+refHead+len(x.name) > maxRefItem {
		x.key = extRefKey(id, x.parent, x.name)
		it, ok, err = r.sub.get(r.ctx, x.key)
	}
	if err != nil {
		return err
	}
	var data []byte
	if ok {
		data = append(data, it.data...)
	}
	r.set(x.key, x.append(data))
	return nil
}

// refItem makes the names of an inode with one parent those that were logged.
// Parents that are not there were not synced: the names wait for them.
func (r *replayer) refItem(it item) error {
	logged, ok := parseRefs(it)
	if !ok {
		return corrupt("the names of inode %d in the log of subvolume %d", it.id, r.sub.id)
	}
	in, err := r.inode(it.id)
	if err != nil || in == nil {
		return err
	}
	for _, x := range logged {
		if dir, err := r.exists(x.parent); err != nil || !dir {
			return err
		}
		there, err := r.inDir(x, it.id)
		if err != nil {
			return err
		}
		if there {
			continue
		}
		if done, err := r.clear(x, it.id); err != nil || done {
			return err
		}
		e := dirItem{to: key{it.id, kindInode, 0}, kind: dirKind(in), name: x.name}
		if err := r.link(x.parent, e, x.index, false); err != nil {
			return err
		}
	}
	if err := r.dropOldRefs(it, logged); err != nil {
		return err
	}
	r.set(it.key, it.data)
	return nil
}

// dirKind is the type of an inode as directories have it.
func dirKind(in []byte) byte {
	kind := binary.LittleEndian.Uint32(in[inMode:]) & guestfs.TypeMask
	return byte(max(0, slices.Index(dirTypes[:], kind)))
}

// inDir reports whether a name is in its directory, in both orders, and is of an
// inode.
func (r *replayer) inDir(x ref, id uint64) (bool, error) {
	d, ok, err := r.byIndex(x.parent, x.index, x.name)
	if err != nil || !ok || d.to.id != id {
		return false, err
	}
	d, ok, err = r.byName(x.parent, x.name)
	return ok && d.to.id == id, err
}

// clear removes what is in the way of a name: other names of the inode in the same
// directory that are not in the log, and what has its place or its name. It reports
// true for the root directory, which is its own parent.
func (r *replayer) clear(x ref, id uint64) (done bool, err error) {
	refs, err := r.refs(r.sub.view, id)
	if err != nil {
		return false, err
	}
	for _, old := range refs {
		if old.parent != x.parent || old.key.kind == kindExtRef && old.key != extRefKey(id, x.parent, x.name) {
			continue
		}
		if id == x.parent {
			return true, nil
		}
		logged, err := r.refInLog(id, old.parent, old.name)
		if err != nil {
			return false, err
		}
		if !logged {
			if err := r.unlink(old.parent, id, old.name); err != nil {
				return false, err
			}
		}
	}
	for _, find := range []func() (dirItem, bool, error){
		func() (dirItem, bool, error) { return r.byIndex(x.parent, x.index, x.name) },
		func() (dirItem, bool, error) { return r.byName(x.parent, x.name) },
	} {
		d, ok, err := find()
		if err == nil && ok {
			err = r.displace(x.parent, d)
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

// dropOldRefs removes the names in an item of the subvolume that are not in the one
// that replaces it.
func (r *replayer) dropOldRefs(it item, logged []ref) error {
	now, ok, err := r.sub.get(r.ctx, it.key)
	if err != nil || !ok {
		return err
	}
	old, _ := parseRefs(now)
	for _, x := range old {
		if slices.ContainsFunc(logged, func(l ref) bool { return l.parent == x.parent && l.name == x.name }) {
			continue
		}
		if err := r.unlink(x.parent, it.id, x.name); err != nil {
			return err
		}
	}
	return nil
}
