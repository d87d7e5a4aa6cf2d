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
			pw, err := p.password(true)
			if err != nil {
				return err
			}
			if err := appliance.InitRepository(c.Context, p.config.Repo, pw, store.InitOptions{BlockSize: kib << 10}); err != nil {
				return err
			}
			return p.withRepo(c.Context, func(repo *store.Repository) error {
				if p.json {
					return p.printJSON(map[string]any{"repository": p.config.Repo, "id": repo.ID(), "block_size": repo.BlockSize()})
				}
				fmt.Fprintf(p.stdout, "Repository %s made at %s.\nKeep the password safe: without it nothing in the repository can be read, by anyone.\n", repo.ID(), p.config.Repo)
				return nil
			})
		},
	}
}

func (p *program) keyCommand() *cli.Command {
	return &cli.Command{
		Name:  "key",
		Usage: "list, add, change and remove passwords",
		Subcommands: []*cli.Command{
			{
				Name: "ls", Usage: "list the passwords' keys", ArgsUsage: " ",
				Action: func(c *cli.Context) error {
					return p.withRepo(c.Context, func(repo *store.Repository) error { return p.listKeys(c, repo) })
				},
			},
			{
				Name: "add", Usage: "let another password (LIFEBOAT_NEW_PASSWORD, or asked for) open the repository", ArgsUsage: " ",
				Flags: []cli.Flag{&cli.StringFlag{Name: "label", Usage: "`TEXT` that says whose or what it is for"}},
				Action: func(c *cli.Context) error {
					return p.withNewPassword(c, func(repo *store.Repository, pw []byte) error {
						id, err := repo.AddPassword(c.Context, pw, c.String("label"))
						if err != nil {
							return err
						}
						if p.json {
							return p.printJSON(map[string]string{"added": id})
						}
						fmt.Fprintf(p.stdout, "Key %s added.\n", id)
						return nil
					})
				},
			},
			{
				Name: "passwd", Usage: "change the password (to LIFEBOAT_NEW_PASSWORD, or asked for)", ArgsUsage: " ",
				Action: func(c *cli.Context) error {
					return p.withNewPassword(c, func(repo *store.Repository, pw []byte) error {
						if err := repo.ChangePassword(c.Context, pw); err != nil {
							return err
						}
						if p.json {
							return p.printJSON(map[string]bool{"changed": true})
						}
						fmt.Fprintln(p.stdout, "Password changed. The old one no longer opens the repository.")
						return nil
					})
				},
			},
			{
				Name: "rm", Usage: "remove a password's key", ArgsUsage: "KEY",
				Action: func(c *cli.Context) error {
					if err := arguments(c, 1, 1); err != nil {
						return err
					}
					return p.withRepo(c.Context, func(repo *store.Repository) error {
						if err := repo.RemoveKey(c.Context, c.Args().First()); err != nil {
							return err
						}
						if p.json {
							return p.printJSON(map[string]string{"removed": c.Args().First()})
						}
						fmt.Fprintf(p.stdout, "Key %s removed.\n", c.Args().First())
						return nil
					})
				},
			},
		},
	}
}

func (p *program) withNewPassword(c *cli.Context, fn func(*store.Repository, []byte) error) error {
	return p.withRepo(c.Context, func(repo *store.Repository) error {
		pw, err := p.passwordFrom("LIFEBOAT_NEW_PASSWORD", "New password", true)
		if err != nil {
			return err
		}
		return fn(repo, pw)
	})
}

func (p *program) listKeys(c *cli.Context, repo *store.Repository) error {
	keys, err := repo.Keys(c.Context)
	if err != nil {
		return err
	}
	if p.json {
		return p.printJSON(keys)
	}
	return p.table("KEY\tCREATED\tLABEL\t", func(line func(string, ...any)) {
		for _, k := range keys {
			note := k.Problem
			if k.Current {
				note = "opened with this one"
			}
			line("%s\t%s\t%s\t%s", k.ID, localTime(k.Created), k.Label, note)
		}
	})
}

// arguments checks how many arguments a command was given; most < 0 is any
// number.
func arguments(c *cli.Context, least, most int) error {
	n := c.Args().Len()
	switch {
	case n < least:
		return fmt.Errorf("%w: something is missing: lifeboat %s %s", appliance.ErrUsage, c.Command.FullName(), c.Command.ArgsUsage)
	case most >= 0 && n > most:
		return fmt.Errorf("%w: do not know what to do with %q", appliance.ErrUsage, c.Args().Get(most))
	}
	return nil
}
