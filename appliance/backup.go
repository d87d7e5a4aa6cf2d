package appliance

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"lifeboat/disk"
	"lifeboat/store"
)

// BackupDisksRequest names disk files that make up a VM.
type BackupDisksRequest struct {
	VM    string
	Files []string
	// Changed, if not nil, lists per disk (an index into Files) what may differ
	// since the VM's last point. A disk that is not in it did not change.
	Changed map[int][]disk.Extent
	// Format of the files; empty means that it is recognised by content. A guest
	// can write what looks like a qcow2 header to its raw disk: name the format
	// where it is known.
	Format disk.Format
	// Full ignores the VM's earlier points: everything is read and looked up.
	Full    bool
	Tool    string // version, for the record
	Workers int
	// Started, if not nil, hears of each disk before it is read and returns
	// where its progress goes.
	Started func(n int, name string, size int64) func(store.Progress)
}

// BackupDisks makes a restore point of disk files: raw, qcow2 or vmdk, told
// apart by content. With an earlier point of the same VM it is an incremental.
func BackupDisks(ctx context.Context, repo *store.Repository, req BackupDisksRequest) (_ *store.Point, err error) {
	if req.VM == "" || len(req.Files) == 0 {
		return nil, fmt.Errorf("%w: name the VM and at least one disk file", ErrUsage)
	}
	images, err := openSources(ctx, req.Files, req.Format)
	if err != nil {
		return nil, err
	}
	defer closeImages(images)
	parent, err := parentPoint(ctx, repo, req)
	if err != nil {
		return nil, err
	}
	ing, err := newIngest(ctx, repo, store.IngestOptions{Workers: req.Workers, Tool: req.Tool})
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := ing.Close(); cerr != nil && err == nil {
			err = cerr
		}
		if err == nil {
			// What was lost and is stored again now is there for older points, too;
			// if not now, a later backup or repair sees to it. Heal has logged why.
			_, _ = repo.Heal(ctx)
		}
	}()
	w, err := ing.Begin(store.PointSpec{VM: req.VM, Time: timeAfter(parent), Consistency: store.CrashConsistent, Parent: parent})
	if err != nil {
		return nil, err
	}
	defer w.Abort()
	for n, img := range images {
		if err := backupDisk(ctx, w, req, n, img); err != nil {
			return nil, fmt.Errorf("disk %d (%s): %w", n, req.Files[n], err)
		}
	}
	return w.Commit(ctx)
}

// timeAfter is now, or just after the parent's time when the clock was set back:
// the newest point must be the one that the next list of changes is against.
func timeAfter(parent *store.Point) time.Time {
	now := time.Now()
	if parent != nil && !now.After(parent.Time) {
		return parent.Time.Add(time.Millisecond)
	}
	return now
}

func backupDisk(ctx context.Context, w *store.PointWriter, req BackupDisksRequest, n int, img disk.Image) error {
	label := filepath.Base(req.Files[n])
	var progress func(store.Progress)
	if req.Started != nil {
		progress = req.Started(n, label, img.Size())
	}
	var changed []disk.Extent
	if req.Changed != nil {
		changed = append([]disk.Extent{}, req.Changed[n]...)
	}
	return w.AddDisk(ctx, store.DiskSpec{Key: n, Label: label}, img, changed, progress)
}

func openSources(ctx context.Context, files []string, format disk.Format) ([]disk.Image, error) {
	var images []disk.Image
	for _, name := range files {
		img, err := disk.Open(ctx, name, disk.OpenOptions{Format: format})
		if err != nil {
			closeImages(images)
			return nil, err
		}
		images = append(images, img)
		if img.Size() == 0 {
			closeImages(images)
			return nil, fmt.Errorf("%s is empty: a disk has at least one byte; look for what emptied it", name)
		}
	}
	return images, nil
}

func closeImages(images []disk.Image) {
	for _, img := range images {
		img.Close()
	}
}

// parentPoint finds the VM's newest point to compare with. Without one, a list
// of changes has nothing to be against.
func parentPoint(ctx context.Context, repo *store.Repository, req BackupDisksRequest) (*store.Point, error) {
	var parent *store.Point
	if !req.Full {
		var err error
		parent, err = repo.Latest(ctx, req.VM)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
	}
	for n := range req.Changed {
		if n < 0 || n >= len(req.Files) {
			return nil, fmt.Errorf("%w: the list of changes names disk %d, and there are %d", ErrUsage, n, len(req.Files))
		}
	}
	return parent, nil
}

// maxChangeLine bounds a line of a list of changes.
const maxChangeLine = 4096

// ReadChanges reads a list of changed areas: JSON lines of the form
// {"disk":0,"offset":65536,"length":4096}, offsets and lengths in bytes.
func ReadChanges(r io.Reader) (map[int][]disk.Extent, error) {
	changes := map[int][]disk.Extent{}
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 0, maxChangeLine), maxChangeLine)
	for line := 1; in.Scan(); line++ {
		text := bytes.TrimSpace(in.Bytes())
		if len(text) == 0 {
			continue
		}
		var c struct {
			Disk   *int   `json:"disk"`
			Offset *int64 `json:"offset"`
			Length *int64 `json:"length"`
		}
		dec := json.NewDecoder(bytes.NewReader(text))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&c); err != nil {
			return nil, fmt.Errorf("%w: list of changes, line %d: %w", ErrUsage, line, err)
		}
		if c.Disk == nil || c.Offset == nil || c.Length == nil || *c.Offset < 0 || *c.Length < 0 {
			return nil, fmt.Errorf("%w: list of changes, line %d: wants disk, offset and length, none of them negative", ErrUsage, line)
		}
		if *c.Length > 0 {
			changes[*c.Disk] = append(changes[*c.Disk], disk.Extent{Offset: *c.Offset, Length: *c.Length})
		}
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("%w: list of changes: %w", ErrUsage, err)
	}
	return changes, nil
}
