package appliance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"lifeboat/disk"
	"lifeboat/guestfs"
)

// Two states of a volume are compared like this:
//
//  1. What differs on the disks (the store knows without reading them) is moved to
//     the volume, and what of it holds inodes is read in both states: the inodes
//     whose bytes differ, and those that a replayed journal hides, are candidates.
//  2. What else differs may be content that was written in place without a new
//     time: who owns it is asked of all inodes, and the bytes of the file are
//     compared, but only there.
//  3. Of directories among those of both steps the entries are compared; where inodes
//     tell their own names, those are. That finds every name that went or came, as a
//     directory's inode changes whenever an entry does.
//  4. Paths are made from the names: each directory is listed once, but no inode is
//     looked at that has nothing to do with it.
//
// Whatever a reader cannot tell makes it a walk through both trees.
type volumeDiff struct {
	old, now guestfs.FS
	changed  []disk.Extent // of the volume, ascending; what the store says
	note     func(error)
	progress func(step string, done, total int64)

	names    *diffNames
	attrs    [2]map[guestfs.Inode]*guestfs.Attr // of what was touched; [1]: in the older state
	inState  [2]map[guestfs.Inode]bool          // candidates, where they are
	touched  map[guestfs.Inode]bool
	inPlace  map[guestfs.Inode]bool // content differs, and nothing else may say so
	hidden   []disk.Extent          // what a replayed journal shows differently, in one of the states
	suspects []disk.Extent          // inodes whose bytes may differ
	examined int
}

const (
	sideNow = iota
	sideOld
)

func newVolumeDiff(old, now guestfs.FS) *volumeDiff {
	return &volumeDiff{
		old: old, now: now, note: func(error) {}, progress: func(string, int64, int64) {},
		names: newDiffNames(now.Root()), touched: map[guestfs.Inode]bool{}, inPlace: map[guestfs.Inode]bool{},
		attrs: [2]map[guestfs.Inode]*guestfs.Attr{{}, {}}, inState: [2]map[guestfs.Inode]bool{{}, {}},
	}
}

// errWalk says that only a walk through both trees can tell.
var errWalk = errors.New("everything has to be looked at")

// run finds what was touched. base is the names in the older state where they are
// known already (an index), or nil.
func (v *volumeDiff) run(ctx context.Context, base linkSet) error {
	if v.old.Root() != v.now.Root() {
		return fmt.Errorf("%w: its root is another inode", errWalk)
	}
	records, err := v.candidates(ctx)
	if err != nil {
		return err
	}
	if err := v.writtenInPlace(ctx, records); err != nil {
		return err
	}
	linked, err := v.entries(ctx)
	if err != nil {
		return err
	}
	switch {
	case base != nil:
		v.names.base, v.names.old = base, true
		return nil
	case linked:
		return climbNames(ctx, v.now, v.names.base)
	}
	wanted := map[guestfs.Inode]bool{}
	for inode := range v.touched {
		wanted[inode] = true
	}
	return walkNames(ctx, v.now, wanted, v.names.base, v.note, func(n int64) { v.progress("names", n, 0) })
}

// records are where inodes stand in the two states.
type records struct{ old, now []disk.Extent }

// walkInstead is for errors that a walk may not run into.
func walkInstead(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w: %w", errWalk, err)
}

// candidates finds the inodes that may differ, and describes them.
func (v *volumeDiff) candidates(ctx context.Context) (r records, err error) {
	var hidden [2][]disk.Extent
	for side, fsys := range []guestfs.FS{v.now, v.old} {
		reader, ok := fsys.(guestfs.ChangeReader)
		if !ok {
			return r, fmt.Errorf("%w: %w", errWalk, guestfs.NoChanges())
		}
		list, err := reader.MetadataExtents(ctx)
		if err == nil {
			hidden[side], err = reader.Overlaid(ctx)
		}
		if err != nil {
			return r, walkInstead(ctx, err)
		}
		if side == sideNow {
			r.now = list
		} else {
			r.old = list
		}
	}
	differ, err := v.differing(ctx, intersect(v.changed, union(r.old, r.now)), inodeUnit)
	if err != nil {
		return r, walkInstead(ctx, err)
	}
	v.hidden = union(hidden[0], hidden[1])
	differ = union(differ, v.hidden)
	v.changed = union(v.changed, v.hidden)
	v.suspects = differ
	var parts [2][]guestfs.Inode
	g, gctx := errgroup.WithContext(ctx)
	for side, fsys := range []guestfs.FS{v.now, v.old} {
		g.Go(func() error {
			list, err := guestfs.InodesInAll(gctx, fsys, differ)
			parts[side] = list
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return r, walkInstead(ctx, err)
	}
	for side := range parts {
		for _, inode := range parts[side] {
			v.inState[side][inode] = true
		}
	}
	all := slices.Concat(parts[0], parts[1])
	slices.Sort(all)
	v.examined = len(all)
	return r, v.describe(ctx, slices.Compact(all))
}

// describe learns of inodes in both states. Those that are the same in both are
// not touched.
func (v *volumeDiff) describe(ctx context.Context, inodes []guestfs.Inode) error {
	var described [2][]guestfs.Described
	g, gctx := errgroup.WithContext(ctx)
	for side, fsys := range []guestfs.FS{v.now, v.old} {
		g.Go(func() (err error) {
			described[side], err = guestfs.StatAll(gctx, fsys, inodes)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, inode := range inodes {
		for side := range described {
			d := &described[side][i]
			v.attrs[side][inode] = d.Attr
			// What stands where an inode of the other state is may be anything.
			if d.Err != nil && !isNotExist(d.Err) && v.inState[side][inode] {
				v.note(fmt.Errorf("inode %d: %w", inode, d.Err))
			}
		}
		a, b := v.attrs[sideOld][inode], v.attrs[sideNow][inode]
		v.linksDiffer(inode, described[sideOld][i].Links, described[sideNow][i].Links)
		if a == nil && b == nil || sameFile(a, b) && a.Ctime.Equal(b.Ctime) && a.Links == b.Links && len(attrDiff(a, b)) == 0 {
			continue
		}
		v.touched[inode] = true
	}
	return nil
}

// linksDiffer takes in what an inode says of its own names.
func (v *volumeDiff) linksDiffer(inode guestfs.Inode, old, now []guestfs.Link) {
	for _, l := range now {
		v.names.base.add(inode, l)
		if !slices.Contains(old, l) {
			v.names.added.add(inode, l)
			v.touched[inode] = true
		}
	}
	for _, l := range old {
		if !slices.Contains(now, l) {
			v.names.removed.add(inode, l)
			v.touched[inode] = true
		}
	}
}

// entries finds the names that went and came. linked says that inodes told them.
func (v *volumeDiff) entries(ctx context.Context) (linked bool, err error) {
	root, err := guestfs.StatAll(ctx, v.now, []guestfs.Inode{v.now.Root()})
	if err != nil || len(root[0].Links) > 0 {
		return err == nil, err
	}
	var lists [2]map[guestfs.Inode]map[string]guestfs.DirEntry
	g, gctx := errgroup.WithContext(ctx)
	for side, fsys := range []guestfs.FS{v.now, v.old} {
		var dirs []guestfs.Inode
		for inode, a := range v.attrs[side] {
			if a != nil && a.Type() == guestfs.TypeDir {
				dirs = append(dirs, inode)
			}
		}
		slices.Sort(dirs)
		g.Go(func() (err error) {
			lists[side], err = listDirs(gctx, fsys, dirs, v.note)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return false, err
	}
	v.compareLists(lists[sideOld], lists[sideNow])
	var more []guestfs.Inode
	for _, set := range []linkSet{v.names.added, v.names.removed} {
		for inode := range set {
			if _, known := v.attrs[sideNow][inode]; !known {
				more = append(more, inode)
			}
			v.touched[inode] = true
		}
	}
	slices.Sort(more)
	return false, v.describe(ctx, slices.Compact(more))
}

func listDirs(ctx context.Context, fsys guestfs.FS, dirs []guestfs.Inode, note func(error)) (map[guestfs.Inode]map[string]guestfs.DirEntry, error) {
	out := map[guestfs.Inode]map[string]guestfs.DirEntry{}
	for _, dir := range dirs {
		out[dir] = map[string]guestfs.DirEntry{}
	}
	for e, err := range guestfs.ReadDirs(ctx, fsys, dirs) {
		if err != nil {
			return nil, err
		}
		if e.Err != nil {
			note(fmt.Errorf("a directory (inode %d): %w", e.Dir, e.Err))
			continue
		}
		out[e.Dir][e.Name] = e
	}
	return out, nil
}

// compareLists finds the names that are in one state only. Those in a directory
// whose number another had before are all new.
func (v *volumeDiff) compareLists(old, now map[guestfs.Inode]map[string]guestfs.DirEntry) {
	keeps := func(dir guestfs.Inode, e guestfs.DirEntry, in map[guestfs.Inode]map[string]guestfs.DirEntry) bool {
		other, ok := in[dir][e.Name]
		return ok && other.Inode == e.Inode && sameFile(v.attrs[sideOld][dir], v.attrs[sideNow][dir])
	}
	for dir, list := range now {
		for _, e := range list {
			if !keeps(dir, e, old) {
				v.names.added.add(e.Inode, guestfs.Link{Dir: dir, Name: e.Name})
			}
		}
	}
	for dir, list := range old {
		for _, e := range list {
			if !keeps(dir, e, now) {
				v.names.removed.add(e.Inode, guestfs.Link{Dir: dir, Name: e.Name})
			}
		}
	}
}

// writtenInPlace finds the files whose content differs and whose times and size do
// not say so.
func (v *volumeDiff) writtenInPlace(ctx context.Context, r records) error {
	rest := subtract(v.changed, union(r.old, r.now))
	if len(rest) == 0 {
		return nil
	}
	owners, err := v.owners(ctx, r.now, rest)
	if err != nil {
		return walkInstead(ctx, err)
	}
	// What stands on the disks as it is, is compared there, without opening files: most
	// of it only shares a block with something else.
	var plain []disk.Extent
	for _, o := range owners {
		if !o.Encoded {
			plain = append(plain, disk.Extent{Offset: o.At, Length: o.Length})
		}
	}
	plain = union(sorted(plain), nil)
	differ, err := v.differing(ctx, subtract(plain, v.hidden), contentUnit)
	if err != nil {
		return walkInstead(ctx, err)
	}
	differ = union(differ, intersect(plain, v.hidden))
	v.owned(&owners, differ)
	moved, err := v.suspected(ctx, rest)
	if err != nil {
		return walkInstead(ctx, err)
	}
	owners = append(owners, moved...)
	var inodes []guestfs.Inode
	for _, o := range owners {
		inodes = append(inodes, o.Inode)
	}
	slices.Sort(inodes)
	if err := v.describe(ctx, slices.Compact(inodes)); err != nil {
		return err
	}
	for _, o := range owners {
		if a := v.attrs[sideNow][o.Inode]; v.inPlace[o.Inode] || a == nil || a.Type() != guestfs.TypeFile {
			continue // entries looks at directories
		}
		differs, err := v.contentDiffers(ctx, o)
		if err != nil {
			return err
		}
		if differs {
			v.inPlace[o.Inode], v.touched[o.Inode] = true, true
		}
	}
	return nil
}

// owned leaves out the parts of files that are the same.
func (v *volumeDiff) owned(owners *[]guestfs.Owner, differ []disk.Extent) {
	*owners = slices.DeleteFunc(*owners, func(o guestfs.Owner) bool {
		return !o.Encoded && len(guestfs.Overlapping(differ, disk.Extent{Offset: o.At, Length: o.Length})) == 0
	})
}

// suspected are the parts of files whose inodes differ and say nothing of content:
// they may stand elsewhere now, so both states are asked.
func (v *volumeDiff) suspected(ctx context.Context, rest []disk.Extent) ([]guestfs.Owner, error) {
	var out []guestfs.Owner
	for _, fsys := range []guestfs.FS{v.now, v.old} {
		for _, e := range v.suspects {
			list, err := guestfs.OwnersIn(ctx, fsys, e, rest)
			if err != nil {
				return nil, err
			}
			out = append(out, list...)
		}
	}
	return slices.DeleteFunc(out, func(o guestfs.Owner) bool { return v.said(o.Inode) }), nil
}

// said reports whether a file's inode tells that its content is another one.
func (v *volumeDiff) said(inode guestfs.Inode) bool {
	a, known := v.attrs[sideOld][inode]
	b := v.attrs[sideNow][inode]
	return known && (!sameFile(a, b) || a.Size != b.Size || !a.Mtime.Equal(b.Mtime))
}

// owners asks who has what differs, but for files that say so. Half of the inodes
// are asked for in each state: those whose bytes do not differ are the same in both.
func (v *volumeDiff) owners(ctx context.Context, where, rest []disk.Extent) ([]guestfs.Owner, error) {
	const piece = 4 << 20
	total, done := int64(0), int64(0)
	for _, e := range where {
		total += e.Length
	}
	var mu sync.Mutex
	var out []guestfs.Owner
	g, gctx := errgroup.WithContext(ctx)
	parts := make(chan disk.Extent)
	g.Go(func() error {
		defer close(parts)
		for e := range pieces(where, piece) {
			select {
			case parts <- e:
			case <-gctx.Done():
				return context.Cause(gctx)
			}
		}
		return nil
	})
	for _, fsys := range []guestfs.FS{v.now, v.old} {
		g.Go(func() error {
			for e := range parts {
				list, err := guestfs.OwnersIn(gctx, fsys, e, rest)
				if err != nil {
					return err
				}
				mu.Lock()
				out = append(out, slices.DeleteFunc(list, func(o guestfs.Owner) bool { return v.said(o.Inode) })...)
				done += e.Length
				v.progress("owners", done, total)
				mu.Unlock()
			}
			return nil
		})
	}
	err := g.Wait()
	return out, err
}
