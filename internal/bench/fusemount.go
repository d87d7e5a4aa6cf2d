package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// fuseMount is a program that shows an archive in a directory until it ends.
type fuseMount struct {
	name    string
	env     []string
	dir     string // to mount at
	within  string // where in it the archive is
	program string
	args    []string // the directory is added
}

// start returns the one file of the archive. What was read before is forgotten
// with the mount: each measurement begins cold.
func (m fuseMount) start(ctx context.Context) (string, func() error, error) {
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return "", nil, err
	}
	p, err := start(m.name, m.env, m.program, append(m.args, m.dir)...)
	if err != nil {
		return "", nil, err
	}
	stop := func() error {
		err := syscall.Unmount(m.dir, syscall.MNT_DETACH)
		select {
		case <-p.exited:
		case <-time.After(stopWithin):
			return errors.Join(err, p.stop())
		}
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		if file, err := onlyFile(filepath.Join(m.dir, m.within)); err == nil {
			return file, stop, nil
		}
		select {
		case <-p.exited:
			return "", nil, p.stop()
		default:
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return "", nil, errors.Join(fmt.Errorf("%s does not get ready", m.name), stop())
		}
	}
}

// randomReads reads 4 KiB at random places of a file for some time, several at
// once, and returns the reads per second.
func randomReads(ctx context.Context, name string, depth int, d time.Duration) (sample, error) {
	const size = 4 << 10
	f, err := os.Open(filepath.Clean(name))
	if err != nil {
		return sample{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return sample{}, err
	}
	counts, errs := make([]int64, depth), make([]error, depth)
	begin := time.Now()
	var group sync.WaitGroup
	for i := range depth {
		group.Go(func() {
			p, rng := make([]byte, size), rand.New(rand.NewPCG(uint64(i), uint64(begin.UnixNano())))
			for time.Since(begin) < d && ctx.Err() == nil && errs[i] == nil {
				_, errs[i] = f.ReadAt(p, rng.Int64N(st.Size()/size)*size)
				counts[i]++
			}
		})
	}
	group.Wait()
	wall := time.Since(begin).Seconds()
	var sum int64
	for _, n := range counts {
		sum += n
	}
	return sample{value: float64(sum) / wall}, errors.Join(append(errs, ctx.Err())...)
}
