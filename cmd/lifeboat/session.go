package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) sessionCommand() *cli.Command {
	return &cli.Command{
		Name: "session", Usage: "list, show, keep and discard sessions",
		Subcommands: []*cli.Command{
			{Name: "ls", Usage: "list sessions", ArgsUsage: " ", Action: p.sessionList},
			{Name: "show", Usage: "show one session", ArgsUsage: "NAME", Action: p.sessionShow},
			{
				Name: "keep", Usage: "make new restore points of what was written in a session", ArgsUsage: "NAME",
				Description: "Costs what was written. The session stays; discard it when it is no longer needed.\n" +
					"A VM that runs in it goes on meanwhile: the point is of one moment, as a power failure\n" +
					"would have left it.",
				Action: p.sessionKeep,
			},
			{Name: "attach", Usage: "have the appliance's server (`lifeboat serve`) export a session", ArgsUsage: "NAME", Action: p.sessionAttach},
			{Name: "detach", Usage: "end the export of a session by the appliance's server", ArgsUsage: "NAME", Action: p.sessionDetach},
			{Name: "discard", Usage: "drop a stopped session and everything written in it", ArgsUsage: "NAME", Action: p.sessionDiscard},
		},
	}
}

// sessionArgument is the frame of commands about one session.
func (p *program) sessionArgument(c *cli.Context) (*appliance.State, string, error) {
	if err := arguments(c, 1, 1); err != nil {
		return nil, "", err
	}
	st, err := appliance.OpenState(p.config.State)
	return st, c.Args().First(), err
}

func (p *program) sessionList(c *cli.Context) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	st, err := appliance.OpenState(p.config.State)
	if err != nil {
		return err
	}
	infos, err := appliance.Sessions(st)
	if err != nil {
		return err
	}
	if p.json {
		return p.printJSON(infos)
	}
	return p.table("SESSION\tSTATE\tCREATED\tWRITTEN\tVMS\tON VSPHERE", func(line func(string, ...any)) {
		for _, s := range infos {
			var vms []string
			for _, f := range s.Folders {
				vms = append(vms, f.VM)
			}
			on := ""
			if r := s.Recovery; r != nil {
				on = fmt.Sprintf("%s: %s at %s", r.State, r.VM, r.Server)
			}
			line("%s\t%s\t%s\t%s\t%s\t%s", s.Name, s.State, localTime(s.Created), size(s.OverlayBytes), strings.Join(vms, ", "), on)
		}
	})
}

func (p *program) sessionShow(c *cli.Context) error {
	st, name, err := p.sessionArgument(c)
	if err != nil {
		return err
	}
	info, err := appliance.ShowSession(st, name)
	if err != nil {
		return err
	}
	if p.json {
		return p.printJSON(info)
	}
	fmt.Fprintf(p.stdout, "Session     %s (%s)\nCreated     %s\nRepository  %s\nOn disk     %s\n", info.Name, info.State, localTime(info.Created), info.RepoURL, size(info.OverlayBytes))
	if r := info.Recovery; r != nil {
		fmt.Fprintf(p.stdout, "On vSphere  %s: VM %q at %s, datastore %s on %s\n", r.State, printable(r.VM), r.Server, r.Datastore, printable(strings.Join(r.Hosts, ", ")))
		for _, s := range r.Steps {
			fmt.Fprintf(p.stdout, "            %s %.2f s\n", s.Name, s.Seconds)
		}
		for _, note := range r.Notes {
			fmt.Fprintf(p.stdout, "            note: %s\n", printable(note))
		}
	}
	for _, f := range info.Folders {
		fmt.Fprintf(p.stdout, "\n%s, restore point %s of %s\n  folder  %s/%s/%s\n", printable(f.VM), f.Point, localTime(f.Time), appliance.ExportPath, info.Name, f.Name)
		for _, d := range f.Disks {
			fmt.Fprintf(p.stdout, "  disk    %s, %s (%s)\n", d.Flat, size(d.Size), d.Label)
		}
	}
	if len(info.Kept) > 0 {
		fmt.Fprintf(p.stdout, "\nKept as %s\n", strings.Join(info.Kept, ", "))
	}
	return nil
}

func (p *program) sessionKeep(c *cli.Context) error {
	st, name, err := p.sessionArgument(c)
	if err != nil {
		return err
	}
	info, err := appliance.ShowSession(st, name)
	if err != nil {
		return err
	}
	show := newMeters(p.stderr)
	req := appliance.KeepRequest{Session: name, Tool: "lifeboat " + version, Started: showStore(show), Logger: p.log}
	keep := func() ([]*store.Point, error) { return st.Control().Keep(c.Context, req) }
	if !info.Served || !st.Control().Running(c.Context) {
		keep = func() (kept []*store.Point, err error) {
			err = p.withRepo(c.Context, func(repo *store.Repository) error {
				kept, err = appliance.KeepSession(c.Context, st, repo, req)
				return err
			})
			return kept, err
		}
	}
	kept, err := keep()
	if err != nil {
		show.abandon()
		return err
	}
	show.wait()
	if p.json {
		return p.printJSON(map[string]any{"session": name, "points": kept})
	}
	for _, pt := range kept {
		fmt.Fprintf(p.stdout, "Restore point %s of %s: read %s, new %s, stored %s.\n", pt.ID, printable(pt.VM), size(pt.ReadBytes), size(pt.NewBytes), size(pt.StoredBytes))
	}
	return nil
}

func (p *program) sessionAttach(c *cli.Context) error {
	st, name, err := p.sessionArgument(c)
	if err != nil {
		return err
	}
	if err := st.Control().Attach(c.Context, name); err != nil {
		return err
	}
	return p.say(map[string]string{"attached": name}, "Session %s is exported.\n", name)
}

func (p *program) sessionDetach(c *cli.Context) error {
	st, name, err := p.sessionArgument(c)
	if err != nil {
		return err
	}
	info, err := appliance.ShowSession(st, name)
	if err != nil {
		return err
	}
	if info.Recovery != nil {
		return fmt.Errorf("session %q is %w by the VM %q on %s: `lifeboat stop %s` or `lifeboat migrate %[1]s` ends it", name, appliance.ErrBusy, info.Recovery.VM, info.Recovery.Server, name)
	}
	if err := st.Control().Detach(c.Context, name); err != nil {
		return err
	}
	return p.say(map[string]string{"detached": name}, "Session %s is not exported any more.\n", name)
}

func (p *program) sessionDiscard(c *cli.Context) error {
	st, name, err := p.sessionArgument(c)
	if err != nil {
		return err
	}
	info, err := appliance.ShowSession(st, name)
	if err != nil {
		return err
	}
	if info.Recovery != nil {
		return fmt.Errorf("session %q is %w by the VM %q on %s: `lifeboat stop %s` takes that down and discards the session", name, appliance.ErrBusy, info.Recovery.VM, info.Recovery.Server, name)
	}
	if err := appliance.DiscardSession(st, name); err != nil {
		return err
	}
	p.releaseSession(c.Context, info.Session)
	if p.json {
		return p.printJSON(map[string]string{"discarded": name})
	}
	fmt.Fprintf(p.stdout, "Session %s and what was written in it are gone.\n", name)
	return nil
}

// releaseSession lets go of the restore points of a session that was discarded.
// Nobody is asked for a password for that: without it, the hold ends by itself.
func (p *program) releaseSession(ctx context.Context, rec *appliance.Session) {
	if rec.Hold == "" {
		return
	}
	err := errNoPassword
	if os.Getenv("LIFEBOAT_PASSWORD") != "" || os.Getenv("LIFEBOAT_PASSWORD_FILE") != "" || p.config.PasswordFile != "" {
		if p.config.Repo == "" {
			p.config.Repo = rec.RepoURL
		}
		err = p.withRepo(ctx, func(repo *store.Repository) error { return appliance.ReleaseSession(ctx, repo, rec) })
	}
	if err != nil {
		p.log.Warn("the session's restore points are still held in the repository; the hold ends by itself", "within", store.DefaultLastingLease, "error", err)
	}
}
