package nfsserver

import (
	"iter"

	"lifeboat/nfsserver/datastore"
)

// READDIR and READDIRPLUS. Their size limits count the XDR bytes of the result
// from its first attribute on (RFC 1813 §3.3.16: "the size of the READDIR3resok
// structure, including all XDR overhead"), and dircount those of names, file
// ids and cookies only (§3.3.17). An entry that would exceed a limit ends the
// reply; when not even the first fits, the answer is TOOSMALL.

// maxListing bounds one reply whatever the client asks for, in bytes.
const maxListing = 256 << 10

const (
	listingHead = postOpAttrBytes + 8 // attributes and cookie verifier
	listingTail = 8                   // end of list, eof
)

type listing struct {
	cookie, verifier   uint64
	dircount, maxcount int
	plus               bool
}

func dirRoom(x *call) int {
	d := x.args
	d.opaque(maxHandle)
	d.u64()
	d.u64()
	count := d.u32()
	if x.header.proc == 17 {
		count = d.u32()
	}
	return 64 + int(min(count, maxListing))
}

func readdir(x *call, out []byte) ([]byte, verdict) {
	dir, out, v := x.node(out)
	if dir == nil {
		return out, v
	}
	l := listing{cookie: x.args.u64(), verifier: x.args.u64()}
	l.maxcount = int(min(x.args.u32(), maxListing))
	l.dircount = l.maxcount
	if x.args.bad {
		return out, garbage
	}
	return x.list(out, dir, l), done
}

func readdirplus(x *call, out []byte) ([]byte, verdict) {
	dir, out, v := x.node(out)
	if dir == nil {
		return out, v
	}
	l := listing{cookie: x.args.u64(), verifier: x.args.u64(), plus: true}
	l.dircount = int(min(x.args.u32(), maxListing))
	l.maxcount = int(min(x.args.u32(), maxListing))
	if x.args.bad {
		return out, garbage
	}
	return x.list(out, dir, l), done
}

func (x *call) list(out []byte, dir *datastore.Node, l listing) []byte {
	start := len(out)
	out = appendU32(out, uint32(statusOK))
	out = appendAttrOf(out, dir)
	out = appendU64(out, dir.CookieVerifier())
	out, n, eof, err := appendEntries(out, start+4, l, dir.ReadDir(x.dsCred(), l.cookie, l.verifier, l.plus))
	switch {
	case err != nil && n == 0:
		return x.failWith(out[:start], dir, err)
	case n == 0 && !eof:
		return x.failWith(out[:start], dir, datastore.ErrTooSmall)
	}
	return appendBool(appendBool(out, false), eof)
}

// appendEntries appends as many entries as the limits let. An error after the
// first entry only ends the reply; the client comes back for the rest and meets
// it then. from is where the counted bytes began.
func appendEntries(out []byte, from int, l listing, entries iter.Seq2[datastore.Entry, error]) (_ []byte, n int, eof bool, err error) {
	if len(out)-from+listingTail > l.maxcount {
		return out, 0, false, nil
	}
	dirBytes := 0
	for e, err := range entries {
		if err != nil {
			return out, n, false, err
		}
		before := len(out)
		out = appendBool(out, true)
		out = appendU64(out, e.FileID)
		out = appendOpaque(out, e.Name)
		out = appendU64(out, e.Cookie)
		dirBytes += len(out) - before
		if l.plus {
			out = appendEntryPlus(out, &e)
		}
		if dirBytes > l.dircount || len(out)-from+listingTail > l.maxcount {
			return out[:before], n, false, nil
		}
		n++
	}
	return out, n, true, nil
}

func appendEntryPlus(out []byte, e *datastore.Entry) []byte {
	if !e.HasAttr {
		return appendBool(appendBool(out, false), false)
	}
	out = appendPostOp(out, &e.Attr)
	if e.Node == nil {
		return appendBool(out, false)
	}
	return appendOpaque(appendBool(out, true), e.Node.Handle())
}
