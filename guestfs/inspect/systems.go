package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"lifeboat/guestfs"
	"lifeboat/guestfs/tree"
)

// findSystems looks for an operating system on every volume that can be read.
func (g *Guest) findSystems(ctx context.Context) {
	g.report.Systems = []System{}
	for i, fsys := range g.fs {
		if fsys == nil || ctx.Err() != nil {
			continue
		}
		if s := g.linux(ctx, i, fsys); s != nil {
			g.report.Systems = append(g.report.Systems, *s)
		}
		if s := g.windows(ctx, i, fsys); s != nil {
			g.report.Systems = append(g.report.Systems, *s)
		}
	}
	for _, s := range g.report.Systems {
		for _, m := range s.Mounts {
			g.mounted(m)
		}
	}
}

// mounted notes with a volume where it is seen.
func (g *Guest) mounted(m Mount) {
	v := &g.report.Volumes[m.Volume]
	if path := shown(m.Path); !slices.Contains(v.Mounts, path) {
		v.Mounts = append(v.Mounts, path)
		slices.Sort(v.Mounts)
	}
}

// shown is a mount's path as people write it: a drive has no slash.
func shown(path string) string {
	if len(path) == 3 && path[2] == ':' {
		return path[1:]
	}
	return path
}

// maxText bounds the small files that are read of a system, in bytes.
const maxText = 1 << 20

// readFile reads a small file of a guest. fs.ErrNotExist where there is none.
func readFile(ctx context.Context, fsys guestfs.FS, path string, limit int64) ([]byte, error) {
	at, err := tree.Walk(ctx, fsys, path, tree.Follow)
	if err != nil {
		return nil, err
	}
	a, err := fsys.Stat(ctx, at.Inode)
	if err != nil {
		return nil, err
	}
	if a.Type() != guestfs.TypeFile {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	img, err := fsys.Open(ctx, at.Inode)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	if img.Size() > limit {
		return nil, fmt.Errorf("%s has %d bytes, more than the %d that are read of it", path, img.Size(), limit)
	}
	p := make([]byte, img.Size())
	if n, err := img.ReadAt(p, 0); n < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}
