package main

import (
	"fmt"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/disk"
	"lifeboat/store"
)

func (p *program) backupCommand() *cli.Command {
	return &cli.Command{
		Name:  "backup",
		Usage: "make restore points",
		Subcommands: []*cli.Command{{
			Name:      "disk",
			Usage:     "back disk files (raw, qcow2, vmdk) up as one VM",
			ArgsUsage: "--vm NAME FILE…",
			Description: "The files are told apart by content. With an earlier restore point of the VM only\n" +
				"what differs is stored; holes in sparse files are not read. With --changed only the\n" +
				"areas listed there are read: JSON lines {\"disk\":0,\"offset\":0,\"length\":65536}.",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "vm", Usage: "`NAME` of the VM"},
				&cli.StringFlag{Name: "changed", Usage: "`FILE` that lists what may differ since the VM's last point; - is standard input"},
				&cli.StringFlag{Name: "format", Usage: "the files are raw, qcow2 or vmdk (default: told by content, which a guest can forge on a raw disk)"},
				&cli.BoolFlag{Name: "full", Usage: "read and look up everything, whatever earlier points say"},
				&cli.IntFlag{Name: "workers", Usage: "use `N` goroutines to hash and compress", DefaultText: "one per CPU"},
			},
			Action: p.backupDisk,
		}, p.backupVMCommand()},
	}
}

func (p *program) backupDisk(c *cli.Context) error {
	req := appliance.BackupDisksRequest{
		Format: disk.Format(c.String("format")), VM: c.String("vm"), Files: c.Args().Slice(), Full: c.Bool("full"), Workers: c.Int("workers"), Tool: "lifeboat " + version,
	}
	if req.VM == "" {
		return fmt.Errorf("%w: name the VM with --vm", appliance.ErrUsage)
	}
	if printable(req.VM) != req.VM {
		return fmt.Errorf("%w: --vm %q: a name has no control characters", appliance.ErrUsage, req.VM)
	}
	if err := arguments(c, 1, -1); err != nil {
		return err
	}
	switch req.Format {
	case "", disk.FormatRaw, disk.FormatQCOW2, disk.FormatVMDK:
	default:
		return fmt.Errorf("%w: --format %q: use raw, qcow2 or vmdk", appliance.ErrUsage, req.Format)
	}
	if req.Full && c.IsSet("changed") {
		return fmt.Errorf("%w: --full and --changed contradict each other", appliance.ErrUsage)
	}
	if name := c.String("changed"); name != "" {
		changed, err := p.readChanges(name)
		if err != nil {
			return err
		}
		req.Changed = changed
	}
	started := time.Now()
	show := newMeters(p.stderr)
	req.Started = showStore(show)
	return p.withRepo(c.Context, func(repo *store.Repository) error {
		pt, err := appliance.BackupDisks(c.Context, repo, req)
		if err != nil {
			show.abandon()
			return err
		}
		show.wait()
		if p.json {
			return p.printJSON(pt)
		}
		fmt.Fprintf(p.stdout, "Restore point %s of %s: read %s, new %s, stored %s, in %s.\n",
			pt.ID, pt.VM, size(pt.ReadBytes), size(pt.NewBytes), size(pt.StoredBytes), time.Since(started).Round(10*time.Millisecond))
		return nil
	})
}

func (p *program) readChanges(name string) (map[int][]disk.Extent, error) {
	if name == "-" {
		return appliance.ReadChanges(p.stdin)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("list of changes: %w", err)
	}
	defer f.Close()
	return appliance.ReadChanges(f)
}

// showStore gives each disk that is stored a meter.
func showStore(show *meters) func(int, string, int64) func(store.Progress) {
	return func(_ int, name string, _ int64) func(store.Progress) {
		m := show.add(name)
		return func(pr store.Progress) { m.set(pr.Done, pr.Total) }
	}
}
