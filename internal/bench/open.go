package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"lifeboat/appliance"
	"lifeboat/store"
)

// Two disks with the same little in them.
const (
	hugeDisk  = 62 << 40
	smallDisk = 1 << 30
	islands   = 64
	island    = 256 << 10
)

// open: the time from the command to its word that clients may come, for a disk
// as large as ESXi makes them and for a small one.
func (b *bench) open(ctx context.Context) error {
	r, err := b.newRepo(ctx, "open")
	if err != nil {
		return err
	}
	defer r.remove()
	for vm, size := range map[string]int64{"huge": hugeDisk, "small": smallDisk} {
		file, err := b.sparse(ctx, vm, size)
		if err != nil {
			return err
		}
		if _, _, err := r.backup(ctx, vm, file); err != nil {
			return err
		}
		if err := os.Remove(file); err != nil {
			return err
		}
	}
	publish := func(vm string) measure {
		return func(ctx context.Context) (sample, error) {
			e, err := r.publish(ctx, append(anyPorts(), vm+"@latest")...)
			if err != nil {
				return sample{}, err
			}
			return sample{value: e.ready.Seconds() * 1000}, e.stop()
		}
	}
	f := Figure{What: "publish: 62 TiB point against 1 GiB point, command to ready", Unit: "ms", PeerName: "1 GiB", Target: 2, AtMost: true}
	if err := b.compare(ctx, f, b.opt.rounds, publish("huge"), publish("small")); err != nil {
		return err
	}
	f.What = "open and read the first and the last block, in process, without the password's work"
	return b.compare(ctx, f, 4*b.opt.rounds, b.openOnce(r, "huge"), b.openOnce(r, "small"))
}

// openOnce opens a point with nothing cached and reads at both ends.
func (b *bench) openOnce(r *repo, vm string) measure {
	return func(ctx context.Context) (_ sample, err error) {
		repo, err := appliance.OpenRepository(ctx, r.url, []byte(password), store.Options{})
		if err != nil {
			return sample{}, err
		}
		defer func() { err = errors.Join(err, repo.Close()) }()
		begin := time.Now()
		pt, err := appliance.ResolvePoint(ctx, repo, vm+"@latest")
		if err != nil {
			return sample{}, err
		}
		img, err := repo.OpenDisk(ctx, pt, 0)
		if err != nil {
			return sample{}, err
		}
		defer img.Close()
		p := make([]byte, 4096)
		for _, off := range []int64{0, img.Size() - island} {
			if _, err := img.ReadAt(p, off); err != nil {
				return sample{}, err
			}
		}
		return sample{value: time.Since(begin).Seconds() * 1000}, nil
	}
}

// sparse makes a disk with islands of data from its first to its last byte.
func (b *bench) sparse(ctx context.Context, name string, size int64) (string, error) {
	from, err := b.filler(ctx)
	if err != nil {
		return "", err
	}
	src, err := os.Open(from)
	if err != nil {
		return "", err
	}
	defer src.Close()
	// ext4 ends a file at 16 TiB: a huge disk is qcow2.
	file := b.path(name + ".qcow2")
	if _, err := output(ctx, nil, "qemu-img", "create", "-q", "-f", "qcow2", file, fmt.Sprint(size)); err != nil {
		return "", err
	}
	args := []string{"-f", "qcow2"}
	piece := b.path("island")
	for i := range int64(islands) {
		p := make([]byte, island)
		if _, err := src.ReadAt(p, i*island); err != nil {
			return "", err
		}
		name := fmt.Sprintf("%s-%d", piece, i)
		if err := os.WriteFile(name, p, 0o600); err != nil {
			return "", err
		}
		defer os.Remove(name)
		off := (size - island) / (islands - 1) * i &^ (64<<10 - 1)
		if i == islands-1 {
			off = size - island
		}
		args = append(args, "-c", fmt.Sprintf("write -q -s %s %d %d", name, off, island))
	}
	_, err = output(ctx, nil, "qemu-io", append(args, file)...)
	return file, err
}
