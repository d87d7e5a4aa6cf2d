package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) exportCommand() *cli.Command {
	return &cli.Command{
		Name: "export", Usage: "write a disk of a restore point to a file", ArgsUsage: "POINT --output FILE",
		Description: "The file appears when it is complete. Output - is standard output (raw and vmdk).\n" +
			"vmdk means streamOptimized, as vCenter imports it.\n\n" + pointHelp,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "disk", Usage: "the `N`th disk of the point, counted from 0; needed where there are several"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FILE` to write, or -"},
			&cli.StringFlag{Name: "format", Usage: "raw, qcow2 or vmdk", Value: "raw"},
			&cli.BoolFlag{Name: "force", Usage: "replace an existing file"},
		},
		Action: p.withPoints(1, 1, p.export),
	}
}

func (p *program) export(c *cli.Context, repo *store.Repository, pts []*store.Point) error {
	pt := pts[0]
	n, err := appliance.ChooseDisk(pt, c.Int("disk"), c.IsSet("disk"))
	if err != nil {
		return err
	}
	req := appliance.ExportRequest{Disk: n, Output: c.String("output"), Format: c.String("format"), Force: c.Bool("force")}
	if req.Output == "" {
		return fmt.Errorf("%w: say where to: --output FILE", appliance.ErrUsage)
	}
	started := time.Now()
	show := newMeters(p.stderr)
	m := show.add(pt.VM + " " + pt.Disks[n].Label)
	req.Progress = m.set
	if req.Output == "-" {
		err = appliance.ExportStream(c.Context, repo, pt, p.stdout, req)
	} else {
		err = appliance.ExportDisk(c.Context, repo, pt, req)
	}
	if err != nil {
		show.abandon()
		return err
	}
	show.wait()
	if req.Output == "-" {
		return nil
	}
	if p.json {
		return p.printJSON(map[string]any{
			"point": pt.ID, "disk": n, "output": req.Output, "format": req.Format,
			"size": pt.Disks[n].Size, "seconds": time.Since(started).Seconds(),
		})
	}
	fmt.Fprintf(p.stdout, "%s: %s of %s, in %s.\n", req.Output, size(pt.Disks[n].Size), pt.VM, time.Since(started).Round(10*time.Millisecond))
	return nil
}
