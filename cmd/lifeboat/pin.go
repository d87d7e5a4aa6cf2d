package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) pinCommand() *cli.Command {
	return &cli.Command{
		Name: "pin", Usage: "keep restore points: no policy and no forget removes them", ArgsUsage: "POINT…", Description: pointHelp,
		Flags: []cli.Flag{&cli.StringFlag{Name: "note", Usage: "`TEXT` that says why"}},
		Action: p.withPoints(1, -1, func(c *cli.Context, repo *store.Repository, pts []*store.Point) error {
			ids := []string{}
			for _, pt := range pts {
				if err := repo.Pin(c.Context, pt.ID, c.String("note")); err != nil {
					return err
				}
				ids = append(ids, pt.ID)
			}
			if p.json {
				return p.printJSON(map[string]any{"pinned": ids})
			}
			fmt.Fprintf(p.stdout, "Pinned: %s\n", strings.Join(ids, " "))
			return nil
		}),
	}
}

func (p *program) unpinCommand() *cli.Command {
	return &cli.Command{
		Name: "unpin", Usage: "let pinned restore points go", ArgsUsage: "POINT…", Description: pointHelp,
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, -1); err != nil {
				return err
			}
			return p.withRepo(c.Context, func(repo *store.Repository) error {
				ids := []string{}
				for _, ref := range c.Args().Slice() {
					id, err := p.unpin(c, repo, ref)
					if err != nil {
						return err
					}
					ids = append(ids, id)
				}
				if p.json {
					return p.printJSON(map[string]any{"unpinned": ids})
				}
				fmt.Fprintf(p.stdout, "Not pinned any more: %s\n", strings.Join(ids, " "))
				return nil
			})
		},
	}
}

// unpin removes a pin. A pin whose point is lost is named by the full ID.
func (p *program) unpin(c *cli.Context, repo *store.Repository, ref string) (string, error) {
	id := ref
	pt, err := appliance.ResolvePoint(c.Context, repo, ref)
	switch {
	case err == nil:
		id = pt.ID
	case !errors.Is(err, store.ErrNotFound):
		return "", err
	}
	if unpinErr := repo.Unpin(c.Context, id); unpinErr != nil {
		if errors.Is(unpinErr, store.ErrReference) && err != nil {
			return "", err // no ID, and no point of that name
		}
		return "", unpinErr
	}
	return id, nil
}
