package appliance

import (
	"context"

	"lifeboat/guestfs"
	"lifeboat/guestfs/tree"
)

// count adds up, beside the work itself, how much there is to do. It counts as
// long as nothing is wrong; what is wrong the work itself will say.
func (s *getting) count(ctx context.Context) (done <-chan struct{}) {
	end := make(chan struct{})
	if s.req.Progress == nil {
		close(end)
		return end
	}
	go func() {
		defer close(end)
		c := counter{s: s, seen: map[fileID]bool{}}
		for _, place := range s.req.Places {
			fsys, at, err := s.g.find(ctx, place, tree.NoFollow)
			if err != nil {
				return
			}
			c.entry(ctx, fsys, guestfs.Describe(ctx, fsys, at.Dirent, false), 0)
		}
		s.counted.Store(ctx.Err() == nil)
	}()
	return end
}

type counter struct {
	s    *getting
	seen map[fileID]bool // directories, and files with several names
}

func (c *counter) entry(ctx context.Context, fsys guestfs.FS, e guestfs.Entry, depth int) {
	if e.Attr == nil || ctx.Err() != nil || depth > maxGetDepth {
		return
	}
	isDir := e.Attr.Type() == guestfs.TypeDir
	if isDir || e.Attr.Links > 1 {
		id := fileID{fsys, e.Inode}
		if c.seen[id] {
			return
		}
		c.seen[id] = true
	}
	if e.Attr.Type() == guestfs.TypeFile {
		c.s.total.Add(e.Attr.Size)
	}
	if !isDir {
		return
	}
	for below, err := range guestfs.ReadDirPlus(ctx, fsys, e.Inode, 0, false) {
		if err != nil {
			return
		}
		c.entry(ctx, fsys, below, depth+1)
	}
}
