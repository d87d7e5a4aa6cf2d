package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

// serveFlags say where the server listens; `recover` and its kin take them too,
// for the case that they start it.
func serveFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "listen", Usage: "`ADDRESS` to serve NFS on (default: as the last time, or the one that reaches the vCenter)"},
		&cli.IntFlag{Name: "nfs-port", Usage: "`PORT` of NFS; ESXi wants 2049", Value: nfsPort},
		&cli.IntFlag{Name: "mount-port", Usage: "`PORT` of MOUNT, may equal NFS's", Value: mountPort},
		&cli.StringFlag{Name: "portmap", Usage: "`ADDRESS:PORT` of the portmapper, or off (default: port 111 of --listen; ESXi needs it)"},
		&cli.StringSliceFlag{Name: "allow", Usage: "let clients at `ADDRESS` or network (CIDR) in, besides loopback; repeatable"},
		&cli.BoolFlag{Name: "no-prefetch", Usage: "do not read ahead what VMs read when they booted the last time"},
	}
}

func (p *program) serveCommand() *cli.Command {
	return &cli.Command{
		Name: "serve", Usage: "run the appliance: export every recovery that is under way", ArgsUsage: " ",
		Description: "Runs until it is interrupted. recover, attach and their kin start it in the background\n" +
			"where it does not run; a systemd unit (docs/operations.md) keeps it running. VMs wait while\n" +
			"it restarts: their file handles and everything they wrote are the same afterwards.",
		Flags: append(serveFlags(),
			&cli.BoolFlag{Name: "status", Usage: "say what the running server does"},
			&cli.BoolFlag{Name: "stop", Usage: "end the running server; VMs that run from it wait for the next one"},
		),
		Action: p.serve,
	}
}

func (p *program) serve(c *cli.Context) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	st, err := appliance.OpenState(p.config.State)
	if err != nil {
		return err
	}
	switch {
	case c.Bool("status"):
		return p.serverStatus(c.Context, st)
	case c.Bool("stop"):
		if err := st.Control().Stop(c.Context); err != nil {
			return err
		}
		return p.say(map[string]bool{"stopped": true}, "The server ends.\n")
	}
	req, err := p.serveRequest(c, st, "")
	if err != nil {
		return err
	}
	lasting := context.WithoutCancel(c.Context)
	return p.withRepo(lasting, func(repo *store.Repository) error {
		s, err := appliance.NewServer(lasting, st, repo, req)
		if err != nil {
			return err
		}
		err = p.showStatus(s.Status())
		if err == nil {
			err = s.Run(c.Context)
		}
		return errors.Join(err, s.Close())
	})
}

// serveRequest joins flags, the configuration and what the last server used, in
// this order. local is the address to take where none of them names one.
func (p *program) serveRequest(c *cli.Context, st *appliance.State, local string) (appliance.ServeRequest, error) {
	saved, err := st.ServeSettings()
	if err != nil {
		return appliance.ServeRequest{}, err
	}
	def := &p.config.Publish
	if saved.Listen != "" && c.String("listen") == "" && def.Listen == "" {
		def.Listen = saved.Listen
		if def.NFSPort == nil {
			def.NFSPort = &saved.NFSPort
		}
		if def.MountPort == nil {
			def.MountPort = &saved.MountPort
		}
		def.Portmap = firstOf(def.Portmap, saved.Portmap)
	}
	def.Listen = firstOf(def.Listen, local)
	pub, err := p.publishRequest(c)
	return appliance.ServeRequest{
		RepoURL: p.config.Repo, Listen: pub.Listen, NFSPort: pub.NFSPort, MountPort: pub.MountPort, Portmap: pub.Portmap,
		Allow: pub.Allow, NoPrefetch: pub.NoPrefetch, Logger: p.log,
	}, err
}

// ensureServer starts the appliance's server where none answers, and lets the
// clients at allow in.
func (p *program) ensureServer(c *cli.Context, st *appliance.State, local string, allow []netip.Prefix) error {
	control := st.Control()
	if !control.Running(c.Context) {
		req, err := p.serveRequest(c, st, local)
		if err != nil {
			return err
		}
		pw, err := p.password(false)
		if err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		if err := control.Start(c.Context, appliance.StartOptions{Path: self, Args: p.serveArguments(c, req), Env: os.Environ(), Password: pw}); err != nil {
			return err
		}
	}
	if len(allow) == 0 {
		return nil
	}
	return control.Allow(c.Context, allow)
}

// serveArguments is the command line that starts the server as req says.
func (p *program) serveArguments(c *cli.Context, req appliance.ServeRequest) []string {
	var args []string
	for _, name := range []string{"config", "cache-dir", "cache-size"} {
		if v := c.String(name); v != "" {
			args = append(args, "--"+name, v)
		}
	}
	args = append(args, "--repo", p.config.Repo, "--state", p.config.State, "--verbose", "serve",
		"--listen", req.Listen.String(), "--nfs-port", fmt.Sprint(req.NFSPort), "--mount-port", fmt.Sprint(req.MountPort), "--portmap", req.Portmap)
	for _, prefix := range req.Allow {
		args = append(args, "--allow", prefix.String())
	}
	if req.NoPrefetch {
		args = append(args, "--no-prefetch")
	}
	return args
}

func (p *program) serverStatus(ctx context.Context, st *appliance.State) error {
	status, err := st.Control().Status(ctx)
	if err != nil {
		return err
	}
	return p.showStatus(*status)
}

func (p *program) showStatus(s appliance.ServerStatus) error {
	if p.json {
		return p.printJSON(s)
	}
	fmt.Fprintf(p.stdout, "Server %d since %s: NFS on %s, MOUNT on %s, portmapper on %s.\n", s.PID, localTime(s.Began), s.NFSAddr, s.MountAddr, firstOf(s.Portmap, "none"))
	fmt.Fprintf(p.stdout, "Sessions: %s. Connections: %d.\n", firstOf(strings.Join(s.Sessions, ", "), "none"), s.Clients)
	for name, why := range s.Problems {
		fmt.Fprintf(p.stdout, "Not served: %s: %s\n", name, printable(why))
	}
	return nil
}

// say prints a document for scripts, or a sentence for people.
func (p *program) say(doc any, format string, args ...any) error {
	if p.json {
		return p.printJSON(doc)
	}
	_, err := fmt.Fprintf(p.stdout, format, args...)
	return err
}
