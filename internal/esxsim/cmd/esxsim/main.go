// Command esxsim serves a simulated vCenter until it is interrupted, for govc
// or anything else that speaks vSphere:
//
//	go run ./internal/esxsim/cmd/esxsim --listen 127.0.0.1:8989 --vm web=disk.qcow2 --boot
//
// When it is ready it prints one line of JSON with the address and the account.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"lifeboat/internal/esxsim"
)

func main() { os.Exit(code()) }

// code runs the program and returns its exit code.
func code() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout); {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, err)
		return 2
	default:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
}

var errUsage = errors.New("wrong usage")

// ready is what is printed when clients may come.
type ready struct {
	URL          string `json:"url"`
	Username     string `json:"username"`
	Password     string `json:"password"`
	Thumbprint   string `json:"thumbprint"`
	KnownHosts   string `json:"known_hosts"`
	CA           string `json:"ca"`
	Dir          string `json:"dir"`
	InstanceUUID string `json:"instance_uuid"`
}

func run(ctx context.Context, args []string, out *os.File) error {
	opts, err := parse(args)
	if err != nil {
		return err
	}
	if opts.Dir == "" {
		if opts.Dir, err = os.MkdirTemp("", "esxsim-scratch-"); err != nil {
			return err
		}
		defer os.RemoveAll(opts.Dir)
	}
	sim, err := esxsim.Start(ctx, opts)
	if err != nil {
		return err
	}
	defer sim.Close()
	u := sim.URL()
	u.User = nil
	err = json.NewEncoder(out).Encode(ready{
		URL: u.String(), Username: sim.Username(), Password: sim.Password(), Thumbprint: sim.Thumbprint(),
		KnownHosts: sim.KnownHosts(), CA: sim.CAFile(), Dir: opts.Dir, InstanceUUID: sim.InstanceUUID(),
	})
	if err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func parse(args []string) (esxsim.Options, error) {
	o := esxsim.Options{}
	f := flag.NewFlagSet("esxsim", flag.ContinueOnError)
	f.StringVar(&o.Listen, "listen", "127.0.0.1:8989", "loopback `address` of the API")
	f.StringVar(&o.Dir, "dir", "", "`directory` for datastores (default: a temporary one)")
	f.StringVar(&o.Username, "username", "", "account (default: administrator@vsphere.local)")
	f.StringVar(&o.Password, "password", "", "its password (default: a random one, printed)")
	f.IntVar(&o.Hosts, "hosts", 0, "`number` of hosts in the cluster (default: 2)")
	f.BoolVar(&o.Standalone, "standalone", false, "one ESXi host, no vCenter")
	f.BoolVar(&o.Boot, "boot", false, "power-on starts QEMU")
	on := f.Bool("power-on", false, "power the VMs on")
	cbt := f.Bool("cbt", false, "changed block tracking is on")
	memory := f.Int("memory", 0, "memory of each VM in `MiB`")
	verbose := f.Bool("verbose", false, "log to stderr")
	f.Func("vm", "`name=disk[,disk…]`: a VM with copies of raw, qcow2 or vmdk files; repeat for more", func(s string) error {
		name, disks, ok := strings.Cut(s, "=")
		if !ok || name == "" || disks == "" {
			return errors.New("want name=disk[,disk…]")
		}
		vm := esxsim.VMSpec{Name: name, Tools: true}
		for _, d := range strings.Split(disks, ",") {
			vm.Disks = append(vm.Disks, esxsim.DiskSpec{From: d})
		}
		o.VMs = append(o.VMs, vm)
		return nil
	})
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, fmt.Errorf("%w: %w", errUsage, err)
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("%w: unexpected %q", errUsage, f.Arg(0))
	}
	for i := range o.VMs {
		o.VMs[i].PowerOn, o.VMs[i].CBT, o.VMs[i].MemoryMB = *on, *cbt, *memory
	}
	if *verbose {
		o.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return o, nil
}
