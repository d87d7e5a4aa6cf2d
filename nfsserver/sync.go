package nfsserver

// syncGroup are the replies of one turn of a connection that wait for the same
// disk's sync (or for its flush): one for all of them, however many writes the turn had. The
// sync's callback only queues the replies, encoded long before, so that no
// client, however slow, can hold up the disk's sync stage.
type syncGroup struct {
	conn    *conn
	replies *buffer
	calls   []call
	cost    int         // bytes reserved for the replies
	done    func(error) // synced, made once: a method value costs an allocation
}

// heldCost is what a held reply takes, bytes.
const heldCost = 512

// hold puts a finished reply aside until the disk of x.file has synced.
func (c *conn) hold(x *call, reply []byte) {
	g := c.groupOf(x)
	start := len(g.replies.b)
	g.replies.b = endReply(append(g.replies.b, reply...), start)
	g.calls = append(g.calls, *x)
}

func (c *conn) groupOf(x *call) *syncGroup {
	for _, g := range c.held {
		if g.calls[0].file == x.file && (g.calls[0].flusher == nil) == (x.flusher == nil) {
			return g
		}
	}
	g, ok := c.srv.groups.Get().(*syncGroup)
	if !ok {
		g = &syncGroup{}
		g.done = g.synced
	}
	g.conn, g.replies = c, c.srv.buffers.get(smallBuffer)
	c.held = append(c.held, g)
	return g
}

// startSyncs starts the sync of each disk that this turn has written to.
func (c *conn) startSyncs() {
	for i, g := range c.held {
		c.held[i] = nil
		if g.cost = len(g.calls) * heldCost; !c.srv.sched.tryReserve(c.lane, g.cost) {
			_ = c.flush() // an error is the outbox's, and comes again at the end of the turn
			c.srv.sched.reserve(c.lane, g.cost)
		}
		g.calls[0].settle(g.done)
	}
	c.held = c.held[:0]
}

// synced runs on the disk's goroutine.
func (g *syncGroup) synced(err error) {
	if err != nil {
		st := g.calls[0].failure(err)
		g.replies.b = g.replies.b[:0]
		for i := range g.calls {
			x := &g.calls[i]
			x.status = st
			g.replies.b = appendSyncFailure(g.replies.b, x.xid, x.proc, st)
		}
	}
	n := len(g.replies.b) / len(g.calls)
	for i := range g.calls {
		g.calls[i].count(n)
	}
	c, out := g.conn, chunk{b: g.replies.b, own: g.replies, cost: g.cost}
	clear(g.calls)
	*g = syncGroup{calls: g.calls[:0], done: g.done}
	c.srv.groups.Put(g)
	c.out.post(out)
}

// appendSyncFailure is the reply of a WRITE or COMMIT whose sync failed.
func appendSyncFailure(b []byte, xid uint32, p *procedure, st status) []byte {
	start := len(b)
	return endReply(appendFailure(beginReply(b, xid, acceptSuccess), p, st), start)
}
