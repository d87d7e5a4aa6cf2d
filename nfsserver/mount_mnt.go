package nfsserver

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path"

	"lifeboat/nfsserver/datastore"
)

// mountMNT lets go-nfs answer MNT, with the decision and the handle made by us
// in relayHandler.
func mountMNT(x *call, out []byte) ([]byte, verdict) {
	dir := x.args.opaque(maxMountPath)
	if x.args.bad {
		return out, garbage
	}
	results, err := x.relay(1, appendOpaque(nil, dir))
	if err != nil || len(results) < 4 {
		x.status = statusServerFault
		x.complain(err)
		return appendU32(out, mountServerFault), done
	}
	d := decoder{b: results}
	if x.status = status(d.u32()); x.status == mountOK {
		x.srv.mounts.add(x.client, cleanMount(dir))
		x.srv.log.Info("nfs: mounted", "client", x.client.String(), "path", string(dir))
	}
	return append(out, results...), done
}

func mountUMNT(x *call, out []byte) ([]byte, verdict) {
	dir := x.args.opaque(maxMountPath)
	if x.args.bad {
		return out, garbage
	}
	x.srv.mounts.remove(x.client, cleanMount(dir))
	if _, err := x.relay(3, appendOpaque(nil, dir)); err != nil {
		x.complain(err)
	}
	return out, done
}

// cleanMount is the one way of writing the path of a mount.
func cleanMount(dir []byte) string {
	rel, _ := exportRelative(string(dir))
	return path.Join(ExportPath, rel)
}

func (x *call) relay(proc uint32, args []byte) ([]byte, error) {
	client := net.TCPAddrFromAddrPort(netip.AddrPortFrom(x.client, 0))
	return x.srv.relay.exchange(client, progMount, mountVersion, proc, args)
}

// mountable finds the directory that client wants to mount.
func (s *Server) mountable(client netip.Addr, dir string) (*datastore.Node, uint32) {
	if !allowed(*s.allow.Load(), client) {
		if s.quiet.allow() {
			s.log.Warn("nfs: refused to mount: the client is not on the list of allowed addresses",
				slog.String("client", client.String()), slog.String("path", dir))
		}
		return nil, mountAcces
	}
	rel, st := exportRelative(dir)
	if st != mountOK {
		return nil, st
	}
	n, err := s.tree.Walk(rel)
	switch {
	case err != nil:
		return nil, mountStatus(err)
	case n.Type() != datastore.TypeDirectory:
		return nil, mountNotDir
	}
	return n, mountOK
}

// mountStatus is statusOf for mountstat3, which knows fewer.
func mountStatus(err error) uint32 {
	if errors.Is(err, datastore.ErrStale) || errors.Is(err, datastore.ErrJukebox) {
		return mountNoEnt
	}
	switch st := uint32(statusOf(err)); st {
	case mountNoEnt, mountAcces, mountNotDir, mountInval, mountNameTooLong:
		return st
	}
	return mountIO
}
