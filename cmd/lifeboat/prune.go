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
		Description: "Removes whole segments that no restore point has needed for the time of --grace; the\n" +
			"grace is for recoveries of forgotten points that are still running. Nothing is rewritten.\n" +
			"A running backup makes it give way.",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "grace", Usage: "how long a segment must have been of no use", Value: store.DefaultGrace},
			&cli.BoolFlag{Name: "now", Usage: "no grace: only when no recovery of a forgotten point is running anywhere"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be removed"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0); err != nil {
				return err
			}
			opts := store.PruneOptions{Grace: c.Duration("grace"), DryRun: c.Bool("dry-run")}
			switch {
			case opts.Grace < 0:
				return fmt.Errorf("%w: --grace %s: not a time to wait", appliance.ErrUsage, opts.Grace)
			case c.Bool("now") || opts.Grace == 0:
				opts.Grace = -1
			}
			return p.withRepo(c.Context, func(repo *store.Repository) error { return p.prune(c, repo, opts) })
		},
	}
}

func (p *program) prune(c *cli.Context, repo *store.Repository, opts store.PruneOptions) error {
	started := time.Now()
	r, err := repo.Prune(c.Context, opts)
	if err != nil {
		return err
	}
	if p.json {
		return p.printJSON(r)
	}
	verb := "Removed"
	if opts.DryRun {
		verb = "Would remove"
	}
	fmt.Fprintf(p.stdout, "%s %d segments (%s), in %s. Of no use, but within their grace: %d (%s).\n",
		verb, r.Removed, size(r.RemovedBytes), time.Since(started).Round(10*time.Millisecond), r.Condemned, size(r.CondemnedBytes))
	return nil
}

func (p *program) repairCommand() *cli.Command {
	return &cli.Command{
		Name: "repair", Usage: "make anew what can be made anew: the dedupe index, the header",
		Subcommands: []*cli.Command{
			{
				Name: "index", Usage: "rebuild the dedupe index from the segments", ArgsUsage: " ",
				Action: func(c *cli.Context) error {
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
