package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lifeboat/store"
)

// ErrNoServer: no server runs for the state directory.
var ErrNoServer = errors.New("the appliance's server does not run")

// Control talks to the server of a state directory. Each call is a connection
// of its own; it is safe for concurrent use.
type Control struct{ state *State }

// Control returns what talks to the server, whether it runs or not.
func (s *State) Control() *Control { return &Control{s} }

// Running reports whether a server answers.
func (c *Control) Running(ctx context.Context) bool {
	_, err := c.Status(ctx)
	return err == nil
}

// Attach has the server export a session, now and after every restart.
func (c *Control) Attach(ctx context.Context, session string) error {
	_, err := c.call(ctx, controlRequest{Op: "attach", Session: session}, nil)
	return err
}

// Detach ends the export of a session. Where no server runs, it is only noted.
func (c *Control) Detach(ctx context.Context, session string) error {
	_, err := c.call(ctx, controlRequest{Op: "detach", Session: session}, nil)
	if errors.Is(err, ErrNoServer) {
		_, err = c.state.updateSession(session, func(rec *Session) { rec.Served = false })
	}
	return err
}

// Keep makes restore points of a session that the server exports.
func (c *Control) Keep(ctx context.Context, req KeepRequest) ([]*store.Point, error) {
	meters := map[int]func(store.Progress){}
	r, err := c.call(ctx, controlRequest{Op: "keep", Session: req.Session, Tool: req.Tool}, func(p controlProgress) {
		if req.Started == nil {
			return
		}
		if meters[p.Disk] == nil {
			meters[p.Disk] = req.Started(p.Disk, p.Name, p.Size)
		}
		meters[p.Disk](p.Progress)
	})
	return r.Points, err
}

// Allow has the server let more clients in.
func (c *Control) Allow(ctx context.Context, more []netip.Prefix) error {
	req := controlRequest{Op: "allow"}
	for _, p := range more {
		req.Allow = append(req.Allow, p.String())
	}
	_, err := c.call(ctx, req, nil)
	return err
}

// Status asks what the server does. ErrNoServer: there is none.
func (c *Control) Status(ctx context.Context) (*ServerStatus, error) {
	r, err := c.call(ctx, controlRequest{Op: "status"}, nil)
	if err == nil && r.Status == nil {
		err = errors.New("the server's answer has no status")
	}
	return r.Status, err
}

// Stop has the server end in order, as a signal does, and waits until it has. VMs
// that run from it wait, for some minutes, until it is there again.
func (c *Control) Stop(ctx context.Context) error {
	if _, err := c.call(ctx, controlRequest{Op: "stop"}, nil); err != nil {
		return err
	}
	for end := time.Now().Add(stopPatience); c.state.serverLocked(); {
		if time.Now().After(end) || !pause(ctx, 20*time.Millisecond) {
			return fmt.Errorf("the server was told to stop, and has not ended yet: %w", ErrBusy)
		}
	}
	return nil
}

func (c *Control) call(ctx context.Context, req controlRequest, progress func(controlProgress)) (controlReply, error) {
	path, release, err := c.state.controlPath()
	if err != nil {
		return controlReply{}, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	release()
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return controlReply{}, fmt.Errorf("%w for %s; `lifeboat serve` starts it", ErrNoServer, c.state.dir)
	case err != nil:
		return controlReply{}, fmt.Errorf("control socket: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return controlReply{}, lostServer(ctx, err)
	}
	in := json.NewDecoder(conn)
	for {
		var r controlReply
		if err := in.Decode(&r); err != nil {
			return r, lostServer(ctx, err)
		}
		switch {
		case r.Progress != nil && progress != nil:
			progress(*r.Progress)
		case r.Error != "":
			return r, r.err()
		case r.Done:
			return r, nil
		}
	}
}

func lostServer(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w any more: it went away while it was asked (%w); see serve.log in the state directory", ErrNoServer, err)
}

// serverError is the server's own message, with its kind.
type serverError struct {
	text string
	kind error
}

func (e *serverError) Error() string { return e.text }
func (e *serverError) Unwrap() error { return e.kind }

func (r controlReply) err() error { return &serverError{r.Error, controlKinds()[r.Kind]} }

// StartOptions say how a server is started in the background.
type StartOptions struct {
	Path string   // the program
	Args []string // its arguments: global flags, serve, its flags
	Env  []string
	// Password of the repository; it goes through a pipe that LIFEBOAT_PASSWORD_FILE
	// names, where no list of processes shows it.
	Password []byte
}

// startPatience bounds how long a server may take until it answers: it may have
// many overlays to replay.
const startPatience = 2 * time.Minute

// Start starts a server in the background, in a session of its own, so that it
// survives the terminal. What it has to say goes to serve.log. Start returns
// when the server answers, whoever started it.
func (c *Control) Start(ctx context.Context, o StartOptions) error {
	logPath := filepath.Join(c.state.dir, "serve.log")
	out, err := os.OpenFile(logPath, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	defer out.Close()
	from, _ := out.Seek(0, io.SeekEnd)
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command(o.Path, o.Args...)
	cmd.Env = append(slices.Clone(o.Env), "LIFEBOAT_PASSWORD=", "LIFEBOAT_PASSWORD_FILE=/proc/self/fd/3")
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, out, []*os.File{r}
	cmd.Dir = "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	// The password is there before the server: one that ends at once is heard of by
	// what it said, not by a pipe that nobody reads.
	_, err = w.Write(append(slices.Clone(o.Password), '\n')) // shorter than a pipe's buffer
	w.Close()
	if err == nil {
		err = cmd.Start()
	}
	r.Close()
	if err != nil {
		return fmt.Errorf("start the appliance's server: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return c.await(ctx, ended, logPath, from)
}

// await returns when a server answers or the one that was started has ended.
func (c *Control) await(ctx context.Context, ended <-chan error, logPath string, from int64) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for {
		if c.Running(ctx) {
			return nil
		}
		select {
		case <-ended: //nolint:errcheck // its log says why
			ended = nil
			if !c.Running(ctx) && !c.state.serverLocked() {
				return fmt.Errorf("the appliance's server did not start: %s", tail(logPath, from))
			}
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("the appliance's server does not answer: %w; see %s", ctx.Err(), logPath)
		}
	}
}

// serverLocked reports whether some server has the state directory.
func (s *State) serverLocked() bool {
	f, err := s.lockServer()
	if err == nil {
		unlock(f)
	}
	return errors.Is(err, ErrBusy)
}

// tail is what a log has got since from: its end.
func tail(path string, from int64) string {
	f, err := os.Open(path)
	if err != nil {
		return "it left no log"
	}
	defer f.Close()
	data, _ := io.ReadAll(io.NewSectionReader(f, from, 64<<10))
	text := strings.TrimSpace(string(data))
	if len(text) > 2000 {
		text = "…" + text[len(text)-2000:]
	}
	if text == "" {
		return "it said nothing"
	}
	return strings.TrimPrefix(text, "lifeboat: ")
}
