package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// What changes between the two backups of the section "changed".
const (
	changedBytes = 1 << 30
	changedIn    = 64 // areas, from the first to the last byte of the disk
	mediumDisk   = 10 << 30
)

// changed: a second backup with the changed areas known, of a disk as large as
// ESXi makes them and of a small one, in which the same has changed.
func (b *bench) changed(ctx context.Context) error {
	huge, err := b.changingDisk(ctx, "changed-huge", hugeDisk)
	if err != nil {
		return err
	}
	defer huge.remove()
	medium, err := b.changingDisk(ctx, "changed-medium", mediumDisk)
	if err != nil {
		return err
	}
	defer medium.remove()
	var wall, cpu []pair
	for round := range b.opt.rounds {
		order := []measure{huge.second, medium.second}
		if round%2 == 1 { // whoever is first pays for what was there before
			slices.Reverse(order)
		}
		rows, err := b.rounds(ctx, 1, order)
		if err != nil {
			return err
		}
		row := rows[0]
		if round%2 == 1 {
			slices.Reverse(row)
		}
		wall = append(wall, pair{sample{value: row[0].notes["s"]}, sample{value: row[1].notes["s"]}})
		cpu = append(cpu, pair{row[0], row[1]})
	}
	f := Figure{What: "second backup, 1 GiB of known changes: 62 TiB disk against 10 GiB disk", Unit: "s", PeerName: "10 GiB", Target: 1.2, AtMost: true}
	b.add(f.from(wall))
	f.What, f.Unit = f.What+", processor time", "CPU s"
	b.add(f.from(cpu))
	return nil
}

// changingDisk is a disk whose first backup is in a repository and which has
// changed since.
type changingDisk struct {
	b     *bench
	first *repo
	file  string
	list  string // of the changed areas
}

func (b *bench) changingDisk(ctx context.Context, name string, size int64) (*changingDisk, error) {
	r, err := b.newRepo(ctx, name)
	if err != nil {
		return nil, err
	}
	file, err := b.sparse(ctx, name, size)
	if err != nil {
		return nil, err
	}
	d := &changingDisk{b: b, first: r, file: file, list: b.path(name + ".changed")}
	if _, _, err := r.backup(ctx, "disk", file); err != nil {
		return nil, err
	}
	return d, d.change(ctx, size)
}

// change writes the new data into the disk and the list of where they are.
func (d *changingDisk) change(ctx context.Context, size int64) error {
	img, err := d.b.system(ctx)
	if err != nil {
		return err
	}
	src, err := os.Open(img.path)
	if err != nil {
		return err
	}
	defer src.Close()
	list, err := os.Create(d.list)
	if err != nil {
		return err
	}
	defer list.Close()
	enc := json.NewEncoder(list)
	const area = changedBytes / changedIn
	piece := d.b.path("area")
	defer os.Remove(piece)
	p := make([]byte, area)
	for i := range int64(changedIn) {
		if _, err := src.ReadAt(p, img.dense+i*area); err != nil {
			return err
		}
		if err := os.WriteFile(piece, p, 0o600); err != nil {
			return err
		}
		off := (size - area) / (changedIn - 1) * i &^ (64<<10 - 1)
		if _, err := output(ctx, nil, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q -s %s %d %d", piece, off, area), d.file); err != nil {
			return err
		}
		if err := enc.Encode(map[string]int64{"disk": 0, "offset": off, "length": area}); err != nil {
			return err
		}
	}
	return nil
}

// second backs up once more, into a copy of the repository with the first
// backup, so that every round does the same.
func (d *changingDisk) second(ctx context.Context) (_ sample, err error) {
	dir := d.b.path("changed-copy")
	if err := os.RemoveAll(dir); err != nil {
		return sample{}, err
	}
	defer os.RemoveAll(dir)
	if _, err := output(ctx, nil, "cp", "-a", d.first.dir, dir); err != nil {
		return sample{}, err
	}
	r := &repo{b: d.b, dir: dir, url: filepath.Join(dir, "repository")}
	out, used, err := timed(ctx, r.env(), d.b.opt.binary, "--json", "backup", "disk", "--vm", "disk", "--changed", d.list, d.file)
	if err != nil {
		return sample{}, err
	}
	var p point
	if err := json.Unmarshal(out, &p); err != nil {
		return sample{}, err
	}
	if p.Read != changedBytes {
		err = errors.Join(err, fmt.Errorf("%d bytes were read, %d have changed", p.Read, int64(changedBytes)))
	}
	return sample{used.cpu.Seconds(), notes{"s": used.wall.Seconds(), "read MiB": float64(p.Read >> 20)}}, err
}

func (d *changingDisk) remove() {
	d.first.remove()
	_ = os.Remove(d.file)
	_ = os.Remove(d.list)
}
