package appliance

import (
	"context"
	"fmt"
	"slices"

	"lifeboat/guestfs"
)

// linkSet is names of inodes.
type linkSet map[guestfs.Inode][]guestfs.Link

func (s linkSet) add(inode guestfs.Inode, l guestfs.Link) {
	if !slices.Contains(s[inode], l) {
		s[inode] = append(s[inode], l)
	}
}

// diffNames knows the names of files in two states of a volume: those in one of
// them, and which ones went and came.
type diffNames struct {
	root           guestfs.Inode
	base           linkSet // in the newer state, or with old in the older one
	old            bool
	removed, added linkSet
	paths          [2]map[guestfs.Inode]string // of directories; [1]: in the older state
}

func newDiffNames(root guestfs.Inode) *diffNames {
	return &diffNames{
		root: root, base: linkSet{}, removed: linkSet{}, added: linkSet{},
		paths: [2]map[guestfs.Inode]string{{}, {}},
	}
}

// moved reports whether a name went or came.
func (n *diffNames) moved(inode guestfs.Inode, l guestfs.Link, old bool) bool {
	if old {
		return slices.Contains(n.removed[inode], l)
	}
	return slices.Contains(n.added[inode], l)
}

// links are an inode's names in one of the states.
func (n *diffNames) links(inode guestfs.Inode, old bool) []guestfs.Link {
	base := n.base[inode]
	if old == n.old {
		return base
	}
	gone, come := n.added[inode], n.removed[inode]
	if n.old {
		gone, come = come, gone
	}
	var out []guestfs.Link
	for _, l := range base {
		if !slices.Contains(gone, l) {
			out = append(out, l)
		}
	}
	for _, l := range come {
		if !slices.Contains(out, l) {
			out = append(out, l)
		}
	}
	return out
}

// maxDiffDepth bounds how deep directories are in each other: a loop is damage.
const maxDiffDepth = 4096

// dir is the path of a directory, without a slash at its end; not ok where it
// cannot be reached from the root.
func (n *diffNames) dir(inode guestfs.Inode, old bool) (string, bool) {
	return n.dirBelow(inode, old, 0)
}

func (n *diffNames) dirBelow(inode guestfs.Inode, old bool, depth int) (string, bool) {
	if inode == n.root {
		return "", true
	}
	known := n.paths[0]
	if old {
		known = n.paths[1]
	}
	if path, ok := known[inode]; ok {
		return path, path != ""
	}
	links := n.links(inode, old)
	path := ""
	if len(links) > 0 && depth < maxDiffDepth {
		if up, ok := n.dirBelow(links[0].Dir, old, depth+1); ok {
			path = up + "/" + links[0].Name
		}
	}
	known[inode] = path
	return path, path != ""
}

// walkNames reads all directories and keeps the names of directories and of the
// files that are wanted (nil: of all).
func walkNames(ctx context.Context, fsys guestfs.FS, wanted map[guestfs.Inode]bool, into linkSet, note func(error), progress func(n int64)) error {
	seen := map[guestfs.Inode]bool{fsys.Root(): true}
	queue := []guestfs.Inode{fsys.Root()}
	n := int64(0)
	for len(queue) > 0 {
		level := queue
		queue = nil
		var unknown []guestfs.DirEntry
		take := func(e guestfs.DirEntry) {
			isDir := e.Type == guestfs.TypeDir
			if isDir || wanted == nil || wanted[e.Inode] {
				into.add(e.Inode, guestfs.Link{Dir: e.Dir, Name: e.Name})
			}
			if isDir && !seen[e.Inode] {
				seen[e.Inode] = true
				queue = append(queue, e.Inode)
			}
		}
		for e, err := range guestfs.ReadDirs(ctx, fsys, level) {
			switch {
			case err != nil:
				return err
			case e.Err != nil:
				note(fmt.Errorf("a directory (inode %d): %w", e.Dir, e.Err))
			case e.Type == 0:
				unknown = append(unknown, e)
			default:
				take(e)
			}
			if n++; n%4096 == 0 {
				progress(n)
			}
		}
		if err := addTypes(ctx, fsys, unknown); err != nil {
			return err
		}
		for _, e := range unknown {
			take(e)
		}
	}
	return nil
}

// addTypes fills in what directories did not tell.
func addTypes(ctx context.Context, fsys guestfs.FS, list []guestfs.DirEntry) error {
	inodes := make([]guestfs.Inode, len(list))
	for i := range list {
		inodes[i] = list[i].Inode
	}
	described, err := guestfs.StatAll(ctx, fsys, inodes)
	if err != nil {
		return err
	}
	for i, d := range described {
		if d.Attr != nil {
			list[i].Type = d.Attr.Type()
		}
	}
	return nil
}

// climbNames completes the names of directories above those that are known, of a
// file system whose inodes tell their names.
func climbNames(ctx context.Context, fsys guestfs.FS, into linkSet) error {
	asked := map[guestfs.Inode]bool{}
	for range maxDiffDepth {
		var next []guestfs.Inode
		for _, links := range into {
			for _, l := range links {
				if l.Dir != fsys.Root() && into[l.Dir] == nil && !asked[l.Dir] {
					asked[l.Dir] = true
					next = append(next, l.Dir)
				}
			}
		}
		if len(next) == 0 {
			return nil
		}
		slices.Sort(next)
		described, err := guestfs.StatAll(ctx, fsys, next)
		if err != nil {
			return err
		}
		for i, d := range described {
			for _, l := range d.Links {
				into.add(next[i], l)
			}
		}
	}
	return nil
}
