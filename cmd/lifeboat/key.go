package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) keyCommand() *cli.Command {
	return &cli.Command{
		Name:  "key",
		Usage: "list, add, change and remove the passwords of the repository; print a recovery key",
		Description: "Every password has a key in the repository; any of them opens it. Removing a key does not\n" +
			"help against somebody who had its password and a copy of the repository.",
		Subcommands: []*cli.Command{
			{
				Name: "list", Aliases: []string{"ls"}, Usage: "list the passwords' keys", ArgsUsage: " ",
				Action: p.keyAction(0, p.listKeys),
			},
			{
				Name: "add", Usage: "let another password (LIFEBOAT_NEW_PASSWORD, or asked for) open the repository", ArgsUsage: " ",
				Flags:  []cli.Flag{&cli.StringFlag{Name: "label", Usage: "`TEXT` that says whose or what it is for"}},
				Action: p.keyAction(0, p.addKey),
			},
			{
				Name: "passwd", Usage: "change the password (to LIFEBOAT_NEW_PASSWORD, or asked for)", ArgsUsage: " ",
				Action: p.keyAction(0, p.changePassword),
			},
			{
				Name: "recovery", Usage: "make a recovery key and print it, once: a password to be kept on paper", ArgsUsage: " ",
				Description: "It opens the repository wherever a password is asked for. Mistakes in typing it are found\n" +
					"and located. `lifeboat key remove` takes it away.",
				Action: p.keyAction(0, p.addRecoveryKey),
			},
			{
				Name: "remove", Aliases: []string{"rm"}, Usage: "remove a password's key; the last one stays", ArgsUsage: "KEY",
				Action: p.keyAction(1, p.removeKey),
			},
		},
	}
}

// keyAction is the frame of the subcommands, which take args arguments.
func (p *program) keyAction(args int, fn func(*cli.Context, *store.Repository) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if err := arguments(c, args, args); err != nil {
			return err
		}
		return p.withRepo(c.Context, func(repo *store.Repository) error { return fn(c, repo) })
	}
}

func (p *program) newPassword() ([]byte, error) {
	return p.passwordFrom("LIFEBOAT_NEW_PASSWORD", "New password", true)
}

// saying prints doc as JSON, or the sentence.
func (p *program) saying(doc any, sentence string, args ...any) error {
	if p.json {
		return p.printJSON(doc)
	}
	fmt.Fprintf(p.stdout, sentence+"\n", args...)
	return nil
}

func (p *program) addKey(c *cli.Context, repo *store.Repository) error {
	pw, err := p.newPassword()
	if err != nil {
		return err
	}
	id, err := repo.AddPassword(c.Context, pw, c.String("label"))
	if err != nil {
		return err
	}
	return p.saying(map[string]string{"added": id}, "Key %s added.", id)
}

func (p *program) changePassword(c *cli.Context, repo *store.Repository) error {
	pw, err := p.newPassword()
	if err != nil {
		return err
	}
	if err := repo.ChangePassword(c.Context, pw); err != nil {
		return err
	}
	return p.saying(map[string]bool{"changed": true}, "Password changed. The old one no longer opens the repository.")
}

func (p *program) addRecoveryKey(c *cli.Context, repo *store.Repository) error {
	id, recovery, err := repo.AddRecoveryKey(c.Context)
	if err != nil {
		return err
	}
	if p.json {
		return p.printJSON(map[string]string{"added": id, "recovery_key": recovery})
	}
	groups := strings.Split(recovery, "-")
	half := len(groups) / 2
	fmt.Fprintf(p.stdout, "Recovery key %s of repository %s\n\n    %s\n    %s\n\n", id, repo.ID(), strings.Join(groups[:half], "-"), strings.Join(groups[half:], "-"))
	fmt.Fprintln(p.stdout, "Write it down or print it, and keep it where the password is not. It is shown this once.\n"+
		"Type it where the password is asked for: capitals and dashes do not matter.")
	return nil
}

func (p *program) removeKey(c *cli.Context, repo *store.Repository) error {
	id, err := p.findKey(c, repo)
	if err != nil {
		return err
	}
	if err := repo.RemoveKey(c.Context, id); err != nil {
		return err
	}
	return p.saying(map[string]string{"removed": id}, "Key %s removed.", id)
}

// findKey finds the key that a person means: by its ID or the start of one.
func (p *program) findKey(c *cli.Context, repo *store.Repository) (string, error) {
	keys, err := repo.Keys(c.Context)
	if err != nil {
		return "", err
	}
	given := strings.ToLower(c.Args().First())
	var found []string
	for _, k := range keys {
		if given != "" && strings.HasPrefix(k.ID, given) {
			found = append(found, k.ID)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("key %q: %w; `lifeboat key list` shows them", given, appliance.ErrNotFound)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%w: %q is the start of several keys: %s", appliance.ErrUsage, given, strings.Join(found, ", "))
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
			line("%s\t%s\t%s\t%s", k.ID, localTime(k.Created), k.Label, keyNote(k))
		}
	})
}

func keyNote(k store.Key) string {
	switch {
	case k.Problem != "":
		return k.Problem
	case k.Removing:
		return "its removal did not finish: remove it again"
	case k.Current:
		return "opened with this one"
	}
	return ""
}
