package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) copyCommand() *cli.Command {
	return &cli.Command{
		Name: "copy", Usage: "copy restore points to a second repository", ArgsUsage: "[POINT…] --to URL",
		Description: "The second repository may have another password, block size and kind of storage. Points that\n" +
			"it has already are skipped, of others only what differs from a point that both have is read.\n" +
			"An interrupted copy goes on where it was when it is run again. The second repository's\n" +
			"password comes from --to-password-file, LIFEBOAT_TO_PASSWORD or LIFEBOAT_TO_PASSWORD_FILE, or\n" +
			"is asked for.\n\n" + pointHelp,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "to", Usage: "the second repository: a `URL` like that of --repo"},
			&cli.StringFlag{Name: "to-password-file", Usage: "`FILE` whose first line is its password"},
			&cli.StringSliceFlag{Name: "vm", Usage: "all points of the VM `NAME` (a pattern with * and ? fits several)"},
			&cli.BoolFlag{Name: "all", Usage: "all points of all VMs"},
			&cli.IntFlag{Name: "latest", Usage: "of each VM only the `N` newest points", DefaultText: "all"},
			&cli.IntFlag{Name: "parallel", Usage: "copy `N` VMs at the same time", DefaultText: "4"},
			&cli.BoolFlag{Name: "verify", Usage: "read back what was written and compare it with the source"},
		},
		Action: func(c *cli.Context) error {
			if c.String("to") == "" {
				return fmt.Errorf("%w: say where to: --to URL", appliance.ErrUsage)
			}
			if c.Int("latest") < 0 || c.Int("parallel") < 0 {
				return fmt.Errorf("%w: --latest and --parallel are not negative", appliance.ErrUsage)
			}
			return p.withRepo(c.Context, func(from *store.Repository) error {
				return p.withSecond(c, func(to *store.Repository) error { return p.copy(c, from, to) })
			})
		},
	}
}

// secondCache is enough for a repository that is written to, and read back once.
const secondCache = 64 << 20

// withSecond runs fn on the repository that --to names.
func (p *program) withSecond(c *cli.Context, fn func(*store.Repository) error) (err error) {
	pw, err := p.secondPassword(c)
	if err != nil {
		return err
	}
	to, err := appliance.OpenRepository(c.Context, c.String("to"), pw, store.Options{CacheBytes: secondCache, Logger: p.log})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := to.Close(); err == nil {
			err = cerr
		}
	}()
	return fn(to)
}

func (p *program) secondPassword(c *cli.Context) ([]byte, error) {
	if file := c.String("to-password-file"); file != "" {
		return readPasswordFile(file)
	}
	pw, err := p.passwordFrom("LIFEBOAT_TO_PASSWORD", "Password of "+c.String("to"), false)
	if errors.Is(err, errNoPassword) {
		return nil, fmt.Errorf("%w: no password for %s: use --to-password-file, LIFEBOAT_TO_PASSWORD or LIFEBOAT_TO_PASSWORD_FILE", appliance.ErrUsage, c.String("to"))
	}
	return pw, err
}

func (p *program) copy(c *cli.Context, from, to *store.Repository) error {
	started := time.Now()
	show := newMeters(p.stderr)
	m := show.add("copy")
	report, err := appliance.CopyPoints(c.Context, from, to, appliance.CopyRequest{
		Refs: c.Args().Slice(), VMs: c.StringSlice("vm"), All: c.Bool("all"), Latest: c.Int("latest"),
		Parallel: c.Int("parallel"), Verify: c.Bool("verify"), Tool: "lifeboat " + version,
		Progress: func(pr store.CopyProgress) { m.set(pr.Done, pr.Total) },
	})
	if err != nil {
		show.abandon()
	} else {
		show.wait()
	}
	if report == nil {
		return err
	}
	if perr := p.printCopies(report, from, to, time.Since(started)); perr != nil && err == nil {
		err = perr
	}
	return err
}

func (p *program) printCopies(r *store.CopyReport, from, to *store.Repository, took time.Duration) error {
	if p.json {
		return p.printJSON(map[string]any{
			"from": from.ID(), "to": to.ID(), "copied": r.Copied, "skipped": r.Skipped, "failed": r.Failed, "seconds": took.Seconds(),
		})
	}
	var read, fresh, stored int64
	for _, c := range r.Copied {
		fmt.Fprintf(p.stdout, "%s  %s  %s  copied as %s: read %s, stored %s\n", c.From, localTime(c.Time), printable(c.VM), c.ID, size(c.ReadBytes), size(c.StoredBytes))
		read, fresh, stored = read+c.ReadBytes, fresh+c.NewBytes, stored+c.StoredBytes
	}
	for _, f := range r.Failed {
		fmt.Fprintf(p.stdout, "%s  %s  %s  NOT copied: %s\n", f.From, localTime(f.Time), printable(f.VM), printable(f.Error))
	}
	fmt.Fprintf(p.stdout, "Copied %d restore points: read %s, new %s, stored %s, in %s. There already: %d. Failed: %d.\n",
		len(r.Copied), size(read), size(fresh), size(stored), took.Round(10*time.Millisecond), len(r.Skipped), len(r.Failed))
	return nil
}
