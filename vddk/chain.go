package vddk

import (
	"context"
	"fmt"
	"path"
	"sort"
	"strings"

	"lifeboat/disk"
)

// folderLayer is what one descriptor describes: a whole disk, or what changed
// since its parent.
type folderLayer struct {
	parts  []folderPart // ascending, without gaps
	length int64
	parent *folderLayer // nil: what is not here reads as zeros
}

// folderPart is a run of a layer and the file that holds it.
type folderPart struct {
	start, length int64
	path          string        // "" = zeros
	at            int64         // of a flat file: where in it the run begins
	tables        *sparseTables // of a delta: where in the file what is
}

// maxChain bounds how many deltas stand on each other; vSphere allows 32
// snapshots.
const maxChain = 64

// layer opens what the descriptor at path describes, and all that it stands on.
// child is the descriptor that named it; nil for the disk itself.
func (p *folderPort) layer(ctx context.Context, at string, child *disk.Descriptor, depth int) (*folderLayer, error) {
	if depth == 0 {
		return nil, fmt.Errorf("%s: more than %d deltas: %w", at, maxChain, disk.ErrUnsupported)
	}
	text, err := p.descriptor(ctx, at)
	if err != nil {
		return nil, err
	}
	d, err := disk.ParseDescriptor(text)
	if err != nil {
		return nil, fmt.Errorf("descriptor %s: %w", at, err)
	}
	if child != nil && (d.CID != child.ParentCID || d.Size() != child.Size()) {
		return nil, fmt.Errorf("%s is not the parent that is meant: it has content ID %08x and %d bytes, expected are %08x and %d: %w",
			at, d.CID, d.Size(), child.ParentCID, child.Size(), disk.ErrFormat)
	}
	l := &folderLayer{}
	for _, e := range d.Extents {
		if err := p.add(ctx, l, e, at); err != nil {
			return nil, err
		}
	}
	if d.ParentCID == disk.NoParent {
		return l, nil
	}
	parent, err := parentPath(at, d.ParentFileName)
	if err != nil {
		return nil, err
	}
	l.parent, err = p.layer(ctx, parent, d, depth-1)
	return l, err
}

// parentPath is the datastore path of the parent that the descriptor at path
// names: a file beside it, or, as in linked clones, one by its full name on the
// host, /vmfs/volumes/<datastore>/dir/file. The datastore in it is a UUID that
// we cannot resolve; the same datastore is tried, and the content ID tells if it
// was the right one.
func parentPath(at, hint string) (string, error) {
	if strings.ContainsAny(hint, "\\\x00") || hint == "" {
		return "", fmt.Errorf("%s names %.200q as its parent: %w", at, hint, disk.ErrUnsupported)
	}
	if !strings.Contains(hint, "/") {
		return folderName(at) + hint, nil
	}
	file, ok := strings.CutPrefix(hint, "/vmfs/volumes/")
	_, file, below := strings.Cut(file, "/")
	datastore, _, named := strings.Cut(at, "] ")
	if !ok || !below || !named || path.Clean("/"+file) != "/"+file {
		return "", fmt.Errorf("%s names %.200q as its parent: %w", at, hint, disk.ErrUnsupported)
	}
	return datastore + "] " + file, nil
}

// add adds one extent of the descriptor at path (or the flat file itself) to a
// layer, and finds out that its file is there and long enough.
func (p *folderPort) add(ctx context.Context, l *folderLayer, e disk.DescriptorExtent, at string) error {
	part := folderPart{start: l.length, length: e.Sectors * disk.SectorSize, at: e.Offset * disk.SectorSize}
	if e.Type != disk.ExtentZero {
		if part.path = at; e.File != "" {
			if strings.ContainsAny(e.File, "/\\\x00") || e.File == ".." {
				return fmt.Errorf("%s names %.200q, which is not a file beside it: %w", at, e.File, disk.ErrUnsupported)
			}
			part.path = folderName(at) + e.File
		}
		size, err := p.files.Size(ctx, part.path)
		if err != nil {
			return fmt.Errorf("find %s: %w", part.path, err)
		}
		switch e.Type {
		case disk.ExtentFlat, disk.ExtentVMFS:
			if size-part.at < part.length {
				return fmt.Errorf("%s has %d bytes, and %d at %d are expected in it: %w", part.path, size, part.length, part.at, disk.ErrFormat)
			}
		case "SESPARSE", "VMFSSPARSE":
			part.tables, err = p.tables(ctx, e.Type, part.path, size, part.length)
			if err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s has an extent of type %.20q, which is not read through /folder: %w", at, e.Type, disk.ErrUnsupported)
		}
	}
	l.parts = append(l.parts, part)
	l.length += part.length
	return nil
}

// find is the part that holds off.
func (l *folderLayer) find(off int64) folderPart {
	return l.parts[sort.Search(len(l.parts), func(i int) bool { return l.parts[i].start > off })-1]
}

// readLayer fills b from off of a layer.
func (p *folderPort) readLayer(ctx context.Context, l *folderLayer, b []byte, off int64) error {
	if l == nil {
		clear(b)
		return nil
	}
	for len(b) > 0 {
		part := l.find(off)
		n := min(int64(len(b)), part.start+part.length-off)
		run := sparseRun{kind: runData, length: n, at: part.at + off - part.start}
		var err error
		switch {
		case part.path == "":
			run.kind = runZero
		case part.tables != nil:
			if run, err = part.tables.run(ctx, off-part.start, n); err != nil {
				return fmt.Errorf("%s: %w", part.path, err)
			}
		}
		switch run.kind {
		case runZero:
			clear(b[:run.length])
		case runParent:
			err = p.readLayer(ctx, l.parent, b[:run.length], off)
		case runData:
			err = p.fetch(ctx, part.path, run.at, b[:run.length])
		}
		if err != nil {
			return err
		}
		b, off = b[run.length:], off+run.length
	}
	return nil
}
