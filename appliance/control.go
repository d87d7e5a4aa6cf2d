package appliance

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/store"
)

// The control socket (control.sock in the state directory) is how commands talk
// to the appliance's server: one request per connection, a line of JSON, and
// lines of JSON back, the last of which says done. Only root and the user who
// runs the server are heard; the kernel says who calls (SO_PEERCRED, unix(7)).

type controlRequest struct {
	Op      string   `json:"op"` // "attach", "detach", "keep", "allow", "status", "stop"
	Session string   `json:"session,omitempty"`
	Allow   []string `json:"allow,omitempty"`
	Tool    string   `json:"tool,omitempty"`
}

type controlReply struct {
	Done     bool             `json:"done,omitempty"`
	Error    string           `json:"error,omitempty"`
	Kind     string           `json:"kind,omitempty"` // of the error; see controlKinds
	Status   *ServerStatus    `json:"status,omitempty"`
	Points   []*store.Point   `json:"points,omitempty"`
	Progress *controlProgress `json:"progress,omitempty"`
}

type controlProgress struct {
	Disk int    `json:"disk"`
	Name string `json:"name"`
	Size int64  `json:"size"`
	store.Progress
}

// ServerStatus is what the server does, as `lifeboat serve --status` shows it.
type ServerStatus struct {
	PID       int               `json:"pid"`
	Began     time.Time         `json:"began"`
	NFSAddr   string            `json:"nfs_addr"`
	MountAddr string            `json:"mount_addr"`
	Portmap   string            `json:"portmap_addr,omitempty"`
	RepoID    string            `json:"repository_id"`
	Sessions  []string          `json:"sessions"`
	Problems  map[string]string `json:"problems,omitempty"` // session → why it is not served
	Clients   int               `json:"connections"`
}

// controlKinds are the errors that keep their kind on the way.
func controlKinds() map[string]error {
	return map[string]error{"not-found": ErrNotFound, "usage": ErrUsage, "busy": ErrBusy, "damaged": ErrDamaged, "store-damaged": store.ErrDamaged}
}

// Limits of the control socket.
const (
	maxControlLine    = 1 << 20
	maxControlClients = 64
	controlPatience   = 10 * time.Second // for a request to arrive
)

// controlPath is the socket's path, short enough for an address (108 bytes,
// unix(7)) however deep the state directory is: through a descriptor of it.
func (s *State) controlPath() (path string, release func(), err error) {
	full := filepath.Join(s.dir, "control.sock")
	if len(full) < 100 {
		return full, func() {}, nil
	}
	dir, err := os.Open(s.dir)
	if err != nil {
		return "", nil, fmt.Errorf("state directory: %w", err)
	}
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/control.sock", func() { dir.Close() }, nil
}

// listenControl takes the control socket. The server's lock is held: a socket
// that is there is a dead server's.
func (s *State) listenControl(ctx context.Context) (net.Listener, error) {
	path, release, err := s.controlPath()
	if err != nil {
		return nil, err
	}
	defer release()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // by a path that may lead elsewhere by then; the next server removes it
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}

func (s *Server) serveControl(ctx context.Context, stop func()) {
	var clients sync.WaitGroup
	defer clients.Wait()
	slots := make(chan struct{}, maxControlClients)
	for {
		conn, err := s.control.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				s.log.Error("the control socket does not work any more", "err", err)
			}
			return
		}
		slots <- struct{}{}
		clients.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			s.answer(ctx, conn, stop)
		})
	}
}

// answer hears one request. The client's hanging up ends its work.
func (s *Server) answer(ctx context.Context, conn net.Conn, stop func()) {
	reply := &replyWriter{to: json.NewEncoder(conn)}
	if err := checkPeer(conn); err != nil {
		s.log.Warn("a stranger at the control socket", "err", err)
		reply.fail(err)
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(controlPatience))
	var req controlRequest
	in := bufio.NewReader(io.LimitReader(conn, maxControlLine))
	line, err := in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &req)
	}
	if err != nil {
		reply.fail(fmt.Errorf("%w: control request: %w", ErrUsage, err))
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with the connection
		_, _ = conn.Read(make([]byte, 1))
		cancel()
	}()
	out, err := s.do(ctx, req, reply)
	if err != nil {
		reply.fail(err)
		return
	}
	out.Done = true
	reply.send(out)
	if req.Op == "stop" {
		stop()
	}
}

func (s *Server) do(ctx context.Context, req controlRequest, reply *replyWriter) (controlReply, error) {
	switch req.Op {
	case "attach":
		return controlReply{}, s.Attach(req.Session)
	case "detach":
		return controlReply{}, s.Detach(req.Session)
	case "keep":
		points, err := s.Keep(ctx, KeepRequest{Session: req.Session, Tool: req.Tool, Started: reply.started, Logger: s.log})
		return controlReply{Points: points}, err
	case "allow":
		var more []netip.Prefix
		for _, text := range req.Allow {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return controlReply{}, fmt.Errorf("%w: %q is not a network", ErrUsage, text)
			}
			more = append(more, p)
		}
		return controlReply{}, s.Allow(more)
	case "status":
		st := s.Status()
		return controlReply{Status: &st}, nil
	case "stop":
		return controlReply{}, nil
	}
	return controlReply{}, fmt.Errorf("%w: the server does not know %q: is it of another version? Restart it", ErrUsage, req.Op)
}

// Status says what the server does.
func (s *Server) Status() ServerStatus {
	a := s.nfs.Addrs()
	st := ServerStatus{
		PID: os.Getpid(), Began: s.began, NFSAddr: a.NFS.String(), MountAddr: a.Mount.String(), RepoID: s.repo.ID(),
		Sessions: []string{}, Problems: map[string]string{}, Clients: s.nfs.Connections(),
	}
	if a.Portmap.IsValid() {
		st.Portmap = a.Portmap.String()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.live {
		st.Sessions = append(st.Sessions, name)
	}
	slices.Sort(st.Sessions)
	for name, why := range s.problems {
		st.Problems[name] = why
	}
	return st
}

// Keep makes restore points of a session while its guests run: of one moment,
// such as a power failure would have left. The guests go on meanwhile.
func (s *Server) Keep(ctx context.Context, req KeepRequest) ([]*store.Point, error) {
	l := s.find(req.Session)
	if l == nil {
		return nil, fmt.Errorf("session %q is not served: %w", req.Session, ErrNotFound)
	}
	l.keeping.Lock()
	defer l.keeping.Unlock()
	cuts, end, err := takeCut(l.disks, s.state.sessionDir(req.Session))
	if err != nil {
		return nil, fmt.Errorf("session %q: %w", req.Session, err)
	}
	defer end()
	return l.keep(ctx, s.repo, req, asImages(cuts))
}

// replyWriter writes replies; several disks tell their progress at once.
type replyWriter struct {
	mu sync.Mutex
	to *json.Encoder
}

func (w *replyWriter) send(r controlReply) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.to.Encode(r) // who does not listen any more has hung up
}

func (w *replyWriter) fail(err error) {
	r := controlReply{Done: true, Error: err.Error()}
	for kind, is := range controlKinds() {
		if errors.Is(err, is) {
			r.Kind = kind
		}
	}
	w.send(r)
}

func (w *replyWriter) started(n int, name string, size int64) func(store.Progress) {
	return func(p store.Progress) {
		w.send(controlReply{Progress: &controlProgress{Disk: n, Name: name, Size: size, Progress: p}})
	}
}

// checkPeer lets root in and whoever runs the server.
func checkPeer(conn net.Conn) error {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("%w: not a unix socket", ErrUsage)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if cerr != nil {
		return cerr
	}
	if uid := int(cred.Uid); uid != 0 && uid != os.Geteuid() {
		return fmt.Errorf("user %d (process %d) may not control this server", cred.Uid, cred.Pid)
	}
	return nil
}
