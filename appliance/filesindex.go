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
