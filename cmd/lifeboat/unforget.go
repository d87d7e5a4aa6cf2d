package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) unforgetCommand() *cli.Command {
	return &cli.Command{
		Name: "unforget", Usage: "bring forgotten restore points back, or list them", ArgsUsage: "[ID…]",
		Description: "A forgotten restore point is there until a prune removes it. Without an ID, lists them.\n" +
			"An ID may be shortened as long as it fits one of them only.",
		Action: func(c *cli.Context) error {
			return p.withRepo(c.Context, func(repo *store.Repository) error {
				forgotten, err := repo.Forgotten(c.Context)
				if err != nil {
					return err
				}
				if !c.Args().Present() {
					return p.listForgotten(forgotten)
				}
				return p.unforget(c, repo, forgotten)
			})
		},
	}
}

func (p *program) listForgotten(forgotten []store.ForgottenPoint) error {
	if p.json {
		return p.printJSON(forgotten)
	}
	return p.table("ID\tVM\tTIME\tFORGOTTEN", func(line func(string, ...any)) {
		for _, f := range forgotten {
			vm, made := "(cannot be read)", ""
			if f.Point != nil {
				vm, made = f.Point.VM, localTime(f.Point.Time)
			}
			line("%s\t%s\t%s\t%s", f.ID, vm, made, localTime(f.Time))
		}
	})
}

func (p *program) unforget(c *cli.Context, repo *store.Repository, forgotten []store.ForgottenPoint) error {
	back := []string{}
	for _, arg := range c.Args().Slice() {
		id, err := forgottenID(forgotten, arg)
		if err == nil {
			err = repo.Unforget(c.Context, id)
		}
		if err != nil {
			if len(back) > 0 {
				err = fmt.Errorf("%w (brought back before it: %s)", err, strings.Join(back, " "))
			}
			return err
		}
		back = append(back, id)
	}
	if p.json {
		return p.printJSON(map[string]any{"unforgotten": back})
	}
	fmt.Fprintf(p.stdout, "Brought back: %s\n", strings.Join(back, " "))
	return nil
}

func forgottenID(forgotten []store.ForgottenPoint, prefix string) (string, error) {
	var found []string
	for _, f := range forgotten {
		if prefix != "" && strings.HasPrefix(f.ID, strings.ToLower(prefix)) {
			found = append(found, f.ID)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("a forgotten restore point %q: %w; `lifeboat unforget` lists those that can come back", prefix, appliance.ErrNotFound)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%w: %q fits %s", appliance.ErrUsage, prefix, strings.Join(found, ", "))
}
