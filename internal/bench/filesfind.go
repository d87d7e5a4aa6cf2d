package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"lifeboat/appliance"
	"lifeboat/disk"
	"lifeboat/store"
)

// The VM whose restore points are searched.
const (
	vmFind     = "find"
	findPoints = 200
	findFiles  = 50_000
	findTarget = 500 // ms
)

// search: files by name in all restore points of a VM.
func (g *guests) search(ctx context.Context) error {
	if err := g.history(ctx); err != nil {
		return err
	}
	state, err := appliance.OpenState(filepath.Join(g.repo.dir, "state"))
	if err != nil {
		return err
	}
	build := func(ctx context.Context) (sample, error) {
		return g.opened(ctx, func(repo *store.Repository) error {
			return appliance.UpdateIndex(ctx, repo, state, vmFind, appliance.IndexOptions{Guest: appliance.GuestOptions{Logger: quiet()}, Rebuild: true})
		})
	}
	what := fmt.Sprintf("%d restore points with %d files", findPoints, findFiles)
	if err := g.b.alone(ctx, Figure{What: "building the index of " + what, Unit: "ms"}, 1, build); err != nil {
		return err
	}
	for _, q := range []struct {
		what  string
		query appliance.FileQuery
		least int
	}{
		{"one name", appliance.FileQuery{Names: []string{"file 4321"}}, 1},
		{"a pattern that fits hundreds", appliance.FileQuery{Names: []string{"made *"}}, findPoints},
	} {
		f := Figure{What: "find over " + what + ", indexed: " + q.what, Unit: "ms", Target: findTarget, AtMost: true}
		err := g.b.alone(ctx, f, g.b.opt.rounds, func(ctx context.Context) (sample, error) {
			return g.opened(ctx, func(repo *store.Repository) error {
				found, err := appliance.FindAll(ctx, repo, state, vmFind, q.query, appliance.IndexOptions{Guest: appliance.GuestOptions{Logger: quiet()}})
				if err == nil && len(found) < q.least {
					err = fmt.Errorf("%d found", len(found))
				}
				return err
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// opened measures fn on the repository, just opened.
func (g *guests) opened(ctx context.Context, fn func(*store.Repository) error) (_ sample, err error) {
	repo, err := appliance.OpenRepository(ctx, g.repo.url, []byte(password), store.Options{CacheBytes: filesCache})
	if err != nil {
		return sample{}, err
	}
	defer func() { err = errors.Join(err, repo.Close()) }()
	began := instant{time.Now(), sessionCPU()}
	err = fn(repo)
	return sample{milliseconds(time.Since(began.at)), notes{"CPU ms of the appliance": milliseconds(ownCPU() - began.cpu)}}, err
}

// history backs a guest up again and again, while a few files of it change.
func (g *guests) history(ctx context.Context) (err error) {
	// Content of a few bytes stands in the inode: the disk stays small.
	if err := g.format(ctx, vmFind, 1<<30, "mke2fs", "-q", "-F", "-t", "ext4", "-N", "60000", "-O", "inline_data", "-I", "256"); err != nil {
		return err
	}
	repo, err := appliance.OpenRepository(ctx, g.repo.url, []byte(password), store.Options{CacheBytes: filesCache})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, repo.Close()) }()
	for n := range findPoints {
		err := g.within(ctx, vmFind, "ext4", "", func(dir string) error {
			if n == 0 {
				return smallFiles(ctx, dir, findFiles, false)
			}
			return someDay(dir, n)
		})
		if err != nil {
			return err
		}
		req := appliance.BackupDisksRequest{VM: vmFind, Files: []string{g.image(vmFind)}, Format: disk.FormatRaw}
		if _, err := appliance.BackupDisks(ctx, repo, req); err != nil {
			return err
		}
	}
	return nil
}

// someDay is what happens to a guest's files between two backups.
func someDay(dir string, n int) error {
	var errs []error
	for i := range 5 {
		at := (n*5 + i) * 7 % findFiles
		folder, name := smallFile(dir, at)
		errs = append(errs,
			os.WriteFile(filepath.Join(folder, name), fmt.Appendf(nil, "day %d", n), 0o644),
			os.WriteFile(filepath.Join(folder, fmt.Sprintf("made %d-%d", n, i)), []byte("new"), 0o644),
		)
	}
	if n > 10 {
		folder, _ := smallFile(dir, (n-10)*5*7%findFiles)
		errs = append(errs, os.Remove(filepath.Join(folder, fmt.Sprintf("made %d-0", n-10))))
	}
	return errors.Join(errs...)
}
