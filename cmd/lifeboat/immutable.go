package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) immutableCommand() *cli.Command {
	return &cli.Command{
		Name: "immutable", Usage: "protect restore points against everybody who has the password",
		Description: "A restore point that is made while there is a window cannot be removed before the window is\n" +
			"over: not by forget, a policy or prune, not with another setting, and not with a clock that\n" +
			"is wrong. In append-only mode no point can be removed at all. What that protects against, and\n" +
			"what it does not, is in docs/security.md.",
		Subcommands: []*cli.Command{
			{
				Name: "show", Usage: "show how restore points are protected", ArgsUsage: " ",
				Action: p.immutableAction(0, func(*cli.Context, *store.Repository) error { return nil }),
			},
			{
				Name: "set", Usage: "set the window of points that are made from now on; 0 for none", ArgsUsage: "WINDOW",
				Description: "WINDOW is a length of time such as 14d, 2w or 36h. Points that exist keep theirs.",
				Action: p.immutableAction(1, func(c *cli.Context, repo *store.Repository) error {
					window, err := parseWindow(c.Args().First())
					if err != nil {
						return err
					}
					return repo.SetWindow(c.Context, window)
				}),
			},
			{
				Name: "append-only", Usage: "switch append-only mode on, or ask for its end", ArgsUsage: "on|off",
				Description: "off takes effect after three days, or the window if that is longer; until then on takes it back.",
				Action: p.immutableAction(1, func(c *cli.Context, repo *store.Repository) error {
					switch c.Args().First() {
					case "on", "off":
						return repo.SetAppendOnly(c.Context, c.Args().First() == "on")
					}
					return fmt.Errorf("%w: append-only %q: say on or off", appliance.ErrUsage, c.Args().First())
				}),
			},
			{
				Name: "keep-key", Usage: "take back what somebody asked for: that a password's key be removed", ArgsUsage: "KEY",
				Action: p.immutableAction(1, func(c *cli.Context, repo *store.Repository) error {
					return repo.KeepKey(c.Context, c.Args().First())
				}),
			},
		},
	}
}

// immutableAction runs fn and then prints how points are protected.
func (p *program) immutableAction(args int, fn func(*cli.Context, *store.Repository) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if err := arguments(c, args, args); err != nil {
			return err
		}
		return p.withRepo(c.Context, func(repo *store.Repository) error {
			if err := fn(c, repo); err != nil {
				return err
			}
			return p.printImmutability(c, repo)
		})
	}
}

func (p *program) printImmutability(c *cli.Context, repo *store.Repository) error {
	im, err := repo.Immutability(c.Context)
	if err != nil {
		return err
	}
	if p.json {
		doc := struct {
			Window   float64   `json:"window"` // seconds
			Append   bool      `json:"append_only"`
			Ends     time.Time `json:"append_only_ends,omitzero"`
			EndHost  string    `json:"append_only_ended_by,omitempty"`
			ByBucket string    `json:"object_lock"`

			Removals []store.KeyRemoval `json:"key_removals,omitempty"`
		}{im.Window.Seconds(), im.AppendOnly, im.AppendOnlyEnds, im.AppendOnlyEndedBy, objectLock(c, repo), im.KeyRemovals}
		return p.printJSON(doc)
	}
	window, appendOnly := "none", "off"
	if im.Window > 0 {
		window = days(im.Window)
	}
	switch {
	case im.AppendOnly && im.AppendOnlyEnds.IsZero():
		appendOnly = "on"
	case im.AppendOnly:
		appendOnly = fmt.Sprintf("on until %s (its end was asked for on %s; `lifeboat immutable append-only on` keeps it on)",
			localTime(im.AppendOnlyEnds), im.AppendOnlyEndedBy)
	}
	fmt.Fprintf(p.stdout, "Window of new points  %s\nAppend-only mode      %s\nObject lock           %s\n", window, appendOnly, objectLock(c, repo))
	for _, w := range im.KeyRemovals {
		fmt.Fprintf(p.stdout, "Key to be removed     %s, from %s on (asked for on %s; `lifeboat immutable keep-key %s` keeps it)\n",
			w.Key, localTime(w.From), w.By, w.Key)
	}
	return nil
}

// objectLock says in words whether the storage enforces it, too.
func objectLock(c *cli.Context, repo *store.Repository) string {
	if err := repo.ObjectLock(c.Context); err != nil {
		return fmt.Sprintf("no: %v", err)
	}
	return "yes"
}

// parseWindow reads a window or a grace: a span without months, or what time.ParseDuration
// reads.
func parseWindow(s string) (time.Duration, error) {
	if s == "0" {
		return 0, nil
	}
	// A span first: its m is months, and two minutes would be a poor protection.
	span, err := store.ParseSpan(s)
	if d, derr := time.ParseDuration(s); err != nil && derr == nil && d >= 0 {
		return d, nil
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("%w: %w", appliance.ErrUsage, err)
	case span.Months != 0:
		return 0, fmt.Errorf("%w: %q: m is months, and they differ in length; say it in days, or in hours", appliance.ErrUsage, s)
	case span.Years > 100 || span.Days > 36500 || span.Hours > 876000:
		return 0, fmt.Errorf("%w: %q is longer than 100 years", appliance.ErrUsage, s)
	}
	return time.Duration(span.Years*365+span.Days)*24*time.Hour + time.Duration(span.Hours)*time.Hour, nil
}

// days renders a window in its largest unit.
func days(d time.Duration) string {
	if d >= 24*time.Hour && d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%d d", d/(24*time.Hour))
	}
	return d.String()
}
