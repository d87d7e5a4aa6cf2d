package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) filesDiffCommand() *cli.Command {
	return &cli.Command{
		Name: "diff", Usage: "tell which files differ between two restore points, or the lines of one file", ArgsUsage: "POINT[:PLACE] POINT[:PLACE]",
		Description: "Of two files, the lines that differ are shown. Of directories, and of whole restore points, the files\n" +
			"that were created (+), changed (~), deleted (-) or renamed (>) from the first to the second. Only blocks\n" +
			"that differ are looked at; where a file system's reader cannot tell which files those are, both trees\n" +
			"are gone through, and that is said.\n\n" + placeHelp,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "verify", Usage: "compare `WHAT` of every file that was touched: content (default: size, times and where it was written)"},
			&cli.BoolFlag{Name: "walk", Usage: "go through both trees, even where blocks would tell"},
		}, keyFlags()...),
		Action: p.filesDiff,
	}
}

func (p *program) filesDiff(c *cli.Context) error {
	if err := arguments(c, 2, 2); err != nil {
		return err
	}
	if v := c.String("verify"); v != "" && v != "content" {
		return fmt.Errorf("%w: --verify %q: only content can be verified", appliance.ErrUsage, v)
	}
	opts, err := p.guestKeys(c)
	if err != nil {
		return err
	}
	return p.withFilesRepo(c.Context, func(repo *store.Repository) error {
		req := appliance.FilesDiffRequest{Content: c.String("verify") != "", Walk: c.Bool("walk"), Guest: opts}
		for i, ref := range []**appliance.FileRef{&req.A, &req.B} {
			if *ref, err = appliance.ResolveFile(c.Context, repo, c.Args().Get(i)); err != nil {
				return err
			}
		}
		started := time.Now()
		show := newSteps(p.stderr)
		req.Progress = show.set
		text, files, err := appliance.DiffPlaces(c.Context, repo, req)
		show.end()
		switch {
		case err != nil:
			return err
		case text != nil:
			return p.printTextDiff(text)
		}
		return p.printFilesDiff(files, time.Since(started))
	})
}

func (p *program) printTextDiff(d *appliance.TextDiff) error {
	switch {
	case p.json:
		return p.printJSON(d)
	case d.Same:
	case d.Binary:
		fmt.Fprintf(p.stdout, "The files differ (%s and %s).\n", size(d.SizeA), size(d.SizeB))
	case isTerminal(p.stdout): // which takes orders from a guest's file
		for line := range strings.Lines(d.Text) {
			parts := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
			for i := range parts {
				parts[i] = printable(parts[i])
			}
			fmt.Fprintln(p.stdout, strings.Join(parts, "\t"))
		}
	default:
		fmt.Fprint(p.stdout, d.Text)
	}
	return nil
}

func (p *program) printFilesDiff(d *appliance.FilesDiff, took time.Duration) error {
	if p.json {
		err := p.printJSON(map[string]any{
			"a": d.A, "b": d.B, "changes": d.Changes, "volumes": d.Volumes, "notes": d.Notes, "seconds": took.Seconds(),
		})
		return orWarnings(err, d.Notes)
	}
	signs := map[string]string{appliance.FileCreated: "+", appliance.FileChanged: "~", appliance.FileDeleted: "-", appliance.FileRenamed: ">"}
	for _, c := range d.Changes {
		line := signs[c.Status] + " " + c.Path
		if c.Type == "dir" {
			line += "/"
		}
		if c.From != "" {
			line += " (from " + c.From + ")"
		}
		if len(c.What) > 0 {
			line += "  [" + strings.Join(c.What, " ") + "]"
		}
		fmt.Fprintln(p.stdout, printable(line))
	}
	for _, v := range d.Volumes {
		if v.Why != "" {
			fmt.Fprintf(p.stderr, "%s: both trees were gone through: %s\n", printable(v.Volume), printable(v.Why))
		}
	}
	for _, n := range d.Notes {
		fmt.Fprintln(p.stderr, printable(n))
	}
	fmt.Fprintf(p.stderr, "%d files differ; compared in %s.\n", len(d.Changes), took.Round(10*time.Millisecond))
	return orWarnings(nil, d.Notes)
}

// orWarnings is an error, or that something was left out.
func orWarnings(err error, notes []string) error {
	if err == nil && len(notes) > 0 {
		return fmt.Errorf("%w: %d things could not be compared", appliance.ErrPartial, len(notes))
	}
	return err
}
