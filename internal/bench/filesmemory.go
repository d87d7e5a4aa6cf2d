package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// childrenOf are the processes that a process has started and that have not ended.
func childrenOf(pid int) []int {
	var out []int
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, name := range files {
		data, err := os.ReadFile(filepath.Clean(name))
		if err != nil {
			continue // the thread has ended
		}
		for _, word := range strings.Fields(string(data)) {
			if n, err := strconv.Atoi(word); err == nil {
				out = append(append(out, n), childrenOf(n)...)
			}
		}
	}
	return out
}

// sessionCPU is the processor time of this process and of the workers that run.
func sessionCPU() time.Duration {
	sum := ownCPU()
	for _, pid := range childrenOf(os.Getpid()) {
		if cpu, err := cpuTime(pid); err == nil {
			sum += cpu
		}
	}
	return sum
}

// footprint is what a process and its children occupied at the worst moment, in
// MB. What they share, such as the program's text, counts once (Pss).
type footprint struct {
	all  float64
	each notes // at that moment, by name
}

func (f *footprint) look(pid int) {
	var sum, rss float64
	each := notes{}
	for _, n := range append([]int{pid}, childrenOf(pid)...) {
		rollup, err := kilobytes(fmt.Sprintf("/proc/%d/smaps_rollup", n))
		if err != nil {
			continue // it has ended
		}
		mb := float64(rollup["Pss"]) / 1e6
		sum, rss = sum+mb, rss+float64(rollup["Rss"])/1e6
		each[f.name(pid, n)+" MB"] += mb
	}
	each["sum of VmRSS MB"] = rss
	if sum > f.all {
		f.all, f.each = sum, each
	}
}

func (f *footprint) name(pid, n int) string {
	if n == pid {
		return "appliance"
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", n))
	if err != nil {
		return "ended"
	}
	if name := strings.TrimSpace(string(comm)); strings.HasPrefix(name, "qemu") {
		return "QEMU"
	}
	return "worker"
}

// memory: the appliance and all that it starts, while every file of a guest is
// taken out of it; and while all of a guest is looked at through a mount.
func (g *guests) memory(ctx context.Context) error {
	for _, row := range []struct {
		vm, what, backend string
		target            float64
		places            []string
	}{
		{vmExt4, "44,000 files and a large one, native", "native", memoryNative, []string{"disk0/"}},
		{vmNTFS, "44,000 files on NTFS, native", "native", memoryNative, []string{"disk0/"}},
		{vmZstd, "a large file of Btrfs, zstd, native", "native", memoryNative, []string{"disk0/"}},
		{vmPacked, "large files of Windows, compressed, native", "native", memoryNative, []string{"disk0/"}},
		// Each file takes the emulated machine milliseconds.
		{vmExt4, "2,000 files and a large one, micro-VM", "microvm", memoryVM, []string{"disk0/area 0", "disk0/" + largeName}},
	} {
		err := g.b.alone(ctx, Figure{What: "memory of a session, tar of " + row.what, Unit: "MB", Target: row.target, AtMost: true}, 1, func(ctx context.Context) (sample, error) {
			return g.tarMemory(ctx, row.vm, row.backend, row.places)
		})
		if err != nil {
			return err
		}
	}
	return g.b.alone(ctx, Figure{What: "memory of a session, 44,000 files and a large one read through lifeboat mount", Unit: "MB", Target: memoryNative, AtMost: true}, 1, g.mountMemory)
}

// tarMemory takes what is at some places out of a guest.
func (g *guests) tarMemory(ctx context.Context, vm, backend string, places []string) (sample, error) {
	args := []string{"files", "get", "--backend", backend, "--tar", "-"}
	for _, place := range places {
		args = append(args, vm+"@latest:"+place)
	}
	p, err := start("lifeboat files get", g.repo.env(), g.b.opt.binary, args...)
	if err != nil {
		return sample{}, err
	}
	taken := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(io.Discard, p.stdout)
		taken <- n
	}()
	f, err := p.watch(ctx)
	if err != nil {
		return sample{}, errors.Join(err, p.stop())
	}
	n := <-taken
	if p.err != nil {
		return sample{}, fmt.Errorf("%s: %w: %s", p.name, p.err, strings.TrimSpace(p.log.String()))
	}
	f.each["tar MB"] = float64(n) / 1e6
	return sample{f.all, f.each}, nil
}

// watch looks at a process until it ends.
func (p *process) watch(ctx context.Context) (footprint, error) {
	var f footprint
	for {
		select {
		case <-p.exited:
			return f, nil
		case <-ctx.Done():
			return f, context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
			f.look(p.pid())
		}
	}
}

// mountMemory reads everything in a guest through a mount.
func (g *guests) mountMemory(ctx context.Context) (_ sample, err error) {
	m, err := g.startMount(ctx)
	if err != nil {
		return sample{}, err
	}
	defer func() { err = errors.Join(err, m.stop()) }()
	done := make(chan error, 1)
	go func() { done <- readTree(filepath.Join(m.dir, vmExt4)) }()
	var f footprint
	for {
		select {
		case err := <-done:
			return sample{f.all, f.each}, err
		case <-time.After(10 * time.Millisecond):
			f.look(m.pid())
		}
	}
}

// readTree reads all files in the trees of volumes below a VM's directory.
func readTree(dir string) error {
	roots, err := filepath.Glob(filepath.Join(dir, "*", "files", "disk0"))
	if err != nil || len(roots) != 1 {
		return errors.Join(fmt.Errorf("%d volumes in %s", len(roots), dir), err)
	}
	n := 0
	err = filepath.WalkDir(roots[0], func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		n++
		f, err := os.Open(filepath.Clean(path))
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, f)
		return errors.Join(err, f.Close())
	})
	return enough(n, err)
}
