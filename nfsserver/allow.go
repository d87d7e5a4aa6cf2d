package nfsserver

import (
	"net"
	"net/netip"
	"sync"
)

// allowed reports whether prefixes cover addr.
func allowed(prefixes []netip.Prefix, addr netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// clientAddr is the address behind a connection: IPv4 as IPv4 also on a socket
// that speaks both, and without zone. A transport without addresses (a pipe)
// counts as the local host.
func clientAddr(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap().WithZone("")
	}
	if ap, err := netip.ParseAddrPort(a.String()); err == nil {
		return ap.Addr().Unmap().WithZone("")
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// maxStrangers is how many connections clients that are not on the list may
// have, all together.
const maxStrangers = 16

// admission counts connections against the limits.
type admission struct {
	total, perClient int

	mu        sync.Mutex
	count     int
	strangers int
	clients   map[netip.Addr]int
}

// enter takes a place for addr, or says which limit is reached.
func (a *admission) enter(addr netip.Addr, stranger bool) (limit string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.count >= a.total:
		return "Connections"
	case a.clients[addr] >= a.perClient:
		return "ConnectionsPerClient"
	case stranger && a.strangers >= maxStrangers:
		return "strangers"
	}
	if a.clients == nil {
		a.clients = make(map[netip.Addr]int)
	}
	a.count++
	a.clients[addr]++
	if stranger {
		a.strangers++
	}
	return ""
}

func (a *admission) leave(addr netip.Addr, stranger bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.count--
	if stranger {
		a.strangers--
	}
	if a.clients[addr]--; a.clients[addr] <= 0 {
		delete(a.clients, addr)
	}
}
