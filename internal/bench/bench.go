package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// bench is one run.
type bench struct {
	opt     options
	out     io.Writer
	work    string // on the disk to be measured
	shm     string // in memory
	load    string // the compiled load client
	section string
	report  Report
	made    prepared
}

func (b *bench) sayf(format string, args ...any) { fmt.Fprintf(b.out, format+"\n", args...) }

// prepare makes the directories and compiles the load client.
func (b *bench) prepare(ctx context.Context) (err error) {
	if b.work, err = os.MkdirTemp(b.opt.dir, "lifeboat-bench-"); err != nil {
		return err
	}
	if b.shm, err = os.MkdirTemp("/dev/shm", "lifeboat-bench-"); err != nil {
		return err
	}
	if b.opt.binary, err = filepath.Abs(b.opt.binary); err != nil {
		return err
	}
	b.report.Machine = describeMachine(b.work)
	b.report.Time = time.Now().UTC().Truncate(time.Second)
	b.load = filepath.Join(b.work, "nfsload")
	out, err := exec.CommandContext(ctx, "gcc", "-O2", "-o", b.load, "tools/nfsload/nfsload.c").CombinedOutput()
	if err != nil {
		return fmt.Errorf("compiling tools/nfsload (run from the top of the tree): %w: %s", err, out)
	}
	return nil
}

func (b *bench) cleanUp() error {
	var errs []error
	for _, dir := range []string{b.work, b.shm} {
		if dir != "" {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}

// path is a name in the working directory.
func (b *bench) path(name string) string { return filepath.Join(b.work, name) }

// sample is the outcome of one measurement.
type sample struct {
	value float64 // what is compared
	notes notes   // what is told beside it
}

// notes are further numbers of a measurement, by name.
type notes map[string]float64

type measure func(context.Context) (sample, error)

// alternate measures ours and the peer's in turn.
func (b *bench) alternate(ctx context.Context, rounds int, ours, peer measure) ([]pair, error) {
	var pairs []pair
	for range rounds {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		x, err := ours(ctx)
		if err != nil {
			return nil, fmt.Errorf("ours: %w", err)
		}
		y, err := peer(ctx)
		if err != nil {
			return nil, fmt.Errorf("the peer's: %w", err)
		}
		pairs = append(pairs, pair{x, y})
	}
	return pairs, nil
}

// compare alternates and records the figure.
func (b *bench) compare(ctx context.Context, f Figure, rounds int, ours, peer measure) error {
	pairs, err := b.alternate(ctx, rounds, ours, peer)
	if err != nil {
		return fmt.Errorf("%s: %w", f.What, err)
	}
	b.add(f.from(pairs))
	return nil
}

// add records a figure and tells it.
func (b *bench) add(f Figure) {
	f.Command = fmt.Sprintf("go run ./internal/bench -only %s", b.section)
	b.report.Figures = append(b.report.Figures, f)
	b.sayf("%s", f.line())
}

// pause waits, unless the run is cancelled.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
