package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) verifyCommand() *cli.Command {
	return &cli.Command{
		Name: "verify", Usage: "check the repository, or what some points need, and repair it", ArgsUsage: "[POINT…]",
		Description: "Without flags every byte is read. Damage is named with the object, the place in it and the disks\n" +
			"that it hurts; exit code 5 says that there is some. The result is kept: `points` shows it.\n\n" +
			"--repair mends: from the same content elsewhere in the repository, or with --from from a second\n" +
			"repository that holds copies. What is found nowhere is marked, so that reading it is an I/O error\n" +
			"at that place only, and the next backup of the VM stores it again. The password of the second\n" +
			"repository comes from --from-password-file, LIFEBOAT_FROM_PASSWORD or\n" +
			"LIFEBOAT_FROM_PASSWORD_FILE, or is asked for.\n\n" + pointHelp,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "structure", Usage: "only that everything is there and leads where it should: seconds per TB"},
			&cli.StringFlag{Name: "sample", Usage: "the structure, and `PART` of the blocks (5%, 0.05): another part each time, until all were read"},
			&cli.StringSliceFlag{Name: "vm", Usage: "the points of the VM `NAME` (a pattern with * and ? fits several)"},
			&cli.BoolFlag{Name: "resume", Usage: "go on with the last verification of this kind if it was interrupted"},
			&cli.StringFlag{Name: "rate", Usage: "read at most `RATE` a second of segments: 100M, 1G"},
			&cli.IntFlag{Name: "parallel", Usage: "read `N` segments at the same time", DefaultText: "one per CPU, at least 4"},
			&cli.BoolFlag{Name: "repair", Usage: "mend what is damaged"},
			&cli.StringFlag{Name: "from", Usage: "repair from the repository at `URL`, which holds copies"},
			&cli.StringFlag{Name: "from-password-file", Usage: "`FILE` whose first line is its password"},
		},
		Action: func(c *cli.Context) error {
			req, err := verifyRequest(c)
			if err != nil {
				return err
			}
			return p.withRepo(c.Context, func(repo *store.Repository) error {
				if c.String("from") == "" {
					return p.verify(c, repo, req)
				}
				return p.withSource(c, func(from *store.Repository) error {
					if from.ID() == repo.ID() {
						return fmt.Errorf("%w: --from %s is the repository itself: name one that holds copies", appliance.ErrUsage, c.String("from"))
					}
					req.From = from
					return p.verify(c, repo, req)
				})
			})
		},
	}
}

// verifyRequest reads the flags.
func verifyRequest(c *cli.Context) (req appliance.VerifyRequest, err error) {
	wrong := func(format string, args ...any) (appliance.VerifyRequest, error) {
		return req, fmt.Errorf("%w: %s", appliance.ErrUsage, fmt.Sprintf(format, args...))
	}
	req = appliance.VerifyRequest{Refs: c.Args().Slice(), VMs: c.StringSlice("vm"), Repair: c.Bool("repair")}
	req.Options = store.VerifyOptions{Resume: c.Bool("resume"), Workers: c.Int("parallel")}
	switch {
	case len(req.Refs) > 0 && len(req.VMs) > 0:
		return wrong("name restore points or VMs, not both")
	case c.Bool("structure") && c.IsSet("sample"):
		return wrong("--structure and --sample exclude each other")
	case c.Int("parallel") < 0:
		return wrong("--parallel is not negative")
	case c.String("from") != "" && !req.Repair:
		return wrong("--from is for --repair")
	case c.Bool("structure"):
		req.Options.Level = store.VerifyStructure
	case c.IsSet("sample"):
		req.Options.Level = store.VerifySample
		if req.Options.Sample, err = parsePart(c.String("sample")); err != nil {
			return wrong("--sample %q: %v", c.String("sample"), err)
		}
	}
	if s := c.String("rate"); s != "" {
		if req.Options.Rate, err = parseRate(s); err != nil {
			return wrong("--rate %q: %v", s, err)
		}
	}
	return req, nil
}

// parsePart reads "5%" or "0.05".
func parsePart(s string) (float64, error) {
	number, percent := strings.CutSuffix(s, "%")
	v, err := strconv.ParseFloat(number, 64)
	if percent {
		v /= 100
	}
	if err != nil || !(v > 0 && v <= 1) {
		return 0, fmt.Errorf("write a part like 5%% or 0.05")
	}
	return v, nil
}

// parseRate reads bytes a second, with a binary unit or without: "100M".
func parseRate(s string) (int64, error) {
	number := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(s), "B"), "I")
	unit := int64(1)
	if n := len(number); n > 0 {
		if i := strings.IndexByte("KMGT", number[n-1]); i >= 0 {
			unit, number = 1<<(10*(i+1)), number[:n-1]
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || !(v > 0 && v*float64(unit) >= 1 && v*float64(unit) < 1<<62) {
		return 0, fmt.Errorf("write bytes a second like 100M or 1G")
	}
	return int64(v * float64(unit)), nil
}

// withSource runs fn on the repository that --from names.
func (p *program) withSource(c *cli.Context, fn func(*store.Repository) error) (err error) {
	var pw []byte
	if file := c.String("from-password-file"); file != "" {
		pw, err = readPasswordFile(file)
	} else {
		pw, err = p.passwordFrom("LIFEBOAT_FROM_PASSWORD", "Password of "+c.String("from"), false)
	}
	if err != nil {
		return fmt.Errorf("the repository to repair from: %w (or --from-password-file)", err)
	}
	from, err := appliance.OpenRepository(c.Context, c.String("from"), pw, store.Options{CacheBytes: secondCache, Logger: p.log})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := from.Close(); err == nil {
			err = cerr
		}
	}()
	return fn(from)
}

// segmentBytes is about what a segment has, for the progress of a repair.
const segmentBytes = 64 << 20

func (p *program) verify(c *cli.Context, repo *store.Repository, req appliance.VerifyRequest) error {
	show := newMeters(p.stderr)
	m := show.add("verify")
	req.Options.Progress = func(v store.VerifyProgress) { m.set(v.Done, v.Total) }
	var mending *meter
	req.Repairing = func(done, total int) {
		if mending == nil {
			mending = show.add("repair")
		}
		mending.set(int64(done)*segmentBytes, int64(total)*segmentBytes)
	}
	result, err := appliance.Verify(c.Context, repo, req)
	if result == nil || result.Report == nil {
		show.abandon()
		return err
	}
	show.wait()
	if p.json {
		if perr := p.printJSON(result); perr != nil {
			return perr
		}
	} else {
		p.printReport(result)
	}
	return err
}

func (p *program) printReport(r *appliance.VerifyResult) {
	for _, d := range gathered(r.Damages) {
		p.printDamage(d)
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
	if r.Repair != nil {
		p.printRepair(r)
	}
	depth := "every byte of"
	switch r.Level {
	case store.VerifyStructure:
		depth = "the structure of"
	case store.VerifySample:
		depth = fmt.Sprintf("the structure and %g %% of the blocks of", r.Sample*100)
	}
	if r.Resumed != nil {
		fmt.Fprintf(p.stdout, "Went on with the verification of %s.\n", localTime(*r.Resumed))
	}
	fmt.Fprintf(p.stdout, "Checked %s %d objects, %s, %d points: %d damaged places.\n",
		depth, r.Objects, size(r.Bytes), r.Points, len(r.Damages)+r.MoreDamages)
}

func (p *program) printDamage(d store.Damage) {
	at, word := "all of it", "DAMAGED"
	if d.Offset >= 0 {
		at = fmt.Sprintf("at byte %d", d.Offset)
	}
	if d.Lost {
		word = "LOST   "
	}
	fmt.Fprintf(p.stdout, "%s  %s, %s: %s\n", word, d.Object, at, strings.TrimPrefix(d.Problem, d.Object+": "))
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

func (p *program) printRepair(r *appliance.VerifyResult) {
	d := r.Repair
	for _, id := range d.Points {
		fmt.Fprintf(p.stdout, "repaired  restore point %s, from its copy\n", id)
	}
	for _, id := range d.LostPoints {
		fmt.Fprintf(p.stdout, "LOST      restore point %s: what it holds is not known; `lifeboat forget %s` gives it up\n", id, id)
	}
	for _, name := range d.Renewed {
		fmt.Fprintf(p.stdout, "repaired  %s\n", name)
	}
	for _, line := range d.Left {
		fmt.Fprintf(p.stdout, "left      %s\n", line)
	}
	fmt.Fprintf(p.stdout, "Repaired: %d places were damaged; %d segments written anew, %d blocks restored, %d marked as lost.\n",
		r.Before, d.Segments, d.Restored, d.Lost)
}

// verifiedText is when a point was verified last, for people.
func verifiedText(v *store.VerifiedInfo, now time.Time) string {
	if v == nil {
		return "-"
	}
	depth := map[store.VerifyLevel]string{store.VerifyAll: "all bytes", store.VerifySample: "a sample", store.VerifyStructure: "structure"}[v.Level]
	word := ""
	if !v.OK {
		word = "DAMAGED "
	}
	return fmt.Sprintf("%s%s ago (%s)", word, age(now.Sub(v.Time)), depth)
}

// age is a duration in the largest unit that it has two of.
func age(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", max(0, int(d.Seconds())))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}
