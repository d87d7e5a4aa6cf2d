package nfsserver

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// The portmapper, version 2 (RFC 1833 §3). It knows this server's programs and
// nothing else: SET and UNSET are refused, CALLIT does not exist here. Callers
// of rpcbind's versions 3 and 4 are told that 2 is spoken, and fall back to it.

const (
	portmapVersion = 2
	protoTCP       = 6
	protoUDP       = 17
)

func portmapProcedures() []procedure {
	return []procedure{
		0: {name: "NULL", inline: null, open: true},
		1: {name: "SET", inline: portmapRefuse},
		2: {name: "UNSET", inline: portmapRefuse},
		3: {name: "GETPORT", inline: portmapGetPort, open: true},
		4: {name: "DUMP", inline: portmapDump},
	}
}

type mapping struct{ prog, vers, proto, port uint32 }

// mappings is what the portmapper has to tell.
func (s *Server) mappings() []mapping {
	a := s.Addrs()
	m := []mapping{
		{progNFS, nfsVersion, protoTCP, uint32(a.NFS.Port())},
		{progMount, mountVersion, protoTCP, uint32(a.Mount.Port())},
	}
	if a.Portmap.IsValid() {
		port := uint32(a.Portmap.Port())
		m = append(m, mapping{progPortmap, portmapVersion, protoTCP, port}, mapping{progPortmap, portmapVersion, protoUDP, port})
	}
	return m
}

func portmapRefuse(_ *call, out []byte) ([]byte, verdict) {
	return appendBool(out, false), done
}

func portmapGetPort(x *call, out []byte) ([]byte, verdict) {
	want := mapping{prog: x.args.u32(), vers: x.args.u32(), proto: x.args.u32()}
	x.args.u32() // port: ignored, RFC 1833 §3.2
	if x.args.bad {
		return out, garbage
	}
	for _, m := range x.srv.mappings() {
		if m.prog == want.prog && m.vers == want.vers && m.proto == want.proto {
			return appendU32(out, m.port), done
		}
	}
	return appendU32(out, 0), done
}

func portmapDump(x *call, out []byte) ([]byte, verdict) {
	for _, m := range x.srv.mappings() {
		out = appendBool(out, true)
		for _, v := range [...]uint32{m.prog, m.vers, m.proto, m.port} {
			out = appendU32(out, v)
		}
	}
	return appendBool(out, false), done
}

// maxDatagram is more than any portmap call takes, bytes.
const maxDatagram = 1024

// servePackets answers the portmapper's calls over UDP until pc is closed. A
// datagram is one call without record mark; one that is no call, or comes from
// outside the list and is not about a port, gets no answer, so that nobody can
// use us to send more to a third party than he sends to us.
func (s *Server) servePackets(pc *net.UDPConn) error {
	in, out := make([]byte, maxDatagram), make([]byte, 0, maxDatagram)
	sock := &packetSocket{conn: pc}
	for {
		n, from, err := sock.read(in)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || s.stopping() {
				return nil
			}
			return fmt.Errorf("nfsserver: portmap over UDP: %w", err)
		}
		if out = s.answerPacket(in[:n], from, out[:0]); len(out) > 0 {
			_ = sock.reply(out, from) // a lost answer is asked for again
		}
	}
}

func (s *Server) answerPacket(packet []byte, from netip.AddrPort, out []byte) []byte {
	x := call{srv: s, client: from.Addr().Unmap().WithZone(""), args: decoder{b: packet}}
	defer func() {
		if p := recover(); p != nil {
			s.logPanic(&x, p)
			out = nil
		}
	}()
	if err := parseHeader(&x.args, &x.header); err != nil {
		return nil
	}
	p, out := s.route(&x, servesPortmap, out)
	if p == nil {
		if !s.allows(&x) {
			return nil
		}
		return out[4:]
	}
	x.proc = p
	x.begin()
	out, v := p.inline(&x, beginReply(out, x.xid, acceptSuccess))
	if v == garbage {
		out = appendAccepted(out[:0], x.xid, acceptGarbageArgs)
	}
	x.count(len(out))
	return out[4:] // without the record mark
}
