package nfsserver

// newTask returns an empty task.
func (s *Server) newTask() *task {
	if t, ok := s.tasks.Get().(*task); ok {
		return t
	}
	return &task{}
}

func (s *Server) freeTask(t *task) {
	s.buffers.put(t.args)
	*t = task{}
	s.tasks.Put(t)
}

// work runs a task on a worker.
func (s *Server) work(t *task) {
	defer s.sched.leave(t.class)
	reply, v := s.execute(t)
	switch v {
	case parked:
		return
	case held:
	default:
		s.complete(t, reply)
		return
	}
	// From here on the task is the callback's.
	t.call.syncer.SyncAsync(func(err error) {
		if err != nil {
			st := t.call.failure(err)
			reply.b = appendSyncFailure(reply.b[:0], t.call.xid, t.call.proc, st)
			t.call.status = st
		}
		s.complete(t, reply)
	})
}

// execute makes the whole reply of a task. A panic is answered with SYSTEM_ERR.
func (s *Server) execute(t *task) (reply *buffer, v verdict) {
	x := &t.call
	reply = s.buffers.get(t.outCost)
	defer func() {
		if p := recover(); p != nil {
			s.logPanic(x, p)
			reply.b, v = appendAccepted(reply.b[:0], x.xid, acceptSystemErr), done
		}
	}()
	if x.proc.once {
		return reply, s.executeOnce(t, reply)
	}
	return reply, x.perform(reply)
}

// perform runs the procedure and frames its reply.
func (x *call) perform(reply *buffer) verdict {
	out, v := x.proc.work(x, beginReply(reply.b[:0], x.xid, acceptSuccess))
	if v == garbage {
		reply.b = appendAccepted(out[:0], x.xid, acceptGarbageArgs)
		return done
	}
	reply.b = endReply(out, 0)
	return v
}

// complete sends a task's reply on its way and frees the task.
func (s *Server) complete(t *task, reply *buffer) {
	t.call.count(len(reply.b))
	c, cost := t.conn, t.outCost
	c.out.post(chunk{b: reply.b, own: reply, cost: cost})
	s.sched.finish(c.lane, t)
	s.freeTask(t)
}

// abandon ends a task without a reply.
func (s *Server) abandon(t *task) {
	s.sched.finish(t.conn.lane, t)
	s.sched.release(t.conn.lane, t.outCost)
	s.freeTask(t)
}

// appendSyncFailure is the reply of a WRITE or COMMIT whose sync failed.
func appendSyncFailure(b []byte, xid uint32, p *procedure, st status) []byte {
	start := len(b)
	b = appendFailure(beginReply(b, xid, acceptSuccess), p, st)
	return endReply(b, start)
}

// syncGroup are the replies of one turn of a connection that wait for the same
// device's sync: one sync for all of them, however many writes the turn had.
type syncGroup struct {
	conn    *conn
	replies *buffer
	calls   []call
	cost    int
}

// hold puts a finished reply aside until x.syncer has synced.
func (c *conn) hold(x *call, reply []byte) {
	var g *syncGroup
	for _, h := range c.held {
		if h.calls[0].file == x.file {
			g = h
			break
		}
	}
	if g == nil {
		g = &syncGroup{conn: c, replies: c.srv.buffers.get(smallBuffer)}
		c.held = append(c.held, g)
	}
	start := len(g.replies.b)
	g.replies.b = endReply(append(g.replies.b, reply...), start)
	g.calls = append(g.calls, *x)
}

// startSync ends the turn for the held replies.
func (c *conn) startSync() {
	for i, g := range c.held {
		c.held[i] = nil
		g.cost = len(g.calls) * heldCost
		c.srv.sched.reserve(c.lane, g.cost)
		g.calls[0].syncer.SyncAsync(g.synced)
	}
	c.held = c.held[:0]
}

// heldCost is what a held reply takes, bytes.
const heldCost = 512

// synced runs on the device's goroutine: it only queues.
func (g *syncGroup) synced(err error) {
	if err != nil {
		st := g.calls[0].failure(err)
		g.replies.b = g.replies.b[:0]
		for i := range g.calls {
			x := &g.calls[i]
			g.replies.b = appendSyncFailure(g.replies.b, x.xid, x.proc, st)
			x.status = st
		}
	}
	n := len(g.replies.b) / len(g.calls)
	for i := range g.calls {
		g.calls[i].count(n)
	}
	g.conn.out.post(chunk{b: g.replies.b, own: g.replies, cost: g.cost})
}
