package s3test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Fault is what goes wrong with one request.
type Fault int

const (
	// None lets the request through.
	None Fault = iota
	// SlowDown answers 503 SlowDown; the server hears nothing.
	SlowDown
	// Internal answers 500 InternalError; the server hears nothing.
	Internal
	// Drop cuts the connection; the server hears nothing.
	Drop
	// LoseAck lets the server act and cuts the connection instead of answering.
	LoseAck
	// LoseAck500 lets the server act and answers 500.
	LoseAck500
	// Truncate cuts the connection in the middle of the answer's body.
	Truncate
	// Stall sends half of the answer's body, and then nothing until the client
	// gives up.
	Stall
)

// Request is what a plan sees of a request.
type Request struct {
	N      int // from 0, since the plan began
	Method string
	Path   string
	Query  string
	Header http.Header
}

// Proxy stands before a server and makes it slow, or makes things go wrong. The
// zero Latency and a nil plan change nothing.
type Proxy struct {
	// Endpoint is http://127.0.0.1:PORT.
	Endpoint string

	server *http.Server
	next   http.Handler
	done   chan struct{} // closed at the end

	latency atomic.Int64

	mu       sync.Mutex
	plan     func(Request) Fault
	n        int
	requests []Request
	bytes    atomic.Int64 // of answers' bodies
}

// StartProxy starts a proxy before an endpoint. Close ends it.
func StartProxy(endpoint string) (*Proxy, error) {
	target, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	return startProxy(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
		},
		Transport: transport,
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) {
			panic(http.ErrAbortHandler) // the client is gone, or the server
		},
	})
}

// startProxy serves a handler through a proxy.
func startProxy(next http.Handler) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{Endpoint: "http://" + l.Addr().String(), next: next, done: make(chan struct{})}
	p.server = &http.Server{Handler: p}
	go func() { _ = p.server.Serve(l) }() // until Close
	return p, nil
}

// RunProxy is StartProxy for a test, at whose end the proxy ends too.
func RunProxy(t testing.TB, endpoint string) *Proxy {
	t.Helper()
	p, err := StartProxy(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// Close ends the proxy and every connection through it.
func (p *Proxy) Close() {
	select {
	case <-p.done:
	default:
		close(p.done)
	}
	_ = p.server.Close()
}

// SetLatency delays the first byte of each answer.
func (p *Proxy) SetLatency(d time.Duration) { p.latency.Store(int64(d)) }

// SetPlan begins a plan of what goes wrong, and the counting of requests. The
// plan is called by one goroutine at a time.
func (p *Proxy) SetPlan(plan func(Request) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plan, p.n, p.requests = plan, 0, nil
	p.bytes.Store(0)
}

// First has a fault come to the first n requests with a method.
func First(n int, method string, fault Fault) func(Request) Fault {
	return func(r Request) Fault {
		if r.Method != method || n == 0 {
			return None
		}
		n--
		return fault
	}
}

// Requests are the requests since the plan began, up to 10,000.
func (p *Proxy) Requests() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Request(nil), p.requests...)
}

// Count is how many requests there were since the plan began.
func (p *Proxy) Count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

// Bytes is how many bytes answers had since the plan began.
func (p *Proxy) Bytes() int64 { return p.bytes.Load() }

func (p *Proxy) note(r *http.Request) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	req := Request{N: p.n, Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Header: r.Header.Clone()}
	p.n++
	if len(p.requests) < 10_000 {
		p.requests = append(p.requests, req)
	}
	if p.plan == nil {
		return None
	}
	return p.plan(req)
}

// ServeHTTP implements [http.Handler].
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fault := p.note(r)
	out := &answer{ResponseWriter: w, proxy: p, ctx: r.Context(), fault: fault}
	switch fault {
	case SlowDown:
		drain(r)
		refuse(w, http.StatusServiceUnavailable, "SlowDown", "Please reduce your request rate.")
	case Internal:
		drain(r)
		refuse(w, http.StatusInternalServerError, "InternalError", "We encountered an internal error. Please try again.")
	case Drop:
		panic(http.ErrAbortHandler)
	case LoseAck, LoseAck500:
		p.next.ServeHTTP(&discard{header: http.Header{}}, r)
		if fault == LoseAck {
			panic(http.ErrAbortHandler)
		}
		refuse(w, http.StatusInternalServerError, "InternalError", "It is done, but that is not what I say.")
	default:
		p.next.ServeHTTP(out, r)
	}
}

func drain(r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", code, message)
}

// answer passes on an answer, late or in part.
type answer struct {
	http.ResponseWriter
	proxy *Proxy
	ctx   context.Context
	fault Fault
	begun bool
	limit int64 // of the body; what comes after is the fault's
}

// WriteHeader implements [http.ResponseWriter].
func (a *answer) WriteHeader(status int) {
	if a.begun {
		return
	}
	a.begun = true
	select {
	case <-time.After(time.Duration(a.proxy.latency.Load())):
	case <-a.ctx.Done():
	}
	if a.fault == Truncate || a.fault == Stall {
		var length int64
		_, _ = fmt.Sscan(a.Header().Get("Content-Length"), &length) // 0 where there is none
		a.limit = length / 2
	}
	a.ResponseWriter.WriteHeader(status)
}

// Write implements [io.Writer].
func (a *answer) Write(b []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	if a.fault != Truncate && a.fault != Stall {
		a.proxy.bytes.Add(int64(len(b)))
		return a.ResponseWriter.Write(b)
	}
	part := b[:min(int64(len(b)), a.limit)]
	a.limit -= int64(len(part))
	n, err := a.ResponseWriter.Write(part)
	if err != nil || len(part) == len(b) {
		return n, err
	}
	_ = http.NewResponseController(a.ResponseWriter).Flush()
	if a.fault == Stall {
		select {
		case <-a.ctx.Done():
		case <-a.proxy.done:
		}
	}
	panic(http.ErrAbortHandler)
}

// Unwrap is for [http.ResponseController].
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// discard takes an answer that nobody is to hear.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}

// trimScheme is an endpoint without http://.
func trimScheme(endpoint string) string { return strings.TrimPrefix(endpoint, "http://") }
