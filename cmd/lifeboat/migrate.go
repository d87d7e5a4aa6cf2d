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

func (p *program) migrateCommand() *cli.Command {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "datastore", Usage: "`NAME` of the datastore that it goes to"},
		&cli.StringSliceFlag{Name: "disk", Usage: "`N=DATASTORE`: disk N, from 0, goes elsewhere; repeatable"},
		&cli.BoolFlag{Name: "thin", Usage: "thin disks there"},
		&cli.BoolFlag{Name: "thick", Usage: "thick disks there"},
		&cli.BoolFlag{Name: "copy", Usage: "without Storage vMotion: copy it while it runs; it is off for a moment at the end"},
		&cli.BoolFlag{Name: "cold", Usage: "shut the VM down for the move, where there is no licence for Storage vMotion"},
	}
	return &cli.Command{
		Name: "migrate", Usage: "move a recovered VM to production storage while it runs", ArgsUsage: "SESSION",
		Description: "Storage vMotion; then it is checked that nothing of the VM is left on our datastore, and the\n" +
			"session is removed, and the datastore from hosts that no other session needs it on. When the\n" +
			"move fails the VM runs on as before.",
		Flags: slices.Concat(flags, transportFlags(), vcenterFlags()), Action: p.migrate,
	}
}

func (p *program) migrate(c *cli.Context) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	req := appliance.MigrateRequest{
		Session: c.Args().First(), Datastore: c.String("datastore"), PerDisk: map[int]string{}, Cold: c.Bool("cold"), Logger: p.log,
	}
	if req.Datastore == "" {
		return fmt.Errorf("%w: say with --datastore where it is to go", appliance.ErrUsage)
	}
	for _, arg := range c.StringSlice("disk") {
		number, datastore, ok := strings.Cut(arg, "=")
		n, err := strconv.Atoi(number)
		if err != nil || !ok || datastore == "" {
			return fmt.Errorf("%w: --disk %q: use N=DATASTORE", appliance.ErrUsage, arg)
		}
		req.PerDisk[n] = datastore
	}
	if c.Bool("copy") && c.Bool("cold") {
		return fmt.Errorf("%w: --copy or --cold", appliance.ErrUsage)
	}
	if c.Bool("thin") && c.Bool("thick") {
		return fmt.Errorf("%w: --thin or --thick", appliance.ErrUsage)
	}
	if thin := c.Bool("thin"); thin || c.Bool("thick") {
		req.Thin = &thin
	}
	return p.withVSphere(c, func(w vsphereCommand) error {
		info, err := appliance.ShowSession(w.state, req.Session)
		if err != nil {
			return err
		}
		move := p.moveWithVMotion
		if c.Bool("copy") {
			move = p.moveByCopy
		}
		if err := move(c, w, req); err != nil {
			return err
		}
		p.releaseSession(c.Context, info.Session)
		return p.say(map[string]string{"session": req.Session, "vm": info.Recovery.VM, "datastore": req.Datastore, "state": string(appliance.RecoveryMigrated)},
			"VM %q is on %s. Nothing of it is left with Lifeboat.\n", printable(info.Recovery.VM), printable(req.Datastore))
	})
}

func (p *program) moveWithVMotion(c *cli.Context, w vsphereCommand, req appliance.MigrateRequest) error {
	show := newSteps(p.stderr)
	defer show.end()
	req.Progress = func(percent int) { show.set("moving "+req.Session+", percent", int64(percent), 100) }
	return appliance.Migrate(c.Context, w.state, w.client, req)
}

func (p *program) moveByCopy(c *cli.Context, w vsphereCommand, req appliance.MigrateRequest) error {
	t, err := p.restoreTransports(c)
	if err != nil {
		return err
	}
	return p.withRepo(c.Context, func(repo *store.Repository) error {
		show := newMeters(p.stderr)
		err := appliance.MigrateByCopy(c.Context, w.state, repo, w.client, appliance.CopyVMRequest{
			Session: req.Session, Datastore: req.Datastore, PerDisk: req.PerDisk, Thick: c.Bool("thick"),
			Transports: t, Started: showRestore(show), Logger: p.log,
		})
		if err != nil {
			show.abandon()
			return err
		}
		show.wait()
		return nil
	})
}
