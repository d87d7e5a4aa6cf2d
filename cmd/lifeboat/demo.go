package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"lifeboat/internal/demo"
)

func (p *program) demoCommand() *cli.Command {
	return &cli.Command{
		Name: "demo", Usage: "show the main job on a real machine: boot from a backup, survive a kill, move live", ArgsUsage: " ",
		Description: "With --vsphere the VM lives in a vCenter that is simulated; its guest and its disks are real.\n" +
			"Needs QEMU and, for the first run, Debian's packages (tools/provision.sh demo installs\n" +
			"what is missing). Uses a directory and a network namespace of its own and cleans both up.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "vsphere", Usage: "the story of a VM in a (simulated) vCenter: protect, lose, recover, migrate live"},
			&cli.StringFlag{Name: "cache", Usage: "keep the demo's Debian disk in `DIR`", Value: defaultCache()},
			&cli.StringFlag{Name: "work", Usage: "work in `DIR` instead of a temporary directory"},
			&cli.BoolFlag{Name: "keep", Usage: "leave the working directory, to look around in"},
			&cli.BoolFlag{Name: "console", Usage: "show what the VM prints on its console"},
		},
		Action: p.demo,
	}
}

func (p *program) demo(c *cli.Context) error {
	if err := arguments(c, 0, 0); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	opt := demo.Options{
		Binary: self, Arguments: os.Args[1:], CacheDir: c.String("cache"),
		WorkDir: c.String("work"), Keep: c.Bool("keep"), Out: p.stderr,
	}
	if opt.WorkDir != "" {
		opt.Keep = true // it is the user's directory
	}
	if c.Bool("console") {
		opt.Console = p.stderr
	}
	if c.Bool("vsphere") {
		err = demo.RunVSphere(c.Context, opt, func(r *demo.VSphereReport) error { return p.demoDone(r, r.WorkDir) })
	} else {
		err = demo.Run(c.Context, opt, func(r *demo.Report) error { return p.demoDone(r, r.WorkDir) })
	}
	var failed *demo.FailedError
	if errors.As(err, &failed) {
		return &toldError{code: failed.Code}
	}
	return err
}

func (p *program) demoDone(r interface{ Print(w io.Writer) error }, work string) error {
	if p.json {
		return p.printJSON(r)
	}
	if err := r.Print(p.stdout); err != nil {
		return err
	}
	fmt.Fprint(p.stdout, "\nWhere to look next: README.md for your own disks, docs/architecture.md for how it works,\ndocs/performance.md for measurements.")
	if work != "" {
		fmt.Fprintf(p.stdout, " The demo's repository is %s (password: lifeboat-demo).", filepath.Join(work, "repository"))
	} else {
		fmt.Fprint(p.stdout, " With --keep the demo leaves its repository to look around in.")
	}
	fmt.Fprintln(p.stdout)
	return nil
}

// toldError ends the program with a code when the reason was told already, by a
// process of ours.
type toldError struct{ code int }

func (e *toldError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

func defaultCache() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return filepath.Join(os.TempDir(), "lifeboat-cache")
	}
	return filepath.Join(dir, "lifeboat")
}
