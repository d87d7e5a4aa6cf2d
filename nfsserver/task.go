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
	t.call.settle(func(err error) {
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
