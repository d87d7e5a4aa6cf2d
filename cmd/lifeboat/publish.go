package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

// Well-known ports (RFC 1813 §5, RFC 1833; 20048 is IANA's for mountd).
const (
	nfsPort   = 2049
	mountPort = 20048
	rpcPort   = 111
)

func (p *program) publishCommand() *cli.Command {
	return &cli.Command{
		Name: "publish", Usage: "export restore points over NFS until interrupted", ArgsUsage: "POINT…",
		Description: "Each point becomes a folder with a .vmx and its disks, writable: what clients write\n" +
			"goes to the session's overlay, never to the backup. When ready, one line says where;\n" +
			"with --json it is one JSON document. The same --session again, after an interruption\n" +
			"or a crash, exports the same files with the same handles and everything written.\n\n" + pointHelp,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "session", Usage: "`NAME` of the session, new or to be resumed"},
			&cli.StringFlag{Name: "listen", Usage: "`ADDRESS` to serve on (default: 127.0.0.1)"},
			&cli.IntFlag{Name: "nfs-port", Usage: "`PORT` of NFS; 0 lets the system choose", Value: nfsPort},
			&cli.IntFlag{Name: "mount-port", Usage: "`PORT` of MOUNT, may equal NFS's; 0 lets the system choose", Value: mountPort},
			&cli.StringFlag{Name: "portmap", Usage: "`ADDRESS:PORT` of the portmapper, or off (default: port 111 of --listen; ESXi needs it)"},
			&cli.StringSliceFlag{Name: "allow", Usage: "let clients at `ADDRESS` or network (CIDR) in, besides loopback; repeatable"},
			&cli.BoolFlag{Name: "no-prefetch", Usage: "do not read ahead what the VM read when it booted the last time"},
		},
		Action: p.publish,
	}
}

func (p *program) publish(c *cli.Context) error {
	req, err := p.publishRequest(c)
	if err != nil {
		return err
	}
	if len(req.Points) == 0 && req.Session == "" {
		return fmt.Errorf("%w: name restore points to publish, or a --session to resume", appliance.ErrUsage)
	}
	st, err := appliance.OpenState(p.config.State)
	if err != nil {
		return err
	}
	// The repository and its images outlive the signal that ends the export:
	// reads in flight are answered before the server closes.
	lasting := context.WithoutCancel(c.Context)
	return p.withRepo(lasting, func(repo *store.Repository) error {
		pub, err := appliance.Publish(lasting, st, repo, req)
		if err != nil {
			return err
		}
		if err := p.announce(pub); err != nil {
			pub.Close()
			return err
		}
		serveErr := pub.Run(c.Context)
		discarded, err := pub.End()
		p.farewell(pub, discarded)
		if serveErr != nil {
			return serveErr
		}
		return err
	})
}

func (p *program) publishRequest(c *cli.Context) (appliance.PublishRequest, error) {
	def := p.config.Publish
	req := appliance.PublishRequest{
		Points: c.Args().Slice(), Session: c.String("session"), RepoURL: p.config.Repo,
		NFSPort: c.Int("nfs-port"), MountPort: c.Int("mount-port"), Portmap: c.String("portmap"), Logger: p.log,
		NoPrefetch: c.Bool("no-prefetch"),
	}
	if !c.IsSet("nfs-port") && def.NFSPort != nil {
		req.NFSPort = *def.NFSPort
	}
	if !c.IsSet("mount-port") && def.MountPort != nil {
		req.MountPort = *def.MountPort
	}
	listen := firstOf(c.String("listen"), def.Listen, "127.0.0.1")
	addr, err := netip.ParseAddr(listen)
	if err != nil {
		return req, fmt.Errorf("%w: --listen %q: not an IP address", appliance.ErrUsage, listen)
	}
	req.Listen = addr
	for _, port := range []int{req.NFSPort, req.MountPort} {
		if port < 0 || port > 65535 {
			return req, fmt.Errorf("%w: port %d: use 0 to 65535", appliance.ErrUsage, port)
		}
	}
	req.Portmap = firstOf(req.Portmap, def.Portmap, netip.AddrPortFrom(addr, rpcPort).String())
	if req.Portmap != "off" {
		if _, err := netip.ParseAddrPort(req.Portmap); err != nil {
			return req, fmt.Errorf("%w: --portmap %q: use ADDRESS:PORT or off", appliance.ErrUsage, req.Portmap)
		}
	}
	for _, s := range append(def.Allow, c.StringSlice("allow")...) {
		prefix, err := parsePrefix(s)
		if err != nil {
			return req, err
		}
		req.Allow = append(req.Allow, prefix)
	}
	return req, nil
}

// parsePrefix reads a network, or one address as the network of itself.
func parsePrefix(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			return prefix, fmt.Errorf("%w: --allow %q: not a network", appliance.ErrUsage, s)
		}
		return prefix.Masked(), nil
	}
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%w: --allow %q: not an IP address or network", appliance.ErrUsage, s)
	}
	return netip.PrefixFrom(addr, addr.BitLen()), nil
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// announce says that clients may come.
func (p *program) announce(pub *appliance.Publication) error {
	if p.json {
		return p.printJSON(pub.Ready)
	}
	r := pub.Ready
	fmt.Fprintf(p.stdout, "Session %s: NFS on %s, MOUNT on %s. Interrupt (Ctrl-C) to stop.\n", r.Session, r.NFSAddr, r.MountAddr)
	if r.Portmap == "" {
		fmt.Fprintln(p.stdout, "No portmapper: ESXi needs one on port 111; other clients must name both ports.")
	}
	for _, f := range r.Folders {
		fmt.Fprintf(p.stdout, "  %s (%s)\n    %s\n    %s\n", printable(f.VM), f.Point, f.Path+"/"+f.VMX, strings.Join(f.Disks, "\n    "))
	}
	return nil
}

// farewell says what became of the session; to people, on stderr, because
// stdout has had its one document.
func (p *program) farewell(pub *appliance.Publication, discarded bool) {
	name := pub.Session.Name
	if discarded {
		fmt.Fprintf(p.stderr, "Session %s ended; nothing was written to it, so it is gone.\n", name)
		return
	}
	fmt.Fprintf(p.stderr, "Session %s ended. Resume: lifeboat publish --session %s; keep the changes: lifeboat session keep %s; drop them: lifeboat session discard %s\n", name, name, name, name)
}
