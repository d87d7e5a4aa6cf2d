package nfsserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"lifeboat/nfsserver/datastore"
)

// Server serves one tree over NFSv3, MOUNT v3 and portmap v2. Make it with
// [New], bind it with [Server.Listen], run it with [Server.Run], once.
type Server struct {
	opt      Options
	log      *slog.Logger
	tree     *datastore.Tree
	verifier [8]byte // of WRITE and COMMIT: new for each Server, constant for its life

	allow     atomic.Pointer[[]netip.Prefix]
	admission admission
	sched     *scheduler
	buffers   buffers
	tasks     sync.Pool // of *task
	groups    sync.Pool // of *syncGroup
	programs  map[uint32]*program
	replies   *replyCache
	mounts    mountTable
	relay     *relay
	quiet     logLimiter // for what clients do wrong
	trouble   logLimiter // for what goes wrong here

	live sync.WaitGroup // connections

	mu        sync.Mutex
	listeners *Listeners
	conns     map[*conn]struct{}
	stopped   bool
	started   bool
}

// Listeners are the sockets that a server answers on. NFS is required. The
// server closes them when it stops.
type Listeners struct {
	NFS        net.Listener
	Mount      net.Listener // nil: MOUNT shares NFS's port
	Portmap    net.Listener // nil: no portmapper on TCP
	PortmapUDP *net.UDPConn // nil: no portmapper on UDP
}

// Addrs are the addresses that a server is bound to. Those of programs that are
// not served are invalid (netip.AddrPort's zero value).
type Addrs struct {
	NFS, Mount, Portmap netip.AddrPort
}

// New prepares a server. It binds and starts nothing.
func New(opt Options) (*Server, error) {
	if err := opt.setDefaults(); err != nil {
		return nil, err
	}
	s := &Server{opt: opt, log: opt.Logger, tree: opt.Tree, conns: make(map[*conn]struct{})}
	if _, err := rand.Read(s.verifier[:]); err != nil {
		return nil, fmt.Errorf("nfsserver: make the write verifier: %w", err)
	}
	s.SetAllow(opt.Allow)
	s.admission = admission{total: opt.Limits.Connections, perClient: opt.Limits.ConnectionsPerClient}
	s.sched = newScheduler(opt.Limits, s.work)
	s.replies = newReplyCache()
	s.relay = newRelay(s)
	s.programs = s.newPrograms()
	return s, nil
}

// SetAllow replaces the list of client addresses that are served, also for
// connections that exist.
func (s *Server) SetAllow(prefixes []netip.Prefix) {
	masked := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96) // clients' addresses are unmapped too
		}
		masked = append(masked, p.Masked())
	}
	s.allow.Store(&masked)
}

// Listen binds the addresses of Options. When it has returned, clients can
// connect and [Server.Addrs] is valid; they are answered once [Server.Run] runs.
func (s *Server) Listen(ctx context.Context) error {
	l, err := listen(ctx, &s.opt)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listeners != nil {
		l.close()
		return errors.New("nfsserver: already listening")
	}
	s.listeners = l
	return nil
}

// Addrs tells where the server listens: after Listen, or once Serve runs.
func (s *Server) Addrs() Addrs {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listeners == nil {
		return Addrs{}
	}
	return s.listeners.addrs()
}

// Run serves until ctx is cancelled: it binds what Listen has not bound yet and
// ends as [Server.Serve] does.
func (s *Server) Run(ctx context.Context) error {
	s.mu.Lock()
	l := s.listeners
	s.mu.Unlock()
	if l == nil {
		if err := s.Listen(ctx); err != nil {
			return err
		}
		s.mu.Lock()
		l = s.listeners
		s.mu.Unlock()
	}
	return s.Serve(ctx, l)
}

// Serve answers clients on l until ctx is cancelled or a listener fails; it may
// be called once. Then it stops reading, lets the requests that were taken
// finish (at most Limits.Drain), flushes their replies and closes everything.
// It returns nil after a cancellation in which nothing was cut off.
func (s *Server) Serve(ctx context.Context, l *Listeners) error {
	s.mu.Lock()
	if s.started {
		s.mu.Unlock()
		return errors.New("nfsserver: a Server can be run once; make another one")
	}
	s.started, s.listeners = true, l
	s.mu.Unlock()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var loops sync.WaitGroup
	s.startLoops(l, &loops, cancel)
	loops.Go(func() { s.relay.run(ctx) })
	<-ctx.Done()
	l.close()
	err := s.drain()
	s.relay.close()
	loops.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		err = errors.Join(cause, err)
	}
	return err
}

func (s *Server) startLoops(l *Listeners, loops *sync.WaitGroup, fail context.CancelCauseFunc) {
	accept := func(nl net.Listener, serves programs) {
		if nl == nil {
			return
		}
		loops.Go(func() {
			if err := s.accept(nl, serves); err != nil {
				fail(err)
			}
		})
	}
	accept(l.NFS, servesNFS|servesMount)
	accept(l.Mount, servesNFS|servesMount)
	accept(l.Portmap, servesPortmap)
	if l.PortmapUDP != nil {
		loops.Go(func() {
			if err := s.servePackets(l.PortmapUDP); err != nil {
				fail(err)
			}
		})
	}
}

// accept takes connections until the listener is closed.
func (s *Server) accept(l net.Listener, serves programs) error {
	var delay time.Duration
	for {
		nc, err := l.Accept()
		switch {
		case err == nil:
			delay = 0
			s.admit(nc, serves)
		case s.stopping() || errors.Is(err, net.ErrClosed):
			return nil
		case isTemporary(err): // out of file descriptors: others will close theirs
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			s.log.Warn("nfs: cannot accept a connection; trying again", "err", err, "delay", delay)
			time.Sleep(delay)
		default:
			return fmt.Errorf("nfsserver: accept on %s: %w", l.Addr(), err)
		}
	}
}

// admit starts a connection, or closes it where a limit is reached. A client
// that is not on the list may connect, to be told so in NFS's own words; but
// such clients get only a few of the places.
func (s *Server) admit(nc net.Conn, serves programs) {
	client := clientAddr(nc.RemoteAddr())
	stranger := !allowed(*s.allow.Load(), client)
	if stranger && s.quiet.allow() {
		s.log.Warn("nfs: connection from a client that is not on the list of allowed addresses", "client", client.String())
	}
	if limit := s.admission.enter(client, stranger); limit != "" {
		if s.quiet.allow() {
			s.log.Warn("nfs: connection refused: too many are open", "client", client.String(), "limit", limit)
		}
		_ = nc.Close()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		s.admission.leave(client, stranger)
		_ = nc.Close()
		return
	}
	c := newConn(s, nc, client, serves)
	s.conns[c] = struct{}{}
	s.live.Go(func() { // under mu: not after drain has begun to wait
		c.serve()
		s.admission.leave(client, stranger)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, c)
	})
}

func (s *Server) stopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

// drain ends all connections and the workers.
func (s *Server) drain() error {
	s.mu.Lock()
	s.stopped = true
	for c := range s.conns {
		_ = c.nc.SetReadDeadline(time.Unix(1, 0))
	}
	s.mu.Unlock()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		s.live.Wait()
		s.sched.close()
	}()
	timer := time.NewTimer(s.opt.Limits.Drain)
	defer timer.Stop()
	select {
	case <-gone:
		return nil
	case <-timer.C:
	}
	cut := s.cutOff()
	timer.Reset(s.opt.Limits.Drain)
	select {
	case <-gone:
		return fmt.Errorf("nfsserver: %d connections were cut off: their requests did not finish within %s", cut, s.opt.Limits.Drain)
	case <-timer.C:
		return fmt.Errorf("nfsserver: requests of %d connections are still inside their disks after %s: cancel what the disks wait for", s.connCount(), 2*s.opt.Limits.Drain)
	}
}

func (s *Server) connCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// cutOff closes every connection without waiting for its requests.
func (s *Server) cutOff() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.nc.Close()
		s.sched.discard(c.lane, s.freeTask)
	}
	return len(s.conns)
}
