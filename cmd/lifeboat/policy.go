package main

import (
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) policyCommand() *cli.Command {
	vm := &cli.StringFlag{Name: "vm", Usage: "for the VM of that `NAME`, or the VMs that fit a pattern (web*)", Value: "*"}
	return &cli.Command{
		Name: "policy", Usage: "keep retention policies in the repository, for `lifeboat forget --policy`",
		Subcommands: []*cli.Command{
			{
				Name: "show", Usage: "list the policies", ArgsUsage: " ",
				Action: func(c *cli.Context) error {
					if err := arguments(c, 0, 0); err != nil {
						return err
					}
					return p.withRepo(c.Context, func(repo *store.Repository) error { return p.showPolicies(c, repo) })
				},
			},
			{
				Name: "set", Usage: "set the policy of all VMs, or of some", ArgsUsage: " ", Flags: append(policyFlags(), vm),
				Description: "Of several policies that fit a VM, its own name counts before a pattern, and that before *.",
				Action: func(c *cli.Context) error {
					if err := arguments(c, 0, 0); err != nil {
						return err
					}
					policy, err := policyOf(c)
					if err != nil {
						return err
					}
					if policy.Empty() {
						return fmt.Errorf("%w: the policy keeps nothing; name at least one rule, such as --keep-daily 7", appliance.ErrUsage)
					}
					return p.changePolicies(c, func(ps store.Policies) (store.Policies, error) {
						ps = slices.DeleteFunc(ps, func(q store.VMPolicy) bool { return q.VM == c.String("vm") })
						return append(ps, store.VMPolicy{VM: c.String("vm"), Policy: policy}), nil
					})
				},
			},
			{
				Name: "rm", Usage: "remove a policy", ArgsUsage: " ", Flags: []cli.Flag{vm},
				Action: func(c *cli.Context) error {
					if err := arguments(c, 0, 0); err != nil {
						return err
					}
					return p.changePolicies(c, func(ps store.Policies) (store.Policies, error) {
						n := len(ps)
						ps = slices.DeleteFunc(ps, func(q store.VMPolicy) bool { return q.VM == c.String("vm") })
						if len(ps) == n {
							return nil, fmt.Errorf("a policy for %q: %w", c.String("vm"), appliance.ErrNotFound)
						}
						return ps, nil
					})
				},
			},
		},
	}
}

func (p *program) changePolicies(c *cli.Context, change func(store.Policies) (store.Policies, error)) error {
	return p.withRepo(c.Context, func(repo *store.Repository) error {
		ps, err := repo.Policies(c.Context)
		if err != nil {
			return err
		}
		if ps, err = change(ps); err != nil {
			return err
		}
		if err := repo.SetPolicies(c.Context, ps); err != nil {
			return err
		}
		return p.showPolicies(c, repo)
	})
}

func (p *program) showPolicies(c *cli.Context, repo *store.Repository) error {
	ps, err := repo.Policies(c.Context)
	if err != nil {
		return err
	}
	if p.json {
		return p.printJSON(map[string]any{"policies": append(store.Policies{}, ps...)})
	}
	if len(ps) == 0 {
		fmt.Fprintln(p.stdout, "There is no policy: `lifeboat forget --policy` needs rules of its own.")
		return nil
	}
	return p.table("VM\tKEEP", func(line func(string, ...any)) {
		for _, vp := range ps {
			line("%s\t%s", vp.VM, vp.Policy)
		}
	})
}
