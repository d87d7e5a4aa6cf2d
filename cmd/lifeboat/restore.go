package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) restoreCommand() *cli.Command {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "datastore", Usage: "`NAME` of the datastore for a new VM"},
		&cli.StringSliceFlag{Name: "disk", Usage: "`N=DATASTORE`: disk N, from 0, goes elsewhere; repeatable"},
		&cli.StringFlag{Name: "name", Usage: "`NAME` of the new VM (default: as it was; changed where that is taken)"},
		&cli.StringFlag{Name: "host", Usage: "`HOST` or cluster for it (default: where it was)"},
		&cli.StringFlag{Name: "folder", Usage: "VM folder, a `PATH` (default: where it was)"},
		&cli.StringFlag{Name: "pool", Usage: "resource pool, a `PATH`"},
		&cli.StringSliceFlag{Name: "network", Usage: "plug in: `OLD=NEW` from one network to another, keep as it was, none (the default); repeatable"},
		&cli.BoolFlag{Name: "keep-uuids", Usage: "take the original's place: its UUIDs and MAC addresses; it must be gone"},
		&cli.BoolFlag{Name: "thick", Usage: "thick disks"},
		&cli.BoolFlag{Name: "over", Usage: "write over the VM that was backed up: only what differs, after a snapshot"},
		&cli.StringFlag{Name: "over-vm", Usage: "write over this `VM`"},
		&cli.BoolFlag{Name: "no-snapshot", Usage: "with --over: no safety snapshot, and no way back"},
		&cli.BoolFlag{Name: "safety-point", Usage: "with --over: make a restore point of the VM as it is first, in place of the snapshot"},
		&cli.BoolFlag{Name: "power-off", Usage: "with --over: switch the VM off first"},
		&cli.BoolFlag{Name: "power-on", Usage: "switch it on afterwards"},
		&cli.BoolFlag{Name: "yes", Usage: "do not ask"},
	}
	return &cli.Command{
		Name: "restore", Usage: "put a restore point back on production storage in full", ArgsUsage: "POINT",
		Description: "To a new VM, or with --over to the VM that is there: then the areas that changed since the\n" +
			"point are asked from change tracking, and what differs in them is written. The snapshot that\n" +
			"is taken before stays: revert to it to go back, remove it when content.\n" +
			"`lifeboat recover` has a VM running in seconds; this takes as long as its data does.\n\n" + pointHelp,
		Flags: slices.Concat(flags, transportFlags(), vcenterFlags()), Action: p.restore,
	}
}

// transportFlags are the ways to write disks; backups have the same for reading.
func transportFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "transport", Usage: "write disks by `NAME` (file, hotadd, nbdssl, nbd, san, folder, nfc), or several in their order with commas between", DefaultText: "the best that works"},
		&cli.StringFlag{Name: "vddk", Usage: "VMware's library is in `DIR`", EnvVars: []string{"LIFEBOAT_VDDK"}},
		&cli.StringSliceFlag{Name: "datastore-path", Usage: "a datastore is mounted here: `NAME=DIR` (may be given again)"},
	}
}

func (p *program) restoreTransports(c *cli.Context) (appliance.Transports, error) {
	t, err := transports(c)
	if err != nil {
		return t, err
	}
	opts, err := p.vcenterOptions(c)
	t.Login.Username, t.Login.Password, t.Login.Thumbprint = opts.Username, opts.Password, opts.Thumbprint
	return t, err
}

func (p *program) restore(c *cli.Context) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	over := c.Bool("over") || c.String("over-vm") != ""
	if over == (c.String("datastore") != "") {
		return fmt.Errorf("%w: say --datastore for a new VM, or --over for the one that is there", appliance.ErrUsage)
	}
	return p.withVSphere(c, func(w vsphereCommand) error {
		return p.withRepo(c.Context, func(repo *store.Repository) error {
			pt, err := appliance.ResolvePoint(c.Context, repo, c.Args().First())
			if err != nil {
				return err
			}
			do := p.restoreNew
			if over {
				do = p.restoreOver
			}
			show := newMeters(p.stderr)
			got, err := do(c, w, repo, pt, showRestore(show))
			if err != nil {
				show.abandon()
				return err
			}
			show.wait()
			return p.showRestored(got)
		})
	})
}

// showRestore draws the progress of disks that are written.
func showRestore(m *meters) func(n int, name string, size int64) func(done, total int64) {
	return func(_ int, name string, _ int64) func(done, total int64) { return m.add(name).set }
}

func (p *program) restoreNew(c *cli.Context, w vsphereCommand, repo *store.Repository, pt *store.Point, started func(int, string, int64) func(int64, int64)) (*appliance.Restored, error) {
	req := appliance.RestoreRequest{
		Point: pt, Name: c.String("name"), Host: c.String("host"), Folder: c.String("folder"), Pool: c.String("pool"),
		Datastore: c.String("datastore"), PerDisk: map[int]string{}, Thick: c.Bool("thick"), KeepIdentity: c.Bool("keep-uuids"),
		PowerOn: c.Bool("power-on"), Started: started, Logger: p.log,
	}
	var err error
	if req.Networks, req.KeepNetworks, err = parseNetworks(c.StringSlice("network")); err != nil {
		return nil, err
	}
	for _, arg := range c.StringSlice("disk") {
		number, datastore, ok := strings.Cut(arg, "=")
		n, err := strconv.Atoi(number)
		if err != nil || !ok || datastore == "" {
			return nil, fmt.Errorf("%w: --disk %q: use N=DATASTORE", appliance.ErrUsage, arg)
		}
		req.PerDisk[n] = datastore
	}
	if req.Transports, err = p.restoreTransports(c); err != nil {
		return nil, err
	}
	return appliance.Restore(c.Context, w.state, repo, w.client, req)
}

func (p *program) restoreOver(c *cli.Context, w vsphereCommand, repo *store.Repository, pt *store.Point, started func(int, string, int64) func(int64, int64)) (*appliance.Restored, error) {
	what := fmt.Sprintf("What VM %q has written since %s goes", printable(firstOf(c.String("over-vm"), pt.VM)), localTime(pt.Time))
	if err := p.confirm(c, what); err != nil {
		return nil, err
	}
	req := appliance.RestoreOverRequest{
		Point: pt, VM: c.String("over-vm"), PowerOff: c.Bool("power-off"), PowerOn: c.Bool("power-on"), NoSnapshot: c.Bool("no-snapshot"), SafetyPoint: c.Bool("safety-point"),
		Started: started, Logger: p.log,
	}
	var err error
	if req.Transports, err = p.restoreTransports(c); err != nil {
		return nil, err
	}
	return appliance.RestoreOver(c.Context, w.state, repo, w.client, req)
}

func (p *program) showRestored(r *appliance.Restored) error {
	if p.json {
		return p.printJSON(r)
	}
	fmt.Fprintf(p.stdout, "VM %q is restored from %s.\n", printable(r.VM), r.Point)
	for _, d := range r.Disks {
		fmt.Fprintf(p.stdout, "  %s: %s of %s written (%s, by %s)\n", printable(d.Label), size(d.Written), size(d.Size), d.How, firstOf(d.Transport, "?"))
	}
	for _, note := range r.Notes {
		fmt.Fprintf(p.stdout, "  note: %s\n", printable(note))
	}
	if r.SafetyPoint != "" {
		fmt.Fprintf(p.stdout, "Restore point %s is how it was before.\n", r.SafetyPoint)
	}
	if r.Snapshot != "" {
		fmt.Fprintf(p.stdout, "Its snapshot %q is how it was before: remove it when content.\n", r.Snapshot)
	}
	return nil
}
