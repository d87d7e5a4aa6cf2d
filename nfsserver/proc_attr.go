package nfsserver

import "lifeboat/nfsserver/datastore"

// The procedures about one file's attributes and about the file system.

func getattr(x *call, out []byte) ([]byte, verdict) {
	n, out, v := x.node(out)
	if n == nil {
		return out, v
	}
	if !x.ready(n) {
		return out, wait
	}
	a, err := n.Attr()
	if err != nil {
		return x.fail(out, err), done
	}
	return appendAttr(appendU32(out, uint32(statusOK)), &a), done
}

// ACCESS bits (RFC 1813 §3.3.4)
const (
	accessRead    = 0x01
	accessLookup  = 0x02
	accessModify  = 0x04
	accessExtend  = 0x08
	accessDelete  = 0x10
	accessExecute = 0x20
)

func access(x *call, out []byte) ([]byte, verdict) {
	n, out, v := x.node(out)
	if n == nil {
		return out, v
	}
	if !x.ready(n) {
		return out, wait
	}
	want := x.args.u32()
	if x.args.bad {
		return out, garbage
	}
	rights, err := n.Allowed(x.dsCred(), datastore.Read|datastore.Write|datastore.Exec)
	if err != nil {
		return x.failWith(out, n, err), done
	}
	out = appendAttrOf(appendU32(out, uint32(statusOK)), n)
	return appendU32(out, want&accessBits(rights, n.Type())), done
}

// accessBits translates rights into ACCESS bits. DELETE on a file is decided by
// its directory and therefore not promised; LOOKUP and DELETE have no meaning
// for files, EXECUTE none for directories.
func accessBits(rights datastore.Access, typ datastore.Type) uint32 {
	var bits uint32
	dir := typ == datastore.TypeDirectory
	if rights&datastore.Read != 0 {
		bits |= accessRead
	}
	if rights&datastore.Write != 0 {
		bits |= accessModify | accessExtend
		if dir {
			bits |= accessDelete
		}
	}
	if rights&datastore.Exec != 0 {
		if dir {
			bits |= accessLookup
		} else {
			bits |= accessExecute
		}
	}
	return bits
}

// setattr is kept in the reply cache also without a guard: repeating it could
// undo what was changed in between.
func setattr(x *call, out []byte) ([]byte, verdict) {
	n, out, v := x.node(out)
	if n == nil {
		return out, v
	}
	set := x.setAttr()
	var guard *datastore.Time
	if x.args.boolean() {
		guard = &datastore.Time{Sec: int64(x.args.u32()), Nsec: x.args.u32()}
	}
	if x.args.bad {
		return out, garbage
	}
	w, err := n.SetAttr(x.dsCred(), set, guard)
	if err != nil {
		return x.failChange(out, &w, err), done
	}
	return appendWCC(appendU32(out, uint32(statusOK)), &w), done
}

func fsstat(x *call, out []byte) ([]byte, verdict) {
	n, out, v := x.node(out)
	if n == nil {
		return out, v
	}
	st, err := x.srv.tree.StatFS()
	if err != nil {
		return x.failWith(out, n, err), done
	}
	out = appendAttrOf(appendU32(out, uint32(statusOK)), n)
	for _, v := range [...]uint64{st.TotalBytes, st.FreeBytes, st.AvailBytes, st.TotalFiles, st.FreeFiles, st.AvailFiles} {
		out = appendU64(out, v)
	}
	return appendU32(out, 0), done // invarsec: everything may change at once
}

// FSINFO properties (RFC 1813 §3.3.19)
const (
	fsLink        = 0x01
	fsSymlink     = 0x02
	fsHomogeneous = 0x08
	fsCanSetTime  = 0x10
)

func fsinfo(x *call, out []byte) ([]byte, verdict) {
	n, out, v := x.node(out)
	if n == nil {
		return out, v
	}
	if !x.ready(n) {
		return out, wait
	}
	out = appendAttrOf(appendU32(out, uint32(statusOK)), n)
	for _, v := range [...]uint32{
		MaxTransfer, MaxTransfer, 4096, // rtmax, rtpref, rtmult
		MaxTransfer, MaxTransfer, 4096, // wtmax, wtpref, wtmult
		dirTransfer, // dtpref
	} {
		out = appendU32(out, v)
	}
	out = appendU64(out, maxFileSize)
	out = appendU32(appendU32(out, 0), 1) // time_delta: 1 ns
	return appendU32(out, fsLink|fsSymlink|fsHomogeneous|fsCanSetTime), done
}

func pathconf(x *call, out []byte) ([]byte, verdict) {
	n, out, v := x.node(out)
	if n == nil {
		return out, v
	}
	if !x.ready(n) {
		return out, wait
	}
	out = appendAttrOf(appendU32(out, uint32(statusOK)), n)
	out = appendU32(appendU32(out, maxLinks), maxName)
	out = appendBool(out, true)        // no_trunc: a long name is an error
	out = appendBool(out, true)        // chown_restricted
	out = appendBool(out, false)       // case_insensitive
	return appendBool(out, true), done // case_preserving
}
