package nfsserver

import (
	"log/slog"
	"math/bits"
	"sync/atomic"
	"time"
)

// LatencyBuckets is the number of buckets of [ProcedureStats.Latency].
const LatencyBuckets = 25

// LatencyBound is the upper bound of latency bucket i: 1 µs for the first,
// doubling from one to the next; the last has none.
func LatencyBound(i int) time.Duration { return time.Microsecond << i }

// ProcedureStats are the counters of one procedure since the server was made.
type ProcedureStats struct {
	Program, Procedure string // "NFS", "READ"
	Ops                uint64 // answered by the procedure, successfully or not
	Errors             uint64 // of them, answers that were not NFS3_OK
	BytesIn            uint64 // arguments
	BytesOut           uint64 // replies
	// Latency counts operations by the time from the decoding of the request
	// to the encoding of its reply, waiting for a worker included.
	Latency [LatencyBuckets]uint64
}

// Stats returns the counters of all procedures that were called.
func (s *Server) Stats() []ProcedureStats {
	var all []ProcedureStats
	for _, prog := range s.programOrder() {
		for i := range prog.procs {
			if st, ok := prog.procs[i].stats.snapshot(); ok {
				st.Program, st.Procedure = prog.name, prog.procs[i].name
				all = append(all, st)
			}
		}
	}
	return all
}

// Connections is the number of open connections.
func (s *Server) Connections() int { return s.connCount() }

type procedureCounters struct {
	ops, errors, in, out atomic.Uint64
	latency              [LatencyBuckets]atomic.Uint64
}

func (p *procedureCounters) add(bytesIn, bytesOut int, failed bool, d time.Duration) {
	p.ops.Add(1)
	p.in.Add(uint64(bytesIn))
	p.out.Add(uint64(bytesOut))
	if failed {
		p.errors.Add(1)
	}
	p.latency[min(bits.Len64(uint64(max(d, 0)/time.Microsecond)), LatencyBuckets-1)].Add(1)
}

func (p *procedureCounters) snapshot() (ProcedureStats, bool) {
	st := ProcedureStats{Ops: p.ops.Load(), Errors: p.errors.Load(), BytesIn: p.in.Load(), BytesOut: p.out.Load()}
	for i := range p.latency {
		st.Latency[i] = p.latency[i].Load()
	}
	return st, st.Ops > 0
}

// logLimiter lets a few lines a second through, so that a client that does the
// wrong thing a thousand times a second cannot fill the log.
type logLimiter struct{ second, lines atomic.Int64 }

const logLinesPerSecond = 10

func (l *logLimiter) allow() bool {
	now := time.Now().Unix()
	if l.second.Swap(now) != now {
		l.lines.Store(0)
	}
	return l.lines.Add(1) <= logLinesPerSecond
}

// complain logs a failure that is the server's own.
func (x *call) complain(err error) {
	if x.srv.trouble.allow() {
		x.srv.log.Error("nfs: request failed", slog.String("client", x.client.String()), slog.String("proc", x.proc.name), slog.Any("err", err))
	}
}
