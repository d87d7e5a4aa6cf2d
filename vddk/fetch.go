package vddk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"lifeboat/disk"
)

// remote reads files of datastores in ranges, over HTTP.
//
// A request that breaks off is taken up again where it stopped, and one that
// fails is repeated after a while: connections to hosts do break, and a backup
// that ran for hours must not end with one of them. Every byte comes with a
// length that was asked for, so a reply that is cut is never taken for whole.
type remote struct {
	files   FileReader
	timeout time.Duration
}

// descriptor fetches the text of a disk's descriptor.
func (r *remote) descriptor(ctx context.Context, path string) ([]byte, error) {
	size, err := r.files.Size(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("find the descriptor %s: %w", path, err)
	}
	if size <= 0 || size > maxDescriptor {
		return nil, fmt.Errorf("%s has %d bytes, which is no descriptor: %w", path, size, disk.ErrUnsupported)
	}
	text := make([]byte, size)
	if err := r.fetch(ctx, path, 0, text); err != nil {
		return nil, fmt.Errorf("read the descriptor %s: %w", path, err)
	}
	return text, nil
}

// A request that fails is repeated after a pause that doubles from the first to
// the longest, for as long as the source's timeout, counted from when something
// came last: a vCenter that restarts is back after a minute or two.
const (
	folderPause   = 100 * time.Millisecond
	folderLongest = 5 * time.Second
)

// fetch fills b from off of the file called path.
func (r *remote) fetch(ctx context.Context, path string, off int64, b []byte) error {
	pause, since := folderPause, time.Now()
	for {
		n, err := r.attempt(ctx, path, off, b)
		b, off = b[n:], off+int64(n)
		if len(b) == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if n > 0 {
			pause, since = folderPause, time.Now()
		}
		if permanent(err) || time.Since(since)+pause > r.timeout {
			return fmt.Errorf("%s at %d: %w", path, off, lost(err))
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, folderLongest)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// attempt is one request, in bounded time.
func (r *remote) attempt(ctx context.Context, path string, off int64, b []byte) (int, error) {
	hung := fmt.Errorf("%w: %d bytes of %s took more than %v", ErrHung, len(b), path, r.timeout)
	limited, cancel := context.WithTimeoutCause(ctx, r.timeout, hung)
	defer cancel()
	n, err := r.files.ReadRange(limited, path, off, b)
	if n < 0 || n > len(b) {
		return 0, fmt.Errorf("%d bytes came where %d were asked for", n, len(b))
	}
	if n < len(b) && err == nil {
		err = io.ErrUnexpectedEOF
	}
	switch {
	case limited.Err() != nil && ctx.Err() == nil:
		err = hung
	case n < len(b) && err == io.EOF: // and not one inside another: a connection that ended says so too
		err = fmt.Errorf("it ends at %d now: %w", off+int64(n), disk.ErrChanged)
	}
	return n, err
}

// permanent errors do not go away by asking again.
func permanent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) ||
		errors.Is(err, ErrCredentials) || errors.Is(err, disk.ErrOutOfRange) || errors.Is(err, disk.ErrChanged)
}

// lost marks an error as the end of a connection, if it is not something else.
func lost(err error) error {
	if err == nil || permanent(err) || errors.Is(err, ErrLost) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrLost, err)
}
