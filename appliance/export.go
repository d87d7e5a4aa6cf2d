package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"lifeboat/disk"
	"lifeboat/store"
)

// ExportRequest says how one disk of a point becomes a file.
type ExportRequest struct {
	Disk   int    // index in the point
	Output string // file name
	Format string // "raw", "qcow2" or "vmdk" (streamOptimized)
	Force  bool   // replace an existing file
	// Progress hears of bytes written of the disk's size.
	Progress func(done, total int64)
}

// ExportDisk writes a disk of a restore point to a file. The file appears under
// its name when it is complete and durable, and not before; a failure or an
// interruption leaves nothing.
func ExportDisk(ctx context.Context, repo *store.Repository, pt *store.Point, req ExportRequest) (err error) {
	write, err := exporter(req.Format)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(req.Output); err == nil && !req.Force {
		return fmt.Errorf("%w: %s exists already; remove it or use --force", ErrUsage, req.Output)
	}
	img, err := OpenPointDisk(ctx, repo, pt, req.Disk)
	if err != nil {
		return err
	}
	defer img.Close()
	dir, base := filepath.Split(req.Output)
	tmp, err := os.CreateTemp(dir, "."+base+".part-*")
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	defer func() {
		tmp.Close()
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	if err := write(ctx, tmp, img, req.Progress); err != nil {
		return fmt.Errorf("export to %s: %w", req.Output, err)
	}
	if err := tmp.Sync(); err != nil {
		return fmt.Errorf("export to %s: %w", req.Output, err)
	}
	return os.Rename(tmp.Name(), req.Output)
}

// ExportStream writes a disk to a stream: raw, or a streamOptimized vmdk.
func ExportStream(ctx context.Context, repo *store.Repository, pt *store.Point, w io.Writer, req ExportRequest) error {
	img, err := OpenPointDisk(ctx, repo, pt, req.Disk)
	if err != nil {
		return err
	}
	defer img.Close()
	switch req.Format {
	case "raw":
		return disk.WriteRawTo(ctx, w, img, req.Progress)
	case "vmdk":
		return disk.WriteVMDK(ctx, w, img, disk.VMDKOptions{Progress: req.Progress})
	}
	return fmt.Errorf("%w: format %q cannot be written to a stream: use raw or vmdk", ErrUsage, req.Format)
}

type exportFunc func(context.Context, *os.File, disk.Image, func(done, total int64)) error

func exporter(format string) (exportFunc, error) {
	switch format {
	case "raw":
		return disk.WriteRaw, nil
	case "qcow2":
		return func(ctx context.Context, f *os.File, img disk.Image, progress func(int64, int64)) error {
			return disk.WriteQCOW2(ctx, f, img, disk.QCOW2Options{Progress: progress})
		}, nil
	case "vmdk":
		return func(ctx context.Context, f *os.File, img disk.Image, progress func(int64, int64)) error {
			return disk.WriteVMDK(ctx, f, img, disk.VMDKOptions{Progress: progress})
		}, nil
	}
	return nil, fmt.Errorf("%w: format %q: use raw, qcow2 or vmdk", ErrUsage, format)
}

var errNoDisk = errors.New("the restore point has several disks: choose one with --disk N")

// ChooseDisk turns an optional --disk into an index: a point with one disk
// needs no choice.
func ChooseDisk(pt *store.Point, n int, given bool) (int, error) {
	if !given && len(pt.Disks) > 1 {
		return 0, fmt.Errorf("%w: %w", ErrUsage, errNoDisk)
	}
	_, err := diskByNumber(pt, n)
	return n, err
}
