package nfsserver

import "log/slog"

// programs is the set of programs that a listener answers.
type programs uint8

const (
	servesNFS programs = 1 << iota
	servesMount
	servesPortmap
)

// program is one version of an RPC program.
type program struct {
	name    string
	bit     programs
	version uint32
	procs   []procedure
}

func (s *Server) newPrograms() map[uint32]*program {
	all := map[uint32]*program{
		progNFS:     {name: "NFS", bit: servesNFS, version: nfsVersion, procs: nfsProcedures()},
		progMount:   {name: "MOUNT", bit: servesMount, version: mountVersion, procs: mountProcedures()},
		progPortmap: {name: "PORTMAP", bit: servesPortmap, version: portmapVersion, procs: portmapProcedures()},
	}
	for _, p := range all {
		for i := range p.procs {
			p.procs[i].stats = &procedureCounters{}
		}
	}
	return all
}

func (s *Server) programOrder() []*program {
	return []*program{s.programs[progNFS], s.programs[progMount], s.programs[progPortmap]}
}

// route finds the procedure of x. Where there is none, or the client may not
// call it, it returns nil and out with the reply appended.
func (s *Server) route(x *call, serves programs, out []byte) (*procedure, []byte) {
	prog := s.programs[x.prog]
	switch {
	case prog == nil || serves&prog.bit == 0:
		return nil, appendAccepted(out, x.xid, acceptProgUnavail)
	case x.vers != prog.version:
		return nil, appendMismatch(out, x.xid, prog.version, prog.version)
	case x.header.proc >= uint32(len(prog.procs)) || prog.procs[x.header.proc].name == "":
		return nil, appendAccepted(out, x.xid, acceptProcUnavail)
	}
	p := &prog.procs[x.header.proc]
	if !p.open && !s.allows(x) {
		return nil, s.refuse(x, p, out)
	}
	return p, out
}

func (s *Server) allows(x *call) bool { return allowed(*s.allow.Load(), x.client) }

// refuse answers a client that is not on the list. A procedure that has a
// status says ACCES with it; the RPC layer says it for the others.
func (s *Server) refuse(x *call, p *procedure, out []byte) []byte {
	if s.quiet.allow() {
		s.log.Warn("nfs: refused a client that is not on the list of allowed addresses",
			slog.String("client", x.client.String()), slog.String("proc", p.name))
	}
	p.stats.add(len(x.args.b), replyOverhead, true, 0)
	start := len(out)
	if x.prog != progNFS {
		return appendDenied(out, x.xid, rejectAuthError, authRejectedCred)
	}
	return endReply(appendFailure(beginReply(out, x.xid, acceptSuccess), p, statusAcces), start)
}
