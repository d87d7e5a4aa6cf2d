package s3

import (
	"net"
	"net/netip"
)

// ServerClock reports whether the modification times of objects are by a clock
// that this host's does not change: not where the server is this host.
func (b *Bucket) ServerClock() bool { return !ownHost(b.loc.host) }

func ownHost(endpoint string) bool {
	host, _, err := net.SplitHostPort(endpoint)
	if err != nil {
		host = endpoint
	}
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.Unmap().IsLoopback()
}
