package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) initCommand() *cli.Command {
	return &cli.Command{
		Name:      "init",
		Usage:     "make a new repository",
		ArgsUsage: " ",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "block-size", Usage: "unit of deduplication in `KiB`: 64, 128 or 256", Value: store.DefaultBlockSize >> 10},
			&cli.StringFlag{Name: "immutable", Usage: "no restore point can be removed for that long after it was made, a `WINDOW` such as 14d"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0); err != nil {
				return err
			}
			if p.config.Repo == "" {
				return fmt.Errorf("%w: say where: --repo PATH or LIFEBOAT_REPO", appliance.ErrUsage)
			}
			kib := c.Int("block-size")
			if kib != 64 && kib != 128 && kib != 256 {
				return fmt.Errorf("%w: --block-size %d: use 64, 128 or 256 (KiB)", appliance.ErrUsage, kib)
			}
			window, err := parseWindow(c.String("immutable"))
			if err != nil && c.IsSet("immutable") {
				return err
			}
			pw, err := p.password(true)
			if err != nil {
				return err
			}
			if err := appliance.InitRepository(c.Context, p.config.Repo, pw, store.InitOptions{BlockSize: kib << 10}); err != nil {
				return err
			}
			return p.withRepo(c.Context, func(repo *store.Repository) error {
				if window > 0 {
					if err := repo.SetWindow(c.Context, window); err != nil {
						return fmt.Errorf("the repository is made, without immutability: %w", err)
					}
				}
				if p.json {
					return p.printJSON(map[string]any{"repository": p.config.Repo, "id": repo.ID(), "block_size": repo.BlockSize()})
				}
				fmt.Fprintf(p.stdout, "Repository %s made at %s.\nKeep the password safe: without it nothing in the repository can be read, by anyone.\n", repo.ID(), p.config.Repo)
				if window > 0 {
					fmt.Fprintf(p.stdout, "For %s after it was made, no restore point can be removed, by anyone.\n", days(window))
				}
				return nil
			})
		},
	}
}

// arguments checks how many arguments a command was given; most < 0 is any
// number.
func arguments(c *cli.Context, least, most int) error {
	n := c.Args().Len()
	switch {
	case n < least:
		return fmt.Errorf("%w: something is missing: %s %s", appliance.ErrUsage, c.Command.HelpName, c.Command.ArgsUsage)
	case most >= 0 && n > most:
		return fmt.Errorf("%w: do not know what to do with %q", appliance.ErrUsage, c.Args().Get(most))
	}
	return nil
}
