package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"lifeboat/internal/qemu"
)

const (
	runningVMs = 8
	bootingVMs = 2 // at a time: as many as the machine has cores
)

// memory: the server with eight points published, idle and with a VM running
// from each, and then with every byte of its cache in use as well.
func (b *bench) memory(ctx context.Context) (err error) {
	r, _, err := b.guestRepo(ctx, "memory", runningVMs)
	if err != nil {
		return err
	}
	defer r.remove()
	filler, err := b.system(ctx)
	if err != nil {
		return err
	}
	if _, _, err := r.backup(ctx, "filler", filler.path); err != nil {
		return err
	}
	args := []string{"--nfs-port", "0", "--mount-port", "0"}
	for i := range runningVMs {
		args = append(args, fmt.Sprintf("vm%d@latest", i))
	}
	e, err := r.publish(ctx, append(args, "filler@latest")...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	if err := b.recordMemory(e, "server memory, 9 points published, at once", 64); err != nil {
		return err
	}
	if err := pause(ctx, 5*time.Second); err != nil {
		return err
	}
	if err := b.recordMemory(e, "server memory, 9 points published, idle for 5 s", 64); err != nil {
		return err
	}
	machines, err := b.bootAll(ctx, e)
	defer func() {
		for _, m := range machines {
			m.Close()
		}
	}()
	if err != nil {
		return err
	}
	if err := b.recordMemory(e, "server memory, 8 VMs running", 512); err != nil {
		return err
	}
	if err := b.press(ctx, e); err != nil {
		return err
	}
	return b.recordMemory(e, "server memory, 8 VMs running, cache full, reads and writes at QD32", 512)
}

// bootAll boots a machine from each point, some at a time.
func (b *bench) bootAll(ctx context.Context, e *export) ([]*qemu.Machine, error) {
	accel, _ := qemu.ChooseAccel(ctx, "")
	machines, errs := make([]*qemu.Machine, runningVMs), make([]error, runningVMs)
	slots := make(chan struct{}, bootingVMs)
	var group sync.WaitGroup
	for i := range runningVMs {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			m, err := startGuest(ctx, "vm"+strconv.Itoa(i), accel, e.disk(i))
			if err != nil {
				errs[i] = err
				return
			}
			machines[i] = m
			waiting, cancel := context.WithTimeout(ctx, bootWithin)
			defer cancel()
			_, _, errs[i] = m.Console().Expect(waiting, prompt())
		})
	}
	group.Wait()
	started := machines[:0]
	for _, m := range machines {
		if m != nil {
			started = append(started, m)
		}
	}
	return started, errors.Join(errs...)
}

// press reads more than the cache holds and writes through a disk of its own
// while the machines run.
func (b *bench) press(ctx context.Context, e *export) error {
	t := e.target()
	last := e.Folders[runningVMs]
	t.dir, t.file = last.Path, last.Disks[0]
	for _, w := range []work{
		{"read", 1 << 20, 32, "seq", b.made.image.size},
		{"read", 4 << 10, 32, "rand", b.made.image.size},
		{"writesync", 4 << 10, 32, "rand", b.made.image.size},
		{"writesync", 64 << 10, 32, "rand", b.made.image.size},
	} {
		if _, _, err := b.drive(ctx, t, w, 2*b.opt.seconds); err != nil {
			return err
		}
	}
	return nil
}

// recordMemory records what a process occupies against a limit.
func (b *bench) recordMemory(e *export, what string, limit float64) error {
	status, err := kilobytes(fmt.Sprintf("/proc/%d/status", e.pid()))
	if err != nil {
		return err
	}
	rollup, err := kilobytes(fmt.Sprintf("/proc/%d/smaps_rollup", e.pid()))
	if err != nil {
		return err
	}
	mb := func(n int64) float64 { return float64(n) / 1e6 }
	b.add(Figure{
		What: what + " (VmRSS)", Unit: "MB", Ours: mb(status["VmRSS"]), Target: limit, AtMost: true, Rounds: 1,
		OursNotes: notes{"VmHWM MB": mb(status["VmHWM"]), "Pss MB": mb(rollup["Pss"])},
	})
	return nil
}
