package vsphere_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"lifeboat/internal/esxsim"
	"lifeboat/vsphere"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// starting holds back the second of two simulations that start at once: the
// library underneath appends to a list of licences that all have in common.
var starting sync.Mutex

// simulate starts a simulated vSphere for one test.
func simulate(t *testing.T, o esxsim.Options) *esxsim.Sim {
	t.Helper()
	o.Dir = t.TempDir()
	starting.Lock()
	s, err := esxsim.Start(context.Background(), o)
	starting.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// options to reach a simulation, its certificate known.
func options(s *esxsim.Sim) vsphere.Options {
	return vsphere.Options{
		URL: s.URL().Host, Username: s.Username(), Password: s.Password(), KnownHosts: s.KnownHosts(),
		KeepAlive: -1, CallTimeout: 20 * time.Second, Patience: 10 * time.Second,
	}
}

func connect(t *testing.T, s *esxsim.Sim) *vsphere.Client {
	t.Helper()
	c, err := vsphere.Dial(t.Context(), options(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// says fails the test unless err is of the kind and its text has each of words.
func says(t *testing.T, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got %v, want %v", err, kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

func TestTrust(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{})
	try := func(edit func(*vsphere.Options)) error {
		t.Helper()
		o := options(s)
		o.KnownHosts = ""
		edit(&o)
		c, err := vsphere.Dial(t.Context(), o)
		if err == nil {
			if c.Thumbprint() != s.Thumbprint() {
				t.Errorf("the server was believed, and its thumbprint is said to be %q", c.Thumbprint())
			}
			err = c.Close(t.Context())
		}
		return err
	}
	other := filepath.Join(t.TempDir(), "known_hosts")
	if err := os.WriteFile(other, []byte(s.URL().Host+" "+strings.Repeat("AB:", 31)+"AB\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	for name, edit := range map[string]func(*vsphere.Options){
		"known_hosts":   func(o *vsphere.Options) { o.KnownHosts = s.KnownHosts() },
		"list of files": func(o *vsphere.Options) { o.KnownHosts = "/nowhere" + string(filepath.ListSeparator) + s.KnownHosts() },
		"authority":     func(o *vsphere.Options) { o.CAFile = s.CAFile() },
		"thumbprint":    func(o *vsphere.Options) { o.Thumbprint = s.Thumbprint() },
		"as openssl has": func(o *vsphere.Options) {
			o.Thumbprint = "sha256:" + strings.ToLower(strings.ReplaceAll(s.Thumbprint(), ":", ""))
		},
		"insecure": func(o *vsphere.Options) { o.Insecure, o.Logger = true, slog.New(slog.NewTextHandler(&log, nil)) },
	} {
		if err := try(edit); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !strings.Contains(log.String(), "certificate of the server is not checked") {
		t.Errorf("an unchecked certificate is not said: %q", log.String())
	}
	says(t, try(func(*vsphere.Options) {}), vsphere.ErrCertificate, s.Thumbprint(), "--thumbprint", s.URL().Host)
	says(t, try(func(o *vsphere.Options) { o.KnownHosts = other }), vsphere.ErrCertificate, "has changed", s.Thumbprint())
	says(t, try(func(o *vsphere.Options) { o.Thumbprint = strings.Repeat("AB:", 31) + "AB" }), vsphere.ErrCertificate, "has changed", s.Thumbprint())
	// A pin is stricter than an authority.
	says(t, try(func(o *vsphere.Options) { o.Thumbprint, o.CAFile = strings.Repeat("AB:", 31)+"AB", s.CAFile() }), vsphere.ErrCertificate)
	says(t, try(func(o *vsphere.Options) { o.Thumbprint = "abc" }), vsphere.ErrInvalid, "SHA-256")
	says(t, try(func(o *vsphere.Options) { o.CAFile = "/nowhere" }), vsphere.ErrInvalid, "/nowhere")
	var cert *vsphere.CertificateError
	if err := try(func(*vsphere.Options) {}); !errors.As(err, &cert) || cert.SHA256 != s.Thumbprint() || cert.Server != s.URL().Host {
		t.Errorf("certificate error is %+v", cert)
	}
}

func TestWhoAnswers(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{})
	dial := func(edit func(*vsphere.Options)) error {
		t.Helper()
		o := options(s)
		o.CallTimeout = 2 * time.Second
		edit(&o)
		c, err := vsphere.Dial(t.Context(), o)
		if err == nil {
			_ = c.Close(t.Context())
		}
		return err
	}
	says(t, dial(func(o *vsphere.Options) { o.Password = "wr0ng-and-secret" }), vsphere.ErrCredentials, s.Username(), "GOVC_PASSWORD")
	says(t, dial(func(o *vsphere.Options) { o.URL = "" }), vsphere.ErrInvalid, "GOVC_URL")
	says(t, dial(func(o *vsphere.Options) { o.Username = "" }), vsphere.ErrInvalid, "GOVC_USERNAME")
	says(t, dial(func(o *vsphere.Options) { o.URL = "http://" + o.URL }), vsphere.ErrInvalid, "in the clear")
	says(t, dial(func(o *vsphere.Options) { o.URL = "https://u:hunter2@ex ample:x" }), vsphere.ErrInvalid)

	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	says(t, dial(func(o *vsphere.Options) { o.URL = closed.Addr().String() }), vsphere.ErrUnreachable, "refused", closed.Addr().String())

	web := httptest.NewTLSServer(http.NotFoundHandler())
	defer web.Close()
	elsewhere := func(h http.Handler) func(*vsphere.Options) {
		srv := httptest.NewTLSServer(h)
		t.Cleanup(srv.Close)
		return func(o *vsphere.Options) { o.URL, o.Insecure = srv.Listener.Addr().String(), true }
	}
	answer := func(kind, body string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			_, _ = io.WriteString(w, body)
		})
	}
	says(t, dial(elsewhere(http.NotFoundHandler())), vsphere.ErrNotVSphere, "404")
	says(t, dial(elsewhere(answer("text/html", "<html>router</html>"))), vsphere.ErrNotVSphere, "text/html")
	says(t, dial(elsewhere(answer("text/xml", "<not soap"))), vsphere.ErrNotVSphere)
	says(t, dial(elsewhere(answer("text/xml", `<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body><RetrieveServiceContentResponse/></Body></Envelope>`))), vsphere.ErrNotVSphere)
	says(t, dial(elsewhere(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "starting", http.StatusServiceUnavailable) }))),
		vsphere.ErrUnreachable, "503")
	release := make(chan struct{})
	hung := elsewhere(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(func() { close(release) })
	says(t, dial(func(o *vsphere.Options) { hung(o); o.CallTimeout = 100 * time.Millisecond }), vsphere.ErrTimeout, "100ms")

	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	go func() {
		for {
			conn, err := plain.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "SSH-2.0-OpenSSH_9.9\r\n")
			conn.Close()
		}
	}()
	says(t, dial(func(o *vsphere.Options) { o.URL = plain.Addr().String() }), vsphere.ErrNotVSphere)

	for _, err := range []error{dial(func(o *vsphere.Options) { o.Password = "wr0ng-and-secret" }), dial(func(o *vsphere.Options) { o.URL = "https://u:hunter2@ex ample:x" })} {
		if strings.Contains(err.Error(), "wr0ng") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("an error tells a password: %v", err)
		}
	}
}

func TestAbout(t *testing.T) {
	t.Parallel()
	for _, alone := range []bool{false, true} {
		s := simulate(t, esxsim.Options{Standalone: alone})
		a := connect(t, s).About()
		if a.VCenter == alone || a.InstanceUUID != s.InstanceUUID() || a.InstanceUUID == "" || a.Server != s.URL().Host || a.Version == "" {
			t.Errorf("stand-alone %t: %+v, want the UUID %s", alone, a, s.InstanceUUID())
		}
	}
}

func TestCloseLogsOut(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{})
	c := connect(t, s)
	if s.Sessions() != 1 {
		t.Fatalf("%d sessions", s.Sessions())
	}
	for range 2 {
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if s.Sessions() != 0 {
		t.Errorf("%d sessions after Close", s.Sessions())
	}
}

func TestKeepAlive(t *testing.T) {
	t.Parallel()
	s := simulate(t, esxsim.Options{})
	o := options(s)
	o.KeepAlive = 2 * time.Millisecond
	c, err := vsphere.Dial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	deadline := time.Now().Add(10 * time.Second)
	for s.Calls()["CurrentTime"] < 3 {
		if time.Now().After(deadline) {
			t.Fatalf("the session is not used: %v", s.Calls())
		}
		time.Sleep(time.Millisecond)
	}
}
