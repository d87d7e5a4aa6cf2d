package vsphere

import (
	"context"
	"errors"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// session makes the calls of a client. It is the soap.RoundTripper underneath
// everything in this package.
//
// What is repeated, and why that is safe:
//   - A call refused with NotAuthenticated was not carried out: any call is made
//     again after a login.
//   - A call whose connection was never made was not carried out: likewise.
//   - A call about an object that belonged to the session is not: the object is gone
//     (errRenewed). Who holds some starts anew.
//   - A call whose answer was lost may have been carried out: it is repeated only
//     when it changes nothing (readOnly).
//
// Objects that belong to a session (property collectors, filters, pages of a
// retrieval) die with it; who holds some compares epoch, which counts logins.
type session struct {
	c        *Client
	soap     *soap.Client
	patience atomic.Int64 // time.Duration; 0 until Dial is through and after Close

	epoch    atomic.Uint64 // counts logins
	key      atomic.Pointer[string]
	entry    chan struct{} // capacity 1: who logs in holds it
	last     atomic.Int64  // when the last call was made, Unix nanoseconds
	calls    atomic.Int64
	byMethod sync.Map // string → *atomic.Int64
}

func newSession(c *Client, sc *soap.Client) *session {
	return &session{c: c, soap: sc, entry: make(chan struct{}, 1)}
}

func (s *session) idle() time.Duration { return time.Since(time.Unix(0, s.last.Load())) }

func (s *session) count(ctx context.Context, method string) {
	countFor(ctx)
	s.calls.Add(1)
	s.last.Store(time.Now().UnixNano())
	n, ok := s.byMethod.Load(method)
	if !ok {
		n, _ = s.byMethod.LoadOrStore(method, new(atomic.Int64))
	}
	n.(*atomic.Int64).Add(1)
}

// methodName of a request: *methods.LoginBody is "Login".
func methodName(req soap.HasFault) string {
	return strings.TrimSuffix(reflect.TypeOf(req).Elem().Name(), "Body")
}

// sessionBound calls are about objects that end with their session: made again
// in another one they would wait for what never comes. Their callers start anew.
func sessionBound(method string) bool {
	switch method {
	case "WaitForUpdatesEx", "ContinueRetrievePropertiesEx", "DestroyPropertyFilter", "DestroyPropertyCollector", "CancelWaitForUpdates":
		return true
	}
	return false
}

// readOnly reports whether a call may be made twice, because it changes nothing,
// or nothing but what ends with the session.
func readOnly(method string) bool {
	if sessionBound(method) {
		return true
	}
	for _, p := range []string{"Retrieve", "Query", "Find", "Has", "Fetch", "Current", "Get", "List", "Validate", "SessionIsActive", "Acquire", "CreatePropertyCollector", "CreateFilter"} {
		if strings.HasPrefix(method, p) {
			return true
		}
	}
	return method == "HttpNfcLeaseProgress" || method == "HttpNfcLeaseGetManifest"
}

// sessionless calls are made before or beside a session; refusing them for
// want of one means what it says.
func sessionless(method string) bool {
	return method == "Login" || method == "Logout" || method == "RetrieveServiceContent"
}

// RoundTrip makes one call, as often as it takes and is safe.
func (s *session) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	method := methodName(req)
	var giveUp time.Time
	relogged := false
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		epoch := s.epoch.Load()
		err := s.once(ctx, method, req, res)
		if err == nil && !lacksSession(res) {
			return nil
		}
		switch {
		case ctx.Err() != nil:
			return err
		case (err == nil || isNotAuthenticated(err)) && !sessionless(method):
			if relogged {
				return errSessionLost
			}
			relogged = true
			if err := s.relogin(ctx, epoch); err != nil {
				return err
			}
			if sessionBound(method) {
				return errRenewed
			}
		case s.patience.Load() > 0 && isOutage(err) && method == "WaitForUpdatesEx":
			return errRenewed // an answer that was lost may have held the last news of something
		case s.patience.Load() > 0 && isOutage(err) && (readOnly(method) || neverSent(err)):
			if giveUp.IsZero() {
				patience := time.Duration(s.patience.Load())
				giveUp = time.Now().Add(patience)
				s.c.log.Warn("server does not answer; waiting for it", "server", s.c.about.Server, "call", method, "for", patience, "error", err)
			}
			if time.Now().Add(pause).After(giveUp) || !pausing(ctx, pause) {
				return err
			}
			relogged = false
		default:
			return err
		}
		reflect.ValueOf(res).Elem().SetZero()
	}
}

// errRenewed means that the session, or what it remembers of us, is another one
// now than the call was for: what listens there has to start anew.
var errRenewed = errors.New("the session was lost and established again")

var errSessionLost = errors.New("the server ended the session at once, twice")

// once makes the call, within its time limit.
func (s *session) once(ctx context.Context, method string, req, res soap.HasFault) error {
	limit := s.c.o.CallTimeout
	if w, ok := req.(*methods.WaitForUpdatesExBody); ok && w.Req.Options != nil && w.Req.Options.MaxWaitSeconds != nil {
		limit += time.Duration(*w.Req.Options.MaxWaitSeconds) * time.Second
	}
	inner, cancel := callContext(ctx, method, limit)
	defer cancel()
	s.count(ctx, method)
	err := s.soap.RoundTrip(inner, req, res)
	if err != nil && ctx.Err() == nil && inner.Err() != nil {
		return &Error{Op: method, Kind: ErrTimeout, Text: "no answer within " + limit.String(), Err: err}
	}
	return err
}

// callContext bounds a call. One that starts a task is let finish for a moment
// when its caller goes away: only who has its answer knows the task, and can
// stop it or tell what became of it.
func callContext(ctx context.Context, method string, limit time.Duration) (context.Context, context.CancelFunc) {
	if !strings.HasSuffix(method, "_Task") || ctx.Err() != nil {
		return context.WithTimeout(ctx, limit)
	}
	inner, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	stop := context.AfterFunc(ctx, func() {
		if pausing(inner, patienceAfterCancel) {
			cancel()
		}
	})
	return inner, func() {
		stop()
		cancel()
	}
}

// pausing waits; it is false when ctx ended first.
func pausing(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// relogin establishes the session again, unless somebody has done it since
// epoch was looked at.
func (s *session) relogin(ctx context.Context, epoch uint64) error {
	select {
	case s.entry <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-s.entry }()
	if s.epoch.Load() != epoch {
		return nil
	}
	s.c.log.Info("session was lost; logging in again", "server", s.c.about.Server)
	return s.login(ctx)
}

func (s *session) login(ctx context.Context) error {
	password, _ := s.c.user.Password()
	res, err := methods.Login(ctx, s, &types.Login{
		This:     *s.c.vim.ServiceContent.SessionManager,
		UserName: s.c.user.Username(),
		Password: password,
		Locale:   "en_US", // faults are recognised by type; their text is shown, in one language
	})
	if err == nil {
		s.key.Store(&res.Returnval.Key)
		s.epoch.Add(1)
	}
	return err
}

// id is the server's own ID of the session, "" before the login.
func (s *session) id() string {
	if k := s.key.Load(); k != nil {
		return *k
	}
	return ""
}

func (s *session) ping(ctx context.Context) error {
	_, err := methods.CurrentTime(ctx, s, &types.CurrentTime{This: types.ManagedObjectReference{Type: "ServiceInstance", Value: "ServiceInstance"}})
	return err
}

// isNotAuthenticated reports whether the server wants a session first.
func isNotAuthenticated(err error) bool {
	return fault.Is(err, &types.NotAuthenticated{})
}

// lacksSession recognises the property collector's way of saying so: an answer
// in which nothing could be read for want of a session.
func lacksSession(res soap.HasFault) bool {
	r, ok := res.(*methods.RetrievePropertiesExBody)
	if !ok || r.Res == nil || r.Res.Returnval == nil {
		return false
	}
	for _, o := range r.Res.Returnval.Objects {
		if len(o.PropSet) > 0 {
			return false
		}
		for _, m := range o.MissingSet {
			if _, ok := m.Fault.Fault.(*types.NotAuthenticated); ok {
				return true
			}
		}
	}
	return false
}

// isOutage reports whether the server was not there to answer. A certificate
// that is refused is no outage: it stays refused.
func isOutage(err error) bool {
	var cert *CertificateError
	if err == nil || errors.As(err, &cert) {
		return false
	}
	var status *statusError
	if errors.As(err, &status) {
		return status.code == http.StatusServiceUnavailable || status.code == http.StatusBadGateway || status.code == http.StatusGatewayTimeout
	}
	if soap.IsSoapFault(err) {
		return false
	}
	var netErr net.Error
	return errors.As(err, &netErr) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED) || isCutShort(err)
}

// neverSent reports whether the request cannot have reached the server.
func neverSent(err error) bool {
	var op *net.OpError
	var status *statusError
	if errors.As(err, &status) {
		return status.code == http.StatusServiceUnavailable // the proxy in front answers while the service starts
	}
	return errors.As(err, &op) && op.Op == "dial"
}
