package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) rebuildCommand() *cli.Command {
	return &cli.Command{
		Name: "rebuild", Usage: "bring a repository back of which only restore points, segments and a key are left", ArgsUsage: " ",
		Description: "Makes anew what is missing: the header, the record of which segment numbers were given out,\n" +
			"and the dedupe index. What is there stays as it is; no backup should be running. Pins, policies\n" +
			"and repository settings that are lost have to be set again; boot traces and the results of\n" +
			"verifications come back with use. Running recoveries live in the state directory, not in the\n" +
			"repository.",
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0); err != nil {
				return err
			}
			if p.config.Repo == "" {
				return fmt.Errorf("%w: no repository named: use --repo or LIFEBOAT_REPO", appliance.ErrUsage)
			}
			return p.rebuild(c)
		},
	}
}

func (p *program) rebuild(c *cli.Context) error {
	pw, err := p.password(false)
	if err != nil {
		return err
	}
	started := time.Now()
	show := newMeters(p.stderr)
	m := show.add("segments")
	out, err := appliance.RebuildRepository(c.Context, appliance.RebuildRequest{
		URL: p.config.Repo, Password: pw, Options: store.Options{Logger: p.log}, State: p.config.State,
		// A segment is about 64 MiB.
		Progress: func(done, total int64) { m.set(done<<26, total<<26) },
	})
	if out == nil {
		show.abandon()
		return err
	}
	show.wait()
	if p.json {
		if perr := p.printJSON(out); err == nil {
			err = perr
		}
		return err
	}
	p.printRebuilt(out, time.Since(started))
	return err
}

func (p *program) printRebuilt(out *appliance.Rebuilt, took time.Duration) {
	header, claims := "was there", "were there"
	if out.HeaderRestored {
		header = "written anew from a key"
	}
	if out.ClaimRestored {
		claims = "were lost; no segment number will be given out twice"
	}
	fmt.Fprintf(p.stdout, "Header          %s\nClaims          %s\nIndex           made anew: %d blocks in %d segments\nRestore points  %d can be read",
		header, claims, out.Blobs, out.Segments, out.Points)
	if n := len(out.DamagedPoints); n > 0 {
		fmt.Fprintf(p.stdout, ", %d cannot", n)
	}
	fmt.Fprintf(p.stdout, "\nRecoveries      %d in %s\nDone in %s. `lifeboat verify` checks what the restore points need.\n",
		out.Sessions, p.config.State, took.Round(10*time.Millisecond))
	if out.Sessions == 0 {
		fmt.Fprintln(p.stdout, "If a recovery was running, what its VM wrote was in the state directory of its appliance and is not here.")
	}
}
