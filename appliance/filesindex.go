package appliance

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"lifeboat/guestfs"
	"lifeboat/guestfs/inspect"
	"lifeboat/store"
)

// A file index knows which files a VM had in all of its restore points, so that a
// search need not open any. It grows by what differs from one point to the next,
// and is only ever a help: it can be dropped and built again.
//
// A row is a version of a name: a name in a directory (by inode, so that a
// directory that is renamed is one new row), what the file was like, and the
// first and last point that had it so.
type fileIndex struct {
	meta indexMeta
	rows []indexRow

	dirs map[indexDir][]int // rows of directories; made when paths are asked for
}

// indexMeta is the part of an index that is kept as JSON.
type indexMeta struct {
	VM      string        `json:"vm"`
	Points  []indexPoint  `json:"points"` // in the order of their times
	Volumes []indexVolume `json:"volumes"`
	Built   time.Time     `json:"built"` // when the last point was added
	Notes   []string      `json:"notes,omitempty"`
}

type indexPoint struct {
	ID   string    `json:"id"`
	Time time.Time `json:"time"`
}

// indexVolume is a file system that some of the points have.
type indexVolume struct {
	Name  string `json:"volume"`
	Type  string `json:"type"`
	UUID  string `json:"uuid"`
	Root  uint64 `json:"root"`
	Where string `json:"where"` // what goes before paths: "", "/home", "C:", "disk0p3"
}

// alive is the last point of rows that the latest point still has.
const alive = -1

type indexRow struct {
	volume      int
	dir, inode  guestfs.Inode
	name        string
	mode        uint32
	size        int64
	sec         int64 // mtime
	nsec        int32
	first, last int // of meta.Points; last may be alive
}

type indexDir struct {
	volume int
	inode  guestfs.Inode
}

func newIndexRow(volume int, e *diffEnt, first int) indexRow {
	return indexRow{
		volume: volume, dir: e.link.Dir, inode: e.inode, name: e.link.Name, mode: e.attr.Mode, size: e.attr.Size,
		sec: e.attr.Mtime.Unix(), nsec: int32(e.attr.Mtime.Nanosecond()), first: first, last: alive,
	}
}

// same reports whether a row says the same of a name.
func (r *indexRow) same(o *indexRow) bool {
	isDir := r.mode&guestfs.TypeMask == guestfs.TypeDir
	return r.dir == o.dir && r.inode == o.inode && r.name == o.name && r.mode&guestfs.TypeMask == o.mode&guestfs.TypeMask &&
		(isDir || r.size == o.size && r.sec == o.sec && r.nsec == o.nsec)
}

func (r *indexRow) mtime() time.Time { return time.Unix(r.sec, int64(r.nsec)) }

// IndexOptions say how an index grows.
type IndexOptions struct {
	Guest GuestOptions
	// Rebuild begins anew.
	Rebuild bool
	// Progress hears of restore points.
	Progress func(step string, done, total int64)
}

// IndexStatus is what is known of an index.
type IndexStatus struct {
	VM      string    `json:"vm"`
	Path    string    `json:"path"`
	Bytes   int64     `json:"bytes"` // of the file; 0: there is none
	Points  int       `json:"points"`
	Missing int       `json:"missing"` // restore points that are not in it
	Rows    int       `json:"rows"`
	Built   time.Time `json:"built"`
	Notes   []string  `json:"notes,omitempty"`
}

// vmPoints are the restore points of a VM, by its name, in the order of their
// times.
func vmPoints(ctx context.Context, repo *store.Repository, vm string) ([]*store.Point, error) {
	all, err := repo.Points(ctx)
	if err != nil {
		return nil, err
	}
	var out []*store.Point
	for _, pt := range all {
		if pt.VM == vm {
			out = append(out, pt)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: no restore point of a VM called %q (`lifeboat points` lists them)", ErrNotFound, vm)
	}
	return out, nil
}

func (s *State) indexPath(vm string) string {
	sum := sha256.Sum256([]byte(vm))
	return filepath.Join(s.dir, "files", hex.EncodeToString(sum[:12])+".index")
}

// IndexStatusOf tells of a VM's index.
func IndexStatusOf(ctx context.Context, repo *store.Repository, state *State, vm string) (*IndexStatus, error) {
	points, err := vmPoints(ctx, repo, vm)
	if err != nil {
		return nil, err
	}
	out := &IndexStatus{VM: vm, Path: state.indexPath(vm), Missing: len(points)}
	info, err := os.Stat(out.Path)
	if errors.Is(err, os.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	x, err := readIndex(out.Path)
	if err != nil {
		return nil, err
	}
	out.Bytes, out.Points, out.Rows, out.Built, out.Notes = info.Size(), len(x.meta.Points), len(x.rows), x.meta.Built, x.meta.Notes
	for _, pt := range points {
		if x.point(pt.ID) >= 0 {
			out.Missing--
		}
	}
	return out, nil
}

// DropIndex removes a VM's index, and says whether there was one.
func DropIndex(state *State, vm string) (bool, error) {
	err := os.Remove(state.indexPath(vm))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (x *fileIndex) point(id string) int {
	return slices.IndexFunc(x.meta.Points, func(p indexPoint) bool { return p.ID == id })
}

// UpdateIndex brings a VM's index up to its latest restore point. One that cannot be
// read, or lacks a point between those that it has, is built anew.
func UpdateIndex(ctx context.Context, repo *store.Repository, state *State, vm string, opts IndexOptions) error {
	_, err := updateIndex(ctx, repo, state, vm, opts)
	return err
}

func updateIndex(ctx context.Context, repo *store.Repository, state *State, vm string, opts IndexOptions) (*fileIndex, error) {
	points, err := vmPoints(ctx, repo, vm)
	if err != nil {
		return nil, err
	}
	path := state.indexPath(vm)
	x := &fileIndex{}
	if !opts.Rebuild {
		if x, err = readIndex(path); err != nil {
			if !errors.Is(err, os.ErrNotExist) {
				logger(opts.Guest.Logger).Warn("the index of files is built anew", "vm", vm, "error", err)
			}
			x = &fileIndex{}
		}
	}
	missing := x.missing(points)
	if len(missing) > 0 && len(x.meta.Points) > 0 && !missing[0].Time.After(last2(x.meta.Points).Time) {
		x = &fileIndex{} // one came in between, as copies from another repository do
		missing = points
	}
	if len(missing) == 0 {
		return x, nil
	}
	x.meta.VM = vm
	grower := &indexGrower{x: x, repo: repo, opts: opts}
	defer grower.close()
	for i, pt := range missing {
		if opts.Progress != nil {
			opts.Progress("restore points", int64(i), int64(len(missing)))
		}
		if err := grower.add(ctx, pt, points); err != nil {
			return nil, fmt.Errorf("index of %s: restore point %s: %w", vm, pt.ID, err)
		}
	}
	x.meta.Built = time.Now().UTC()
	return x, writeIndex(path, x)
}

func last2(points []indexPoint) indexPoint { return points[len(points)-1] }

func (x *fileIndex) missing(points []*store.Point) []*store.Point {
	known := map[string]bool{}
	for _, p := range x.meta.Points {
		known[p.ID] = true
	}
	var out []*store.Point
	for _, pt := range points {
		if !known[pt.ID] {
			out = append(out, pt)
		}
	}
	return out
}

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
