package main

import (
	"context"
	"os"

	"github.com/rogpeppe/go-internal/testscript"

	"lifeboat/internal/esxsim"
)

// guestDirCmd is `guestdir NAME DIR…`: a simulated vCenter with running VMs, each
// with a directory that stands for its guest (user root, password s3cret). The
// script's environment says where it is, as govc reads it.
func guestDirCmd(ts *testscript.TestScript, neg bool, args []string) {
	opts := esxsim.Options{Dir: ts.MkAbs("vsphere"), VMs: []esxsim.VMSpec{{Name: "bare", PowerOn: true}}}
	ts.Check(os.Mkdir(opts.Dir, 0o700))
	for i := 0; i+1 < len(args); i += 2 {
		opts.VMs = append(opts.VMs, esxsim.VMSpec{
			Name: args[i], PowerOn: true, Tools: true, GuestDir: ts.MkAbs(args[i+1]), GuestUser: "root", GuestPassword: "s3cret",
		})
	}
	sim, err := esxsim.Start(context.Background(), opts)
	ts.Check(err)
	ts.Defer(sim.Close)
	ts.Setenv("GOVC_URL", sim.URL().Host)
	ts.Setenv("GOVC_USERNAME", sim.Username())
	ts.Setenv("GOVC_PASSWORD", sim.Password())
	ts.Setenv("GOVC_TLS_KNOWN_HOSTS", sim.KnownHosts())
}
