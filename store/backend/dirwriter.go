package backend

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"lifeboat/internal/vfs"
)

// tempLife is how long a temporary file may go unwritten before Sweep takes it
// for abandoned although its writer's death cannot be seen from here. A
// living writer of an object writes every few seconds.
const tempLife = 7 * 24 * time.Hour

// Create implements [Backend].
func (d *Dir) Create(ctx context.Context, name string, mode Mode) (Writer, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	root, err := d.ensure(path.Clean(tmpPrefix))
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	temp := tmpPrefix + d.tempName()
	f, err := root.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	return &dirWriter{d: d, root: root, name: name, temp: temp, mode: mode, file: f}, nil
}

// tempName is the writer's name and a random part.
func (d *Dir) tempName() string {
	var random [8]byte
	rand.Read(random[:]) // never fails (crypto/rand)
	return d.opts.Processes.Self() + "." + hex.EncodeToString(random[:])
}

// dirWriter writes one object. file is nil once it is spent.
type dirWriter struct {
	d          *Dir
	root       vfs.RootFS
	name, temp string
	mode       Mode
	file       vfs.File
	off        int64
}

var errSpent = errors.New("the writer has been committed or aborted")

func (w *dirWriter) Write(p []byte) (int, error) {
	if w.file == nil {
		return 0, fmt.Errorf("write %s: %w", w.name, errSpent)
	}
	n, err := w.file.WriteAt(p, w.off)
	w.off += int64(n)
	if err != nil {
		return n, fmt.Errorf("write %s: %w", w.name, err)
	}
	return n, nil
}

// Commit implements [Writer]. An error that matches [ErrUncertain] comes of a
// directory that could not be synced after the object was put there.
func (w *dirWriter) Commit(ctx context.Context) error {
	if w.file == nil {
		return fmt.Errorf("commit %s: %w", w.name, errSpent)
	}
	if err := w.publish(ctx); err != nil {
		w.Abort()
		return fmt.Errorf("commit %s: %w", w.name, err)
	}
	w.file = nil
	return nil
}

func (w *dirWriter) publish(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := w.file.Sync(); err != nil {
		return err
	}
	dir := path.Dir(w.name)
	if _, err := w.d.ensure(dir); err != nil {
		return err
	}
	rename := w.root.RenameExclusive
	if w.mode == Replace {
		rename = w.root.Rename
	}
	if err := rename(w.temp, w.name); err != nil {
		return err
	}
	w.temp = "" // from here on there is nothing to take back
	if err := w.root.SyncDir(dir); err != nil {
		return fmt.Errorf("%w: %w", ErrUncertain, err)
	}
	// All is durable: a failing close can take nothing back.
	if err := w.file.Close(); err != nil {
		w.d.opts.Logger.Warn("closing an object after it was committed", "object", w.name, "err", err)
	}
	return nil
}

// Abort implements [Writer].
func (w *dirWriter) Abort() {
	if w.file == nil {
		return
	}
	err := w.file.Close()
	w.file = nil
	if w.temp != "" {
		err = errors.Join(err, w.root.Remove(w.temp))
	}
	if err != nil {
		w.d.opts.Logger.Warn("an unfinished object is left for the next sweep",
			"object", w.name, "file", w.temp, "err", err)
	}
}

// Sweep removes the unfinished objects of writers that have died: those of
// this host whose process has ended, and any that nobody wrote for a week. It
// returns how many it removed. It is safe beside writers.
func (d *Dir) Sweep(ctx context.Context) (int, error) {
	root, err := d.rootFS()
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		return 0, fmt.Errorf("sweep %s: %w", d.path, err)
	}
	dir := path.Clean(tmpPrefix)
	entries, err := root.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		return 0, fmt.Errorf("sweep %s: %w", d.path, err)
	}
	removed := 0
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		if !d.abandoned(entry) {
			continue
		}
		err := root.Remove(tmpPrefix + entry.Name())
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, fmt.Errorf("sweep %s: %w", d.path, err)
		}
		removed++
	}
	return removed, nil
}

func (d *Dir) abandoned(entry fs.DirEntry) bool {
	if entry.IsDir() {
		return false // not ours
	}
	owner, _, _ := strings.Cut(entry.Name(), ".")
	if d.opts.Processes.Dead(owner) {
		return true
	}
	info, err := entry.Info()
	return err == nil && time.Since(info.ModTime()) > tempLife
}
