package appliance

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"lifeboat/guestfs"
	"lifeboat/guestfs/inspect"
	"lifeboat/store"
)

// indexGrower adds points to an index. It keeps the guest of the point that was
// added last: the next one is compared with it.
type indexGrower struct {
	x     *fileIndex
	repo  *store.Repository
	opts  IndexOptions
	guest *Guest
}

func (w *indexGrower) close() {
	if w.guest != nil {
		w.guest.Close()
	}
}

// add adds a point that is later than all others.
func (w *indexGrower) add(ctx context.Context, pt *store.Point, points []*store.Point) error {
	pair, err := w.pair(ctx, pt, points)
	if err != nil {
		return err
	}
	x := w.x
	seq := len(x.meta.Points)
	x.meta.Points = append(x.meta.Points, indexPoint{pt.ID, pt.Time})
	seen := map[int]bool{}
	volumes := pair.b.Report().Volumes
	for b := range volumes {
		if !volumes[b].Usable() {
			continue
		}
		n, err := w.volume(ctx, pair, b, seq)
		if err != nil {
			if !lastingError(err) { // this volume can't be read: it has no files to find
				pair.note("%s: %v", volumes[b].Name, err)
				continue
			}
			return fmt.Errorf("volume %s: %w", volumes[b].Name, err)
		}
		seen[n] = true
	}
	for i := range x.rows {
		if r := &x.rows[i]; r.last == alive && !seen[r.volume] {
			r.last = seq - 1
		}
	}
	for _, note := range pair.notes {
		if len(x.meta.Notes) < maxDiffNotes {
			x.meta.Notes = append(x.meta.Notes, pt.ID+": "+note)
		}
	}
	if w.guest != nil {
		w.guest.Close()
	}
	w.guest = pair.b
	return nil
}

// pair opens a point, and what it is compared with: the one before it, if that
// still exists.
func (w *indexGrower) pair(ctx context.Context, pt *store.Point, points []*store.Point) (*guestPair, error) {
	p := &guestPair{}
	if n := len(w.x.meta.Points); w.guest == nil && n > 0 {
		i := slices.IndexFunc(points, func(q *store.Point) bool { return q.ID == w.x.meta.Points[n-1].ID })
		if i >= 0 {
			g, err := OpenGuest(ctx, w.repo, points[i], w.opts.Guest)
			if err != nil {
				return nil, err
			}
			w.guest = g
		}
	}
	p.a = w.guest
	var err error
	if p.b, err = OpenGuest(ctx, w.repo, pt, w.opts.Guest); err != nil {
		return nil, err
	}
	if p.a != nil {
		if p.disks, err = DiffPoints(ctx, w.repo, p.a.Point, pt); err != nil {
			p.b.Close()
			return nil, err
		}
	}
	return p, nil
}

// volume adds what a volume has, and says which one of the index's it is.
func (w *indexGrower) volume(ctx context.Context, pair *guestPair, b, seq int) (int, error) {
	fsys, err := pair.b.Volume(ctx, b)
	if err != nil {
		return 0, err
	}
	n := w.x.volumeOf(&pair.b.Report().Volumes[b], fsys.Root(), pair.b.prefix(b))
	if pair.a != nil && w.x.has(n) {
		for _, vp := range pair.volumes() {
			if vp.b != b {
				continue
			}
			v, err := pair.volumeDiff(ctx, vp)
			if err == nil {
				err = v.run(ctx, w.x.base(n))
			}
			if err == nil {
				w.x.apply(n, seq, v)
				return n, nil
			}
			if !errors.Is(err, errWalk) {
				return 0, err
			}
		}
	}
	note := func(err error) { pair.note("%s: %v", pair.b.Report().Volumes[b].Name, err) }
	all, err := wholeTree(ctx, fsys, note, func(string, int64, int64) {})
	if err != nil {
		return 0, err
	}
	w.x.replace(n, seq, all)
	return n, nil
}

// prefix is what goes before the paths of a volume.
func (g *Guest) prefix(volume int) string {
	place := g.placeOf(volume, "/x")
	return place[:len(place)-2]
}

// volumeOf is the number of a volume, which is a new one if it is not known.
func (x *fileIndex) volumeOf(v *inspect.Volume, root guestfs.Inode, where string) int {
	n := slices.IndexFunc(x.meta.Volumes, func(k indexVolume) bool {
		return k.Name == v.Name && k.Type == v.Type && k.UUID == v.UUID && k.Root == uint64(root)
	})
	if n < 0 {
		n = len(x.meta.Volumes)
		x.meta.Volumes = append(x.meta.Volumes, indexVolume{Name: v.Name, Type: v.Type, UUID: v.UUID, Root: uint64(root)})
	}
	x.meta.Volumes[n].Where = where
	return n
}

func (x *fileIndex) has(volume int) bool {
	return slices.ContainsFunc(x.rows, func(r indexRow) bool { return r.volume == volume && r.last == alive })
}

// base is the names that the latest point has on a volume.
func (x *fileIndex) base(volume int) linkSet {
	out := make(linkSet, len(x.rows))
	for i := range x.rows {
		if r := &x.rows[i]; r.volume == volume && r.last == alive && r.name != "" {
			out[r.inode] = append(out[r.inode], guestfs.Link{Dir: r.dir, Name: r.name})
		}
	}
	return out
}

// apply adds what a comparison found.
func (x *fileIndex) apply(volume, seq int, v *volumeDiff) {
	_, now := v.ents()
	come := map[guestfs.Inode][]*diffEnt{}
	for i := range now {
		if now[i].link.Name != "" {
			come[now[i].inode] = append(come[now[i].inode], &now[i])
		}
	}
	touched := func(r *indexRow) bool { return v.touched[r.inode] }
	x.change(volume, seq, touched, come, v.inPlace)
}

// replace adds all that a volume has.
func (x *fileIndex) replace(volume, seq int, all []diffEnt) {
	come := map[guestfs.Inode][]*diffEnt{}
	for i := range all {
		if all[i].link.Name != "" {
			come[all[i].inode] = append(come[all[i].inode], &all[i])
		}
	}
	x.change(volume, seq, func(*indexRow) bool { return true }, come, nil)
}

// change ends the rows that were touched and are not as they were, and begins
// those that are new.
func (x *fileIndex) change(volume, seq int, touched func(*indexRow) bool, come map[guestfs.Inode][]*diffEnt, inPlace map[guestfs.Inode]bool) {
	for i := range x.rows {
		r := &x.rows[i]
		if r.volume != volume || r.last != alive || !touched(r) {
			continue
		}
		list := come[r.inode]
		kept := slices.IndexFunc(list, func(e *diffEnt) bool {
			row := newIndexRow(volume, e, seq)
			return r.same(&row) && !inPlace[e.inode]
		})
		if kept < 0 {
			r.last = seq - 1
			continue
		}
		come[r.inode] = slices.Delete(list, kept, kept+1)
	}
	inodes := make([]guestfs.Inode, 0, len(come))
	for inode := range come {
		inodes = append(inodes, inode)
	}
	slices.Sort(inodes)
	for _, inode := range inodes {
		for _, e := range come[inode] {
			x.rows = append(x.rows, newIndexRow(volume, e, seq))
		}
	}
	x.dirs = nil
}
