package appliance

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"lifeboat/store"
)

// serveAt starts a server for a state directory, on ports that the system chooses.
func serveAt(t *testing.T, dir string) (*State, *Server) {
	t.Helper()
	st, err := OpenState(dir)
	if err != nil {
		t.Fatal(err)
	}
	url := t.TempDir() + "/repo"
	if err := InitRepository(t.Context(), url, tracePassword, store.InitOptions{KDFTime: 1, KDFMemory: 8, KDFThreads: 1}); err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(t.Context(), st, openTestRepo(t, url), ServeRequest{RepoURL: url, Portmap: "off", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, s.Close()); err != nil {
			t.Error(err)
		}
	})
	return st, s
}

// TestControlOfADeepDirectory has a socket path that no address can hold.
func TestControlOfADeepDirectory(t *testing.T) {
	dir := t.TempDir() + strings.Repeat("/a-directory-of-some-length", 6)
	st, s := serveAt(t, dir)
	status, err := st.Control().Status(t.Context())
	if err != nil || status.PID != os.Getpid() || status.NFSAddr != s.nfs.Addrs().NFS.String() {
		t.Fatalf("%+v %v", status, err)
	}
	if _, err := NewServer(t.Context(), st, s.repo, ServeRequest{}); !errors.Is(err, ErrBusy) {
		t.Errorf("a second server: %v", err)
	}
	fi, err := os.Stat(dir + "/control.sock")
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v %v", fi, err)
	}
}

// TestControlKeepsErrorKinds asks for what cannot be: the kind of the error
// arrives, and the server goes on.
func TestControlKeepsErrorKinds(t *testing.T) {
	st, _ := serveAt(t, t.TempDir())
	c := st.Control()
	if err := c.Attach(t.Context(), "nothing"); !errors.Is(err, ErrNotFound) {
		t.Errorf("attach: %v", err)
	}
	if err := c.Attach(t.Context(), "../x"); !errors.Is(err, ErrUsage) {
		t.Errorf("attach: %v", err)
	}
	if _, err := c.Keep(t.Context(), KeepRequest{Session: "nothing"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("keep: %v", err)
	}
	if err := c.Detach(t.Context(), "nothing"); err != nil {
		t.Errorf("detach: %v", err)
	}
	for _, bad := range []string{"\n", "{}\n", "{\"op\":\"fly\"}\n", strings.Repeat("x", maxControlLine+1), "{\"op\":\"allow\",\"allow\":[\"nonsense\"]}\n"} {
		path, release, err := st.controlPath()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("unix", path)
		release()
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		_, _ = conn.Write([]byte(bad)) // the server may hang up in the middle of too much
		answer, _ := io.ReadAll(conn)
		conn.Close()
		if len(bad) < maxControlLine && !bytes.Contains(answer, []byte(`"error"`)) {
			t.Errorf("%.30q was answered with %q", bad, answer)
		}
	}
	if !c.Running(t.Context()) {
		t.Error("the server does not answer any more")
	}
}

// TestServerGoesOnWithoutABrokenSession has a session that cannot be opened.
func TestServerGoesOnWithoutABrokenSession(t *testing.T) {
	dir := t.TempDir()
	st, err := OpenState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.putSession(&Session{Name: "broken", RepoID: "another", Ready: true, Served: true}); err != nil {
		t.Fatal(err)
	}
	st, _ = serveAt(t, dir)
	status, err := st.Control().Status(t.Context())
	if err != nil || len(status.Sessions) != 0 || !strings.Contains(status.Problems["broken"], "another") {
		t.Errorf("%+v %v", status, err)
	}
}

func TestNoServer(t *testing.T) {
	st := openTestState(t)
	if _, err := st.Control().Status(t.Context()); !errors.Is(err, ErrNoServer) {
		t.Errorf("without a server: %v", err)
	}
	err := st.Control().Start(t.Context(), StartOptions{Path: "/bin/sh", Args: []string{"-c", "echo lifeboat: no luck today >&2; exit 1"}})
	if err == nil || !strings.Contains(err.Error(), "no luck today") {
		t.Errorf("a server that does not start: %v", err)
	}
}
