package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/disk"
	"lifeboat/nfsserver"
	"lifeboat/nfsserver/datastore"
	"lifeboat/store"
	"lifeboat/store/overlay"
)

// ServeRequest says where the appliance's server listens and what it serves from.
type ServeRequest struct {
	RepoURL   string
	Listen    netip.Addr // address for all services; default 127.0.0.1
	NFSPort   int        // 0 = chosen by the kernel
	MountPort int        // 0 = chosen by the kernel; may equal NFSPort
	Portmap   string     // "addr:port", or "off"
	Allow     []netip.Prefix

	NoPrefetch  bool
	TraceWindow time.Duration // as in PublishRequest
	Logger      *slog.Logger
}

// Server is the appliance at work: one process per state directory that exports
// every session which is to be served, and hears what else is to be done through
// its control socket. A VM that runs from it survives its death: handles are
// the same after a restart, and what was acknowledged is in the overlays.
//
// Lock order: Server.mu (the map of sessions; never held during I/O), then
// nothing. A session is opened or closed by who has put its entry in the map.
type Server struct {
	state *State
	repo  *store.Repository
	req   ServeRequest
	log   *slog.Logger

	lock    *os.File
	tree    *datastore.Tree
	nfs     *nfsserver.Server
	control net.Listener
	life    context.Context // of the server: images are bound to it
	end     context.CancelFunc
	began   time.Time

	mu       sync.Mutex
	live     map[string]*liveSession
	problems map[string]string // sessions that could not be opened, and why
}

// liveSession is a session that the server exports, or (ready not closed) opens.
type liveSession struct {
	*openSession
	disks      []*liveDisk
	stopTraces func()
	ready      chan struct{} // closed when it is open, or has failed
	err        error         // after ready
	keeping    sync.Mutex    // one cut at a time
}

// NewServer takes the ports and the control socket, and opens the sessions that
// are to be served. A session that cannot be opened keeps nobody else from being
// served: Status says why. ErrBusy: another server has the state directory.
func NewServer(ctx context.Context, st *State, repo *store.Repository, req ServeRequest) (_ *Server, err error) {
	s := &Server{
		state: st, repo: repo, req: req, log: logger(req.Logger), began: time.Now(),
		live: map[string]*liveSession{}, problems: map[string]string{},
	}
	s.life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.lock, err = st.awaitServerLock(ctx); err != nil {
		return nil, err
	}
	if s.tree, err = st.openTree(s.log); err != nil {
		return nil, err
	}
	if err := s.openAll(); err != nil {
		return nil, err
	}
	saved, err := st.ServeSettings()
	if err != nil {
		return nil, err
	}
	s.req.Allow = append(slices.Clone(req.Allow), saved.allowed()...)
	if s.nfs, err = nfsserver.New(serverOptions(s.tree, s.req.publish(), s.log)); err != nil {
		return nil, err
	}
	if err := s.nfs.Listen(ctx); err != nil {
		return nil, portHint(err)
	}
	if err := st.saveServeSettings(s.req, s.nfs.Addrs()); err != nil {
		return nil, err
	}
	s.control, err = st.listenControl(ctx)
	return s, err
}

// publish is the same as a request for the options of the NFS server.
func (r ServeRequest) publish() PublishRequest {
	return PublishRequest{
		Listen: r.Listen, NFSPort: r.NFSPort, MountPort: r.MountPort, Portmap: r.Portmap, Allow: r.Allow,
		NoPrefetch: r.NoPrefetch, TraceWindow: r.TraceWindow, RepoURL: r.RepoURL, Logger: r.Logger,
	}
}

// portHint says what a taken port means for ESXi, which looks nowhere else.
func portHint(err error) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("%w; ESXi asks port 111 where NFS is, so Lifeboat must have it on its address: end rpcbind (systemctl disable --now rpcbind.socket rpcbind.service), or give Lifeboat an address of its own (--listen) that rpcbind does not listen on", err)
	}
	return err
}

// lockServer makes this process the server of the state directory.
func (s *State) lockServer() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "serve.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("the appliance's server is %w: it runs already for %s; `lifeboat serve --status` shows it", ErrBusy, s.dir)
		}
		return nil, fmt.Errorf("state directory: lock: %w", err)
	}
	return f, nil
}

// stopPatience is how long a server may take to end: its clients' requests end
// first, and what they wrote is put in its place.
const stopPatience = time.Minute

// awaitServerLock is lockServer, but waits for a server that does not answer any
// more: it is about to end.
func (s *State) awaitServerLock(ctx context.Context) (*os.File, error) {
	for end := time.Now().Add(stopPatience); ; {
		f, err := s.lockServer()
		if !errors.Is(err, ErrBusy) || s.Control().Running(ctx) || time.Now().After(end) || !pause(ctx, 20*time.Millisecond) {
			return f, err
		}
	}
}

// openAll opens the sessions that are to be served, several at a time. No client
// can see any of them before the ports are taken.
func (s *Server) openAll() error {
	recs, err := s.state.sessions()
	if err != nil {
		return err
	}
	var opening sync.WaitGroup
	slots := make(chan struct{}, 8)
	for _, rec := range recs {
		if !rec.Served || !rec.Ready {
			continue
		}
		opening.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := s.Attach(rec.Name); err != nil {
				s.log.Error("a session is not served", "session", rec.Name, "err", err)
			}
		})
	}
	opening.Wait()
	return nil
}

// Attach opens a session and shows it to clients, from now on and after every
// restart. One that is attached stays as it is.
func (s *Server) Attach(name string) error {
	s.mu.Lock()
	if l, ok := s.live[name]; ok {
		s.mu.Unlock()
		<-l.ready
		return l.err
	}
	l := &liveSession{ready: make(chan struct{})}
	s.live[name] = l
	s.mu.Unlock()

	l.err = s.open(l, name)
	s.mu.Lock()
	delete(s.problems, name)
	if l.err != nil {
		delete(s.live, name)
		s.problems[name] = l.err.Error()
	}
	s.mu.Unlock()
	close(l.ready)
	return l.err
}

func (s *Server) open(l *liveSession, name string) (err error) {
	l.openSession = &openSession{state: s.state, log: s.log}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if err := l.claim(sessionPlan{Name: name, RepoURL: s.req.RepoURL}, s.repo); err != nil {
		return err
	}
	l.traces = newBootTraces(s.state, s.repo, s.req.publish(), s.log)
	if err := l.openDisks(s.life, s.repo); err != nil {
		return err
	}
	if _, err := s.state.updateSession(name, func(rec *Session) { rec.Served = true }); err != nil {
		return err
	}
	fresh := !l.Written()
	if err := l.export(s.tree, l.wrap); err != nil {
		return errors.Join(err, s.tree.Detach(name))
	}
	l.stopTraces = l.traces.start(s.life, fresh)
	return nil
}

func (l *liveSession) wrap(_ int, o *overlay.Overlay) disk.Device {
	d := &liveDisk{Overlay: o}
	l.disks = append(l.disks, d)
	return d
}

// Detach hides a session from clients and closes it, for good: it is not served
// again until somebody attaches it. One that is not attached is no error.
func (s *Server) Detach(name string) error {
	if _, err := s.state.updateSession(name, func(rec *Session) { rec.Served = false }); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	l := s.find(name)
	if l == nil {
		return nil
	}
	err := s.shut(l)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, name)
	return err
}

// find returns an open session, or nil.
func (s *Server) find(name string) *liveSession {
	s.mu.Lock()
	l := s.live[name]
	s.mu.Unlock()
	if l == nil {
		return nil
	}
	<-l.ready
	if l.err != nil {
		return nil
	}
	return l
}

// shut ends a session's export. Requests that hold its disks end first or fail:
// the overlays see to that.
func (s *Server) shut(l *liveSession) error {
	l.keeping.Lock()
	defer l.keeping.Unlock()
	if l.stopTraces != nil {
		l.stopTraces()
	}
	return errors.Join(s.tree.Detach(l.Session.Name), l.close())
}

// Run serves until ctx is done, the NFS server fails, or a client of the control
// socket asks it to stop. Call Close afterwards.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var handling sync.WaitGroup
	handling.Go(func() { s.serveControl(ctx, cancel) })
	err := s.nfs.Run(ctx)
	cancel()
	s.control.Close()
	handling.Wait()
	return err
}

// Close makes everything durable and lets go of it. The sessions stay marked as
// served: the next server goes on with them.
func (s *Server) Close() error {
	var errs []error
	if s.control != nil {
		s.control.Close()
	}
	if s.tree != nil {
		s.mu.Lock()
		live := s.live
		s.live = map[string]*liveSession{}
		s.mu.Unlock()
		for _, l := range live {
			<-l.ready
			if l.err == nil {
				errs = append(errs, s.shut(l))
			}
		}
		s.tree.Close()
	}
	s.end()
	if s.lock != nil {
		unlock(s.lock)
	}
	return errors.Join(errs...)
}
