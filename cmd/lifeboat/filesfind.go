package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) filesFindCommand() *cli.Command {
	return &cli.Command{
		Name: "find", Usage: "find files in a restore point, or in all of a VM's", ArgsUsage: "PLACE | VM[:PLACE]",
		Description: "Of a restore point, what is below PLACE is gone through. Of a VM, an index of the files of all its\n" +
			"restore points is asked, which first grows by the points that it does not know yet (`lifeboat files\n" +
			"index`): it tells since when and until when there was a file.\n\n" + placeHelp,
		Flags: append([]cli.Flag{
			&cli.StringSliceFlag{Name: "name", Usage: "files whose name fits `GLOB`; with a slash in it, whose path does"},
			&cli.StringSliceFlag{Name: "iname", Usage: "the same, without regard to case"},
			&cli.StringFlag{Name: "type", Usage: "files of a `TYPE`: file, dir, symlink, char, block, fifo, socket"},
			&cli.StringFlag{Name: "size", Usage: "files of `SIZE`: +10M is at least, -10M at most, 10M exactly"},
			&cli.StringFlag{Name: "newer", Usage: "files modified after `TIME`: 2026-11-21, 2026-11-21T10:00, or 3h, 7d ago"},
			&cli.StringFlag{Name: "older", Usage: "files modified before `TIME`"},
			&cli.BoolFlag{Name: "gone", Usage: "of a VM: files that the latest restore point does not have"},
		}, keyFlags()...),
		Action: p.filesFind,
	}
}

func (p *program) filesFind(c *cli.Context) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	q, err := fileQuery(c, time.Now())
	if err != nil {
		return err
	}
	return p.withFilesRepo(c.Context, func(repo *store.Repository) error {
		vm, place, err := appliance.ResolveVMPlace(c.Context, repo, c.Args().First())
		if err != nil {
			return err
		}
		if _, err := appliance.ResolveFile(c.Context, repo, c.Args().First()); err == nil {
			return p.withGuest(c, repo, func(g *appliance.Guest, place string) error { return p.findInPoint(c, g, place, q) })
		}
		q.Under = place
		return p.findInVM(c, repo, vm, q)
	})
}

func fileQuery(c *cli.Context, now time.Time) (q appliance.FileQuery, err error) {
	q.Names, q.Type = c.StringSlice("name"), c.String("type")
	if list := c.StringSlice("iname"); len(list) > 0 {
		if len(q.Names) > 0 {
			return q, fmt.Errorf("%w: use one of --name and --iname", appliance.ErrUsage)
		}
		q.Names, q.IgnoreCase = list, true
	}
	if q.MinSize, q.MaxSize, err = sizeRange(c.String("size")); err != nil {
		return q, err
	}
	if q.Newer, err = pastTime(c.String("newer"), now); err != nil {
		return q, err
	}
	if q.Older, err = pastTime(c.String("older"), now); err != nil {
		return q, err
	}
	return q, q.Validate()
}

// sizeRange reads +10M, -10M and 10M.
func sizeRange(s string) (from, to int64, err error) {
	if s == "" {
		return 0, 0, nil
	}
	number := strings.TrimLeft(s, "+-")
	unit := int64(1)
	if i := strings.IndexByte("KMGT", strings.ToUpper(number + " ")[max(0, len(number)-1)]); i >= 0 && number != "" {
		unit = 1 << (10 * (i + 1))
		number = number[:len(number)-1]
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return 0, 0, fmt.Errorf("%w: --size %q: write a number with K, M, G or T", appliance.ErrUsage, s)
	}
	n *= unit
	switch s[0] {
	case '+':
		return n, 0, nil
	case '-':
		return 0, max(n, 1), nil
	}
	return n, max(n, 1), nil
}

// pastTime reads a time, or how long ago it was.
func pastTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 {
			return now.AddDate(0, 0, -n), nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{"2006-01-02", "2006-01-02T15:04", "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02 15:04:05", time.RFC3339} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%w: time %q: write 2026-11-21, 2026-11-21T10:00, 3h or 7d", appliance.ErrUsage, s)
}

func (p *program) findInPoint(c *cli.Context, g *appliance.Guest, place string, q appliance.FileQuery) error {
	show := newSteps(p.stderr)
	found := []appliance.File{}
	unread := 0
	err := g.Find(c.Context, place, q, func(n int64) { show.set("files looked at", n, 0) }, func(f appliance.File) error {
		if f.Error != "" {
			unread++
			fmt.Fprintf(p.stderr, "%s: %s\n", printable(f.Path), printable(f.Error))
			return nil
		}
		if p.json {
			found = append(found, f)
			return nil
		}
		show.end()
		_, err := fmt.Fprintf(p.stdout, "%s\t%s\t%s\n", fileSize(f), fileTime(f.Modify), printable(f.Path))
		return err
	})
	show.end()
	if err == nil && p.json {
		err = p.printJSON(found)
	}
	if err == nil && unread > 0 {
		err = fmt.Errorf("%w: %d places could not be read", appliance.ErrPartial, unread)
	}
	return err
}

// withIndex opens the state directory for work on a VM's index.
func (p *program) withIndex(c *cli.Context, fn func(state *appliance.State, opts appliance.IndexOptions) error) error {
	state, err := appliance.OpenState(p.config.State)
	if err != nil {
		return err
	}
	guest, err := p.guestKeys(c)
	if err != nil {
		return err
	}
	show := newSteps(p.stderr)
	defer show.end()
	return fn(state, appliance.IndexOptions{Guest: guest, Progress: show.set})
}

func (p *program) findInVM(c *cli.Context, repo *store.Repository, vm string, q appliance.FileQuery) error {
	var found []appliance.FoundFile
	err := p.withIndex(c, func(state *appliance.State, opts appliance.IndexOptions) (err error) {
		found, err = appliance.FindAll(c.Context, repo, state, vm, q, opts)
		return err
	})
	if err != nil {
		return err
	}
	if c.Bool("gone") {
		left := []appliance.FoundFile{}
		for _, f := range found {
			if f.Gone {
				left = append(left, f)
			}
		}
		found = left
	}
	if p.json {
		return p.printJSON(found)
	}
	return p.table("SIZE\tMODIFIED\tVERSIONS\tFIRST IN\tLAST IN\tPATH", func(line func(string, ...any)) {
		for _, f := range found {
			last := localTime(f.Last.Time)
			if f.Gone {
				last += " (gone)"
			}
			line("%d\t%s\t%d\t%s\t%s\t%s", f.Size, localTime(f.Modify), f.Versions, localTime(f.First.Time), last, f.Path)
		}
	})
}

// filesVersions is `files ls --versions`.
func (p *program) filesVersions(c *cli.Context) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	return p.withFilesRepo(c.Context, func(repo *store.Repository) error {
		vm, place, err := appliance.ResolveVMPlace(c.Context, repo, c.Args().First())
		if err != nil {
			return err
		}
		if place == "" {
			return fmt.Errorf("%w: name a file: VM:/PATH", appliance.ErrUsage)
		}
		var list []appliance.FileVersion
		err = p.withIndex(c, func(state *appliance.State, opts appliance.IndexOptions) (err error) {
			list, err = appliance.FileVersions(c.Context, repo, state, vm, place, opts)
			return err
		})
		if err != nil {
			return err
		}
		if p.json {
			return p.printJSON(list)
		}
		return p.table("SIZE\tMODIFIED\tPOINTS\tFIRST\tLAST\tIN", func(line func(string, ...any)) {
			for _, v := range list {
				first, last := v.Points[0], v.Points[len(v.Points)-1]
				line("%d\t%s\t%d\t%s\t%s\t%s", v.Size, localTime(v.Modify), len(v.Points), localTime(first.Time), localTime(last.Time), last.Point)
			}
		})
	})
}

func (p *program) filesIndexCommand() *cli.Command {
	action := func(fn func(c *cli.Context, repo *store.Repository, vm string) error) cli.ActionFunc {
		return func(c *cli.Context) error {
			if err := arguments(c, 1, 1); err != nil {
				return err
			}
			return p.withFilesRepo(c.Context, func(repo *store.Repository) error { return fn(c, repo, c.Args().First()) })
		}
	}
	grow := func(rebuild bool) cli.ActionFunc {
		return action(func(c *cli.Context, repo *store.Repository, vm string) error {
			err := p.withIndex(c, func(state *appliance.State, opts appliance.IndexOptions) error {
				opts.Rebuild = rebuild
				return appliance.UpdateIndex(c.Context, repo, state, vm, opts)
			})
			if err != nil {
				return err
			}
			return p.indexStatus(c, repo, vm)
		})
	}
	return &cli.Command{
		Name: "index", Usage: "the index of a VM's files, which makes searches over all its restore points fast",
		Description: "It is kept in the state directory, grows by itself when it is needed, and holds names, sizes and times\n" +
			"of files, no content. Losing it loses nothing.",
		Subcommands: []*cli.Command{
			{Name: "status", Usage: "say what is in it", ArgsUsage: "VM", Action: action(p.indexStatus)},
			{Name: "update", Usage: "add the restore points that are missing", ArgsUsage: "VM", Flags: keyFlags(), Action: grow(false)},
			{Name: "rebuild", Usage: "make it anew", ArgsUsage: "VM", Flags: keyFlags(), Action: grow(true)},
			{Name: "drop", Usage: "remove it", ArgsUsage: "VM", Action: p.indexDrop},
		},
	}
}

func (p *program) indexStatus(c *cli.Context, repo *store.Repository, vm string) error {
	state, err := appliance.OpenState(p.config.State)
	if err != nil {
		return err
	}
	s, err := appliance.IndexStatusOf(c.Context, repo, state, vm)
	if err != nil {
		return err
	}
	if p.json {
		return p.printJSON(s)
	}
	if s.Bytes == 0 {
		fmt.Fprintf(p.stdout, "There is no index of %s. %d restore points would be in it.\n", printable(vm), s.Missing)
		return nil
	}
	fmt.Fprintf(p.stdout, "%d restore points of %s, %d versions of files, %s; %d points are missing.\n", s.Points, printable(vm), s.Rows, size(s.Bytes), s.Missing)
	for _, n := range s.Notes {
		fmt.Fprintln(p.stdout, printable(n))
	}
	return nil
}

func (p *program) indexDrop(c *cli.Context) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	state, err := appliance.OpenState(p.config.State)
	if err != nil {
		return err
	}
	dropped, err := appliance.DropIndex(state, c.Args().First())
	if err != nil {
		return err
	}
	if p.json {
		return p.printJSON(map[string]any{"vm": c.Args().First(), "dropped": dropped})
	}
	if !dropped {
		fmt.Fprintln(p.stdout, "There was none.")
	}
	return nil
}
