package vddk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"lifeboat/disk"
)

// imagePort is a port on a disk of this machine.
type imagePort struct {
	name string
	img  disk.Image
}

func (p *imagePort) transport() string { return p.name }
func (p *imagePort) size() int64       { return p.img.Size() }
func (p *imagePort) close() error      { return p.img.Close() }

func (p *imagePort) read(_ context.Context, b []byte, off int64) error {
	n, err := p.img.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (p *imagePort) extents(ctx context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return disk.Extents(ctx, p.img, within)
}

// openFile opens the disk where the datastore is mounted.
func openFile(ctx context.Context, req Request, _ Options) (port, error) {
	if req.LocalPath == "" {
		return nil, unavailable("the datastore is not mounted here")
	}
	img, err := disk.Open(ctx, req.LocalPath, disk.OpenOptions{Format: localFormat(req.LocalPath)})
	if err != nil {
		return nil, err
	}
	return &imagePort{File, img}, nil
}

// localFormat says what a file of a datastore is, by its name alone: what the
// first sectors of a flat file look like is up to the guest.
func localFormat(name string) disk.Format {
	if strings.HasSuffix(name, ".vmdk") && !strings.HasSuffix(name, "-flat.vmdk") {
		return disk.FormatVMDK
	}
	return disk.FormatRaw
}

// rawPort is a flat file or block device of this machine, to be written.
type rawPort struct {
	imagePort
	file *os.File
}

func (p *rawPort) write(_ context.Context, b []byte, off int64) error {
	_, err := p.file.WriteAt(b, off)
	return err
}

func (p *rawPort) sync(context.Context) error { return p.file.Sync() }

func (p *rawPort) close() error { return errors.Join(p.img.Close(), p.file.Close()) }

// openRaw opens the raw file or device called path for reading and writing.
func openRaw(ctx context.Context, name, path string) (*rawPort, error) {
	img, err := disk.Open(ctx, path, disk.OpenOptions{Format: disk.FormatRaw})
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the disk for writing: %w", err), img.Close())
	}
	return &rawPort{imagePort{name, img}, file}, nil
}

// writeFile opens the flat file of a disk where the datastore is mounted.
func writeFile(ctx context.Context, req Request, _ Options) (writePort, error) {
	if req.LocalPath == "" {
		return nil, unavailable("the datastore is not mounted here")
	}
	path := req.LocalPath
	if localFormat(path) == disk.FormatVMDK {
		flat, err := flatBeside(path)
		if err != nil {
			return nil, err
		}
		path = flat
	}
	return openRaw(ctx, File, path)
}

// maxDescriptor is far more than any descriptor has, bytes.
const maxDescriptor = 1 << 20

// flatBeside is the path of the flat file that the descriptor at path names.
func flatBeside(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("open the disk's descriptor: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxDescriptor))
	if err != nil {
		return "", fmt.Errorf("read the descriptor %s: %w", path, err)
	}
	parts, err := flatExtents(path, text)
	if err != nil {
		return "", err
	}
	if len(parts) != 1 || parts[0].Offset != 0 || parts[0].Type == disk.ExtentZero {
		return "", fmt.Errorf("%s: %d extents; one flat file can be written: %w", path, len(parts), disk.ErrUnsupported)
	}
	return filepath.Join(filepath.Dir(path), parts[0].File), nil
}

// flatExtents are the extents of a disk whose descriptor is text, if it is a
// whole disk of flat files that lie beside the descriptor.
func flatExtents(path string, text []byte) ([]disk.DescriptorExtent, error) {
	d, err := disk.ParseDescriptor(text)
	if err != nil {
		return nil, fmt.Errorf("descriptor %s: %w", path, err)
	}
	if d.ParentCID != disk.NoParent {
		return nil, fmt.Errorf("%s holds only what changed since %q: %w", path, d.ParentFileName, disk.ErrUnsupported)
	}
	for _, e := range d.Extents {
		switch e.Type {
		case disk.ExtentZero:
			continue
		case disk.ExtentFlat, disk.ExtentVMFS:
		default:
			return nil, fmt.Errorf("%s has an extent of type %.20q, which is not a flat file: %w", path, e.Type, disk.ErrUnsupported)
		}
		if strings.ContainsAny(e.File, "/\\\x00") || !filepath.IsLocal(e.File) {
			return nil, fmt.Errorf("%s names %.200q, which is not a file beside it: %w", path, e.File, disk.ErrUnsupported)
		}
	}
	return d.Extents, nil
}
