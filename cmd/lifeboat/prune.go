package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) pruneCommand() *cli.Command {
	return &cli.Command{
		Name: "prune", Usage: "give back the space of what no restore point needs", ArgsUsage: " ",
		Description: "Removes restore points that were forgotten before --grace, what only they needed, and what\n" +
			"interrupted backups left. Runs beside backups and recoveries: what they need stays, and so do\n" +
			"pinned and immutable points. What cannot go yet is listed with the time when it can; run\n" +
			"prune regularly. It may be interrupted at any time.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "grace", Usage: "a `SPAN` such as 36h or 7d: how long forgotten points stay, and what is of no use", Value: "3d"},
			&cli.BoolFlag{Name: "now", Usage: "no grace: whatever nobody holds goes at once"},
			&cli.StringFlag{Name: "max-compact", Usage: "write at most so many `BYTES` to save space in segments that are used in part; 0 for nothing", Value: "64G"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be removed"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0); err != nil {
				return err
			}
			if c.Bool("now") && c.IsSet("grace") {
				return fmt.Errorf("%w: --now and --grace contradict each other", appliance.ErrUsage)
			}
			grace, err := parseWindow(c.String("grace"))
			if err != nil {
				return fmt.Errorf("--grace: %w", err)
			}
			opts := store.PruneOptions{Grace: grace, DryRun: c.Bool("dry-run")}
			if c.Bool("now") || grace == 0 {
				opts.Grace = -1
			}
			opts.MaxCompact = -1
			if s := c.String("max-compact"); s != "0" {
				if opts.MaxCompact, err = parseRate(s); err != nil {
					return fmt.Errorf("%w: --max-compact %q: write a size like 64G, or 0", appliance.ErrUsage, s)
				}
			}
			return p.withRepo(c.Context, func(repo *store.Repository) error { return p.prune(c, repo, opts) })
		},
	}
}

func (p *program) prune(c *cli.Context, repo *store.Repository, opts store.PruneOptions) error {
	started := time.Now()
	steps := newSteps(p.stderr)
	opts.Progress = func(s store.PruneProgress) { steps.set(s.Step, s.Done, s.Total) }
	r, err := repo.Prune(c.Context, opts)
	steps.end()
	if err != nil {
		return err
	}
	if p.json {
		return p.printJSON(r)
	}
	return p.printPruned(r, opts.DryRun, time.Since(started))
}

// printPruned says what is free and what will be.
func (p *program) printPruned(r *store.PruneReport, dry bool, took time.Duration) error {
	verb := "Freed"
	if dry {
		verb = "Would free"
	}
	fmt.Fprintf(p.stdout, "%s %s in %s: %d forgotten restore points, %d segments removed (%s), %d written anew (%s).\n",
		verb, size(r.FreedBytes), took.Round(10*time.Millisecond), r.PointsRemoved, r.Removed, size(r.RemovedBytes), r.Compacted, size(r.CompactedBytes))
	if len(r.Pending) == 0 {
		return nil
	}
	fmt.Fprintln(p.stdout, "\nTo be freed by a later prune:")
	return p.table("WHEN\tABOUT\tPOINTS\tWHY NOT NOW", func(line func(string, ...any)) {
		for _, e := range r.Pending {
			when := "not known"
			if !e.When.IsZero() {
				when = localTime(e.When)
			}
			line("%s\t%s\t%d\t%s", when, size(e.Bytes), len(e.Points), e.Why)
		}
	})
}

func (p *program) repairCommand() *cli.Command {
	return &cli.Command{
		Name: "repair", Usage: "make anew what can be made anew: the dedupe index, the header",
		Subcommands: []*cli.Command{
			{
				Name: "index", Usage: "rebuild the dedupe index from the segments", ArgsUsage: " ",
				Action: func(c *cli.Context) error {
					if err := arguments(c, 0, 0); err != nil {
						return err
					}
					return p.withRepo(c.Context, func(repo *store.Repository) error {
						if err := repo.RebuildIndex(c.Context); err != nil {
							return err
						}
						return p.repaired("index", "The index was made anew.")
					})
				},
			},
			{
				Name: "header", Usage: "write a lost or damaged lifeboat.json anew, from a key", ArgsUsage: " ",
				Action: func(c *cli.Context) error {
					if err := arguments(c, 0, 0); err != nil {
						return err
					}
					pw, err := p.password(false)
					if err != nil {
						return err
					}
					if err := appliance.RestoreHeader(c.Context, p.config.Repo, pw); err != nil {
						return err
					}
					return p.repaired("header", "The header was written anew.")
				},
			},
		},
	}
}

func (p *program) repaired(what, sentence string) error {
	if p.json {
		return p.printJSON(map[string]string{"repaired": what})
	}
	fmt.Fprintln(p.stdout, sentence)
	return nil
}
