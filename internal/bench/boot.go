package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"lifeboat/internal/guestimage"
	"lifeboat/internal/qemu"
)

// bootWithin bounds one boot under software emulation.
const bootWithin = 5 * time.Minute

// prompt is what the guest prints when somebody can work with it.
func prompt() *regexp.Regexp { return regexp.MustCompile(`login: `) }

// boot: the same machine on three disks. Each boot has a fresh copy, or a fresh
// server with nothing cached; nothing of the host's is dropped.
func (b *bench) boot(ctx context.Context) (err error) {
	r, disk, err := b.guestRepo(ctx, "boot", 1)
	if err != nil {
		return err
	}
	defer r.remove()
	accel, why := qemu.ChooseAccel(ctx, "")
	if why != nil {
		b.sayf("software emulation: %v", why)
	}
	raw := b.path("boot.raw")
	dir, err := b.exportDir("boot")
	if err != nil {
		return err
	}
	ours := func(ctx context.Context) (_ sample, err error) {
		e, err := r.publish(ctx, "--nfs-port", "0", "--mount-port", "0", "vm0@latest")
		if err != nil {
			return sample{}, err
		}
		defer func() { err = errors.Join(err, e.stop()) }()
		took, err := b.bootOnce(ctx, accel, e.disk(0))
		return sample{took.Seconds(), notes{"with publish s": (e.ready + took).Seconds()}}, err
	}
	local := func(ctx context.Context) (sample, error) {
		if err := copyFile(ctx, disk, raw); err != nil {
			return sample{}, err
		}
		took, err := b.bootOnce(ctx, accel, raw)
		return sample{value: took.Seconds()}, err
	}
	overGanesha := func(ctx context.Context) (_ sample, err error) {
		if err := copyFile(ctx, disk, dir+"/boot.raw"); err != nil {
			return sample{}, err
		}
		g, err := b.startGanesha(ctx, dir)
		if err != nil {
			return sample{}, err
		}
		defer func() { err = errors.Join(err, g.stop()) }()
		took, err := b.bootOnce(ctx, accel, "nfs://127.0.0.1"+dir+"/boot.raw")
		return sample{value: took.Seconds()}, err
	}
	f := Figure{What: "boot to login prompt from the backup, caches cold", Unit: "s", PeerName: "raw file, local", Target: 1.15, AtMost: true}
	if err := b.compare(ctx, f, b.opt.rounds, ours, local); err != nil {
		return err
	}
	f.What, f.PeerName, f.Target = "boot to login prompt from the backup, same nfs: driver", "raw file, nfs-ganesha", 0
	return b.compare(ctx, f, min(b.opt.rounds, 3), ours, overGanesha)
}

// disk is the URL of the first disk of folder n, for QEMU.
func (e *export) disk(n int) string {
	f := e.Folders[n]
	return "nfs://" + e.NFS.Addr().String() + f.Path + "/" + f.Disks[0]
}

// guestRepo makes a repository with the Debian disk backed up as VMs vm0, vm1…
func (b *bench) guestRepo(ctx context.Context, name string, vms int) (*repo, string, error) {
	disk, err := guestDisk(ctx, b.out)
	if err != nil {
		return nil, "", err
	}
	r, err := b.newRepo(ctx, name)
	if err != nil {
		return nil, "", err
	}
	for i := range vms {
		if _, _, err := r.backup(ctx, fmt.Sprintf("vm%d", i), disk); err != nil {
			return nil, "", err
		}
	}
	return r, disk, nil
}

// startGuest starts the machine that all sections boot.
func startGuest(ctx context.Context, name string, accel qemu.Accel, disk string) (*qemu.Machine, error) {
	return qemu.Start(ctx, qemu.Options{Name: name, Accel: accel, MemoryMiB: 256, Disks: []qemu.Disk{{Path: disk}}})
}

func (b *bench) bootOnce(ctx context.Context, accel qemu.Accel, disk string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	begin := time.Now()
	m, err := startGuest(ctx, "bench", accel, disk)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	if _, _, err := m.Console().Expect(ctx, prompt()); err != nil {
		return 0, err
	}
	took := time.Since(begin)
	// Only a guest that has come up properly counts.
	_, err = guestimage.Login(ctx, m.Console())
	return took, err
}
