package nfsserver

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// The reply cache makes a retransmitted CREATE, REMOVE, RENAME … answer what
// the first transmission answered, instead of EXIST or NOENT. A client sends a
// request again when it lost its connection or its patience, with the same xid
// and, after a new connection, often from another port: so an entry is found by
// the client's address, xid, procedure and a checksum of the arguments.
//
// A retransmission of a request that is still at work waits for its reply. The
// cache lives in memory: across a restart of the server the tree's own rules
// (the stored verifier of EXCLUSIVE, for one) have to do.
const (
	cachedReplies    = 4096
	cachedReplyBytes = 1024            // longer ones are not kept; there are none
	cachedReplyAge   = 2 * time.Minute // xids come again one day
	maxTwins         = 2               // retransmissions that may wait for one reply
)

type replyKey struct {
	client     netip.Addr
	xid        uint32
	prog, proc uint32
	args       uint64 // checksum
}

type replyEntry struct {
	finished bool
	reply    []byte
	at       time.Time
	twins    []*task
}

type replyCache struct {
	seed maphash.Seed

	mu      sync.Mutex
	entries map[replyKey]*replyEntry
	order   fifo[replyKey] // of finished entries, oldest first
}

func newReplyCache() *replyCache {
	return &replyCache{seed: maphash.MakeSeed(), entries: make(map[replyKey]*replyEntry)}
}

func (rc *replyCache) key(x *call) replyKey {
	return replyKey{client: x.client, xid: x.xid, prog: x.prog, proc: x.header.proc, args: maphash.Bytes(rc.seed, x.args.b)}
}

// What begin found.
type seen int

const (
	firstSeen  seen = iota // execute it, then call end
	answered               // reply holds what was answered
	underWay               // t will be completed together with the first
	superseded             // enough are waiting already: drop t
)

// begin looks a request up and notes it as under way if it is new.
func (rc *replyCache) begin(k replyKey, t *task, reply *buffer) seen {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	e := rc.entries[k]
	switch {
	case e == nil:
		rc.entries[k] = &replyEntry{}
		return firstSeen
	case !e.finished && len(e.twins) < maxTwins:
		e.twins = append(e.twins, t)
		return underWay
	case !e.finished:
		return superseded
	case time.Since(e.at) > cachedReplyAge:
		*e = replyEntry{} // stays in order; evict copes with that
		return firstSeen
	}
	reply.b = append(reply.b[:0], e.reply...)
	return answered
}

// end notes the reply of a request that begin called new and returns the tasks
// that wait for it. keep == false forgets the request: it may be tried again.
func (rc *replyCache) end(k replyKey, reply []byte, keep bool) []*task {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	e := rc.entries[k]
	twins := e.twins
	if !keep || len(reply) > cachedReplyBytes {
		delete(rc.entries, k)
		return twins
	}
	*e = replyEntry{finished: true, reply: append([]byte(nil), reply...), at: time.Now()}
	rc.order.push(k)
	for rc.order.len() > cachedReplies {
		old := rc.order.pop()
		if e := rc.entries[old]; e != nil && e.finished {
			delete(rc.entries, old)
		}
	}
	return twins
}

// executeOnce performs a request that must not be performed twice.
func (s *Server) executeOnce(t *task, reply *buffer) verdict {
	k := s.replies.key(&t.call)
	switch s.replies.begin(k, t, reply) {
	case answered:
		return done
	case underWay:
		s.buffers.put(reply)
		return parked
	case superseded:
		s.buffers.put(reply)
		s.abandon(t)
		return parked
	}
	keep := false
	defer func() { // also when the procedure panics: nobody may wait for ever
		if !keep && t.call.status == statusOK {
			reply.b = appendAccepted(reply.b[:0], t.call.xid, acceptSystemErr)
		}
		for _, twin := range s.replies.end(k, reply.b, keep) {
			b := s.buffers.get(len(reply.b))
			b.b = append(b.b, reply.b...)
			twin.call.status = t.call.status
			s.complete(twin, b)
		}
	}()
	v := t.call.perform(reply)
	keep = t.call.status != statusJukebox
	return v
}
