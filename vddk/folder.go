package vddk

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"lifeboat/disk"
)

// folderPort reads the files of a disk through /folder: a flat file, or a chain
// of deltas that stands on one.
type folderPort struct {
	remote
	top *folderLayer
}

func openFolder(ctx context.Context, req Request, opts Options) (port, error) {
	return folderOf(ctx, req, opts)
}

// folderOf finds the files of the disk through its descriptor. What it returns
// reads with ctx what it keeps of tables.
func folderOf(ctx context.Context, req Request, opts Options) (*folderPort, error) {
	if req.Files == nil || req.Path == "" {
		return nil, unavailable("there is no way to the datastore's files")
	}
	p := &folderPort{remote: remote{files: req.Files, timeout: opts.Timeout}}
	var err error
	if strings.HasSuffix(req.Path, "-flat.vmdk") {
		p.top = &folderLayer{}
		err = p.add(ctx, p.top, disk.DescriptorExtent{Type: disk.ExtentFlat, Sectors: req.Size / disk.SectorSize}, req.Path)
	} else {
		p.top, err = p.layer(ctx, req.Path, nil, maxChain)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (p *folderPort) transport() string  { return Folder }
func (p *folderPort) size() int64        { return p.top.length }
func (p *folderPort) smallReadsAreDear() {}

func (p *folderPort) close() error {
	for l := p.top; l != nil; l = l.parent {
		for _, part := range l.parts {
			if part.tables != nil {
				part.tables.file.work.Wait()
			}
		}
	}
	return nil
}

func (p *folderPort) read(ctx context.Context, b []byte, off int64) error {
	return p.readLayer(ctx, p.top, b, off)
}

// extents: a file that is read over HTTP does not tell its holes. What a
// descriptor says to be zeros is one.
func (p *folderPort) extents(_ context.Context, within disk.Extent) iter.Seq2[disk.Extent, error] {
	return func(yield func(disk.Extent, error) bool) {
		for off := within.Offset; off < within.End(); {
			part := p.top.find(off)
			n := min(within.End(), part.start+part.length) - off
			if !yield(disk.Extent{Offset: off, Length: n, Hole: part.path == ""}, nil) {
				return
			}
			off += n
		}
	}
}

// folderName is the part of a datastore path before the file's own name: "[ds] "
// or "[ds] dir/".
func folderName(path string) string {
	if slash := strings.LastIndexByte(path, '/'); slash >= 0 {
		return path[:slash+1]
	}
	if _, file, ok := strings.Cut(path, "] "); ok {
		return strings.TrimSuffix(path, file)
	}
	return ""
}

// flatTarget is the one flat file that the disk consists of.
func (p *folderPort) flatTarget(path string) (string, error) {
	if len(p.top.parts) != 1 || p.top.parent != nil || p.top.parts[0].path == "" || p.top.parts[0].tables != nil || p.top.parts[0].at != 0 {
		return "", fmt.Errorf("%s is not one flat file, and only that can be written: %w", path, disk.ErrUnsupported)
	}
	return p.top.parts[0].path, nil
}
