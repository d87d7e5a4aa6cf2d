package main

import (
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // --timezone also where the host has no database of zones

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) forgetCommand() *cli.Command {
	return &cli.Command{
		Name: "forget", Usage: "remove restore points, by name or by policy (their blocks stay until prune)", ArgsUsage: "POINT… | --policy",
		Description: pointHelp + "\n\n" +
			"With --policy, the points of each VM are judged by the rules given with --keep-…, or, without\n" +
			"any, by the policy kept in the repository (`lifeboat policy`). Each rule is asked on its own\n" +
			"and a point stays if one keeps it: --keep-last N keeps the newest N; --keep-daily N looks at\n" +
			"the last N days that have a point and keeps the newest of each; hourly, weekly (from Monday),\n" +
			"monthly and yearly likewise; --keep-within 1m14d keeps what is less than that older than the\n" +
			"newest. N = -1 is all. The newest point of a VM, pinned and immutable ones always stay.",
		Flags: append(policyFlags(),
			&cli.BoolFlag{Name: "policy", Usage: "judge points by policy"},
			&cli.StringFlag{Name: "vm", Usage: "only the VM of that `NAME` or pattern (web*)"},
			&cli.StringFlag{Name: "timezone", Usage: "`ZONE` in which days begin, such as Europe/Berlin (default: the local one)"},
			&cli.BoolFlag{Name: "dry-run", Usage: "only say what stays, and why"},
		),
		Action: p.forget,
	}
}

// policyFlags are the rules of a policy.
func policyFlags() []cli.Flag {
	flags := []cli.Flag{&cli.IntFlag{Name: "keep-last", Usage: "keep the newest `N` points"}}
	for _, period := range []struct{ rule, name string }{
		{"hourly", "hours"}, {"daily", "days"}, {"weekly", "weeks"}, {"monthly", "months"}, {"yearly", "years"},
	} {
		flags = append(flags, &cli.IntFlag{Name: "keep-" + period.rule, Usage: "keep the newest point of each of the last `N` " + period.name + " that have one"})
	}
	return append(flags, &cli.StringFlag{Name: "keep-within", Usage: "keep all points less than `SPAN` (1y2m3d4h) older than the newest"})
}

// policyOf reads the rules given; none is the zero value.
func policyOf(c *cli.Context) (store.Policy, error) {
	policy := store.Policy{
		Last: c.Int("keep-last"), Hourly: c.Int("keep-hourly"), Daily: c.Int("keep-daily"),
		Weekly: c.Int("keep-weekly"), Monthly: c.Int("keep-monthly"), Yearly: c.Int("keep-yearly"),
	}
	if s := c.String("keep-within"); s != "" {
		span, err := store.ParseSpan(s)
		if err != nil {
			return policy, fmt.Errorf("%w: --keep-within: %w", appliance.ErrUsage, err)
		}
		policy.Within = span
	}
	if err := policy.Check(); err != nil {
		return policy, fmt.Errorf("%w: %w", appliance.ErrUsage, err)
	}
	return policy, nil
}

// rulesGiven reports whether any rule stands on the command line, be it 0.
func rulesGiven(c *cli.Context) bool {
	for _, f := range policyFlags() {
		if c.IsSet(f.Names()[0]) {
			return true
		}
	}
	return false
}

func (p *program) forget(c *cli.Context) error {
	byPolicy := c.Bool("policy") || rulesGiven(c)
	switch {
	case byPolicy && c.Args().Present():
		return fmt.Errorf("%w: name restore points or a policy, not both", appliance.ErrUsage)
	case byPolicy:
		return p.forgetByPolicy(c)
	case c.IsSet("vm") || c.IsSet("timezone"):
		return fmt.Errorf("%w: --vm and --timezone go with --policy", appliance.ErrUsage)
	}
	return p.withPoints(1, -1, p.forgetPoints)(c)
}

func (p *program) forgetPoints(c *cli.Context, repo *store.Repository, pts []*store.Point) error {
	st, err := appliance.OpenState(p.config.State)
	if err != nil {
		return err
	}
	dryRun := c.Bool("dry-run")
	gone, err := appliance.ForgetPoints(c.Context, st, repo, pts, dryRun)
	if err != nil {
		return err
	}
	if p.json {
		return p.printJSON(map[string]any{"forgotten": gone, "dry_run": dryRun})
	}
	verb := "Forgotten"
	if dryRun {
		verb = "Would be forgotten"
	}
	fmt.Fprintf(p.stdout, "%s: %s\n", verb, strings.Join(gone, " "))
	return nil
}

func (p *program) forgetByPolicy(c *cli.Context) error {
	req := appliance.RetentionRequest{VM: c.String("vm")}
	policy, err := policyOf(c)
	if err != nil {
		return err
	}
	if rulesGiven(c) {
		req.Policy = &policy
	}
	if name := c.String("timezone"); name != "" {
		if req.Zone, err = time.LoadLocation(name); err != nil {
			return fmt.Errorf("%w: --timezone: %w", appliance.ErrUsage, err)
		}
	}
	st, err := appliance.OpenState(p.config.State)
	if err != nil {
		return err
	}
	return p.withRepo(c.Context, func(repo *store.Repository) error {
		items, err := appliance.PlanRetention(c.Context, st, repo, req)
		if err != nil {
			return err
		}
		gone := []string{}
		if !c.Bool("dry-run") {
			if gone, err = appliance.ApplyRetention(c.Context, repo, items); err != nil {
				return err
			}
		}
		return p.printRetention(items, gone, c.Bool("dry-run"))
	})
}

func (p *program) printRetention(items []appliance.RetentionItem, gone []string, dryRun bool) error {
	if p.json {
		if items == nil {
			items = []appliance.RetentionItem{}
		}
		return p.printJSON(map[string]any{"dry_run": dryRun, "points": items, "forgotten": gone})
	}
	kept := 0
	err := p.table("POINT\tVM\tTIME\tACTION\tREASONS", func(line func(string, ...any)) {
		for _, item := range items {
			reasons := strings.Join(item.Reasons, ", ")
			if !item.Until.IsZero() {
				reasons += " until " + localTime(item.Until)
			}
			if item.Action == appliance.ActionKeep {
				kept++
			}
			line("%s\t%s\t%s\t%s\t%s", item.ID, item.VM, localTime(item.Time), item.Action, reasons)
		}
	})
	switch {
	case dryRun:
		fmt.Fprintf(p.stdout, "\n%d stay, %d would be forgotten.\n", kept, len(items)-kept)
	case len(gone) == 0:
		fmt.Fprintf(p.stdout, "\n%d stay, none is forgotten.\n", kept)
	default:
		fmt.Fprintf(p.stdout, "\n%d stay, %d are forgotten; `lifeboat prune` gives their space back.\n", kept, len(gone))
	}
	return err
}
