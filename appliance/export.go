package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"lifeboat/disk"
	"lifeboat/store"
)

// Formats of an export.
const (
	FormatRaw      = "raw"       // sparse
	FormatQCOW2    = "qcow2"     // version 3
	FormatVMDK     = "vmdk"      // streamOptimized, as vCenter imports it
	FormatFlatVMDK = "vmdk-flat" // a descriptor, and the bytes beside it as ESXi keeps them
)

// ExportRequest says how one disk of a point becomes a file.
type ExportRequest struct {
	Disk   int    // index in the point
	Output string // file name, or a device or named pipe that exists
	Format string // one of the Format constants
	Force  bool   // replace an existing file, write over a device
	// GivenUp, if not nil, makes damage no reason to fail: what cannot be read
	// becomes zeros, and GivenUp hears of each such area of a disk at its end.
	GivenUp func(n int, area disk.Extent)
	// Progress hears of bytes written of the disk's size.
	Progress func(done, total int64)
}

// ExportDisk writes a disk of a restore point to a file. The file appears under
// its name when it is complete and durable, and not before; a failure or an
// interruption leaves nothing.
func ExportDisk(ctx context.Context, repo *store.Repository, pt *store.Point, req ExportRequest) error {
	write, err := exporter(req.Format)
	if err != nil {
		return err
	}
	special, err := existing(req.Output, req.Force)
	if err != nil {
		return err
	}
	img, release, err := openToExport(ctx, repo, pt, req.Disk, req.GivenUp)
	if err != nil {
		return err
	}
	defer release()
	if special {
		return exportInto(ctx, img, req)
	}
	st, err := newStage(req.Output)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	defer st.remove()
	if err := write(ctx, st, filepath.Base(req.Output), img, req.Progress); err != nil {
		return fmt.Errorf("export to %s: %w", req.Output, err)
	}
	if err := st.publish(req.Force); err != nil {
		return fmt.Errorf("export to %s: %w", req.Output, err)
	}
	return nil
}

const exportPurpose = "export"

// openToExport opens a disk of a point that nobody removes until release.
func openToExport(ctx context.Context, repo *store.Repository, pt *store.Point, n int, givenUp func(int, disk.Extent)) (img disk.Image, release func(), err error) {
	unhold, err := repo.HoldToRead(ctx, []*store.Point{pt}, exportPurpose)
	if err != nil {
		return nil, nil, pointError(err)
	}
	img, done, err := openWhole(ctx, repo, pt, n, givenUp)
	if err != nil {
		unhold()
		return nil, nil, err
	}
	return img, func() {
		done()
		unhold()
	}, nil
}

// openWhole opens a disk that is about to be read once, damage and all where
// givenUp is not nil. done closes it.
func openWhole(ctx context.Context, repo *store.Repository, pt *store.Point, n int, givenUp func(int, disk.Extent)) (img disk.Image, done func(), err error) {
	img, err = OpenPointDisk(ctx, repo, pt, n)
	if err != nil {
		return nil, nil, err
	}
	if givenUp == nil {
		return img, func() { img.Close() }, nil
	}
	s := newSalvaged(img)
	return s, func() {
		s.Close()
		for _, area := range s.areas() {
			givenUp(n, area)
		}
	}, nil
}

// ExportStream writes a disk to a stream: raw, or a streamOptimized vmdk. The
// other formats have a header that is known at their end only.
func ExportStream(ctx context.Context, repo *store.Repository, pt *store.Point, w io.Writer, req ExportRequest) error {
	write, err := streamer(req.Format)
	if err != nil {
		return err
	}
	img, release, err := openToExport(ctx, repo, pt, req.Disk, req.GivenUp)
	if err != nil {
		return err
	}
	defer release()
	return write(ctx, w, img, req.Progress)
}

// ExportAllRequest says how all disks of a point become files in a directory.
type ExportAllRequest struct {
	Output string // a directory that does not exist, or is empty
	Format string
	// GivenUp is as in ExportRequest.
	GivenUp func(n int, area disk.Extent)
	// Started, if not nil, hears of each disk and returns where its progress
	// goes.
	Started func(n int, name string, size int64) func(done, total int64)
}

// ExportedFile is a file that an export made.
type ExportedFile struct {
	Name string `json:"name"` // in the directory
	Disk int    `json:"disk"` // index in the point; -1: a configuration file
	Size int64  `json:"size"` // of the disk, or the file, in bytes
}

// ExportAll writes all disks of a point, and the configuration files kept with
// it, into a new directory. The directory appears when it is complete.
func ExportAll(ctx context.Context, repo *store.Repository, pt *store.Point, req ExportAllRequest) ([]ExportedFile, error) {
	write, err := exporter(req.Format)
	if err != nil {
		return nil, err
	}
	if err := emptyDirectory(req.Output); err != nil {
		return nil, err
	}
	release, err := repo.HoldToRead(ctx, []*store.Point{pt}, exportPurpose)
	if err != nil {
		return nil, pointError(err)
	}
	defer release()
	st, err := newStage(req.Output)
	if err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	defer st.remove()
	files, err := exportAll(ctx, repo, pt, req, st, write)
	if err != nil {
		return nil, fmt.Errorf("export to %s: %w", req.Output, err)
	}
	if err := st.publishDirectory(req.Output); err != nil {
		return nil, fmt.Errorf("export to %s: %w", req.Output, err)
	}
	return files, nil
}

func exportAll(ctx context.Context, repo *store.Repository, pt *store.Point, req ExportAllRequest, st *stage, write exportFunc) ([]ExportedFile, error) {
	names := newNames()
	var files []ExportedFile
	for n, d := range pt.Disks {
		name := names.take(diskFileName(pt, n, req.Format))
		var progress func(done, total int64)
		if req.Started != nil {
			progress = req.Started(n, name, d.Size)
		}
		img, done, err := openWhole(ctx, repo, pt, n, req.GivenUp)
		if err != nil {
			return nil, err
		}
		err = write(ctx, st, name, img, progress)
		done()
		if err != nil {
			return nil, fmt.Errorf("disk %d: %w", n, err)
		}
		files = append(files, ExportedFile{name, n, d.Size})
	}
	for _, c := range pt.Config {
		data, err := repo.Config(ctx, pt, c.Name)
		if err != nil {
			return nil, err
		}
		name := names.take(safeName(c.Name))
		if err := st.file(name, func(f *os.File) error {
			_, err := f.Write(data)
			return err
		}); err != nil {
			return nil, err
		}
		files = append(files, ExportedFile{name, -1, c.Size})
	}
	return files, nil
}

// exportFunc writes img into the stage, as name and what belongs to it.
type exportFunc func(ctx context.Context, st *stage, name string, img disk.Image, progress func(done, total int64)) error

func exporter(format string) (exportFunc, error) {
	switch format {
	case FormatRaw:
		return func(ctx context.Context, st *stage, name string, img disk.Image, progress func(int64, int64)) error {
			return st.file(name, func(f *os.File) error { return disk.WriteRaw(ctx, f, img, progress) })
		}, nil
	case FormatQCOW2:
		return func(ctx context.Context, st *stage, name string, img disk.Image, progress func(int64, int64)) error {
			return st.file(name, func(f *os.File) error {
				return disk.WriteQCOW2(ctx, f, img, disk.QCOW2Options{Progress: progress})
			})
		}, nil
	case FormatVMDK:
		return func(ctx context.Context, st *stage, name string, img disk.Image, progress func(int64, int64)) error {
			return st.file(name, func(f *os.File) error {
				return disk.WriteVMDK(ctx, f, img, disk.VMDKOptions{Progress: progress})
			})
		}, nil
	case FormatFlatVMDK:
		return exportFlat, nil
	}
	return nil, fmt.Errorf("%w: format %q: use raw, qcow2, vmdk or vmdk-flat", ErrUsage, format)
}

// exportFlat makes the pair: the bytes first, because the descriptor is what
// people and ESXi take for the disk.
func exportFlat(ctx context.Context, st *stage, name string, img disk.Image, progress func(int64, int64)) error {
	var text bytes.Buffer
	flat := strings.TrimSuffix(name, filepath.Ext(name)) + "-flat.vmdk"
	err := st.file(flat, func(f *os.File) error {
		return disk.WriteFlatVMDK(ctx, &text, f, img, disk.VMDKOptions{Progress: progress})
	})
	if err != nil {
		return err
	}
	return st.file(name, func(f *os.File) error {
		_, err := f.Write(text.Bytes())
		return err
	})
}

type streamFunc func(ctx context.Context, w io.Writer, img disk.Image, progress func(done, total int64)) error

func streamer(format string) (streamFunc, error) {
	switch format {
	case FormatRaw:
		return disk.WriteRawTo, nil
	case FormatVMDK:
		return func(ctx context.Context, w io.Writer, img disk.Image, progress func(int64, int64)) error {
			return disk.WriteVMDK(ctx, w, img, disk.VMDKOptions{Progress: progress})
		}, nil
	case FormatQCOW2:
		return nil, fmt.Errorf("%w: qcow2 cannot be written to a stream, because its first bytes are known last: use raw or vmdk, or a file", ErrUsage)
	case FormatFlatVMDK:
		return nil, fmt.Errorf("%w: vmdk-flat is two files and cannot be written to a stream: use raw or vmdk", ErrUsage)
	}
	return nil, fmt.Errorf("%w: format %q: use raw or vmdk for a stream", ErrUsage, format)
}

// existing looks at what is under the name of an output: nothing, or a file
// that force allows to replace, or something special that is written into: a
// device, a named pipe.
func existing(name string, force bool) (special bool, err error) {
	info, err := os.Stat(name)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, fmt.Errorf("export: %w", err)
	case err != nil:
		if _, err := os.Lstat(name); err == nil && !force {
			return false, fmt.Errorf("%w: %s exists already (a link to nowhere); remove it or use --force", ErrUsage, name)
		}
		return false, nil
	case info.IsDir():
		return false, fmt.Errorf("%w: %s is a directory; name a file, or leave --disk out to export all disks into a new directory", ErrUsage, name)
	case info.Mode()&(os.ModeNamedPipe|os.ModeCharDevice) != 0:
		return true, nil
	case info.Mode()&os.ModeDevice != 0 && !force:
		return false, fmt.Errorf("%w: %s is a device, whose content would be lost: use --force", ErrUsage, name)
	case info.Mode().IsRegular() && !force:
		return false, fmt.Errorf("%w: %s exists already; remove it or use --force", ErrUsage, name)
	}
	return !info.Mode().IsRegular(), nil
}

// exportInto writes into a device or a named pipe. What is interrupted there
// stays as it is.
func exportInto(ctx context.Context, img disk.Image, req ExportRequest) error {
	write, err := streamer(req.Format)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(req.Output, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	defer f.Close()
	if req.Format == FormatRaw {
		err = disk.WriteRaw(ctx, f, img, req.Progress)
	} else {
		err = write(ctx, f, img, req.Progress)
	}
	if err == nil {
		err = syncIfPossible(f)
	}
	if err != nil {
		return fmt.Errorf("export to %s: %w; what is there now is not whole", req.Output, err)
	}
	return f.Close()
}

// ChooseDisk turns an optional --disk into an index: a point with one disk
// needs no choice.
func ChooseDisk(pt *store.Point, n int, given bool) (int, error) {
	if !given && len(pt.Disks) > 1 {
		return 0, fmt.Errorf("%w: %w", ErrUsage, errNoDisk)
	}
	_, err := diskByNumber(pt, n)
	return n, err
}

var errNoDisk = errors.New("the restore point has several disks: choose one with --disk N, or export all into a directory: --output DIR/")
