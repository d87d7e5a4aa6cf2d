package nfsserver

import (
	"errors"
	"slices"
)

// ONC RPC version 2 (RFC 5531) over TCP record marking (§11), as far as NFS
// needs it: calls come in, replies go out, AUTH_NONE and AUTH_SYS.

// Programs that this server speaks.
const (
	progPortmap = 100000
	progNFS     = 100003
	progMount   = 100005
)

const (
	rpcVersion = 2

	msgCall  = 0
	msgReply = 1

	// reply_stat
	replyAccepted = 0
	replyDenied   = 1

	// accept_stat
	acceptSuccess      = 0
	acceptProgUnavail  = 1
	acceptProgMismatch = 2
	acceptProcUnavail  = 3
	acceptGarbageArgs  = 4
	acceptSystemErr    = 5

	// reject_stat
	rejectRPCMismatch = 0
	rejectAuthError   = 1

	// auth_stat
	authBadCred      = 1
	authRejectedCred = 2

	authNone = 0
	authSys  = 1

	maxAuthBytes   = 400 // opaque_auth, RFC 5531 §8.2
	maxMachineName = 255
	maxSysGroups   = 16

	lastFragment  = 1 << 31
	replyOverhead = 28 // record mark, xid, REPLY, ACCEPTED, verifier, accept_stat
)

// nobody is the user that AUTH_NONE speaks for.
const nobody = 65534

// cred is who a call claims to come from. AUTH_SYS is a claim and no proof:
// what protects the export is the list of allowed addresses.
type cred struct {
	uid, gid uint32
	groups   [maxSysGroups]uint32
	ngroups  int
}

// header is the decoded head of a call.
type header struct {
	xid              uint32
	prog, vers, proc uint32
	cred             cred
}

// A call that cannot be answered by its procedure is answered by one of these.
var (
	errNotCall     = errors.New("record is not an RPC call")
	errRPCMismatch = errors.New("RPC version is not 2")
	errBadCred     = errors.New("credential is malformed or of a flavour that is not served")
)

// parseHeader decodes the call header at the front of d. On errNotCall nothing
// can be answered and the connection has to end; on the others h.xid is valid.
func parseHeader(d *decoder, h *header) error {
	h.xid = d.u32()
	if d.u32() != msgCall || d.bad {
		return errNotCall
	}
	version := d.u32()
	h.prog, h.vers, h.proc = d.u32(), d.u32(), d.u32()
	if d.bad {
		return errNotCall
	}
	if version != rpcVersion {
		return errRPCMismatch
	}
	flavor, body := d.u32(), d.opaque(maxAuthBytes)
	d.u32() // the verifier's flavour: both flavours that are served carry an empty one
	d.opaque(maxAuthBytes)
	if d.bad || !parseCred(flavor, body, &h.cred) {
		return errBadCred
	}
	return nil
}

// parseCred decodes a credential (AUTH_SYS: RFC 5531 appendix A).
func parseCred(flavor uint32, body []byte, c *cred) bool {
	switch flavor {
	case authNone:
		c.uid, c.gid, c.ngroups = nobody, nobody, 0
		return true
	case authSys:
	default:
		return false
	}
	d := decoder{b: body}
	d.u32() // stamp
	d.opaque(maxMachineName)
	c.uid, c.gid = d.u32(), d.u32()
	n := d.u32()
	if n > maxSysGroups {
		return false
	}
	c.ngroups = int(n)
	for i := range c.ngroups {
		c.groups[i] = d.u32()
	}
	return !d.bad
}

// beginReply appends the record mark (to be set by endReply) and the header of
// an accepted reply.
func beginReply(b []byte, xid uint32, acceptStat uint32) []byte {
	b = slices.Grow(b, replyOverhead)
	n := len(b)
	b = b[:n+replyOverhead]
	r := b[n:]
	putU32(r[0:], 0)
	putU32(r[4:], xid)
	putU32(r[8:], msgReply)
	putU32(r[12:], replyAccepted)
	putU32(r[16:], authNone)
	putU32(r[20:], 0)
	putU32(r[24:], acceptStat)
	return b
}

// endReply sets the record mark of the reply that began at start.
func endReply(b []byte, start int) []byte {
	putU32(b[start:], lastFragment|uint32(len(b)-start-4))
	return b
}

// appendAccepted appends a whole reply without results.
func appendAccepted(b []byte, xid, acceptStat uint32) []byte {
	start := len(b)
	return endReply(beginReply(b, xid, acceptStat), start)
}

// appendMismatch says that a program is served from version low to high only.
func appendMismatch(b []byte, xid, low, high uint32) []byte {
	start := len(b)
	b = beginReply(b, xid, acceptProgMismatch)
	return endReply(appendU32(appendU32(b, low), high), start)
}

// appendDenied appends MSG_DENIED with the given words after reject_stat.
func appendDenied(b []byte, xid, rejectStat uint32, words ...uint32) []byte {
	start := len(b)
	for _, w := range []uint32{0, xid, msgReply, replyDenied, rejectStat} {
		b = appendU32(b, w)
	}
	for _, w := range words {
		b = appendU32(b, w)
	}
	return endReply(b, start)
}

// appendHeaderError answers a call whose header was refused by parseHeader.
func appendHeaderError(b []byte, xid uint32, err error) []byte {
	if errors.Is(err, errRPCMismatch) {
		return appendDenied(b, xid, rejectRPCMismatch, rpcVersion, rpcVersion)
	}
	return appendDenied(b, xid, rejectAuthError, authBadCred)
}
