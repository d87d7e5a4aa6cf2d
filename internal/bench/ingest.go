package main

import (
	"context"
	"fmt"
	"os"
)

// ingest: a first backup of the system image against its conversion to a zstd
// qcow2 file. The repository is new each time; deriving its key from the
// password is paid for by us.
func (b *bench) ingest(ctx context.Context) error {
	img, err := b.system(ctx)
	if err != nil {
		return err
	}
	if _, err := warm(img.path); err != nil {
		return err
	}
	qcow2 := b.path("ingest.qcow2")
	var sizes []pair
	var last pair
	ours := func(ctx context.Context) (sample, error) {
		s, stored, err := b.ingestOnce(ctx, img)
		last.ours = sample{value: float64(stored) / (1 << 20)}
		return s, err
	}
	peer := func(ctx context.Context) (sample, error) {
		defer os.Remove(qcow2)
		_, used, err := convert(ctx, img.path, qcow2)
		if err != nil {
			return sample{}, err
		}
		st, err := os.Stat(qcow2)
		if err != nil {
			return sample{}, err
		}
		last.peer = sample{value: float64(st.Size()) / (1 << 20)}
		sizes = append(sizes, last)
		return rate(img, used), nil
	}
	f := Figure{What: fmt.Sprintf("ingest per core (%d MiB of data)", img.data>>20), Unit: "MB/CPU s", PeerName: "qemu-img convert -c, zstd", Target: 0.75}
	if err := b.compare(ctx, f, min(b.opt.rounds, 5), ours, peer); err != nil {
		return err
	}
	b.add(Figure{What: "stored size", Unit: "MiB", PeerName: f.PeerName, Target: 1.1, AtMost: true}.from(sizes))
	return nil
}

// ingestOnce returns the rate and what the whole repository takes.
func (b *bench) ingestOnce(ctx context.Context, img systemImage) (sample, int64, error) {
	r, err := b.newRepo(ctx, "ingest")
	if err != nil {
		return sample{}, 0, err
	}
	defer r.remove()
	_, used, err := r.backup(ctx, "system", img.path)
	if err != nil {
		return sample{}, 0, err
	}
	stored, err := warm(r.url)
	return rate(img, used), stored, err
}

func rate(img systemImage, u usage) sample {
	mb := float64(img.data) / 1e6
	return sample{mb / u.cpu.Seconds(), notes{"MB/s": mb / u.wall.Seconds(), "peak RSS MiB": float64(u.peakRSS >> 20)}}
}
