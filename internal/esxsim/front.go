package esxsim

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	vapi "github.com/vmware/govmomi/vapi/simulator"
)

// front is the HTTPS server before everything: one address that outlives
// restarts, and a certificate that can change.
type front struct {
	addr    string
	cert    atomic.Pointer[tls.Certificate]
	handler http.Handler
	meter   meter
	calls   inflight

	mu     sync.Mutex
	server *http.Server
	done   chan struct{}
}

// serve wires the API's paths and starts listening.
func (s *Sim) serve() error {
	f := &front{}
	cert, err := newCertificate()
	if err != nil {
		return err
	}
	f.cert.Store(cert)
	ln, err := net.Listen("tcp", s.opts.Listen)
	if err != nil {
		return err
	}
	f.addr = ln.Addr().String()
	s.front = f
	s.svc.Listen = &url.URL{Scheme: "https", Host: f.addr, Path: "/sdk", User: url.UserPassword(s.opts.Username, s.opts.Password)}
	sm := s.reg.SessionManager()
	sm.ServiceHostName = f.addr
	sm.ValidLogin = s.validLogin

	s.svc.RegisterSDK(s.reg, "/sdk/vimService")
	mux := s.svc.ServeMux
	mux.HandleFunc("/sdk/vimServiceVersions.xml", s.svc.ServiceVersions)
	mux.HandleFunc("/folder", s.serveFolder)
	mux.HandleFunc("/folder/", s.serveFolder)
	mux.HandleFunc("/screen", s.serveScreen)
	mux.HandleFunc(leasePath, s.serveLease)
	mux.HandleFunc(guestFilePath, s.serveGuestFile)
	if !s.opts.Standalone {
		patterns, handler := vapi.New(s.svc.Listen, s.reg)
		for _, p := range patterns {
			s.svc.Handle(p, handler)
		}
	}
	f.handler = f.wrap(mux)
	if err := s.writeTrust(); err != nil {
		return errors.Join(err, ln.Close())
	}
	f.start(ln, s.log)
	return nil
}

func (f *front) start(ln net.Listener, logger *slog.Logger) {
	srv := &http.Server{
		Handler:           f.handler,
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          log.New(slogWriter{logger}, "", 0),
		TLSConfig: &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.cert.Load(), nil },
		},
	}
	done := make(chan struct{})
	f.mu.Lock()
	f.server, f.done = srv, done
	f.mu.Unlock()
	go func() {
		defer close(done)
		_ = srv.ServeTLS(ln, "", "")
	}()
}

// close ends the server and waits for the calls that are under way: the
// simulation's context is over, so none takes long.
func (f *front) close() {
	f.mu.Lock()
	srv, done := f.server, f.done
	f.server = nil
	f.mu.Unlock()
	if srv == nil {
		return
	}
	_ = srv.Close()
	<-done
	f.calls.wait()
}

// Restart is a restart of vCenter's services: connections break, sessions and
// the objects of tasks are gone, what hosts are doing goes on.
func (s *Sim) Restart() error {
	s.front.mu.Lock()
	srv, done := s.front.server, s.front.done
	s.front.server = nil
	s.front.mu.Unlock()
	if srv != nil {
		_ = srv.Close()
		<-done
	}
	s.DropSessions()
	s.forgetTasks()
	var ln net.Listener
	var err error
	for range 50 { // the port may need a moment
		if ln, err = net.Listen("tcp", s.front.addr); err == nil {
			s.front.start(ln, s.log)
			return nil
		}
		select {
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return fmt.Errorf("esxsim: listening again on %s: %w", s.front.addr, err)
}

// RotateCertificate gives the API another certificate. Connections that are
// open go on; the files of CAFile and KnownHosts tell of the old one.
func (s *Sim) RotateCertificate() error {
	cert, err := newCertificate()
	if err != nil {
		return fmt.Errorf("esxsim: %w", err)
	}
	s.front.cert.Store(cert)
	return nil
}

// Thumbprint is the certificate's SHA-256, as govc prints it: pairs of
// hexadecimal digits with colons.
func (s *Sim) Thumbprint() string { return thumbprint(s.front.cert.Load()) }

func thumbprint(c *tls.Certificate) string {
	sum := sha256.Sum256(c.Certificate[0])
	pairs := make([]string, len(sum))
	for i, b := range sum {
		pairs[i] = fmt.Sprintf("%02X", b)
	}
	return strings.Join(pairs, ":")
}

// CAFile is a PEM file with the first certificate, which signed itself.
func (s *Sim) CAFile() string { return filepath.Join(s.opts.Dir, "ca.pem") }

// KnownHosts is a file as GOVC_TLS_KNOWN_HOSTS names it, with the first
// certificate's thumbprint.
func (s *Sim) KnownHosts() string { return filepath.Join(s.opts.Dir, "known_hosts") }

func (s *Sim) writeTrust() error {
	cert := s.front.cert.Load()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
	if err := os.WriteFile(s.CAFile(), ca, 0o644); err != nil {
		return err
	}
	return os.WriteFile(s.KnownHosts(), []byte(s.front.addr+" "+thumbprint(cert)+"\n"), 0o644)
}

func newCertificate() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "esxsim"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// inflight counts calls under way. Unlike a WaitGroup it may be added to while
// somebody waits.
type inflight struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n falls to 0; nil: nobody waits
}

func (i *inflight) add(n int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.n += n; i.n == 0 && i.idle != nil {
		close(i.idle)
		i.idle = nil
	}
}

func (i *inflight) wait() {
	i.mu.Lock()
	if i.n == 0 {
		i.mu.Unlock()
		return
	}
	if i.idle == nil {
		i.idle = make(chan struct{})
	}
	idle := i.idle
	i.mu.Unlock()
	<-idle
}

// meter measures for how long anything was being done: the union of the times
// of calls and tasks, less the time spent waiting for an NFS server or for
// updates, which is not the simulator's.
type meter struct {
	mu     sync.Mutex
	active int
	since  time.Time
	total  time.Duration
}

func (m *meter) add(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.active
	m.active += n
	switch {
	case before <= 0 && m.active > 0:
		m.since = time.Now()
	case before > 0 && m.active <= 0:
		m.total += time.Since(m.since)
	}
}

func (m *meter) busy() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.active > 0 {
		return m.total + time.Since(m.since)
	}
	return m.total
}

// wrap counts calls, for the meter and for who waits for their end.
func (f *front) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.calls.add(1)
		defer f.calls.add(-1)
		f.meter.add(1)
		defer f.meter.add(-1)
		h.ServeHTTP(w, r)
	})
}

// waiting leaves out of the meter what f takes.
func (m *meter) waiting(f func()) {
	m.add(-1)
	defer m.add(1)
	f()
}

// Busy is how long the simulator itself has been at work: what a figure of
// Lifeboat's has to leave out.
func (s *Sim) Busy() time.Duration { return s.front.meter.busy() }

// slogWriter passes a log.Logger's lines on.
type slogWriter struct{ log *slog.Logger }

func (w slogWriter) Write(p []byte) (int, error) {
	w.log.Debug(strings.TrimSpace(string(p)), "from", "http")
	return len(p), nil
}
