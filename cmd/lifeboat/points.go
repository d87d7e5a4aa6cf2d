package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

const pointHelp = "A POINT is an ID, a unique prefix of one, VM@latest, or VM@2026-11-21T10:00 (the newest\n" +
	"point at or before that time; local time unless it carries a zone)."

func (p *program) pointsCommand() *cli.Command {
	return &cli.Command{
		Name: "points", Usage: "list restore points", ArgsUsage: "[VM]",
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 1); err != nil {
				return err
			}
			return p.withRepo(c.Context, func(repo *store.Repository) error { return p.listPoints(c, repo) })
		},
	}
}

func (p *program) listPoints(c *cli.Context, repo *store.Repository) error {
	all, err := repo.Points(c.Context)
	if err != nil {
		return err
	}
	points := []*store.Point{}
	for _, pt := range all {
		if vm := c.Args().First(); vm == "" || pt.VM == vm || pt.VMID == vm {
			points = append(points, pt)
		}
	}
	if vm := c.Args().First(); vm != "" && len(points) == 0 {
		return fmt.Errorf("VM %q: %w: it has no restore points here", vm, appliance.ErrNotFound)
	}
	kept, err := repo.Protections(c.Context, points)
	if err != nil {
		return err
	}
	if p.json {
		docs := make([]pointDoc, len(points))
		for i, pt := range points {
			docs[i] = pointDoc{pt, kept[pt.ID]}
		}
		return p.printJSON(docs)
	}
	return p.table("ID\tVM\tTIME\tCONSISTENCY\tDISKS\tSIZE\tSTORED\tVERIFIED\tKEPT", func(line func(string, ...any)) {
		for _, pt := range points {
			var total int64
			for _, d := range pt.Disks {
				total += d.Size
			}
			line("%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s", pt.ID, pt.VM, localTime(pt.Time), pt.Consistency, len(pt.Disks), size(total), size(pt.StoredBytes),
				verifiedText(pt.Verified, time.Now()), keptBy(kept[pt.ID]))
		}
	})
}

// pointDoc is the JSON of a restore point: the point, and what keeps it.
type pointDoc struct {
	*store.Point
	store.Protection
}

// keptBy says in words what keeps a point.
func keptBy(kept store.Protection) string {
	var why []string
	if kept.Pin != nil {
		why = append(why, "pinned")
	}
	if !kept.LockedUntil.IsZero() {
		why = append(why, "immutable until "+localTime(kept.LockedUntil))
	}
	return strings.Join(why, ", ")
}

// noted is a pin's note, as it goes behind who set it.
func noted(note string) string {
	if note == "" {
		return ""
	}
	return ": " + printable(note)
}

func localTime(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

func (p *program) showCommand() *cli.Command {
	return &cli.Command{
		Name: "show", Usage: "show one restore point", ArgsUsage: "POINT", Description: pointHelp,
		Action: p.withPoints(1, 1, func(c *cli.Context, repo *store.Repository, pts []*store.Point) error {
			pt := pts[0]
			repo.AddVerified(c.Context, pt)
			kept, err := repo.Protections(c.Context, pts)
			if err != nil {
				return err
			}
			if p.json {
				return p.printJSON(pointDoc{pt, kept[pt.ID]})
			}
			fmt.Fprintf(p.stdout, "Point        %s\nVM           %s\nTime         %s\nConsistency  %s\n", pt.ID, printable(pt.VM), localTime(pt.Time), pt.Consistency)
			if pt.Parent != "" {
				fmt.Fprintf(p.stdout, "Follows      %s\n", pt.Parent)
			}
			if o := pt.Origin; o != nil {
				fmt.Fprintf(p.stdout, "Copy of      %s in repository %s\n", printable(o.Point), printable(o.Repository))
			}
			fmt.Fprintf(p.stdout, "Verified     %s\n", verifiedText(pt.Verified, time.Now()))
			if why := keptBy(kept[pt.ID]); why != "" {
				fmt.Fprintf(p.stdout, "Kept         %s\n", why)
			}
			if pin := kept[pt.ID].Pin; pin != nil {
				fmt.Fprintf(p.stdout, "Pinned       %s by %s%s\n", localTime(pin.Time), printable(pin.Host), noted(pin.Note))
			}
			fmt.Fprintf(p.stdout, "Read         %s\nNew          %s\nStored       %s\n\n", size(pt.ReadBytes), size(pt.NewBytes), size(pt.StoredBytes))
			return p.table("DISK\tKEY\tLABEL\tSIZE\tUSED", func(line func(string, ...any)) {
				for i, d := range pt.Disks {
					line("%d\t%d\t%s\t%s\t%s", i, d.Key, d.Label, size(d.Size), size(d.Used))
				}
			})
		}),
	}
}

func (p *program) diffCommand() *cli.Command {
	return &cli.Command{
		Name: "diff", Usage: "show which areas of the disks differ between two points", ArgsUsage: "POINT POINT", Description: pointHelp,
		Action: p.withPoints(2, 2, func(c *cli.Context, repo *store.Repository, pts []*store.Point) error {
			diffs, err := appliance.DiffPoints(c.Context, repo, pts[0], pts[1])
			if err != nil {
				return err
			}
			if p.json {
				return p.printJSON(map[string]any{"a": pts[0].ID, "b": pts[1].ID, "disks": diffs})
			}
			return p.table("DISK\tOFFSET\tLENGTH\tNOW", func(line func(string, ...any)) {
				for _, d := range diffs {
					switch {
					case d.Only != "":
						line("%d\t\t\tonly in %s", d.Key, map[string]string{"a": pts[0].ID, "b": pts[1].ID}[d.Only])
					case len(d.Extents) == 0:
						line("%d\t\t\tthe same", d.Key)
					}
					for _, e := range d.Extents {
						now := "data"
						if e.Zero {
							now = "zeros"
						}
						line("%d\t%d\t%d\t%s", d.Key, e.Offset, e.Length, now)
					}
				}
			})
		}),
	}
}

// withPoints is the frame of commands whose arguments are restore points.
func (p *program) withPoints(least, most int, fn func(*cli.Context, *store.Repository, []*store.Point) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if err := arguments(c, least, most); err != nil {
			return err
		}
		return p.withRepo(c.Context, func(repo *store.Repository) error {
			var pts []*store.Point
			for _, ref := range c.Args().Slice() {
				pt, err := appliance.ResolvePoint(c.Context, repo, ref)
				if err != nil {
					return err
				}
				pts = append(pts, pt)
			}
			return fn(c, repo, pts)
		})
	}
}
