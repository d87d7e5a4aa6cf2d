package main

import (
	"bufio"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"lifeboat/appliance"
)

func (p *program) stopCommand() *cli.Command {
	return &cli.Command{
		Name: "stop", Usage: "end recoveries and drop what was written in them", ArgsUsage: "SESSION…",
		Description: "The VM is powered off and taken out of the inventory, the datastore from hosts that no other\n" +
			"session needs it on. It asks first. `lifeboat session keep SESSION` before makes a restore\n" +
			"point of what was written. Disks that were attached to somebody's VM are taken from it.",
		Flags: slices.Concat([]cli.Flag{&cli.BoolFlag{Name: "yes", Usage: "do not ask"}}, vcenterFlags()), Action: p.stop,
	}
}

func (p *program) stop(c *cli.Context) error {
	if err := arguments(c, 1, -1); err != nil {
		return err
	}
	return p.withVSphere(c, func(w vsphereCommand) error {
		var stopped []string
		var errs []error
		for _, name := range c.Args().Slice() {
			if err := p.stopOne(c, w, name); err != nil {
				errs = append(errs, err)
				continue
			}
			stopped = append(stopped, name)
		}
		if p.json {
			errs = append(errs, p.printJSON(map[string]any{"stopped": append([]string{}, stopped...)}))
		}
		return errors.Join(errs...)
	})
}

func (p *program) stopOne(c *cli.Context, w vsphereCommand, name string) error {
	info, err := appliance.ShowSession(w.state, name)
	if err != nil {
		return err
	}
	if info.Recovery == nil {
		return fmt.Errorf("%w: session %q has nothing on a vSphere; `lifeboat session discard %[2]s` drops it", appliance.ErrUsage, name)
	}
	what := fmt.Sprintf("VM %q goes, and the %s written in session %s", printable(info.Recovery.VM), size(info.OverlayBytes), name)
	if info.Recovery.Attach {
		what = fmt.Sprintf("VM %q loses the disks of session %s, and the %s written to them", printable(info.Recovery.VM), name, size(info.OverlayBytes))
	}
	if err := p.confirm(c, what); err != nil {
		return err
	}
	if err := appliance.Stop(c.Context, w.state, w.client, appliance.StopRequest{Session: name, Logger: p.log}); err != nil {
		return err
	}
	p.releaseSession(c.Context, info.Session)
	if !p.json {
		fmt.Fprintf(p.stdout, "Session %s is over; nothing of it is left.\n", name)
	}
	return nil
}

// confirm asks a person before something is lost. Where nobody can answer, --yes
// must have.
func (p *program) confirm(c *cli.Context, what string) error {
	if c.Bool("yes") {
		return nil
	}
	if !term.IsTerminal(int(p.stdin.Fd())) {
		return fmt.Errorf("%w: %s: say --yes if that is meant", appliance.ErrUsage, what)
	}
	fmt.Fprintf(p.stderr, "%s. Go on? [y/N] ", what)
	line, _ := bufio.NewReader(p.stdin).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return errors.New("not done: nothing was changed")
}
