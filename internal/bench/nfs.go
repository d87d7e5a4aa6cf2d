package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// target is a file on a server, for the load client.
type target struct {
	nfs, mount string // ports
	dir, file  string
	pid        int // of the server
}

// work is what the load client does.
type work struct {
	op    string // see tools/nfsload
	size  int    // bytes of each operation
	depth int    // calls under way
	order string // rand or seq
	span  int64  // the part of the file that is used, in bytes
}

// hotSpan is what the hot rows read: half of our cache, so that the cache's own
// rules do not matter, and far more than a processor's.
const hotSpan = 128 << 20

// drive runs the load client for some seconds. Both sides get the same from the
// same program; notes tell what the server spent on it.
func (b *bench) drive(ctx context.Context, t target, w work, seconds float64) (loadResult, notes, error) {
	var r loadResult
	before, err := cpuTime(t.pid)
	if err != nil {
		return r, nil, err
	}
	out, err := output(ctx, nil, b.load, "127.0.0.1", t.nfs, t.mount, t.dir, t.file, w.op, strconv.Itoa(w.size),
		strconv.Itoa(w.depth), strconv.FormatFloat(seconds, 'f', 2, 64), w.order, strconv.FormatInt(w.span, 10))
	if err != nil {
		return r, nil, err
	}
	if err := json.Unmarshal(out, &r); err != nil || r.Ops == 0 || r.Seconds <= 0 {
		return r, nil, fmt.Errorf("nfsload printed %q: %w", out, err)
	}
	after, err := cpuTime(t.pid)
	spent := float64((after - before).Microseconds())
	return r, notes{"p50 µs": r.P50, "p99 µs": r.P99, "server CPU µs/op": spent / float64(r.Ops)}, err
}

// loadResult is what nfsload prints.
type loadResult struct {
	Ops     int64   `json:"ops"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
	P50     float64 `json:"p50_us"`
	P99     float64 `json:"p99_us"`
}

// iops and megabytes turn a load into a measure.
func (b *bench) iops(t target, w work) measure {
	return func(ctx context.Context) (sample, error) {
		r, n, err := b.drive(ctx, t, w, b.opt.seconds)
		return sample{float64(r.Ops) / r.Seconds, n}, err
	}
}

func (b *bench) megabytes(t target, w work) measure {
	return func(ctx context.Context) (sample, error) {
		r, n, err := b.drive(ctx, t, w, b.opt.seconds)
		return sample{float64(r.Bytes) / 1e6 / r.Seconds, n}, err
	}
}

// settled lets the server put its affairs in order after each measurement.
func settled(pid int, m measure) measure {
	return func(ctx context.Context) (sample, error) {
		s, err := m(ctx)
		return s, errors.Join(err, settle(ctx, pid))
	}
}

// nfsRow is a figure that the load client measures.
type nfsRow struct {
	what   string
	work   work
	rate   func(*bench, target, work) measure
	unit   string
	target float64
}

func (b *bench) nfsRow(ctx context.Context, row nfsRow, ours, peer target, guard func(int, measure) measure) error {
	f := Figure{What: row.what, Unit: row.unit, PeerName: "nfs-ganesha", Target: row.target}
	return b.compare(ctx, f, b.opt.rounds,
		guard(ours.pid, row.rate(b, ours, row.work)), guard(peer.pid, row.rate(b, peer, row.work)))
}

func immediately(_ int, m measure) measure { return m }

// nfsReads: a published point, hot, against the raw file in memory (tmpfs).
func (b *bench) nfsReads(ctx context.Context) (err error) {
	file, err := b.filler(ctx)
	if err != nil {
		return err
	}
	r, err := b.fillerRepo(ctx)
	if err != nil {
		return err
	}
	if err := copyFile(ctx, file, b.shm+"/hot.raw"); err != nil {
		return err
	}
	g, err := b.startGanesha(ctx, b.shm)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop()) }()
	e, err := r.publish(ctx, append(anyPorts(), "filler@latest")...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.stop()) }()

	ours, peer := e.target(), g.target("hot.raw")
	whole := work{"read", 1 << 20, 8, "seq", hotSpan}
	for _, t := range []target{ours, peer} { // twice around the span: a cache may want to see a block twice
		for r := (loadResult{}); r.Bytes < 3*hotSpan; {
			more, _, err := b.drive(ctx, t, whole, 1)
			if err != nil {
				return err
			}
			r.Bytes += more.Bytes
		}
	}
	for _, row := range []nfsRow{
		{"NFS READ 4K QD32, hot", work{"read", 4 << 10, 32, "rand", hotSpan}, (*bench).iops, "IOPS", 6},
		{"NFS READ 4K QD1, hot", work{"read", 4 << 10, 1, "rand", hotSpan}, (*bench).iops, "IOPS", 1.3},
		{"NFS READ 64K QD32, hot", work{"read", 64 << 10, 32, "rand", hotSpan}, (*bench).megabytes, "MB/s", 1.3},
		{"NFS READ 1M sequential QD8, hot", whole, (*bench).megabytes, "MB/s", 1.2},
		{"NFS GETATTR QD32", work{"getattr", 0, 32, "rand", hotSpan}, (*bench).iops, "IOPS", 10},
	} {
		if err := b.nfsRow(ctx, row, ours, peer, immediately); err != nil {
			return err
		}
	}
	return nil
}

// nfsWrites: FILE_SYNC to a published point against ganesha writing in place to
// an allocated file, both on the disk that the working directory is on.
func (b *bench) nfsWrites(ctx context.Context) (err error) {
	file, err := b.filler(ctx)
	if err != nil {
		return err
	}
	r, err := b.fillerRepo(ctx)
	if err != nil {
		return err
	}
	dir, err := b.exportDir("writes")
	if err != nil {
		return err
	}
	if err := copyFile(ctx, file, dir+"/target.raw"); err != nil {
		return err
	}
	g, err := b.startGanesha(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop()) }()
	e, err := r.publish(ctx, append(anyPorts(), "filler@latest")...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.stop()) }()

	ours, peer := e.target(), g.target("target.raw")
	small := work{"writesync", 4 << 10, 32, "rand", fillerBytes}
	for _, t := range []target{ours, peer} {
		if _, _, err := b.drive(ctx, t, small, 1); err != nil {
			return err
		}
	}
	for _, row := range []nfsRow{
		{"NFS WRITE FILE_SYNC 4K QD32", small, (*bench).iops, "IOPS", 3},
		{"NFS WRITE FILE_SYNC 4K QD1", work{"writesync", 4 << 10, 1, "rand", fillerBytes}, (*bench).iops, "IOPS", 1.8},
		{"NFS WRITE FILE_SYNC 64K QD32", work{"writesync", 64 << 10, 32, "rand", fillerBytes}, (*bench).megabytes, "MB/s", 1.4},
	} {
		if err := b.nfsRow(ctx, row, ours, peer, settled); err != nil {
			return err
		}
	}
	return b.sustained(ctx, small, ours, peer)
}

// sustained writes for long enough that nothing can be put off: logs fill and
// checkpoints run within it.
func (b *bench) sustained(ctx context.Context, w work, ours, peer target) error {
	seconds := 10 * b.opt.seconds
	long := func(t target) measure {
		return settled(t.pid, func(ctx context.Context) (sample, error) {
			r, n, err := b.drive(ctx, t, w, seconds)
			return sample{float64(r.Ops) / r.Seconds, n}, err
		})
	}
	f := Figure{What: fmt.Sprintf("NFS WRITE FILE_SYNC 4K QD32, sustained %s", time.Duration(seconds*float64(time.Second))), Unit: "IOPS", PeerName: "nfs-ganesha"}
	return b.compare(ctx, f, 1, long(ours), long(peer))
}
