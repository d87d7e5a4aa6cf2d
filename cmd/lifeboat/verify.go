package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) verifyCommand() *cli.Command {
	return &cli.Command{
		Name: "verify", Usage: "read and check every byte of the repository, or of what some points need", ArgsUsage: "[POINT…]",
		Description: "Damage is named with the object, the place in it and the disks that it hurts.\n" +
			"Exit code 5 says that there is some.\n\n" + pointHelp,
		Action: p.withPoints(0, -1, p.verify),
	}
}

func (p *program) verify(c *cli.Context, repo *store.Repository, pts []*store.Point) error {
	show := newMeters(p.stderr)
	m := show.add("verify")
	report, err := repo.Verify(c.Context, store.VerifyOptions{
		Points:   pts,
		Progress: func(v store.VerifyProgress) { m.set(v.Done, v.Total) },
	})
	if err != nil {
		show.abandon()
		return err
	}
	show.wait()
	if p.json {
		if err := p.printJSON(report); err != nil {
			return err
		}
	} else {
		p.printReport(report)
	}
	if !report.OK() {
		return fmt.Errorf("%w: %d places; %s", appliance.ErrDamaged, len(report.Damages)+report.MoreDamages, remedy(report))
	}
	return nil
}

// remedy says what to do about damage. The index, the header and claims can be
// made anew; data cannot.
func remedy(r *store.Report) string {
	for _, d := range r.Damages {
		if len(d.Hurts) > 0 {
			return "restore what is hurt from an older point or another copy, and back up again"
		}
	}
	return "no restore point is hurt; `lifeboat repair` makes index and header anew, the next backup mends claims"
}

func (p *program) printReport(r *store.Report) {
	for _, d := range r.Damages {
		at := "all of it"
		if d.Offset >= 0 {
			at = fmt.Sprintf("at byte %d", d.Offset)
		}
		fmt.Fprintf(p.stdout, "DAMAGED  %s, %s: %s\n", d.Object, at, strings.TrimPrefix(d.Problem, d.Object+": "))
		if len(d.Hurts) == 0 && d.MoreHurts == 0 {
			fmt.Fprintln(p.stdout, "         hurts no restore point")
		}
		for _, h := range d.Hurts {
			switch {
			case h.File != "":
				fmt.Fprintf(p.stdout, "         hurts point %s, file %s\n", h.Point, h.File)
			case h.Disk < 0:
				fmt.Fprintf(p.stdout, "         hurts point %s as a whole\n", h.Point)
			default:
				fmt.Fprintf(p.stdout, "         hurts point %s, disk %d, bytes %d to %d\n", h.Point, h.Disk, h.Offset, h.Offset+h.Length)
			}
		}
		if d.MoreHurts > 0 {
			fmt.Fprintf(p.stdout, "         and %d more places\n", d.MoreHurts)
		}
	}
	if r.MoreDamages > 0 {
		fmt.Fprintf(p.stdout, "and %d more damages\n", r.MoreDamages)
	}
	for _, name := range r.Unexpected {
		fmt.Fprintf(p.stdout, "unexpected  %s (not part of the repository; harmless)\n", name)
	}
	for _, name := range r.Leftovers {
		fmt.Fprintf(p.stdout, "leftover  %s (of a writer that did not finish; the next backup removes it)\n", name)
	}
	fmt.Fprintf(p.stdout, "%d objects, %s, %d points checked: %d damaged places.\n", r.Objects, size(r.Bytes), r.Points, len(r.Damages)+r.MoreDamages)
}
