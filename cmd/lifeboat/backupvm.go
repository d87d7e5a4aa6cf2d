package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"lifeboat/appliance"
	"lifeboat/store"
	"lifeboat/vsphere"
)

func (p *program) backupVMCommand() *cli.Command {
	return &cli.Command{
		Name:      "vm",
		Usage:     "back VMs of a vCenter or ESXi host up",
		ArgsUsage: "PATTERN…",
		Description: "A PATTERN is a name (web01, web*), a folder and a name (prod/web/*), folder:PATH,\n" +
			"tag:NAME, tag:CATEGORY/NAME, pool:NAME, host:NAME, datastore:NAME, dc:NAME, or the\n" +
			"UUID of a VM. Only what changed since a VM's last restore point is read, where\n" +
			"vSphere tracks changes; tracking is switched on where it is off, and checked now and\n" +
			"then. The snapshot that a backup takes is always removed; one that could not be is\n" +
			"removed by the next command that talks to the vCenter.",
		Flags: slices.Concat(vcenterFlags(), selectFlags(), readFlags(), limitFlags()),
		Action: func(c *cli.Context) error {
			if c.Bool("list") {
				return p.listVMs(c)
			}
			return p.backupVM(c)
		},
	}
}

func selectFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "all", Usage: "all VMs, except those that run from a restore point"},
		&cli.StringSliceFlag{Name: "exclude", Usage: "leave out what fits `PATTERN` (may be given again)"},
		&cli.StringSliceFlag{Name: "exclude-disk", Usage: "leave out disks with that `LABEL`, such as \"Hard disk 2\" (may be given again)"},
		&cli.BoolFlag{Name: "list", Usage: "list the VMs that would be backed up"},
	}
}

func readFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "full", Usage: "read everything, whatever change tracking says"},
		&cli.IntFlag{Name: "audit-every", Usage: "check change tracking every `N` backups of a disk by reading all of it; 0: never", Value: 10},
		&cli.BoolFlag{Name: "no-quiesce", Usage: "do not bring the guest's file systems to rest: crash-consistent"},
		&cli.BoolFlag{Name: "keep-swap", Usage: "store swap space and page files, too"},
		&cli.StringFlag{Name: "transport", Usage: "read disks by `NAME` (file, hotadd, nbdssl, nbd, san, folder, nfc), or several in their order with commas between", DefaultText: "the best that works"},
		&cli.StringFlag{Name: "vddk", Usage: "VMware's library is in `DIR`", EnvVars: []string{"LIFEBOAT_VDDK"}},
		&cli.StringSliceFlag{Name: "datastore-path", Usage: "a datastore is mounted here: `NAME=DIR` (may be given again)"},
		&cli.IntFlag{Name: "workers", Usage: "use `N` goroutines to hash and compress", DefaultText: "one per CPU"},
	}
}

func limitFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "vms", Usage: "back `N` VMs up at once", Value: 4},
		&cli.IntFlag{Name: "host-streams", Usage: "read `N` disks of VMs on one host at once", Value: 7},
		&cli.IntFlag{Name: "datastore-streams", Usage: "read `N` disks on one datastore at once", Value: 4},
		&cli.IntFlag{Name: "streams", Usage: "write `N` disks to the repository at once", Value: 8},
		&cli.StringFlag{Name: "bandwidth", Usage: "read at most `BYTES` per second, such as 100M", DefaultText: "no limit"},
		&cli.DurationFlag{Name: "max-latency", Usage: "read less at once while reads of a datastore take longer than `TIME`; 0: never", Value: 250 * time.Millisecond},
	}
}

// backupVMRequest is what flags and arguments ask for.
func (p *program) backupVMRequest(c *cli.Context) (req appliance.BackupVMsRequest, err error) {
	req = appliance.BackupVMsRequest{
		Patterns: c.Args().Slice(), All: c.Bool("all"), Exclude: c.StringSlice("exclude"), ExcludeDisks: c.StringSlice("exclude-disk"),
		Full: c.Bool("full"), AuditEvery: c.Int("audit-every"), NoQuiesce: c.Bool("no-quiesce"), KeepSwap: c.Bool("keep-swap"),
		Limits: appliance.Limits{
			VMs: c.Int("vms"), PerHost: c.Int("host-streams"), PerDatastore: c.Int("datastore-streams"), Repository: c.Int("streams"),
			MaxLatency: c.Duration("max-latency"),
		},
		Tool: "lifeboat " + version, Workers: c.Int("workers"), Logger: p.log,
	}
	if req.All && len(req.Patterns) > 0 {
		return req, fmt.Errorf("%w: --all and names contradict each other", appliance.ErrUsage)
	}
	if !req.All && len(req.Patterns) == 0 {
		return req, fmt.Errorf("%w: name the VMs, or use --all", appliance.ErrUsage)
	}
	for _, name := range []string{"vms", "host-streams", "datastore-streams", "streams"} {
		if c.Int(name) < 1 {
			return req, fmt.Errorf("%w: --%s %d: use 1 or more", appliance.ErrUsage, name, c.Int(name))
		}
	}
	if req.AuditEvery <= 0 {
		req.AuditEvery = -1
	}
	if req.Limits.MaxLatency <= 0 {
		req.Limits.MaxLatency = -1
	}
	if v := c.String("bandwidth"); v != "" {
		if req.Limits.Bandwidth, err = parseBytes(v); err != nil {
			return req, fmt.Errorf("%w: --bandwidth %q: %w", appliance.ErrUsage, v, err)
		}
	}
	req.Transports, err = transports(c)
	return req, err
}

// transports are the ways to the disks that flags name.
func transports(c *cli.Context) (t appliance.Transports, err error) {
	t.Only = c.String("transport")
	t.Library.Dir = c.String("vddk")
	for _, pair := range c.StringSlice("datastore-path") {
		name, dir, ok := strings.Cut(pair, "=")
		if !ok || name == "" || dir == "" {
			return t, fmt.Errorf("%w: --datastore-path %q: write NAME=DIR", appliance.ErrUsage, pair)
		}
		if t.Datastores == nil {
			t.Datastores = map[string]string{}
		}
		if t.Datastores[name], err = filepath.Abs(dir); err != nil {
			return t, err
		}
	}
	return t, nil
}

// parseBytes reads a number of bytes with an optional K, M, G or T (powers of
// 1024).
func parseBytes(s string) (int64, error) {
	shift := 0
	if i := strings.IndexByte("KMGT", s[len(s)-1]&^0x20); i >= 0 {
		shift, s = 10*(i+1), s[:len(s)-1]
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 || n > 1<<62>>shift {
		return 0, errors.New("use a number of bytes with an optional K, M, G or T")
	}
	return n << shift, nil
}

func (p *program) backupVM(c *cli.Context) error {
	req, err := p.backupVMRequest(c)
	if err != nil {
		return err
	}
	opts, err := p.vcenterOptions(c)
	if err != nil {
		return err
	}
	login := &req.Transports.Login
	login.Username, login.Password, login.Thumbprint = opts.Username, opts.Password, opts.Thumbprint
	show := newMeters(p.stderr)
	req.Started = func(vm, disk string, _ int64) func(store.Progress) {
		m := show.add(printable(vm + ", " + disk))
		return func(pr store.Progress) { m.set(pr.Done, pr.Total) }
	}
	req.Ended = func(r *appliance.VMResult) { p.log.Info("VM done", "vm", r.VM, "status", r.Status, "point", r.Point) }
	return p.withRepo(c.Context, func(repo *store.Repository) error {
		return p.withVCenter(c, func(client *vsphere.Client, state *appliance.State) error {
			report, err := state.BackupVMs(c.Context, repo, client, req)
			if err != nil && !errors.Is(err, appliance.ErrPartial) {
				show.abandon()
			} else {
				show.wait()
			}
			if report != nil && len(report.VMs) > 0 {
				err = errors.Join(err, p.printVMs(report))
			}
			return err
		})
	})
}

// printVMs prints what became of the VMs.
func (p *program) printVMs(report *appliance.VMBackupReport) error {
	if p.json {
		return p.printJSON(report)
	}
	err := p.table("VM\tSTATUS\tPOINT\tCONSISTENCY\tTRANSPORT\tREAD\tNEW\tSTORED\tTIME\tCALLS", func(line func(string, ...any)) {
		for _, r := range report.VMs {
			line("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d", r.VM, string(r.Status), dash(r.Point), dash(string(r.Consistency)), dash(r.Transport),
				size(r.ReadBytes), size(r.NewBytes), size(r.StoredBytes), time.Duration(r.Seconds*float64(time.Second)).Round(10*time.Millisecond).String(), r.Calls)
		}
	})
	for _, r := range report.VMs {
		for _, text := range r.Notes {
			fmt.Fprintf(p.stdout, "%s: %s\n", printable(r.VM), printable(text))
		}
		for _, text := range r.Warnings {
			fmt.Fprintf(p.stdout, "%s: warning: %s\n", printable(r.VM), printable(text))
		}
		if r.Error != "" && len(report.VMs) > 1 {
			fmt.Fprintf(p.stdout, "%s: %s: %s\n", printable(r.VM), r.Status, printable(r.Error))
		}
	}
	return err
}

func dash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}

// listedVM is a VM as `backup vm --list` shows it.
type listedVM struct {
	VM     string             `json:"vm"`
	ID     string             `json:"vm_id"`
	Folder string             `json:"folder"`
	Host   string             `json:"host"`
	Power  vsphere.PowerState `json:"power"`
	CBT    bool               `json:"cbt"`
	Disks  int                `json:"disks"`
	Size   int64              `json:"size"`
	Tags   []string           `json:"tags,omitempty"`
}

func (p *program) listVMs(c *cli.Context) error {
	patterns := c.Args().Slice()
	client, err := p.vcenter(c)
	if err != nil {
		return err
	}
	defer client.Close(c.Context)
	chosen, err := appliance.SelectVMs(c.Context, client, appliance.BackupVMsRequest{
		Patterns: patterns, All: c.Bool("all") || len(patterns) == 0, Exclude: c.StringSlice("exclude"),
	})
	if err != nil {
		return err
	}
	list := make([]listedVM, len(chosen))
	for i, vm := range chosen {
		list[i] = listedVM{VM: vm.Name, ID: vm.Identity.String(), Folder: vm.Folder, Host: vm.Host, Power: vm.Power, CBT: vm.CBT, Disks: len(vm.Disks), Tags: vm.Tags}
		for _, d := range vm.Disks {
			list[i].Size += d.Size
		}
	}
	if p.json {
		return p.printJSON(map[string]any{"vms": list})
	}
	return p.table("VM\tFOLDER\tHOST\tPOWER\tTRACKED\tDISKS\tSIZE", func(line func(string, ...any)) {
		for _, v := range list {
			line("%s\t%s\t%s\t%s\t%s\t%d\t%s", v.VM, dash(v.Folder), v.Host, string(v.Power), map[bool]string{true: "yes", false: "no"}[v.CBT], v.Disks, size(v.Size))
		}
	})
}
