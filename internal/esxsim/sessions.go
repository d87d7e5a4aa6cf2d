package esxsim

import (
	"net/http"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// sessionBook knows which sessions there are, beside the simulator's own
// SessionManager, which cannot be asked or told to forget one.
type sessionBook struct {
	mu   sync.Mutex
	live map[string]string // key → user
	dead map[string]bool
}

func newSessionBook() *sessionBook {
	return &sessionBook{live: map[string]string{}, dead: map[string]bool{}}
}

func (b *sessionBook) note(key, user string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.dead[key] {
		b.live[key] = user
	}
}

func (b *sessionBook) end(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.live, key)
	b.dead[key] = true
}

func (b *sessionBook) endAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key := range b.live {
		b.dead[key] = true
	}
	clear(b.live)
}

// user of a session; "" when there is no such session.
func (b *sessionBook) user(key string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.live[key]
}

// cookie is the registry's way to a session's key; one that was dropped is as
// if it had not been sent.
func (b *sessionBook) cookie(ctx *simulator.Context) string {
	key := simulator.HTTPCookie(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dead[key] {
		return ""
	}
	return key
}

// DropSessions ends every session: the next call of each client gets
// NotAuthenticated.
func (s *Sim) DropSessions() {
	s.sessions.endAll()
	s.mu.Lock()
	clear(s.tickets)
	s.mu.Unlock()
}

// Sessions is how many sessions there are.
func (s *Sim) Sessions() int {
	s.sessions.mu.Lock()
	defer s.sessions.mu.Unlock()
	return len(s.sessions.live)
}

func (s *Sim) validLogin(req *types.Login) bool {
	if req.UserName == s.opts.Username {
		return req.Password == s.opts.Password
	}
	password, ok := s.opts.Users[req.UserName]
	return ok && password == req.Password
}

// sessionCalls stands before the SessionManager.
type sessionCalls struct{ base }

func (d *sessionCalls) Login(ctx *simulator.Context, req *types.Login) soap.HasFault {
	res := d.s.reg.SessionManager().Login(ctx, req)
	if ctx.Session != nil && res.Fault() == nil {
		d.s.sessions.note(ctx.Session.Key, req.UserName)
	}
	return res
}

func (d *sessionCalls) Logout(ctx *simulator.Context, req *types.Logout) soap.HasFault {
	d.s.sessions.end(ctx.Session.Key)
	return d.s.reg.SessionManager().Logout(ctx, req)
}

// AcquireGenericServiceTicket: a ticket is good for one request [API].
func (d *sessionCalls) AcquireGenericServiceTicket(_ *simulator.Context, _ *types.AcquireGenericServiceTicket) soap.HasFault {
	id := randomToken()
	d.s.mu.Lock()
	d.s.tickets[id] = true
	d.s.mu.Unlock()
	return &methods.AcquireGenericServiceTicketBody{Res: &types.AcquireGenericServiceTicketResponse{
		Returnval: types.SessionManagerGenericServiceTicket{Id: id, HostName: d.s.front.addr},
	}}
}

// authorized tells whether an HTTP request carries a session, a ticket that was
// not used yet, or the right password.
func (s *Sim) authorized(r *http.Request) bool {
	if c, err := r.Cookie("vmware_cgi_ticket"); err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		ok := s.tickets[c.Value]
		delete(s.tickets, c.Value)
		return ok
	}
	if c, err := r.Cookie(soap.SessionCookieName); err == nil && s.sessions.user(c.Value) != "" {
		return true
	}
	user, password, ok := r.BasicAuth()
	return ok && s.validLogin(&types.Login{UserName: user, Password: password})
}
