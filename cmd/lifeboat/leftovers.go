package main

import (
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
)

func (p *program) leftoversCommand() *cli.Command {
	return &cli.Command{
		Name: "leftovers", Usage: "list what Lifeboat has left on a vSphere, and remove it", ArgsUsage: " ",
		Description: "Found by the journal and by name: snapshots and attached disks of runs that died, datastores\n" +
			"that no session needs (inactive ones too), VMs that no session knows. What another\n" +
			"Lifeboat has there is named and left alone, and so is everything that a person made.\n" +
			"Exit code 3: something could not be removed.",
		Flags:  slices.Concat([]cli.Flag{&cli.BoolFlag{Name: "clean", Usage: "remove what is ours"}}, vcenterFlags()),
		Action: p.leftovers,
	}
}

func (p *program) leftovers(c *cli.Context) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	st, err := appliance.OpenState(p.config.State)
	if err != nil {
		return err
	}
	client, err := p.vcenter(c)
	if err != nil {
		return err
	}
	defer client.Close(c.Context)
	if c.Bool("clean") {
		if err := p.serveAgain(c, st); err != nil {
			return err
		}
	}
	found, err := appliance.Leftovers(c.Context, st, client, appliance.LeftoversRequest{Clean: c.Bool("clean"), Logger: p.log})
	if err != nil {
		return err
	}
	if p.json {
		err = p.printJSON(append([]appliance.Leftover{}, found...))
	} else {
		err = p.showLeftovers(found, c.Bool("clean"))
	}
	for _, l := range found {
		if err == nil && l.Problem != "" {
			err = fmt.Errorf("%w: %s %s: %s", appliance.ErrPartial, l.Kind, l.Name, l.Problem)
		}
	}
	return err
}

func (p *program) showLeftovers(found []appliance.Leftover, clean bool) error {
	if len(found) == 0 {
		return p.say(nil, "Nothing is left.\n")
	}
	return p.table("KIND\tNAME\tWHERE\tWHY\tNOW", func(line func(string, ...any)) {
		for _, l := range found {
			now := "there"
			switch {
			case l.Cleaned:
				now = "removed"
			case l.Foreign:
				now = "left alone"
			case clean:
				now = "still there"
			}
			line("%s\t%s\t%s\t%s\t%s", l.Kind, l.Name, l.Where, l.Why, now)
		}
	})
}
