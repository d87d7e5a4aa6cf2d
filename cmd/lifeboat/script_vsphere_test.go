package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"lifeboat/appliance"
	"lifeboat/internal/esxsim"
)

// scriptSims are the simulated vSpheres of all scripts; scripts run one after
// another.
var scriptSims = map[string]*esxsim.Sim{}

// vsphereCmd is `vsphere NAME=FILE…`: a simulated vCenter with a VM for each disk
// image. The script's environment says where it is, as govc reads it. $ADDR is an
// address for Lifeboat's server, which is stopped at the end.
func vsphereCmd(ts *testscript.TestScript, neg bool, args []string) {
	if os.Geteuid() != 0 {
		ts.Fatalf("needs root, for port 111: guard the script with [root]")
	}
	opts := esxsim.Options{Dir: ts.MkAbs("vsphere")}
	ts.Check(os.Mkdir(opts.Dir, 0o700))
	for _, arg := range args {
		name, file, ok := strings.Cut(arg, "=")
		if !ok {
			ts.Fatalf("%q: want NAME=FILE", arg)
		}
		opts.VMs = append(opts.VMs, esxsim.VMSpec{Name: name, Tools: true, Disks: []esxsim.DiskSpec{{From: ts.MkAbs(file)}}})
	}
	sim, err := esxsim.Start(context.Background(), opts)
	ts.Check(err)
	ts.Defer(sim.Close)
	scriptSims[ts.Getenv("WORK")] = sim
	ts.Setenv("GOVC_URL", sim.URL().Host)
	ts.Setenv("GOVC_USERNAME", sim.Username())
	ts.Setenv("GOVC_PASSWORD", sim.Password())
	ts.Setenv("GOVC_TLS_KNOWN_HOSTS", sim.KnownHosts())
	ts.Setenv("ADDR", fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(255), 1+rand.IntN(254)))
	state := ts.Getenv("LIFEBOAT_STATE")
	ts.Defer(func() { stopServerOf(ts, state) })
}

// stopServerOf ends the server that a script's commands have started, and waits
// until it is gone.
func stopServerOf(ts *testscript.TestScript, state string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	st, err := appliance.OpenState(state)
	ts.Check(err)
	status, err := st.Control().Status(ctx)
	if err != nil {
		return
	}
	ts.Check(st.Control().Stop(ctx))
	for ctx.Err() == nil {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", status.PID)); err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("the server, process %d, does not end", status.PID)
}

// guest is `guest VM write OFFSET FILE` and `guest VM read FILE`: what a VM's
// guest does with its first disk.
func guest(ts *testscript.TestScript, neg bool, args []string) {
	vm := scriptSims[ts.Getenv("WORK")].VM(args[0])
	if vm == nil {
		ts.Fatalf("there is no VM %q", args[0])
	}
	switch args[1] {
	case "write":
		data, err := os.ReadFile(ts.MkAbs(args[3]))
		ts.Check(err)
		ts.Check(vm.WriteDisk(0, data, number(ts, args[2])))
		ts.Check(vm.SyncDisk(0))
	case "read":
		data := make([]byte, vm.DiskSize(0))
		ts.Check(vm.ReadDisk(0, data, 0))
		ts.Check(os.WriteFile(ts.MkAbs(args[2]), data, 0o600))
	default:
		ts.Fatalf("guest: no operation %q", args[1])
	}
}
