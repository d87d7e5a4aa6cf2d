package vddk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// LadderError is returned when no transport opened the disk.
type LadderError struct {
	Disk  string
	Rungs []RungError // in the order in which they were tried
}

// RungError is why one transport did not open the disk.
type RungError struct {
	Transport string
	Err       error // matches ErrUnavailable if it was not tried
}

func (e *LadderError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "no transport opens %s", e.Disk)
	for _, r := range e.Rungs {
		fmt.Fprintf(&b, "; %s: %v", r.Transport, r.Err)
	}
	return b.String()
}

// Unwrap gives the errors of all rungs.
func (e *LadderError) Unwrap() []error {
	errs := make([]error, len(e.Rungs))
	for i, r := range e.Rungs {
		errs[i] = r.Err
	}
	return errs
}

// opened is what a rung opens: a disk for reading or writing, or a place for a
// whole image.
type opened interface {
	io.Closer
	Size() int64
}

// rung is one way to a disk.
type rung[D opened] struct {
	name string
	// open makes the disk; ctx is its life and cancel ends that, both the
	// disk's once it is open.
	open func(ctx context.Context, cancel context.CancelCauseFunc) (D, error)
}

// choose puts the rungs that are wanted into their order. Rungs of the
// library's modes are made by mode, because any mode may be asked for.
func choose[D opened](want string, best []rung[D], mode func(modes string) rung[D]) ([]rung[D], error) {
	if want == "" {
		return best, nil
	}
	var chosen []rung[D]
	for name := range strings.SplitSeq(want, ",") {
		name = strings.TrimSpace(name)
		var found []rung[D]
		for _, r := range best {
			if r.name == name {
				found = append(found, r)
			}
		}
		switch name {
		case NBDSSL, NBD, SAN, HotAdd:
			found = append(found, mode(name))
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("there is no transport %q: known are file, hotadd, vddk, nbdssl, nbd, san, folder and nfc", name)
		}
		chosen = append(chosen, found...)
	}
	return chosen, nil
}

// climb opens the disk with the first rung that can.
func climb[D opened](ctx context.Context, req Request, opts Options, rungs []rung[D]) (D, error) {
	var none D
	failed := &LadderError{Disk: req.name()}
	for _, r := range rungs {
		d, err := r.try(ctx, req, opts)
		if err == nil {
			opts.Logger.Info("disk opened", "disk", failed.Disk, "transport", r.name, "passed_over", failed.tried())
			return d, nil
		}
		failed.Rungs = append(failed.Rungs, RungError{r.name, err})
		if ctx.Err() != nil {
			return none, failed
		}
		level := slog.LevelWarn
		if errors.Is(err, ErrUnavailable) {
			level = slog.LevelDebug
		}
		opts.Logger.Log(ctx, level, "transport does not open the disk", "disk", failed.Disk, "transport", r.name, "error", err)
	}
	return none, failed
}

// try opens the disk with one rung, in bounded time, and checks what it got.
//
// The context of an open disk governs its reads for as long as it is open, and
// so the time limit of opening must not end up in it: the limit is a timer that
// is stopped when the disk is open.
func (r rung[D]) try(ctx context.Context, req Request, opts Options) (d D, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := newLimit(opts.OpenTimeout, cancel)
	d, err = r.open(ctx, cancel)
	if !timer.Stop() && err == nil {
		err = errors.Join(context.Cause(ctx), d.Close())
	}
	if err == nil && d.Size() != req.Size {
		err = errors.Join(fmt.Errorf("%w: %d bytes and not %d: it was resized since the inventory was read", ErrSize, d.Size(), req.Size), d.Close())
	}
	if err != nil {
		cancel(err)
		if errors.Is(context.Cause(ctx), ErrHung) && !errors.Is(err, ErrHung) {
			err = fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		}
	}
	return d, err
}

// tried lists the rungs that failed after a try, for the log.
func (e *LadderError) tried() []string {
	var names []string
	for _, r := range e.Rungs {
		if !errors.Is(r.Err, ErrUnavailable) {
			names = append(names, r.Transport)
		}
	}
	return names
}

// name is what the disk is called in messages.
func (r Request) name() string {
	switch {
	case r.Path != "":
		return r.Path
	case r.LocalPath != "":
		return r.LocalPath
	}
	return fmt.Sprintf("disk %d", r.Key)
}

func unavailable(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnavailable, fmt.Sprintf(format, args...))
}
