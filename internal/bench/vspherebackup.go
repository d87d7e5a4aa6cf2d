package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"lifeboat/internal/esxsim"
	"lifeboat/vddk/vddktest"
)

// vmBackup is what `backup vm` prints.
type vmBackup struct {
	VMs []struct {
		Point     string  `json:"point"`
		Transport string  `json:"transport"`
		Read      int64   `json:"read_bytes"`
		Seconds   float64 `json:"seconds"`
	} `json:"vms"`
}

// vsphereCalls: what a backup of a VM in which nothing has changed asks of the
// vCenter, counted there: the login and the inventory included.
func (b *bench) vsphereCalls(ctx context.Context) (err error) {
	l, err := b.newVSphereLab(ctx, "calls", esxsim.VMSpec{Name: "idle", Tools: true, PowerOn: true, Disks: []esxsim.DiskSpec{{Size: 64 << 20}}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	backup := func(ctx context.Context) (sample, error) {
		before := l.calls()
		var doc vmBackup
		if _, err := l.do(ctx, &doc, "backup", "vm", "idle"); err != nil || len(doc.VMs) != 1 {
			return sample{}, fmt.Errorf("%d VMs were backed up: %w", len(doc.VMs), err)
		}
		return sample{float64(l.calls() - before), notes{"read bytes": float64(doc.VMs[0].Read)}}, nil
	}
	if _, err := backup(ctx); err != nil { // the first has all to read, and to switch tracking on
		return err
	}
	return b.repeat(ctx, Figure{What: "backup of an unchanged VM: calls to the vCenter", Unit: "calls", Target: 25, AtMost: true}, backup)
}

func (l *vsphereLab) calls() int {
	n := 0
	for _, count := range l.sim.Calls() {
		n += count
	}
	return n
}

// vsphereTransports: a first backup through the network's transports against one
// of the same bytes from the datastore's own file. Each is into a new repository.
func (b *bench) vsphereTransports(ctx context.Context) (err error) {
	filler, err := b.filler(ctx)
	if err != nil {
		return err
	}
	l, err := b.newVSphereLab(ctx, "transports", esxsim.VMSpec{Name: "full", PowerOn: true, Disks: []esxsim.DiskSpec{{From: filler}}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	folder := l.sim.DatastoreDir("datastore1")
	library, err := b.fakeLibrary("[datastore1] full/full.vmdk", filepath.Join(folder, "full", "full-flat.vmdk"))
	if err != nil {
		return err
	}
	local := l.fullBackup("file", "--datastore-path", "datastore1="+folder)
	f := Figure{What: "first backup through /folder", Unit: "MB/s", PeerName: "the local file", Target: 0.7}
	if err := b.compare(ctx, f, b.opt.rounds, l.fullBackup("folder"), local); err != nil {
		return err
	}
	f.What = "first backup through (a stand-in for) VMware's library"
	return b.compare(ctx, f, b.opt.rounds, l.fullBackup("nbdssl", "--vddk", library), local)
}

// fullBackup backs the VM up into a new repository and returns the rate.
func (l *vsphereLab) fullBackup(transport string, flags ...string) measure {
	return func(ctx context.Context) (sample, error) {
		r, err := l.b.newRepo(ctx, "transport")
		if err != nil {
			return sample{}, err
		}
		defer r.remove()
		r.extra = l.extra
		lab := &vsphereLab{repo: r, sim: l.sim}
		var doc vmBackup
		args := append([]string{"backup", "vm", "full", "--transport", transport}, flags...)
		used, err := lab.do(ctx, &doc, args...)
		if err != nil {
			return sample{}, err
		}
		if len(doc.VMs) != 1 || doc.VMs[0].Transport != transport || doc.VMs[0].Read < fillerBytes*9/10 {
			return sample{}, fmt.Errorf("backed up by %s: %+v", transport, doc.VMs)
		}
		return sample{float64(doc.VMs[0].Read) / 1e6 / doc.VMs[0].Seconds, notes{"CPU s": used.cpu.Seconds()}}, nil
	}
}

// fakeLibrary installs our stand-in for VMware's library, which knows one disk.
func (b *bench) fakeLibrary(path, file string) (string, error) {
	dir := b.path("vddk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	programs, err := vddktest.Build(dir)
	if err != nil {
		return "", err
	}
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o700); err != nil {
		return "", err
	}
	fake, err := programs.Install(root)
	if err != nil {
		return "", err
	}
	return root, fake.Disk(path, file)
}
