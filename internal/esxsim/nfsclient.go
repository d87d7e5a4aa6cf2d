package esxsim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strconv"
	"sync"
	"time"

	"lifeboat/nfsserver/nfstest"
)

// nfsClient is one NFS mount's connection. As a host does it asks the port
// mapper and MOUNT once, keeps the root's handle for as long as the datastore
// is mounted, whatever the server does meanwhile, and connects again when the
// connection breaks.
type nfsClient struct {
	ctx     context.Context
	remote  string // host
	path    string
	timeout time.Duration // for I/O: how long it is tried again

	root  nfstest.Handle
	addr  string // of NFS
	rtmax int
	wtmax int

	mu   sync.Mutex
	conn *nfstest.Client
	down time.Time // since when it does not answer; zero: it does
}

// rpcTimeout is how long a server may take for one call before the connection
// is given up (a host's is 10 s for the heartbeat's call).
const rpcTimeout = 10 * time.Second

// nfsError says which step of mounting failed: people have to be told whether
// it was the port mapper, the mount daemon or NFS itself.
type nfsError struct {
	step string
	err  error
}

func (e *nfsError) Error() string { return e.step + ": " + e.err.Error() }
func (e *nfsError) Unwrap() error { return e.err }

var errDown = errors.New("the NFS server does not answer (all paths down)")

// mountNFS does what CreateNasDatastore makes a host do: GETPORT for MOUNT and
// NFS, MNT, FSINFO and GETATTR of the root [RFC 1813 appendix I, RFC 1833].
func mountNFS(ctx context.Context, remote, path string, timeout time.Duration) (*nfsClient, error) {
	c := &nfsClient{ctx: ctx, remote: remote, path: path, timeout: timeout}
	mountPort, nfsPort, err := c.ports()
	if err != nil {
		return nil, &nfsError{"port mapper (port 111)", err}
	}
	if err := c.mnt(mountPort); err != nil {
		return nil, &nfsError{"mount (port " + strconv.Itoa(mountPort) + ")", err}
	}
	c.addr = net.JoinHostPort(remote, strconv.Itoa(nfsPort))
	if err := c.probe(); err != nil {
		return nil, &nfsError{"NFS (port " + strconv.Itoa(nfsPort) + ")", errors.Join(err, c.close())}
	}
	return c, nil
}

func (c *nfsClient) dial(addr string) (*nfstest.Client, error) {
	d := net.Dialer{Timeout: rpcTimeout}
	conn, err := d.DialContext(c.ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return nfstest.NewClient(conn), nil
}

// once runs calls on a connection that is closed when they take too long.
func (c *nfsClient) once(conn *nfstest.Client, f func(*nfstest.Client) error) error {
	t := time.AfterFunc(rpcTimeout, func() { _ = conn.Conn().Close() })
	defer t.Stop()
	stop := context.AfterFunc(c.ctx, func() { _ = conn.Conn().Close() })
	defer stop()
	return f(conn)
}

func (c *nfsClient) ports() (mount, nfs int, err error) {
	pm, err := c.dial(net.JoinHostPort(c.remote, "111"))
	if err != nil {
		return 0, 0, err
	}
	defer pm.Close()
	err = c.once(pm, func(pm *nfstest.Client) error {
		m, err := pm.Getport(nfstest.ProgMount, nfstest.VersMount, 6)
		if err != nil {
			return err
		}
		n, err := pm.Getport(nfstest.ProgNFS, nfstest.VersNFS, 6)
		mount, nfs = int(m), int(n)
		return err
	})
	if err == nil && (mount == 0 || nfs == 0) {
		err = fmt.Errorf("program not registered (MOUNT at %d, NFS at %d)", mount, nfs)
	}
	return mount, nfs, err
}

func (c *nfsClient) mnt(port int) error {
	m, err := c.dial(net.JoinHostPort(c.remote, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	defer m.Close()
	return c.once(m, func(m *nfstest.Client) (err error) {
		c.root, err = m.Mount(c.path)
		return err
	})
}

func (c *nfsClient) probe() error {
	return c.do(false, func(n *nfstest.Client) error {
		info, err := n.Fsinfo(c.root)
		if err != nil {
			return err
		}
		// A host wants its reads and writes in pieces of at least 4 KiB.
		if info.RtMax < 4096 || info.WtMax < 4096 {
			return fmt.Errorf("FSINFO offers rtmax %d and wtmax %d", info.RtMax, info.WtMax)
		}
		c.rtmax, c.wtmax = int(min(info.RtMax, 1<<20)), int(min(info.WtMax, 1<<20))
		a, err := n.Getattr(c.root)
		if err == nil && a.Type != 2 {
			err = fmt.Errorf("the root is of type %d, not a directory", a.Type)
		}
		return err
	})
}

// umount tells the server, if it listens, that the datastore is gone.
func (c *nfsClient) umount() {
	if mountPort, _, err := c.ports(); err == nil {
		if m, err := c.dial(net.JoinHostPort(c.remote, strconv.Itoa(mountPort))); err == nil {
			_ = c.once(m, func(m *nfstest.Client) error { return m.Umount(c.path) })
			_ = m.Close()
		}
	}
	_ = c.close()
}

func (c *nfsClient) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return nil
	}
	err := c.conn.Close()
	c.conn = nil
	return err
}

// current is the connection; a broken one is replaced.
func (c *nfsClient) current() (*nfstest.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		select {
		case <-c.conn.Closed():
			_ = c.conn.Close()
			c.conn = nil
		default:
			return c.conn, nil
		}
	}
	conn, err := c.dial(c.addr)
	if err != nil {
		return nil, err
	}
	c.conn = conn
	return conn, nil
}

// do runs calls. Answers of the server, errors too, end it; where there is no
// answer it is tried again, if asked for, until the datastore's time is up.
func (c *nfsClient) do(again bool, f func(*nfstest.Client) error) error {
	pause := 5 * time.Millisecond
	for {
		conn, err := c.current()
		if err == nil {
			err = c.once(conn, f)
		}
		if err == nil || answered(err) {
			c.note(true)
			return err
		}
		if down := c.note(false); !again || down > c.timeout || c.ctx.Err() != nil {
			return fmt.Errorf("%w: %w", errDown, err)
		}
		select {
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Second)
	}
}

// answered: the error is the server's own, not the connection's.
func answered(err error) bool {
	var status nfstest.Status
	var mount nfstest.MountStatus
	var rpc *nfstest.RPCError
	return errors.As(err, &status) || errors.As(err, &mount) || errors.As(err, &rpc)
}

// note keeps since when the server is silent.
func (c *nfsClient) note(ok bool) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case ok:
		c.down = time.Time{}
		return 0
	case c.down.IsZero():
		c.down = time.Now()
	}
	return time.Since(c.down)
}

// fsError translates a status into what the rest of the package asks for.
func fsError(err error) error {
	var status nfstest.Status
	if !errors.As(err, &status) {
		return err
	}
	switch status {
	case nfstest.NoEnt:
		return fmt.Errorf("%w (%w)", fs.ErrNotExist, err)
	case nfstest.Exist:
		return fmt.Errorf("%w (%w)", fs.ErrExist, err)
	}
	return err
}
