package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Options say which server to talk to, as whom, and what to trust.
type Options struct {
	URL      string // "vcenter.example.com", "host:8443", "https://user@host/sdk"; a user and password in it are taken when the fields are empty
	Username string
	Password string

	Insecure   bool   // any certificate; said in the log
	CAFile     string // PEM file or list of them (filepath.ListSeparator); "" = the system's authorities
	KnownHosts string // file or list of them: lines "host:port thumbprint", as govc keeps them (GOVC_TLS_KNOWN_HOSTS)
	Thumbprint string // the server's certificate, SHA-256 or SHA-1; then nothing else is accepted

	Logger      *slog.Logger  // nil = discard
	CallTimeout time.Duration // per call; 0 = 2 minutes
	Patience    time.Duration // how long a server that went away in the middle of work is waited for; 0 = 3 minutes, < 0 = not at all
	KeepAlive   time.Duration // idle time after which the session is used so that it stays; 0 = 5 minutes, < 0 = never
	UserAgent   string        // "" = "lifeboat"
}

// About says what answers.
type About struct {
	Name         string `json:"name"` // "VMware vCenter Server"
	Version      string `json:"version"`
	Build        string `json:"build"`
	API          string `json:"api"` // version of the API
	VCenter      bool   `json:"vcenter"`
	InstanceUUID string `json:"instance_uuid"` // of a stand-alone host: the hardware's UUID
	Server       string `json:"server"`        // host:port, as connected to
}

// Client is a session at one server. It is safe for concurrent use; see the
// package comment for what happens when the session or the server goes away.
type Client struct {
	o       Options
	log     *slog.Logger
	user    *url.Userinfo
	trust   *trust
	about   About
	vim     *vim25.Client // whose RoundTripper is session
	session *session

	collectors collectorPool
	places     places // datastores and their datacenters, for file URLs

	stop    context.CancelFunc // ends keepAlive
	stopped chan struct{}
	closed  atomic.Bool
}

// Dial connects, checks the certificate, and logs in. Errors: ErrUnreachable,
// ErrTimeout, ErrCertificate (*CertificateError), ErrCredentials,
// ErrNotVSphere, ErrInvalid (of the options). The client keeps its session
// alive with a goroutine of its own until Close.
func Dial(ctx context.Context, o Options) (*Client, error) {
	c, err := prepare(o)
	if err != nil {
		return nil, &Error{Op: "connect to " + redacted(o.URL), Kind: ErrInvalid, Text: err.Error(), Err: err}
	}
	if c.o.Insecure {
		c.log.Warn("certificate of the server is not checked", "server", c.about.Server)
	}
	op := "connect to " + c.about.Server
	if err := c.connect(ctx); err != nil {
		c.vim.CloseIdleConnections()
		return nil, c.fail(op, err)
	}
	if err := c.session.login(ctx); err != nil {
		c.vim.CloseIdleConnections()
		return nil, c.fail("log in to "+c.about.Server+" as "+c.user.Username(), err)
	}
	if err := c.identify(ctx); err != nil {
		_ = c.Close(ctx)
		return nil, err
	}
	c.session.patience.Store(int64(c.o.Patience))
	keep, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	go c.keepAlive(keep)
	return c, nil
}

// redacted is an address as it may be shown: one with a mistake in it is told
// too, and must not tell the password.
func redacted(u string) string {
	scheme, rest, ok := strings.Cut(u, "://")
	if !ok {
		scheme, rest = "", u
	}
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		rest = rest[at+1:]
	}
	if ok {
		return scheme + "://" + rest
	}
	return rest
}

// prepare makes the client without talking to anybody.
func prepare(o Options) (*Client, error) {
	if o.URL == "" {
		return nil, errors.New("no server named; say which with --vcenter or GOVC_URL")
	}
	u, err := soap.ParseURL(o.URL)
	if err != nil {
		// The parser's own error repeats the URL, and a password with it.
		return nil, errors.New("the server's address cannot be understood; want a name, host:port or https://host/sdk")
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !o.Insecure) {
		return nil, fmt.Errorf("%s:// would send the password in the clear; use https://", u.Scheme)
	}
	if u.Hostname() == "" {
		return nil, errors.New("no host in the server's address")
	}
	user := u.User
	if o.Username != "" {
		user = url.UserPassword(o.Username, o.Password)
	} else if _, ok := user.Password(); !ok || o.Password != "" {
		user = url.UserPassword(user.Username(), o.Password)
	}
	if user.Username() == "" {
		return nil, errors.New("no user named; say who with --username or GOVC_USERNAME")
	}
	server := withPort(u.Host)
	t, err := newTrust(o, server)
	if err != nil {
		return nil, err
	}
	c := &Client{o: o, user: user, trust: t, log: o.Logger, about: About{Server: server}, stopped: make(chan struct{})}
	c.defaults()
	sc := soap.NewClient(u, true) // trust decides, in the transport's dialer
	sc.UserAgent = c.o.UserAgent
	tr := sc.DefaultTransport()
	tr.Proxy = nil // with one in between, trust would not see the connection
	tr.DialTLSContext = t.dial
	tr.MaxIdleConns, tr.MaxIdleConnsPerHost = 64, 64
	sc.Client.Transport = guardedTransport{tr}
	c.vim = &vim25.Client{Client: sc}
	c.session = newSession(c, sc)
	c.vim.RoundTripper = c.session
	return c, nil
}

func (c *Client) defaults() {
	if c.log == nil {
		c.log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if c.o.CallTimeout == 0 {
		c.o.CallTimeout = 2 * time.Minute
	}
	if c.o.Patience == 0 {
		c.o.Patience = 3 * time.Minute
	}
	if c.o.KeepAlive == 0 {
		c.o.KeepAlive = 5 * time.Minute
	}
	if c.o.UserAgent == "" {
		c.o.UserAgent = "lifeboat"
	}
}

// connect asks the server what it is; that needs no session.
func (c *Client) connect(ctx context.Context) error {
	c.vim.Namespace, c.vim.Version = "urn:"+vim25.Namespace, vim25.Version
	content, err := methods.GetServiceContent(ctx, c.session)
	if err != nil {
		return err
	}
	if content.SessionManager == nil || content.About.ApiType == "" {
		return &Error{Op: "connect to " + c.about.Server, Kind: ErrNotVSphere, Text: "what answers there is no vCenter Server or ESXi host"}
	}
	c.vim.ServiceContent = content
	a := content.About
	c.about.Name, c.about.Version, c.about.Build = a.Name, a.Version, a.Build
	c.about.API, c.about.VCenter, c.about.InstanceUUID = a.ApiVersion, a.ApiType == "VirtualCenter", a.InstanceUuid
	return nil
}

// identify finds out a stand-alone host's own UUID: it has no instanceUuid.
func (c *Client) identify(ctx context.Context) error {
	if c.about.InstanceUUID != "" {
		return nil
	}
	op := "ask " + c.about.Server + " who it is"
	host := types.ManagedObjectReference{Type: "HostSystem", Value: "ha-host"} // fixed on every ESXi
	var h mo.HostSystem
	if err := c.retrieveOne(ctx, op, host, []string{"hardware.systemInfo.uuid"}, &h); err != nil {
		return err
	}
	if h.Hardware == nil || h.Hardware.SystemInfo.Uuid == "" {
		return &Error{Op: op, Kind: ErrPermission, Text: "the host does not tell its UUID to this user; give the user the role Read-only on the host at least"}
	}
	c.about.InstanceUUID = h.Hardware.SystemInfo.Uuid
	return nil
}

// About says what the client is connected to.
func (c *Client) About() About { return c.about }

// Close logs out and ends the client's goroutine. The error is that of the
// logout; the server ends an idle session by itself after half an hour.
func (c *Client) Close(ctx context.Context) error {
	if c.closed.Swap(true) {
		return nil
	}
	if c.stop != nil {
		c.stop()
		<-c.stopped
	}
	defer c.vim.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, min(10*time.Second, c.o.CallTimeout))
	defer cancel()
	c.session.patience.Store(0)
	_, err := methods.Logout(ctx, c.session, &types.Logout{This: *c.vim.ServiceContent.SessionManager})
	if err != nil && !isNotAuthenticated(err) {
		return c.fail("log out from "+c.about.Server, err)
	}
	return nil
}

// keepAlive uses a session that nobody else has used for a while, so that the
// server (30 minutes by default) and firewalls in between keep it.
func (c *Client) keepAlive(ctx context.Context) {
	defer close(c.stopped)
	if c.o.KeepAlive < 0 {
		return
	}
	t := time.NewTicker(max(c.o.KeepAlive/2, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if c.session.idle() < c.o.KeepAlive/2 {
			continue
		}
		if err := c.session.ping(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("session could not be kept alive", "server", c.about.Server, "error", err)
		}
	}
}

// Calls is the number of SOAP calls made so far.
func (c *Client) Calls() int64 { return c.session.calls.Load() }

// CallsByMethod is the number of calls so far by the method's name.
func (c *Client) CallsByMethod() map[string]int64 {
	out := map[string]int64{}
	c.session.byMethod.Range(func(k, v any) bool {
		out[k.(string)] = v.(*atomic.Int64).Load()
		return true
	})
	return out
}

// guardedTransport turns answers that no SOAP server gives into errors, and
// bounds those that it does give.
type guardedTransport struct{ *http.Transport }

// maxAnswer is the largest SOAP answer that is read, bytes. A page of the
// inventory (1,000 objects) is about 20 MB.
const maxAnswer = 512 << 20

type statusError struct {
	code   int
	status string
}

func (e *statusError) Error() string { return "the server answers " + e.status }

func (g guardedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := g.Transport.RoundTrip(r)
	if err != nil || r.Method != http.MethodPost || r.Header.Get("SOAPAction") == "" {
		return res, err
	}
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusInternalServerError {
		res.Body.Close()
		return nil, &statusError{code: res.StatusCode, status: res.Status}
	}
	if kind := res.Header.Get("Content-Type"); kind != "" && !strings.Contains(kind, "xml") {
		res.Body.Close()
		return nil, &statusError{code: res.StatusCode, status: "with " + kind + " instead of XML"}
	}
	res.Body = &boundedBody{ReadCloser: res.Body, left: maxAnswer}
	return res, nil
}

type boundedBody struct {
	io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the server's answer is longer than %d MB", maxAnswer>>20)
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
