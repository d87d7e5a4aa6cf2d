package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
	"lifeboat/vsphere"
)

func (p *program) recoverCommand() *cli.Command {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "name", Usage: "`NAME` of the VM (default: as it was; changed where that is taken)"},
		&cli.StringFlag{Name: "session", Usage: "`NAME` of the session (default: made up)"},
		&cli.StringFlag{Name: "host", Usage: "`HOST` or cluster that is to run it (default: where it was)"},
		&cli.StringFlag{Name: "folder", Usage: "VM folder, a `PATH` (default: where it was)"},
		&cli.StringFlag{Name: "pool", Usage: "resource pool, a `PATH`"},
		&cli.StringSliceFlag{Name: "network", Usage: "plug in: `OLD=NEW` from one network to another, keep as it was, none (the default); repeatable"},
		&cli.BoolFlag{Name: "keep-uuids", Usage: "take the original's place: its UUIDs and MAC addresses; it must be gone"},
		&cli.BoolFlag{Name: "power-on", Usage: "switch it on"},
		&cli.BoolFlag{Name: "all", Usage: "recover the newest restore point of every VM"},
		&cli.StringFlag{Name: "from-folder", Usage: "recover the newest restore point of every VM that was in the VM folder `PATH`, or below"},
		&cli.IntSliceFlag{Name: "disk", Usage: "with --attach-to: disk `N` of the point, from 0; repeatable (default: all)"},
		&cli.StringFlag{Name: "attach-to", Usage: "give the disks to the running `VM` instead of making a VM of them"},
		&cli.StringFlag{Name: "address", Usage: "`ADDRESS` at which hosts reach the server (default: where it listens)"},
	}
	return &cli.Command{
		Name: "recover", Usage: "run restore points on vSphere, from the backup, in seconds", ArgsUsage: "POINT…",
		Description: "The hosts mount Lifeboat's export; each VM is registered there and runs from it. What it\n" +
			"writes goes to its session. Move it to production storage with migrate, or end it with stop.\n" +
			"Network adapters are not plugged in unless --network says so, so that nothing meets its\n" +
			"original by accident. The server is started in the background where it does not run.\n\n" + pointHelp,
		Flags: slices.Concat(flags, vcenterFlags(), serveFlags()), Action: p.recover,
	}
}

func (p *program) recover(c *cli.Context) error {
	networks, keep, err := parseNetworks(c.StringSlice("network"))
	if err != nil {
		return err
	}
	many := c.Bool("all") || c.String("from-folder") != ""
	if many == c.Args().Present() {
		return fmt.Errorf("%w: name restore points, or --all, or --from-folder", appliance.ErrUsage)
	}
	if len(c.IntSlice("disk")) > 0 && c.String("attach-to") == "" {
		return fmt.Errorf("%w: --disk is for --attach-to", appliance.ErrUsage)
	}
	return p.withVSphere(c, func(w vsphereCommand) error {
		return p.withRepo(c.Context, func(repo *store.Repository) error {
			points, err := p.pointsToRecover(c, repo)
			if err != nil {
				return err
			}
			if err := p.serveFor(c, w); err != nil {
				return err
			}
			if vm := c.String("attach-to"); vm != "" {
				return p.attach(c, w, repo, points, vm)
			}
			req := appliance.RecoverRequest{
				Points: points, RepoURL: p.config.Repo, Session: c.String("session"), Name: c.String("name"),
				Host: c.String("host"), Folder: c.String("folder"), Pool: c.String("pool"),
				Networks: networks, KeepNetworks: keep, KeepIdentity: c.Bool("keep-uuids"), PowerOn: c.Bool("power-on"),
				Address: c.String("address"), Logger: p.log, Step: p.tellSteps(len(points)),
			}
			done, err := appliance.Recover(c.Context, w.state, repo, w.client, req)
			return p.showRecovered(done, err)
		})
	})
}

// parseNetworks reads OLD=NEW, keep and none.
func parseNetworks(args []string) (networks map[string]string, keep bool, err error) {
	networks = map[string]string{}
	none := false
	for _, arg := range args {
		old, now, ok := strings.Cut(arg, "=")
		switch {
		case arg == "none":
			none = true
		case arg == "keep":
			keep = true
		case !ok || old == "" || now == "":
			return nil, false, fmt.Errorf("%w: --network %q: use OLD=NEW, keep or none", appliance.ErrUsage, arg)
		default:
			networks[old] = now
		}
	}
	if none && (keep || len(networks) > 0) {
		return nil, false, fmt.Errorf("%w: --network none goes with no other", appliance.ErrUsage)
	}
	return networks, keep, nil
}

// pointsToRecover are those that are named, or the newest of all VMs that fit.
func (p *program) pointsToRecover(c *cli.Context, repo *store.Repository) ([]*store.Point, error) {
	var points []*store.Point
	for _, ref := range c.Args().Slice() {
		pt, err := appliance.ResolvePoint(c.Context, repo, ref)
		if err != nil {
			return nil, err
		}
		points = append(points, pt)
	}
	if len(points) > 0 {
		return points, nil
	}
	points, err := appliance.NewestPoints(c.Context, repo, path.Clean("/"+c.String("from-folder")))
	if err == nil && len(points) == 0 {
		err = fmt.Errorf("restore points of VMs in the folder %q: %w", c.String("from-folder"), appliance.ErrNotFound)
	}
	return points, err
}

// tellSteps says each step as it is done; to people.
func (p *program) tellSteps(vms int) func(string, appliance.RecoverStep) {
	if p.json {
		return nil
	}
	var mu sync.Mutex
	return func(session string, s appliance.RecoverStep) {
		mu.Lock()
		defer mu.Unlock()
		if vms > 1 {
			fmt.Fprintf(p.stderr, "%s: ", session)
		}
		fmt.Fprintf(p.stderr, "%s %.2f s\n", s.Name, s.Seconds)
	}
}

func (p *program) showRecovered(done []appliance.Recovered, err error) error {
	if len(done) == 0 {
		return err
	}
	if p.json {
		return errors.Join(p.printJSON(map[string]any{"vms": done}), err)
	}
	for _, r := range done {
		if r.Error != "" {
			continue
		}
		total := 0.0
		for _, s := range r.Steps {
			total += s.Seconds
		}
		fmt.Fprintf(p.stdout, "%s runs as %q on %s (session %s), after %.2f s.\n", printable(r.Source), printable(r.VM), printable(r.Host), r.Session, total)
		for _, note := range r.Notes {
			fmt.Fprintf(p.stdout, "  note: %s\n", printable(note))
		}
		fmt.Fprintf(p.stdout, "  move it:  lifeboat migrate %s --datastore …\n  end it:   lifeboat stop %[1]s\n", r.Session)
	}
	return err
}

// vsphereCommand is what commands at a vCenter work with.
type vsphereCommand struct {
	state  *appliance.State
	client *vsphere.Client
}

// withVSphere is withVCenter for commands about recoveries.
func (p *program) withVSphere(c *cli.Context, fn func(vsphereCommand) error) error {
	return p.withVCenter(c, func(client *vsphere.Client, st *appliance.State) error { return fn(vsphereCommand{st, client}) })
}

// serveAgain starts the server after a crash, when VMs run from it.
func (p *program) serveAgain(c *cli.Context, st *appliance.State) error {
	needed, err := appliance.ServerNeeded(st)
	if err != nil || needed == nil || st.Control().Running(c.Context) {
		return err
	}
	p.log.Warn("the appliance's server does not run, and recovered VMs wait for it: it is started again", "sessions", needed.Names)
	if p.config.Repo == "" {
		p.config.Repo = needed.RepoURL
	}
	return p.ensureServer(c, st, "", nil)
}

// lookupPatience bounds asking for the addresses of all hosts.
const lookupPatience = 3 * time.Second

// serveFor starts the server where it does not run, at the address that the
// vCenter's side of the network reaches, and lets the hosts in.
func (p *program) serveFor(c *cli.Context, w vsphereCommand) error {
	local, err := appliance.LocalAddress(c.Context, w.client.About().Server)
	if err != nil {
		return err
	}
	hosts, err := w.client.Hosts(c.Context, c.String("host"))
	if err != nil {
		hosts = nil // the name is a VM's host that recover looks for itself, or wrong, which it says
	}
	return p.ensureServer(c, w.state, local.String(), p.addressesOf(c.Context, hosts))
}

// addressesOf asks for the addresses of all hosts at once. A name that nobody
// knows is said: its host may be refused.
func (p *program) addressesOf(ctx context.Context, hosts []vsphere.Host) []netip.Prefix {
	ctx, cancel := context.WithTimeout(ctx, lookupPatience)
	defer cancel()
	found := make([][]netip.Addr, len(hosts))
	var asking sync.WaitGroup
	for i, h := range hosts {
		asking.Go(func() {
			var err error
			if found[i], err = new(net.Resolver).LookupNetIP(ctx, "ip", h.Name); err != nil {
				p.log.Warn("the address of a host is not known; name it with --allow if it is refused", "host", h.Name, "err", err)
			}
		})
	}
	asking.Wait()
	var allow []netip.Prefix
	for _, a := range slices.Concat(found...) {
		allow = append(allow, netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()))
	}
	return allow
}
