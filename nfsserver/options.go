package nfsserver

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"lifeboat/nfsserver/datastore"
)

// ExportPath is the path that clients mount. Every directory below it can be
// mounted too.
const ExportPath = "/lifeboat"

// MaxTransfer is the largest READ and WRITE in bytes, told to clients by FSINFO
// (rtmax, wtmax).
const MaxTransfer = 1 << 20

// Off as Options.PortmapAddr says the same as "": no portmapper.
const Off = "off"

// Options configure a [Server]. Only Tree is required.
type Options struct {
	// Tree is what is exported. The server does not close it.
	Tree *datastore.Tree

	// NFSAddr is the TCP address ("host:port") of the NFS program. The default
	// is "127.0.0.1:2049". Port 0 lets the system choose; see [Server.Addrs].
	NFSAddr string
	// MountAddr is the TCP address of the MOUNT program. By default (and when
	// it equals NFSAddr) both programs share one port. Either address answers
	// both programs, so a client that knows one port needs no other.
	MountAddr string
	// PortmapAddr is the address, TCP and UDP, of the portmapper, usually
	// ":111". By default there is none; clients must then be told the ports.
	PortmapAddr string

	// Allow lists the client addresses that are served. The default is the
	// loopback networks. Anybody else is refused at MOUNT and at every handle.
	Allow []netip.Prefix

	Limits Limits
	// Logger gets one line for each refused client, malformed record and panic,
	// and for requests that fail for reasons of the server's own. The default
	// is slog.Default().
	Logger *slog.Logger
}

// Limits bound what clients can make the server hold. A zero field means its
// default.
type Limits struct {
	Connections          int // at one time, all clients together; default 256
	ConnectionsPerClient int // at one time, per address; default 32
	// MemoryPerConnection bounds the bytes of requests that wait and of
	// replies that are under way, half of it each; default 16 MiB, at least
	// 4 MiB. A connection that reaches it is not read from until it has room.
	MemoryPerConnection int
	// InFlight is the number of requests of one connection that may be at work
	// at one time; default 128. Requests beyond it wait their turn. Of this and
	// of Workers, READs can have half, WRITEs and everything else a quarter each.
	InFlight int
	// Waiting is the number of requests of one connection that may wait for
	// their turn before the connection is no longer read; default 1024.
	Waiting int
	// Workers is the number of requests, of all connections, that may be at
	// work at one time; default 128.
	Workers int
	// WriteTimeout is how long a client may leave a reply untaken before its
	// connection is closed; default 60 s.
	WriteTimeout time.Duration
	// Drain is how long requests at work may take to finish when the server is
	// stopped; default 10 s.
	Drain time.Duration
}

// maxRecord is the largest RPC record in bytes: a WRITE of MaxTransfer and room
// for everything around it.
const maxRecord = MaxTransfer + 4096

func (l *Limits) setDefaults() error {
	for _, f := range []struct {
		name     string
		value    *int
		standard int
		least    int
	}{
		{"Connections", &l.Connections, 256, 1},
		{"ConnectionsPerClient", &l.ConnectionsPerClient, 32, 1},
		{"MemoryPerConnection", &l.MemoryPerConnection, 16 << 20, 4 << 20},
		{"InFlight", &l.InFlight, 128, 4},
		{"Waiting", &l.Waiting, 1024, 1},
		{"Workers", &l.Workers, 128, 4},
	} {
		if *f.value == 0 {
			*f.value = f.standard
		}
		if *f.value < f.least {
			return fmt.Errorf("nfsserver: Limits.%s is %d, must be at least %d", f.name, *f.value, f.least)
		}
	}
	if l.WriteTimeout == 0 {
		l.WriteTimeout = time.Minute
	}
	if l.Drain == 0 {
		l.Drain = 10 * time.Second
	}
	if l.WriteTimeout < 0 || l.Drain < 0 {
		return errors.New("nfsserver: Limits.WriteTimeout and Limits.Drain must not be negative")
	}
	return nil
}

func (o *Options) setDefaults() error {
	if o.Tree == nil {
		return errors.New("nfsserver: Options.Tree is nil: there is nothing to export")
	}
	if o.NFSAddr == "" {
		o.NFSAddr = "127.0.0.1:2049"
	}
	if o.MountAddr == o.NFSAddr {
		o.MountAddr = ""
	}
	if strings.EqualFold(o.PortmapAddr, Off) {
		o.PortmapAddr = ""
	}
	if len(o.Allow) == 0 {
		o.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	}
	for _, p := range o.Allow {
		if !p.IsValid() {
			return errors.New("nfsserver: Options.Allow holds an invalid prefix")
		}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o.Limits.setDefaults()
}
