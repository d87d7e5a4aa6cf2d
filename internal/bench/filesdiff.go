package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"lifeboat/appliance"
	"lifeboat/store"
)

// The disk on which two restore points are compared: a million blocks of 4 KiB, of
// which about 10,000 change.
const (
	vmDiff        = "diff"
	diffDisk      = 4 << 30 // bytes
	diffBlock     = 4 << 10
	diffFiles     = 20_000
	diffTarget    = 1000 // ms
	rewritten     = 8    // files that get another content
	rewrittenSize = 4 << 20
)

// changes: what differs between two restore points, and whether it is all.
func (g *guests) changes(ctx context.Context) error {
	want, blocks, err := g.changingGuest(ctx)
	if err != nil {
		return err
	}
	for _, walk := range []bool{false, true} {
		f := Figure{What: fmt.Sprintf("files diff, %d of %d blocks changed", blocks, diffDisk/diffBlock), Unit: "ms", Target: diffTarget, AtMost: true}
		if walk {
			f.What, f.Target = "the same by a walk through both trees", 0
		}
		err := g.b.alone(ctx, f, g.b.opt.rounds, func(ctx context.Context) (sample, error) { return g.diffOnce(ctx, want, walk) })
		if err != nil {
			return err
		}
	}
	return nil
}

// diffOnce compares the last two points with nothing cached.
func (g *guests) diffOnce(ctx context.Context, want map[string]string, walk bool) (_ sample, err error) {
	repo, err := appliance.OpenRepository(ctx, g.repo.url, []byte(password), store.Options{CacheBytes: filesCache})
	if err != nil {
		return sample{}, err
	}
	defer func() { err = errors.Join(err, repo.Close()) }()
	all, err := repo.Points(ctx)
	if err != nil {
		return sample{}, err
	}
	var pts []*store.Point
	for _, p := range all {
		if p.VM == vmDiff {
			pts = append(pts, p)
		}
	}
	if len(pts) != 2 {
		return sample{}, fmt.Errorf("%d restore points of %s", len(pts), vmDiff)
	}
	began := instant{time.Now(), sessionCPU()}
	diff, err := appliance.DiffFiles(ctx, repo, appliance.FilesDiffRequest{
		A: &appliance.FileRef{Point: pts[0]}, B: &appliance.FileRef{Point: pts[1]}, Walk: walk,
		Guest: appliance.GuestOptions{Logger: quiet(), Backend: appliance.BackendNative},
	})
	took := time.Since(began.at)
	if err != nil {
		return sample{}, err
	}
	if method := diff.Volumes[0].Method; walk != (method == appliance.DiffByWalk) {
		return sample{}, fmt.Errorf("compared by %s: %s", method, diff.Volumes[0].Why)
	}
	found := map[string]string{}
	for _, c := range diff.Changes {
		found[filepath.Base(c.Path)] = c.Status
	}
	recalled := 0
	for name, status := range want {
		if found[name] != status {
			return sample{}, fmt.Errorf("%s was %s, and is told as %q", name, status, found[name])
		}
		recalled++
	}
	return sample{milliseconds(took), notes{
		"changes told": float64(len(diff.Changes)), "changes made, all found": float64(recalled), "inodes looked at": float64(diff.Volumes[0].Inodes),
		"CPU ms of the appliance": milliseconds(ownCPU() - began.cpu),
	}}, nil
}

// changingGuest backs a guest up, changes it and backs it up again. It returns what
// changed, by the name of the file, and how many blocks of the disk that were.
func (g *guests) changingGuest(ctx context.Context) (want map[string]string, blocks int, err error) {
	if err := g.format(ctx, vmDiff, diffDisk, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096"); err != nil {
		return nil, 0, err
	}
	err = g.within(ctx, vmDiff, "ext4", "", func(dir string) error {
		if err := smallFiles(ctx, dir, diffFiles, true); err != nil {
			return err
		}
		for i := range rewritten {
			if err := g.copyData(filepath.Join(dir, rewrittenName(i)), rewrittenSize); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	before := g.image(vmDiff) + ".before"
	defer os.Remove(before)
	if _, _, err := g.repo.backup(ctx, vmDiff, g.image(vmDiff)); err != nil {
		return nil, 0, err
	}
	if err := copyFile(ctx, g.image(vmDiff), before); err != nil {
		return nil, 0, err
	}
	err = g.within(ctx, vmDiff, "ext4", "", func(dir string) (err error) {
		want, err = changeFiles(dir)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	if blocks, err = differing(before, g.image(vmDiff)); err != nil {
		return nil, 0, err
	}
	_, _, err = g.repo.backup(ctx, vmDiff, g.image(vmDiff))
	return want, blocks, err
}

func rewrittenName(i int) string { return fmt.Sprintf("rewritten %d", i) }

// changeFiles makes, changes, moves and removes files, and says which.
func changeFiles(dir string) (map[string]string, error) {
	want := map[string]string{}
	for i := 0; i < diffFiles; i += 20 {
		folder, name := smallFile(dir, i)
		path := filepath.Join(folder, name)
		var err error
		switch i / 20 % 4 {
		case 0:
			want[name], err = "deleted", os.Remove(path)
		case 1:
			want[name], err = "changed", os.WriteFile(path, fmt.Appendf(nil, "another content of %d", i), 0o644)
		case 2:
			moved := fmt.Sprintf("moved %d", i)
			want[moved], err = "renamed", os.Rename(path, filepath.Join(dir, moved))
		case 3:
			made := fmt.Sprintf("made %d", i)
			want[made], err = "created", os.WriteFile(filepath.Join(folder, made), []byte("new"), 0o600)
		}
		if err != nil {
			return nil, err
		}
	}
	for i := range rewritten {
		f, err := os.OpenFile(filepath.Join(dir, rewrittenName(i)), os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		_, err = f.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, rewrittenSize), 0)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		want[rewrittenName(i)] = "changed"
	}
	return want, nil
}

// differing counts the blocks in which two files of one size differ.
func differing(a, b string) (n int, err error) {
	fa, err := openHost(a)
	if err != nil {
		return 0, err
	}
	defer fa.Close()
	fb, err := openHost(b)
	if err != nil {
		return 0, err
	}
	defer fb.Close()
	pa, pb := make([]byte, readChunk), make([]byte, readChunk)
	for off := int64(0); off < fa.size; off += readChunk {
		x, errA := fa.ReadAt(pa, off)
		y, errB := fb.ReadAt(pb, off)
		if err := errors.Join(errA, errB); x != y || err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("at %d: %d and %d bytes: %w", off, x, y, err)
		}
		if bytes.Equal(pa[:x], pb[:x]) {
			continue
		}
		for i := 0; i < x; i += diffBlock {
			if !bytes.Equal(pa[i:i+diffBlock], pb[i:i+diffBlock]) {
				n++
			}
		}
	}
	return n, nil
}
