package nfsserver

import (
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// packetSocket answers a datagram from the address to which it was sent. On a
// host with several networks a socket bound to all of them would otherwise
// answer from the address that the route prefers, and clients drop an answer
// from an address that they did not ask.
type packetSocket struct {
	conn *net.UDPConn
	oob  [128]byte // the control message of the last read: where it was sent to
	n    int
}

// askForDestination makes the kernel tell where datagrams were sent to. It has
// to be done before the socket is bound: a datagram that is received earlier
// says nothing of use. It is a net.ListenConfig's Control.
func askForDestination(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) {
		// A socket of IPv6 tells about IPv4 too. Where neither is known the
		// answer comes from where the route says.
		if unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	})
}

func (s *packetSocket) read(p []byte) (n int, from netip.AddrPort, err error) {
	n, s.n, _, from, err = s.conn.ReadMsgUDPAddrPort(p, s.oob[:])
	return n, from, err
}

// reply answers what read returned last.
func (s *packetSocket) reply(p []byte, to netip.AddrPort) error {
	_, _, err := s.conn.WriteMsgUDPAddrPort(p, s.oob[:s.n], to)
	return err
}
