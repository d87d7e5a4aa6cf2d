package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
)

func (p *program) filesGetCommand() *cli.Command {
	return &cli.Command{
		Name: "get", Usage: "take files, or directories with all that is in them, out of a guest", ArgsUsage: "PLACE… --output DIR | --tar FILE | --zip FILE",
		Description: "Places are of one restore point; after the first, POINT: may be left out.\n\n" +
			"To a directory files come with owner, permissions, times, extended attributes and ACLs as far\n" +
			"as the caller may set them; what was left out is said. Nothing is written over. A tar archive\n" +
			"(pax) has all of it, security descriptors and named streams of Windows too, a zip archive has\n" +
			"what zip has no room for in a file of its own. - is standard output.\n\n" + placeHelp,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write into a directory, `DIR`"},
			&cli.StringFlag{Name: "tar", Usage: "write a tar archive, `FILE`, or -"},
			&cli.StringFlag{Name: "zip", Usage: "write a zip archive, `FILE`, or -"},
			&cli.BoolFlag{Name: "devices", Usage: "make device nodes, too (root only)"},
			&cli.BoolFlag{Name: "force", Usage: "replace an existing archive"},
		}, keyFlags()...),
		Action: p.filesGet,
	}
}

func (p *program) filesGet(c *cli.Context) error {
	if err := arguments(c, 1, -1); err != nil {
		return err
	}
	n := 0
	for _, name := range []string{"output", "tar", "zip"} {
		if c.String(name) != "" {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("%w: say where to: one of --output DIR, --tar FILE and --zip FILE", appliance.ErrUsage)
	}
	return p.withFilesRepo(c.Context, func(repo *store.Repository) error {
		return p.withGuest(c, repo, func(g *appliance.Guest, place string) error {
			places := []string{place}
			for _, ref := range c.Args().Tail() {
				next, err := appliance.PlaceIn(c.Context, repo, g, ref)
				if err != nil {
					return err
				}
				places = append(places, next)
			}
			return p.get(c, g, places)
		})
	})
}

// get takes places out of a guest and says what came of it.
func (p *program) get(c *cli.Context, g *appliance.Guest, places []string) error {
	started := time.Now()
	show := newMeters(p.stderr)
	m := show.add(g.Point.VM)
	req := appliance.GetRequest{Places: places, Progress: func(files, done, total int64, _ bool) { m.count(files); m.set(done, total) }}
	result, err := p.getTo(c, g, req)
	if err != nil {
		show.abandon()
		return err
	}
	show.wait()
	took := time.Since(started)
	out := p.stdout
	if c.String("tar") == "-" || c.String("zip") == "-" {
		out = p.stderr
	}
	if p.json && out == p.stdout {
		err := p.printJSON(map[string]any{
			"point": g.Point.ID, "places": places, "output": c.String("output"), "tar": c.String("tar"), "zip": c.String("zip"),
			"files": result.Files, "bytes": result.Bytes, "left_out": result.LeftOut, "seconds": took.Seconds(),
		})
		return errors.Join(err, result.Err())
	}
	for _, l := range result.LeftOut {
		fmt.Fprintf(out, "left out: %s of %d files, such as %s: %s\n", l.What, l.Count, printable(l.Paths[0]), printable(l.Why))
	}
	fmt.Fprintf(out, "%d files, %s, in %s.\n", result.Files, size(result.Bytes), took.Round(10*time.Millisecond))
	return result.Err()
}

func (p *program) getTo(c *cli.Context, g *appliance.Guest, req appliance.GetRequest) (*appliance.GetResult, error) {
	if dir := c.String("output"); dir != "" {
		return g.GetToDir(c.Context, req, appliance.GetDirOptions{Output: dir, Devices: c.Bool("devices")})
	}
	name, write := c.String("tar"), g.GetToTar
	if name == "" {
		name, write = c.String("zip"), g.GetToZip
	}
	if name == "-" {
		if isTerminal(p.stdout) {
			return nil, fmt.Errorf("%w: an archive is not for a terminal: name a file, or redirect standard output", appliance.ErrUsage)
		}
		return write(c.Context, p.stdout, req)
	}
	return toFile(c.Context, name, c.Bool("force"), func(ctx context.Context, w io.Writer) (*appliance.GetResult, error) { return write(ctx, w, req) })
}

// toFile makes a file that appears when it is complete.
func toFile(ctx context.Context, name string, force bool, write func(context.Context, io.Writer) (*appliance.GetResult, error)) (*appliance.GetResult, error) {
	if info, err := os.Lstat(name); err == nil && (!force || !info.Mode().IsRegular()) {
		return nil, fmt.Errorf("%w: %s exists already; remove it or use --force", appliance.ErrUsage, name)
	}
	dir, base := filepath.Split(name)
	if dir == "" {
		dir = "."
	}
	f, err := os.CreateTemp(dir, "."+base+".part-*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	result, err := write(ctx, f)
	if err != nil {
		return result, err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return result, err
	}
	return result, os.Rename(f.Name(), name)
}
