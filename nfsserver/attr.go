package nfsserver

import (
	"encoding/binary"
	"slices"

	"lifeboat/nfsserver/datastore"
)

const (
	attrBytes       = 84 // fattr3
	postOpAttrBytes = 4 + attrBytes
)

// appendAttr appends a fattr3 (RFC 1813 §2.6).
func appendAttr(b []byte, a *datastore.Attr) []byte {
	n := len(b)
	b = slices.Grow(b, attrBytes)[:n+attrBytes]
	putAttr(b[n:], a)
	return b
}

func putAttr(r []byte, a *datastore.Attr) {
	_ = r[attrBytes-1]
	putU32(r[0:], uint32(a.Type))
	putU32(r[4:], a.Mode)
	putU32(r[8:], a.Nlink)
	putU32(r[12:], a.UID)
	putU32(r[16:], a.GID)
	binary.BigEndian.PutUint64(r[20:], a.Size)
	binary.BigEndian.PutUint64(r[28:], a.Used)
	putU32(r[36:], a.RdevMajor)
	putU32(r[40:], a.RdevMinor)
	binary.BigEndian.PutUint64(r[44:], a.FSID)
	binary.BigEndian.PutUint64(r[52:], a.FileID)
	putTime(r[60:], a.Atime)
	putTime(r[68:], a.Mtime)
	putTime(r[76:], a.Ctime)
}

// putTime writes an nfstime3. Its seconds are unsigned and end in 2106; what
// lies outside (a damaged clock) becomes the nearest that there is.
func putTime(r []byte, t datastore.Time) {
	putU32(r, uint32(min(max(t.Sec, 0), 1<<32-1)))
	putU32(r[4:], t.Nsec)
}

// appendPostOp appends a post_op_attr with attributes.
func appendPostOp(b []byte, a *datastore.Attr) []byte {
	return appendAttr(appendBool(b, true), a)
}

// appendAttrOf appends the post_op_attr of n, which may be nil or gone.
func appendAttrOf(b []byte, n *datastore.Node) []byte {
	if n != nil {
		if a, err := n.Attr(); err == nil {
			return appendPostOp(b, &a)
		}
	}
	return appendBool(b, false)
}

// appendWCC appends a wcc_data.
func appendWCC(b []byte, w *datastore.WCC) []byte {
	b = appendBool(b, w.HasPre)
	if w.HasPre {
		b = appendU64(b, w.Pre.Size)
		b = appendTime(appendTime(b, w.Pre.Mtime), w.Pre.Ctime)
	}
	if !w.HasPost {
		return appendBool(b, false)
	}
	return appendPostOp(b, &w.Post)
}

func appendTime(b []byte, t datastore.Time) []byte {
	var r [8]byte
	putTime(r[:], t)
	return append(b, r[:]...)
}

// appendNewFile appends the post_op_fh3 and post_op_attr of what CREATE and its
// like have made.
func appendNewFile(b []byte, n *datastore.Node) []byte {
	b = appendBool(b, true)
	b = appendOpaque(b, n.Handle())
	return appendAttrOf(b, n)
}
