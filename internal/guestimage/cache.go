package guestimage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// artifact is one thing in the cache.
type artifact struct {
	name  string // "debian12"
	ext   string // ".img", or "" for a directory
	files []byte // everything that the result depends on
	// build makes the artifact at path, which lies inside a scratch directory
	// that it may use as it likes.
	build func(ctx context.Context, scratch, path string) error
}

func (a artifact) path(cacheDir string) string {
	sum := sha256.Sum256(a.files)
	return filepath.Join(cacheDir, a.name+"-"+hex.EncodeToString(sum[:6])+a.ext)
}

// ensure returns the path of the artifact, building it if it is not there.
func (a artifact) ensure(ctx context.Context, cacheDir string, progress Progress) (string, error) {
	cacheDir, err := filepath.Abs(cacheDir)
	if err != nil {
		return "", fmt.Errorf("guest image %s: %w", a.name, err)
	}
	path := a.path(cacheDir)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return "", fmt.Errorf("guest image %s: making the cache directory: %w", a.name, err)
	}
	unlock, err := lock(ctx, filepath.Join(cacheDir, a.name+".lock"), progress)
	if err != nil {
		return "", fmt.Errorf("guest image %s: %w", a.name, err)
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil // another builder was faster
	}
	if err := a.make(ctx, cacheDir, path); err != nil {
		return "", fmt.Errorf("making guest image %s: %w", a.name, err)
	}
	return path, nil
}

// make is called with the lock held, so every scratch directory of this
// artifact that is there was left by a builder that died.
func (a artifact) make(ctx context.Context, cacheDir, path string) (err error) {
	prefix := ".building-" + a.name + "-"
	old, err := os.ReadDir(cacheDir)
	if err != nil {
		return err
	}
	for _, e := range old {
		if strings.HasPrefix(e.Name(), prefix) {
			if err := os.RemoveAll(filepath.Join(cacheDir, e.Name())); err != nil {
				return fmt.Errorf("removing what an interrupted build left: %w", err)
			}
		}
	}
	scratch, err := os.MkdirTemp(cacheDir, prefix)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	result := filepath.Join(scratch, "result"+a.ext)
	if err := a.build(ctx, scratch, result); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted: %w", context.Cause(ctx))
		}
		return err
	}
	if err := syncTree(result); err != nil {
		return err
	}
	return os.Rename(result, path)
}

// syncTree makes a file, or all files of a directory, durable, so that a
// cached artifact is not found empty after a power failure.
func syncTree(path string) error {
	return filepath.WalkDir(path, func(p string, d os.DirEntry, err error) error {
		if err != nil || (!d.Type().IsRegular() && !d.IsDir()) {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

// lock takes an exclusive lock that the kernel gives back when we die.
func lock(ctx context.Context, path string, progress Progress) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the lock: %w", err)
	}
	retry := time.NewTicker(200 * time.Millisecond)
	defer retry.Stop()
	for told := false; ; told = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
		}
		if !told {
			progress.say("waiting for another builder of the same image")
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("waiting for another builder: %w", context.Cause(ctx)), f.Close())
		}
	}
}
