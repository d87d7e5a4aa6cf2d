package nfsserver

import (
	"net/netip"
	"time"

	"lifeboat/disk"
	"lifeboat/nfsserver/datastore"
)

// call is one request: who asks, what for, and the arguments not yet decoded.
type call struct {
	header
	srv    *Server
	client netip.Addr
	proc   *procedure
	// onWorker says that the procedure may wait for the host's file system.
	onWorker bool
	args     decoder
	size     int // of the arguments, bytes
	start    time.Time
	status   status // what the procedure answered, for the counters
	// With verdict held: the file whose data the reply waits for, and who makes
	// them safe: durable, or (flusher not nil) only from the death of this process.
	file    *datastore.Node
	syncer  disk.AsyncSyncer
	flusher disk.AsyncFlusher
}

// settle has then called when the data that the reply waits for are safe.
func (x *call) settle(then func(error)) {
	if x.flusher != nil {
		x.flusher.FlushAsync(then)
		return
	}
	x.syncer.SyncAsync(then)
}

// verdict is what a procedure says about its reply.
type verdict int

const (
	done    verdict = iota // the reply is complete
	garbage                // the arguments do not decode: GARBAGE_ARGS
	wait                   // inline only: nothing was done, ask a worker
	held                   // complete, to be sent when call.settle says so
	parked                 // worker only: the reply is somebody else's business
)

// procedure is one remote procedure. inline runs on the connection's reader and
// must not wait for I/O; work runs on a worker. Either appends the results to
// out, behind the reply's header, which is there already.
type procedure struct {
	name   string
	inline func(x *call, out []byte) ([]byte, verdict)
	work   func(x *call, out []byte) ([]byte, verdict)
	class  class
	once   bool // not idempotent: the reply is kept for retransmissions
	// open is true for procedures that anybody may call: NULL, and those that
	// decide about the client themselves.
	open bool
	// failWords is the number of words after the status in a failure's result,
	// all zero: "no attributes follow".
	failWords int
	// room is how many bytes the results may take; nil: resultRoom.
	room  func(x *call) int
	stats *procedureCounters
}

// resultRoom is enough for the results of all procedures without data.
const resultRoom = 1024

func (p *procedure) roomFor(x *call) int {
	if p.room == nil {
		return resultRoom
	}
	return p.room(x)
}

func (x *call) begin() {
	x.size = len(x.args.b)
	x.start = time.Now()
}

func (x *call) count(replyBytes int) {
	x.proc.stats.add(x.size, replyBytes, x.status != statusOK, time.Since(x.start))
}

// dsCred is the caller as the tree sees it. It aliases x.
func (x *call) dsCred() datastore.Cred {
	c := &x.cred
	return datastore.Cred{UID: c.uid, GID: c.gid, Groups: c.groups[:c.ngroups]}
}

// node decodes the file handle at the front of the arguments and finds its
// file. On failure the reply is in out. The reader asks for what is in memory
// only: to find the file of a handle from before a restart, a session has to be
// listed.
func (x *call) node(out []byte) (*datastore.Node, []byte, verdict) {
	fh := x.args.opaque(maxHandle)
	if x.args.bad {
		return nil, out, garbage
	}
	if !x.onWorker {
		n, ok := x.srv.tree.TryResolve(fh)
		if !ok {
			return nil, out, wait
		}
		return n, out, done
	}
	n, err := x.srv.tree.Resolve(fh)
	if err != nil {
		return nil, x.fail(out, err), done
	}
	return n, out, done
}

// ready reports whether n's attributes can be had without waiting, or waiting
// is allowed.
func (x *call) ready(n *datastore.Node) bool {
	if x.onWorker {
		return true
	}
	_, ok := n.TryAttr()
	return ok
}

// maxHandle is NFS3_FHSIZE.
const maxHandle = 64

// fail appends the result of a failure without attributes.
func (x *call) fail(out []byte, err error) []byte {
	return x.failStatus(out, x.failure(err))
}

// failure is the status of err; a failure of the server's own is logged.
func (x *call) failure(err error) status {
	st := statusOf(err)
	if st.ours() {
		x.complain(err)
	}
	return st
}

func (x *call) failStatus(out []byte, st status) []byte {
	x.status = st
	return appendFailure(out, x.proc, st)
}

func appendFailure(out []byte, p *procedure, st status) []byte {
	out = appendU32(out, uint32(st))
	for range p.failWords {
		out = appendU32(out, 0)
	}
	return out
}

// failWith is fail with the attributes of n (a result whose failure holds a
// post_op_attr).
func (x *call) failWith(out []byte, n *datastore.Node, err error) []byte {
	x.status = x.failure(err)
	return appendAttrOf(appendU32(out, uint32(x.status)), n)
}

// failWCC is fail with a wcc_data of what n is now.
func (x *call) failWCC(out []byte, n *datastore.Node, err error) []byte {
	x.status = x.failure(err)
	return appendAttrOf(appendBool(appendU32(out, uint32(x.status)), false), n)
}

// failChange is fail with the WCC data that a change of the tree left behind.
func (x *call) failChange(out []byte, w *datastore.WCC, err error) []byte {
	x.status = x.failure(err)
	return appendWCC(appendU32(out, uint32(x.status)), w)
}
