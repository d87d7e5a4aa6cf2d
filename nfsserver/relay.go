package nfsserver

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/go-git/go-billy/v5"
	gonfs "github.com/willscott/go-nfs"

	"lifeboat/nfsserver/datastore"
)

// The relay passes whole RPC records to an unmodified go-nfs server that runs
// in this process and listens on nothing but in-memory connections. What goes
// there was decoded and checked here first and is encoded anew, so no byte of a
// client reaches go-nfs as the client sent it.
//
// Only what go-nfs answers right is left to it: MOUNT's MNT and UMNT. Every
// reply of it that carries file attributes is wrong for our clients (fsid is 0,
// ctime and atime are copies of mtime, used is the size), which rules out the
// other procedures; docs/nfs.md goes through them one by one.
type relay struct {
	srv   *Server
	conns chan net.Conn

	closing   sync.Once
	closed    chan struct{}
	listening virtualListener
}

// relayTimeout bounds one exchange with go-nfs. It only computes.
const relayTimeout = 10 * time.Second

func newRelay(s *Server) *relay {
	r := &relay{srv: s, conns: make(chan net.Conn), closed: make(chan struct{})}
	r.listening = virtualListener{r}
	return r
}

// run is go-nfs's accept loop.
func (r *relay) run(ctx context.Context) {
	server := gonfs.Server{Handler: relayHandler{r.srv}, Context: context.WithoutCancel(ctx)}
	_ = server.Serve(r.listening)
}

func (r *relay) close() { r.closing.Do(func() { close(r.closed) }) }

// exchange sends one call to go-nfs and returns the results of its reply, which
// must be a successful one. client is who go-nfs is told the call comes from.
func (r *relay) exchange(client net.Addr, prog, vers, proc uint32, args []byte) ([]byte, error) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	select {
	case r.conns <- virtualConn{theirs, client}:
	case <-r.closed:
		_ = theirs.Close()
		return nil, net.ErrClosed
	}
	_ = ours.SetDeadline(time.Now().Add(relayTimeout))
	if _, err := ours.Write(relayCall(prog, vers, proc, args)); err != nil {
		return nil, fmt.Errorf("relay to go-nfs: %w", err)
	}
	var mark [4]byte
	if _, err := io.ReadFull(ours, mark[:]); err != nil {
		return nil, fmt.Errorf("relay from go-nfs: %w", err)
	}
	n := binary.BigEndian.Uint32(mark[:]) &^ lastFragment
	if n < replyOverhead-4 || n > maxRecord {
		return nil, errors.New("relay from go-nfs: a reply of impossible length")
	}
	reply := make([]byte, n)
	if _, err := io.ReadFull(ours, reply); err != nil {
		return nil, fmt.Errorf("relay from go-nfs: %w", err)
	}
	d := decoder{b: reply}
	d.u32() // xid
	if d.u32() != msgReply || d.u32() != replyAccepted || d.u64() != 0 || d.u32() != acceptSuccess {
		return nil, errors.New("relay from go-nfs: the call failed")
	}
	return d.b, nil
}

// relayCall encodes a call with a header of our own.
func relayCall(prog, vers, proc uint32, args []byte) []byte {
	b := make([]byte, 0, 64+len(args))
	for _, w := range [...]uint32{0, 1, msgCall, rpcVersion, prog, vers, proc, authNone, 0, authNone, 0} {
		b = appendU32(b, w)
	}
	return endReply(append(b, args...), 0)
}

// virtualListener hands the relay's connections to go-nfs.
type virtualListener struct{ r *relay }

func (l virtualListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.r.conns:
		return c, nil
	case <-l.r.closed:
		return nil, net.ErrClosed
	}
}

func (l virtualListener) Close() error   { l.r.close(); return nil }
func (l virtualListener) Addr() net.Addr { return &net.UnixAddr{Name: "go-nfs", Net: "virtual"} }

// virtualConn is a pipe that says whose request it carries.
type virtualConn struct {
	net.Conn
	client net.Addr
}

func (c virtualConn) RemoteAddr() net.Addr { return c.client }

// relayHandler is the go-nfs side: handles are the tree's own, so what is
// mounted through go-nfs is used through ours and survives everything that
// they survive.
type relayHandler struct{ srv *Server }

var _ gonfs.Handler = relayHandler{}

// mounted is the file system of one directory, as go-nfs wants it.
type mounted struct {
	billy.Filesystem
	node *datastore.Node
}

func (h relayHandler) Mount(_ context.Context, c net.Conn, req gonfs.MountRequest) (gonfs.MountStatus, billy.Filesystem, []gonfs.AuthFlavor) {
	n, st := h.srv.mountable(clientAddr(c.RemoteAddr()), string(req.Dirpath))
	if st != mountOK {
		return gonfs.MountStatus(st), nil, nil
	}
	return gonfs.MountStatusOk, mounted{h.srv.tree.Billy(n, datastore.Cred{UID: nobody, GID: nobody}), n}, []gonfs.AuthFlavor{gonfs.AuthFlavorUnix}
}

// ToHandle is called with a nil file system after a refused mount.
func (h relayHandler) ToHandle(fs billy.Filesystem, path []string) []byte {
	m, ok := fs.(mounted)
	if !ok || len(path) > 0 {
		return nil
	}
	return m.node.Handle()
}

func (h relayHandler) FromHandle(fh []byte) (billy.Filesystem, []string, error) {
	n, err := h.srv.tree.Resolve(fh)
	if err != nil {
		return nil, nil, err
	}
	return mounted{h.srv.tree.Billy(n, datastore.Cred{UID: nobody, GID: nobody}), n}, nil, nil
}

func (relayHandler) Change(fs billy.Filesystem) billy.Change {
	m, _ := fs.(mounted)
	c, _ := m.Filesystem.(billy.Change)
	return c
}

func (relayHandler) FSStat(context.Context, billy.Filesystem, *gonfs.FSStat) error { return nil }
func (relayHandler) InvalidateHandle(billy.Filesystem, []byte) error               { return nil }
func (relayHandler) HandleLimit() int                                              { return 1 << 20 }
