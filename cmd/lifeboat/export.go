package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/disk"
	"lifeboat/store"
)

func (p *program) exportCommand() *cli.Command {
	return &cli.Command{
		Name: "export", Usage: "write the disks of a restore point to files", ArgsUsage: "POINT --output FILE",
		Description: "The file appears when it is complete. Output - is standard output (raw and vmdk). With an\n" +
			"output that ends in / all disks, and the configuration kept with the point, go to a new\n" +
			"directory. A device or named pipe is written into (raw and vmdk).\n" +
			"vmdk means streamOptimized, as vCenter imports it; vmdk-flat a descriptor and a flat file, as\n" +
			"ESXi keeps them.\n\n" + pointHelp,
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "disk", Usage: "the `N`th disk of the point, counted from 0; needed where there are several"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FILE` to write, or a directory with a / at its end, or -"},
			&cli.StringFlag{Name: "format", Usage: "raw, qcow2, vmdk or vmdk-flat", Value: appliance.FormatRaw},
			&cli.BoolFlag{Name: "salvage", Usage: "write zeros where the content is damaged, and say where (exit code 5)"},
			&cli.BoolFlag{Name: "force", Usage: "replace an existing file, or write over a device"},
		},
		Action: p.withPoints(1, 1, p.export),
	}
}

func (p *program) export(c *cli.Context, repo *store.Repository, pts []*store.Point) error {
	output := c.String("output")
	switch {
	case output == "":
		return fmt.Errorf("%w: say where to: --output FILE", appliance.ErrUsage)
	case strings.HasSuffix(output, "/"):
		if c.IsSet("disk") {
			return fmt.Errorf("%w: --disk chooses one disk, and a directory gets all of them", appliance.ErrUsage)
		}
		return p.exportAll(c, repo, pts[0])
	}
	return p.exportOne(c, repo, pts[0])
}

func (p *program) exportOne(c *cli.Context, repo *store.Repository, pt *store.Point) error {
	n, err := appliance.ChooseDisk(pt, c.Int("disk"), c.IsSet("disk"))
	if err != nil {
		return err
	}
	req := appliance.ExportRequest{Disk: n, Output: c.String("output"), Format: c.String("format"), Force: c.Bool("force")}
	lost := givenUp{}
	if c.Bool("salvage") {
		req.GivenUp = lost.add
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
		return lost.tell(p.stderr)
	}
	err = p.saying(map[string]any{
		"point": pt.ID, "disk": n, "output": req.Output, "format": req.Format,
		"size": pt.Disks[n].Size, "lost": lost.areas(), "seconds": time.Since(started).Seconds(),
	}, "%s: %s of %s, in %s.", req.Output, size(pt.Disks[n].Size), pt.VM, time.Since(started).Round(10*time.Millisecond))
	return errors.Join(err, lost.tell(p.said()))
}

// said is where people read what a command found.
func (p *program) said() io.Writer {
	if p.json {
		return io.Discard
	}
	return p.stdout
}

// givenUp is the areas that a salvage gave up, by disk.
type givenUp map[int][]disk.Extent

func (g givenUp) add(n int, area disk.Extent) { g[n] = append(g[n], area) }

// lostArea is an area in JSON.
type lostArea struct {
	Disk   int   `json:"disk"`
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

func (g givenUp) areas() []lostArea {
	list := []lostArea{}
	for _, n := range slices.Sorted(maps.Keys(g)) {
		for _, e := range g[n] {
			list = append(list, lostArea{n, e.Offset, e.Length})
		}
	}
	return list
}

// tell lists the areas, and makes an error of them.
func (g givenUp) tell(out io.Writer) error {
	areas := g.areas()
	for _, a := range areas {
		fmt.Fprintf(out, "LOST  disk %d, bytes %d to %d: zeros were written\n", a.Disk, a.Offset, a.Offset+a.Length)
	}
	if len(areas) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d areas could not be read and are zeros in the export", appliance.ErrDamaged, len(areas))
}

func (p *program) exportAll(c *cli.Context, repo *store.Repository, pt *store.Point) error {
	started := time.Now()
	show := newMeters(p.stderr)
	req := appliance.ExportAllRequest{Output: c.String("output"), Format: c.String("format")}
	lost := givenUp{}
	if c.Bool("salvage") {
		req.GivenUp = lost.add
	}
	req.Started = func(_ int, name string, _ int64) func(done, total int64) { return show.add(name).set }
	files, err := appliance.ExportAll(c.Context, repo, pt, req)
	if err != nil {
		show.abandon()
		return err
	}
	show.wait()
	took := time.Since(started)
	if p.json {
		return errors.Join(p.printJSON(map[string]any{
			"point": pt.ID, "output": req.Output, "format": req.Format, "files": files, "lost": lost.areas(), "seconds": took.Seconds(),
		}), lost.tell(io.Discard))
	}
	for _, f := range files {
		fmt.Fprintf(p.stdout, "%s  %s\n", filepath.Join(req.Output, f.Name), size(f.Size))
	}
	fmt.Fprintf(p.stdout, "%d files of %s, in %s.\n", len(files), printable(pt.VM), took.Round(10*time.Millisecond))
	return lost.tell(p.stdout)
}
