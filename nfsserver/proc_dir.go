package nfsserver

import (
	"lifeboat/nfsserver/datastore"
)

// The procedures that change or look into directories. Names go to the tree as
// they came: it refuses what is no name (RFC 1813 §3.2).

// name decodes a filename3. A name that is too long is the tree's to refuse
// (NAMETOOLONG), one that exceeds any path is garbage.
func (x *call) name() string { return string(x.args.opaque(maxMountPath)) }

// setAttr decodes a sattr3 (RFC 1813 §2.6).
func (x *call) setAttr() (set datastore.SetAttr) {
	word := func() *uint32 {
		if !x.args.boolean() {
			return nil
		}
		v := x.args.u32()
		return &v
	}
	set.Mode, set.UID, set.GID = word(), word(), word()
	if x.args.boolean() {
		v := x.args.u64()
		set.Size = &v
	}
	set.Atime, set.Mtime = x.setTime(), x.setTime()
	return set
}

func (x *call) setTime() (t datastore.SetTime) {
	t.How = datastore.SetTimeHow(x.args.u32())
	switch {
	case t.How == datastore.ToClientOwn:
		t.To = datastore.Time{Sec: int64(x.args.u32()), Nsec: x.args.u32()}
		if t.To.Nsec >= 1e9 {
			x.args.fail()
		}
	case t.How > datastore.ToClientOwn:
		x.args.fail()
	}
	return t
}

func lookup(x *call, out []byte) ([]byte, verdict) {
	dir, out, v := x.node(out)
	if dir == nil {
		return out, v
	}
	name := x.name()
	if x.args.bad {
		return out, garbage
	}
	n, err := dir.Lookup(x.dsCred(), name)
	if err != nil {
		return x.failWith(out, dir, err), done
	}
	out = appendOpaque(appendU32(out, uint32(statusOK)), n.Handle())
	return appendAttrOf(appendAttrOf(out, n), dir), done
}

func linkRoom(*call) int { return resultRoom + maxSymlink }

func readlink(x *call, out []byte) ([]byte, verdict) {
	n, out, v := x.node(out)
	if n == nil {
		return out, v
	}
	target, err := n.Readlink()
	if err != nil {
		return x.failWith(out, n, err), done
	}
	return appendOpaque(appendAttrOf(appendU32(out, uint32(statusOK)), n), target), done
}

// made encodes the result of CREATE, MKDIR and SYMLINK.
func (x *call) made(out []byte, n *datastore.Node, w *datastore.WCC, err error) ([]byte, verdict) {
	if err != nil {
		return x.failChange(out, w, err), done
	}
	return appendWCC(appendNewFile(appendU32(out, uint32(statusOK)), n), w), done
}

func create(x *call, out []byte) ([]byte, verdict) {
	dir, out, v := x.node(out)
	if dir == nil {
		return out, v
	}
	name := x.name()
	how := datastore.CreateHow{Mode: datastore.CreateMode(x.args.u32())}
	switch how.Mode {
	case datastore.Unchecked, datastore.Guarded:
		how.Attr = x.setAttr()
	case datastore.Exclusive:
		copy(how.Verifier[:], x.args.fixed(len(how.Verifier)))
	default:
		return out, garbage
	}
	if x.args.bad {
		return out, garbage
	}
	n, w, err := dir.Create(x.dsCred(), name, how)
	return x.made(out, n, &w, err)
}

func mkdir(x *call, out []byte) ([]byte, verdict) {
	dir, out, v := x.node(out)
	if dir == nil {
		return out, v
	}
	name, set := x.name(), x.setAttr()
	if x.args.bad {
		return out, garbage
	}
	n, w, err := dir.Mkdir(x.dsCred(), name, set)
	return x.made(out, n, &w, err)
}

func symlink(x *call, out []byte) ([]byte, verdict) {
	dir, out, v := x.node(out)
	if dir == nil {
		return out, v
	}
	name, set := x.name(), x.setAttr()
	target := string(x.args.opaque(2 * maxSymlink))
	if x.args.bad {
		return out, garbage
	}
	if len(target) > maxSymlink {
		return x.failWCC(out, dir, datastore.ErrNameTooLong), done
	}
	n, w, err := dir.Symlink(x.dsCred(), name, target, set)
	return x.made(out, n, &w, err)
}

// mknod decodes what is asked for and leaves the refusal to the tree.
func mknod(x *call, out []byte) ([]byte, verdict) {
	dir, out, v := x.node(out)
	if dir == nil {
		return out, v
	}
	name, typ := x.name(), datastore.Type(x.args.u32())
	var set datastore.SetAttr
	switch typ {
	case datastore.TypeBlock, datastore.TypeChar:
		set = x.setAttr()
		x.args.u64() // major and minor number
	case datastore.TypeSocket, datastore.TypeFIFO:
		set = x.setAttr()
	default:
		return x.failWCC(out, dir, datastore.ErrBadType), done
	}
	if x.args.bad {
		return out, garbage
	}
	n, w, err := dir.Mknod(x.dsCred(), name, typ, set)
	return x.made(out, n, &w, err)
}

func remove(x *call, out []byte) ([]byte, verdict) {
	return unlink(x, out, (*datastore.Node).Remove)
}

func rmdir(x *call, out []byte) ([]byte, verdict) {
	return unlink(x, out, (*datastore.Node).Rmdir)
}

func unlink(x *call, out []byte, f func(*datastore.Node, datastore.Cred, string) (datastore.WCC, error)) ([]byte, verdict) {
	dir, out, v := x.node(out)
	if dir == nil {
		return out, v
	}
	name := x.name()
	if x.args.bad {
		return out, garbage
	}
	w, err := f(dir, x.dsCred(), name)
	if err != nil {
		return x.failChange(out, &w, err), done
	}
	return appendWCC(appendU32(out, uint32(statusOK)), &w), done
}

func rename(x *call, out []byte) ([]byte, verdict) {
	from, out, v := x.node(out)
	if from == nil {
		return out, v
	}
	name := x.name()
	to, out, v := x.node(out)
	if to == nil {
		return out, v
	}
	toName := x.name()
	if x.args.bad {
		return out, garbage
	}
	w, toW, err := from.Rename(x.dsCred(), name, to, toName)
	x.status = statusOK
	if err != nil {
		x.status = x.failure(err)
	}
	return appendWCC(appendWCC(appendU32(out, uint32(x.status)), &w), &toW), done
}

func link(x *call, out []byte) ([]byte, verdict) {
	file, out, v := x.node(out)
	if file == nil {
		return out, v
	}
	dir, out, v := x.node(out)
	if dir == nil {
		return out, v
	}
	name := x.name()
	if x.args.bad {
		return out, garbage
	}
	w, err := dir.Link(x.dsCred(), file, name)
	if err != nil {
		x.status = x.failure(err)
	}
	out = appendAttrOf(appendU32(out, uint32(x.status)), file)
	return appendWCC(out, &w), done
}
