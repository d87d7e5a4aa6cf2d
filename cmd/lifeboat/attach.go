package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

// attach is `recover --attach-to`.
func (p *program) attach(c *cli.Context, w vsphereCommand, repo *store.Repository, points []*store.Point, vm string) error {
	if len(points) != 1 {
		return fmt.Errorf("%w: --attach-to takes the disks of one restore point", appliance.ErrUsage)
	}
	req := appliance.AttachRequest{
		Point: points[0], RepoURL: p.config.Repo, VM: vm, Session: c.String("session"), Address: c.String("address"), Logger: p.log,
	}
	if c.IsSet("disk") {
		req.Disks = c.IntSlice("disk")
	}
	got, err := appliance.Attach(c.Context, w.state, repo, w.client, req)
	if err != nil {
		return err
	}
	if p.json {
		return p.printJSON(got)
	}
	for _, d := range got.Disks {
		fmt.Fprintf(p.stdout, "VM %q has disk %d of %s: %s (%s).\n", printable(got.VM), d.Number, got.Point, printable(d.Label), size(d.Size))
	}
	fmt.Fprintf(p.stdout, "Unmount it in the guest first, then: lifeboat detach %s\n", got.Session)
	return nil
}

func (p *program) detachCommand() *cli.Command {
	return &cli.Command{
		Name: "detach", Usage: "take a restore point's disks from the VM that they were attached to", ArgsUsage: "SESSION",
		Description: "What was written to them is dropped; it asks first. The guest must not use them any more.",
		Flags:       slices.Concat([]cli.Flag{&cli.BoolFlag{Name: "yes", Usage: "do not ask"}}, vcenterFlags()),
		Action: func(c *cli.Context) error {
			st, err := appliance.OpenState(p.config.State)
			if err != nil {
				return err
			}
			info, err := appliance.ShowSession(st, c.Args().First())
			if err == nil && (info.Recovery == nil || !info.Recovery.Attach) {
				err = fmt.Errorf("%w: session %q is not of disks that were attached", appliance.ErrUsage, info.Name)
			}
			if err := errors.Join(arguments(c, 1, 1), err); err != nil {
				return err
			}
			return p.stop(c)
		},
	}
}
