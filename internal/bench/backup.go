package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// backup: first backups of the system image into new repositories. Keys are
// derived and caches built by everybody; making the empty repository is not
// measured.
func (b *bench) backup(ctx context.Context) error {
	img, err := b.system(ctx)
	if err != nil {
		return err
	}
	if _, err := warm(img.path); err != nil {
		return err
	}
	all, err := b.archives(ctx, "first")
	if err != nil {
		return err
	}
	var sizes [][]sample
	var measures []measure
	for i, a := range all {
		defer a.remove()
		measures = append(measures, func(ctx context.Context) (sample, error) {
			if err := a.init(ctx); err != nil {
				return sample{}, err
			}
			used, err := a.backup(ctx, img.path)
			if err != nil {
				return sample{}, err
			}
			stored, err := warm(a.root())
			if i == 0 {
				sizes = append(sizes, nil)
			}
			last := len(sizes) - 1
			sizes[last] = append(sizes[last], sample{value: float64(stored) / (1 << 20)})
			return perData(img.data, used), err
		})
	}
	rows, err := b.rounds(ctx, b.opt.rounds, measures)
	if err != nil {
		return err
	}
	peers := names(all[1:])
	b.versus(Figure{What: fmt.Sprintf("first backup per core (%d MiB of data)", img.data>>20), Unit: "MB/CPU s", Target: 1.5}, peers, rows, true)
	b.versus(Figure{What: "first backup, stored", Unit: "MiB", Target: 1.1, AtMost: true}, peers, sizes, false)
	return nil
}

// archives is ours and the peers'.
func (b *bench) archives(ctx context.Context, suffix string) ([]place, error) {
	peers, err := b.peers(ctx, suffix)
	return append([]place{b.ours(suffix)}, peers...), err
}

// incremental: another backup after one block in a hundred has changed. Nobody
// is told which: all read the whole disk.
func (b *bench) incremental(ctx context.Context) error {
	img, err := b.system(ctx)
	if err != nil {
		return err
	}
	all, err := b.archives(ctx, "second")
	if err != nil {
		return err
	}
	file := b.path("changing.raw")
	defer os.Remove(file)
	if err := copyFile(ctx, img.path, file); err != nil {
		return err
	}
	var measures []measure
	for i, a := range all {
		defer a.remove()
		if err := a.init(ctx); err != nil {
			return err
		}
		if _, err := a.backup(ctx, file); err != nil {
			return err
		}
		round := uint64(0)
		measures = append(measures, func(ctx context.Context) (sample, error) {
			if i == 0 { // the others get what we got
				round++
				if err := changeBlocks(file, img, 100, round); err != nil {
					return sample{}, err
				}
			}
			used, err := a.backup(ctx, file)
			return perData(img.data, used), err
		})
	}
	rows, err := b.rounds(ctx, b.opt.rounds, measures)
	if err != nil {
		return err
	}
	b.versus(Figure{What: "second backup after 1 % of the blocks changed, whole disk read", Unit: "MB/CPU s", Target: 3}, names(all[1:]), rows, true)
	return nil
}

// changeBlocks gives one in so many blocks of the dense part another content,
// which is in no other place of the disk and compresses as well as the old one.
func changeBlocks(file string, img systemImage, oneIn int64, seed uint64) (err error) {
	const block = 64 << 10
	f, err := os.OpenFile(filepath.Clean(file), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Sync(), f.Close()) }()
	rng := rand.New(rand.NewPCG(seed, 2))
	p := make([]byte, block)
	for range img.data / block / oneIn {
		off := img.dense + rng.Int64N((img.size-img.dense)/block)*block
		if _, err := f.ReadAt(p, off); err != nil {
			return err
		}
		add := byte(1 + rng.IntN(255))
		for i := range p {
			p[i] += add
		}
		if _, err := f.WriteAt(p, off); err != nil {
			return err
		}
	}
	return nil
}

// restore: the disk comes back as a file, in memory so that no disk is
// measured.
func (b *bench) restore(ctx context.Context) error {
	img, err := b.system(ctx)
	if err != nil {
		return err
	}
	all, err := b.archives(ctx, "restore")
	if err != nil {
		return err
	}
	var measures []measure
	for _, a := range all {
		defer a.remove()
		if err := a.init(ctx); err != nil {
			return err
		}
		if _, err := a.backup(ctx, img.path); err != nil {
			return err
		}
		measures = append(measures, func(ctx context.Context) (sample, error) {
			to := filepath.Join(b.shm, "restored.raw")
			defer os.Remove(to)
			used, err := a.restore(ctx, to)
			if err != nil {
				return sample{}, err
			}
			return perData(img.data, used), sameFile(ctx, img.path, to)
		})
	}
	rows, err := b.rounds(ctx, b.opt.rounds, measures)
	if err != nil {
		return err
	}
	peers := names(all[1:])
	b.versus(Figure{What: "full restore to a raw file, per core", Unit: "MB/CPU s", Target: 2}, peers, rows, true)
	for _, row := range rows {
		for i := range row {
			row[i] = sample{value: row[i].notes["MB/s"]}
		}
	}
	b.versus(Figure{What: "full restore to a raw file, by the clock", Unit: "MB/s"}, peers, rows, true)
	return nil
}

// sameFile fails where a restored file is not what was backed up: a fast wrong
// restore is no figure.
func sameFile(ctx context.Context, want, got string) error {
	_, err := output(ctx, nil, "cmp", want, got)
	return err
}

// randomDepth is how many reads are under way at once.
const randomDepth = 8

// random: random 4 KiB reads of a dense disk, with nothing cached when they
// begin: ours as a hypervisor reads it, over NFS; the peers through their FUSE
// mounts.
func (b *bench) random(ctx context.Context) error {
	file, size, err := b.dense(ctx)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	all, err := b.archives(ctx, "random")
	if err != nil {
		return err
	}
	d := time.Duration(3 * b.opt.seconds * float64(time.Second))
	var measures []measure
	for _, a := range all {
		defer a.remove()
		if err := a.init(ctx); err != nil {
			return err
		}
		if _, err := a.backup(ctx, file); err != nil {
			return err
		}
		if own, ok := a.(*lifeboat); ok {
			measures = append(measures, b.publishedReads(own, size, d))
			continue
		}
		measures = append(measures, func(ctx context.Context) (_ sample, err error) {
			mounted, stop, err := a.mount(ctx)
			if err != nil {
				return sample{}, err
			}
			defer func() { err = errors.Join(err, stop()) }()
			return randomReads(ctx, mounted, randomDepth, d)
		})
	}
	rows, err := b.rounds(ctx, b.opt.rounds, measures)
	if err != nil {
		return err
	}
	f := Figure{What: fmt.Sprintf("random 4K of a restore point, %d at once, cold start", randomDepth), Unit: "reads/s", Target: 50}
	b.versus(f, names(all[1:]), rows, true)
	return nil
}

// publishedReads is random reads of the repository's last point over NFS.
func (b *bench) publishedReads(own *lifeboat, size int64, d time.Duration) measure {
	return func(ctx context.Context) (_ sample, err error) {
		e, err := own.publish(ctx, append(anyPorts(), "disk@latest")...)
		if err != nil {
			return sample{}, err
		}
		defer func() { err = errors.Join(err, e.stop()) }()
		r, n, err := b.drive(ctx, e.target(), work{"read", 4 << 10, randomDepth, "rand", size}, d.Seconds())
		return sample{float64(r.Ops) / r.Seconds, n}, err
	}
}

// dense makes a disk without holes.
func (b *bench) dense(ctx context.Context) (name string, size int64, err error) {
	name = b.path("dense.raw")
	f, err := os.Create(name)
	if err != nil {
		return "", 0, err
	}
	return name, imageFiller, errors.Join(fill(ctx, f, imageFiller), f.Sync(), f.Close())
}
