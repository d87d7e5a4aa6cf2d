package appliance

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"lifeboat/guestfs"
)

// entries of both states of what was touched.
func (v *volumeDiff) ents() (old, now []diffEnt) {
	return v.side(true), v.side(false)
}

func (v *volumeDiff) side(old bool) []diffEnt {
	attrs := v.attrs[sideNow]
	if old {
		attrs = v.attrs[sideOld]
	}
	var out []diffEnt
	for inode := range v.touched {
		a := attrs[inode]
		if a == nil {
			continue
		}
		for _, l := range v.names.links(inode, old) {
			if dir, ok := v.names.dir(l.Dir, old); ok || l.Dir == v.names.root {
				out = append(out, diffEnt{link: l, inode: inode, path: dir + "/" + l.Name, attr: a, moved: v.names.moved(inode, l, old)})
			}
		}
		if inode == v.names.root {
			out = append(out, diffEnt{inode: inode, path: "/", attr: a})
		}
	}
	slices.SortFunc(out, func(a, b diffEnt) int { return compareStrings(a.path, b.path) })
	return out
}

func compareStrings(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// wholeTree is every name of a file system.
func wholeTree(ctx context.Context, fsys guestfs.FS, note func(error), progress func(step string, done, total int64)) ([]diffEnt, error) {
	names := newDiffNames(fsys.Root())
	if err := walkNames(ctx, fsys, nil, names.base, note, func(n int64) { progress("names", n, 0) }); err != nil {
		return nil, err
	}
	inodes := []guestfs.Inode{fsys.Root()}
	for inode := range names.base {
		if inode != fsys.Root() {
			inodes = append(inodes, inode)
		}
	}
	slices.Sort(inodes)
	var out []diffEnt
	done := int64(0)
	for part := range slices.Chunk(inodes, 4096) {
		described, err := guestfs.StatAll(ctx, fsys, part)
		if err != nil {
			return nil, err
		}
		for i, d := range described {
			if d.Attr == nil {
				note(fmt.Errorf("inode %d: %w", part[i], d.Err))
				continue
			}
			if part[i] == fsys.Root() {
				out = append(out, diffEnt{inode: part[i], path: "/", attr: d.Attr})
			}
			for _, l := range names.base[part[i]] {
				if dir, ok := names.dir(l.Dir, false); ok || l.Dir == fsys.Root() {
					out = append(out, diffEnt{link: l, inode: part[i], path: dir + "/" + l.Name, attr: d.Attr})
				}
			}
		}
		done += int64(len(part))
		progress("files", done, int64(len(inodes)))
	}
	return out, nil
}

// walkBoth is every name in both states.
func walkBoth(ctx context.Context, old, now guestfs.FS, note func(error), progress func(step string, done, total int64)) (before, after []diffEnt, err error) {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		before, err = wholeTree(gctx, old, note, func(string, int64, int64) {})
		return err
	})
	g.Go(func() (err error) {
		after, err = wholeTree(gctx, now, note, progress)
		return err
	})
	err = g.Wait()
	return before, after, err
}
