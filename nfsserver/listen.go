package nfsserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

func listen(ctx context.Context, opt *Options) (l *Listeners, err error) {
	l = &Listeners{}
	defer func() {
		if err != nil {
			l.close()
			l = nil
		}
	}()
	if l.NFS, err = listenTCP(ctx, "NFS", opt.NFSAddr); err != nil {
		return l, err
	}
	if opt.MountAddr != "" {
		if l.Mount, err = listenTCP(ctx, "MOUNT", opt.MountAddr); err != nil {
			return l, err
		}
	}
	if opt.PortmapAddr == "" {
		return l, nil
	}
	if l.Portmap, err = listenTCP(ctx, "portmap", opt.PortmapAddr); err != nil {
		return l, err
	}
	// The same port on UDP, also where the system chose it.
	lc := net.ListenConfig{Control: askForDestination}
	pc, err := lc.ListenPacket(ctx, "udp", l.Portmap.Addr().String())
	if err != nil {
		return l, bindError("portmap (UDP)", opt.PortmapAddr, err)
	}
	l.PortmapUDP, _ = pc.(*net.UDPConn) // what "udp" always is
	return l, nil
}

func listenTCP(ctx context.Context, what, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, bindError(what, addr, err)
	}
	return l, nil
}

func bindError(what, addr string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = ": another server has this port (for 111 usually rpcbind); stop it or choose another port"
	case errors.Is(err, syscall.EACCES):
		hint = ": ports below 1024 need root or CAP_NET_BIND_SERVICE"
	}
	return fmt.Errorf("listening for %s on %s: %w%s", what, addr, err, hint)
}

func (l *Listeners) close() {
	for _, c := range []net.Listener{l.NFS, l.Mount, l.Portmap} {
		if c != nil {
			_ = c.Close()
		}
	}
	if l.PortmapUDP != nil {
		_ = l.PortmapUDP.Close()
	}
}

func (l *Listeners) addrs() Addrs {
	a := Addrs{NFS: addrPort(l.NFS.Addr())}
	a.Mount = a.NFS
	if l.Mount != nil {
		a.Mount = addrPort(l.Mount.Addr())
	}
	if l.Portmap != nil {
		a.Portmap = addrPort(l.Portmap.Addr())
	}
	return a
}

func addrPort(a net.Addr) netip.AddrPort {
	ap, _ := netip.ParseAddrPort(a.String())
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// isTemporary tells an accept error that passes from one that does not.
func isTemporary(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
