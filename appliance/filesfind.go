package appliance

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"lifeboat/guestfs"
	"lifeboat/guestfs/tree"
	"lifeboat/store"
)

// FileQuery says which files are wanted. The zero value wants all.
type FileQuery struct {
	// Names are patterns as in path.Match, of which one has to fit the name, or the
	// whole path where it has a slash in it.
	Names      []string
	IgnoreCase bool
	Type       string // as in File.Type
	MinSize    int64  // bytes
	MaxSize    int64  // bytes; 0: any
	Newer      time.Time
	Older      time.Time
	// Under is a directory: only what is in it. Of a VM's index, the whole place.
	Under string

	literals map[string]string // by pattern; see literal
}

// Validate checks the patterns.
func (q *FileQuery) Validate() error {
	for _, n := range q.Names {
		if _, err := path.Match(n, "x"); err != nil {
			return fmt.Errorf("%w: pattern %q: %w", ErrUsage, n, err)
		}
	}
	return nil
}

func (q *FileQuery) attributes(mode uint32, size int64, mtime time.Time) bool {
	return (q.Type == "" || q.Type == fileType(mode)) && size >= q.MinSize && (q.MaxSize == 0 || size <= q.MaxSize) &&
		(q.Newer.IsZero() || mtime.After(q.Newer)) && (q.Older.IsZero() || mtime.Before(q.Older))
}

// name reports whether a name may fit: it does, or a pattern is of whole paths.
func (q *FileQuery) name(name string) bool {
	if len(q.Names) == 0 {
		return true
	}
	return slices.ContainsFunc(q.Names, func(p string) bool { return strings.Contains(p, "/") || q.fits(p, name) })
}

func (q *FileQuery) fits(pattern, s string) bool {
	if _, known := q.literals[pattern]; !known {
		if q.literals == nil {
			q.literals = map[string]string{}
		}
		q.literals[pattern] = literal(pattern)
	}
	if q.IgnoreCase {
		pattern, s = strings.ToLower(pattern), strings.ToLower(s)
	} else if !strings.Contains(s, q.literals[pattern]) {
		return false // which is far quicker said than with path.Match
	}
	ok, err := path.Match(pattern, s)
	return ok && err == nil
}

// literal is the longest piece of a pattern that stands for itself.
func literal(pattern string) string {
	if strings.ContainsAny(pattern, `[\`) {
		return ""
	}
	best := ""
	for _, part := range strings.FieldsFunc(pattern, func(r rune) bool { return r == '*' || r == '?' }) {
		if len(part) > len(best) {
			best = part
		}
	}
	return best
}

// full reports whether a path fits, as name has already said that it may.
func (q *FileQuery) full(p, name string) bool {
	if q.Under != "" && !below("/"+strings.TrimPrefix(p, "/"), "/"+strings.Trim(q.Under, "/")) {
		return false
	}
	return len(q.Names) == 0 || slices.ContainsFunc(q.Names, func(n string) bool {
		if strings.Contains(n, "/") {
			return q.fits(n, p)
		}
		return q.fits(n, name)
	})
}

// Find yields the files below a place that are wanted. What cannot be read is
// yielded with an Error.
func (g *Guest) Find(ctx context.Context, place string, q FileQuery, progress func(n int64), yield func(File) error) error {
	fsys, at, err := g.find(ctx, place, tree.Follow)
	if err != nil {
		return err
	}
	type dir struct {
		inode guestfs.Inode
		path  string
	}
	seen := map[guestfs.Inode]bool{at.Inode: true}
	n := int64(0)
	for queue := []dir{{at.Inode, at.Path}}; len(queue) > 0; queue = queue[1:] {
		for e, err := range guestfs.ReadDirPlus(ctx, fsys, queue[0].inode, 0, false) {
			if err != nil && ctx.Err() != nil {
				return context.Cause(ctx)
			}
			p := childPath(queue[0].path, e.Name)
			if err != nil || e.Attr == nil {
				if err = yield(newFile(p, guestfs.Entry{Dirent: e.Dirent, Err: cmp.Or(err, e.Err)})); err != nil {
					return err
				}
				continue
			}
			if e.Attr.Type() == guestfs.TypeDir && !seen[e.Inode] {
				seen[e.Inode] = true
				queue = append(queue, dir{e.Inode, p})
			}
			if n++; progress != nil && n%1024 == 0 {
				progress(n)
			}
			if !q.name(e.Name) || !q.attributes(e.Attr.Mode, e.Attr.Size, e.Attr.Mtime) || !q.full(p, e.Name) {
				continue
			}
			if err := yield(newFile(p, e)); err != nil {
				return err
			}
		}
	}
	return nil
}

// FoundFile is a path that fits, in the restore points of a VM.
type FoundFile struct {
	Path string `json:"path"` // a place
	Type string `json:"type"`
	// Size and Modify are those of the latest version that fits.
	Size     int64     `json:"size"`
	Modify   time.Time `json:"mtime"`
	Versions int       `json:"versions"`
	Points   int       `json:"points"` // restore points that have it
	First    SeenIn    `json:"first"`
	Last     SeenIn    `json:"last"`
	// Gone says that the latest restore point does not have it; Last is where it can
	// still be had from.
	Gone bool `json:"gone"`
}

// SeenIn is a restore point.
type SeenIn struct {
	Point string    `json:"point"`
	Time  time.Time `json:"time"`
}

// FileVersion is one version of a file and the restore points that have it.
type FileVersion struct {
	Path   string    `json:"path"`
	Type   string    `json:"type"`
	Size   int64     `json:"size"`
	Modify time.Time `json:"mtime"`
	Inode  uint64    `json:"inode"`
	Points []SeenIn  `json:"points"`
}

// FindAll finds files in all restore points of a VM, through its index, which is
// brought up to date first.
func FindAll(ctx context.Context, repo *store.Repository, state *State, vm string, q FileQuery, opts IndexOptions) ([]FoundFile, error) {
	x, living, err := livingIndex(ctx, repo, state, vm, opts)
	if err != nil {
		return nil, err
	}
	return x.find(q, living), nil
}

// FileVersions are the versions of the file at a place, in all restore points of a
// VM, the oldest first.
func FileVersions(ctx context.Context, repo *store.Repository, state *State, vm, place string, opts IndexOptions) ([]FileVersion, error) {
	x, living, err := livingIndex(ctx, repo, state, vm, opts)
	if err != nil {
		return nil, err
	}
	out := x.versions(place, living)
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: no restore point of %s has %s", ErrNotFound, vm, place)
	}
	return out, nil
}

// livingIndex is an index that is up to date, and which of its points still exist.
func livingIndex(ctx context.Context, repo *store.Repository, state *State, vm string, opts IndexOptions) (*fileIndex, []bool, error) {
	x, err := updateIndex(ctx, repo, state, vm, opts)
	if err != nil {
		return nil, nil, err
	}
	points, err := vmPoints(ctx, repo, vm)
	if err != nil {
		return nil, nil, err
	}
	living := make([]bool, len(x.meta.Points))
	for _, pt := range points {
		if i := x.point(pt.ID); i >= 0 {
			living[i] = true
		}
	}
	return x, living, nil
}

// span is the points that have a row.
func (x *fileIndex) span(r *indexRow, living []bool) (seqs []int) {
	end := r.last
	if end == alive {
		end = len(living) - 1
	}
	for i := r.first; i <= end; i++ {
		if living[i] {
			seqs = append(seqs, i)
		}
	}
	return seqs
}

// path is where a row's name was in a point.
func (x *fileIndex) path(r *indexRow, seq int) (string, bool) {
	v := x.meta.Volumes[r.volume]
	p := "/" + r.name
	for range maxDiffDepth {
		if r.dir == guestfs.Inode(v.Root) {
			return v.Where + p, true
		}
		i := slices.IndexFunc(x.dirs[indexDir{r.volume, r.dir}], func(i int) bool {
			d := &x.rows[i]
			return d.first <= seq && (d.last == alive || d.last >= seq)
		})
		if i < 0 {
			return "", false
		}
		r = &x.rows[x.dirs[indexDir{r.volume, r.dir}][i]]
		p = "/" + r.name + p
	}
	return "", false
}

func (x *fileIndex) prepare() {
	if x.dirs != nil {
		return
	}
	x.dirs = map[indexDir][]int{}
	for i := range x.rows {
		if r := &x.rows[i]; r.mode&guestfs.TypeMask == guestfs.TypeDir {
			k := indexDir{r.volume, r.inode}
			x.dirs[k] = append(x.dirs[k], i)
		}
	}
}

func (x *fileIndex) seen(seq int) SeenIn {
	return SeenIn{x.meta.Points[seq].ID, x.meta.Points[seq].Time}
}

func (x *fileIndex) find(q FileQuery, living []bool) []FoundFile {
	x.prepare()
	latest := lastLiving(living)
	at := map[string]int{}
	out := []FoundFile{}
	for i := range x.rows {
		r := &x.rows[i]
		if !q.name(r.name) || !q.attributes(r.mode, r.size, r.mtime()) {
			continue
		}
		seqs := x.span(r, living)
		if len(seqs) == 0 {
			continue
		}
		end := seqs[len(seqs)-1]
		p, ok := x.path(r, end)
		if !ok || !q.full(p, r.name) {
			continue
		}
		n, known := at[p]
		if !known {
			n = len(out)
			at[p] = n
			out = append(out, FoundFile{Path: p, First: x.seen(seqs[0])})
		}
		f := &out[n]
		f.Versions++
		f.Points += len(seqs)
		if first := x.seen(seqs[0]); first.Time.Before(f.First.Time) {
			f.First = first
		}
		if last := x.seen(end); !known || !last.Time.Before(f.Last.Time) {
			f.Last, f.Type, f.Size, f.Modify, f.Gone = last, fileType(r.mode), r.size, r.mtime().UTC(), end != latest
		}
	}
	slices.SortFunc(out, func(a, b FoundFile) int { return compareStrings(a.Path, b.Path) })
	return out
}

func lastLiving(living []bool) int {
	for i := len(living) - 1; i >= 0; i-- {
		if living[i] {
			return i
		}
	}
	return -1
}

func (x *fileIndex) versions(place string, living []bool) []FileVersion {
	x.prepare()
	want := path.Clean("/" + strings.ReplaceAll(place, `\`, "/"))
	out := []FileVersion{}
	for i := range x.rows {
		r := &x.rows[i]
		if !strings.EqualFold(r.name, path.Base(want)) {
			continue
		}
		var v *FileVersion
		for _, seq := range x.span(r, living) {
			p, ok := x.path(r, seq)
			full := path.Clean("/" + p)
			if same := full == want || x.meta.Volumes[r.volume].Type == "ntfs" && strings.EqualFold(full, want); !ok || !same {
				continue
			}
			if v == nil {
				out = append(out, FileVersion{Path: p, Type: fileType(r.mode), Size: r.size, Modify: r.mtime().UTC(), Inode: uint64(r.inode)})
				v = &out[len(out)-1]
			}
			v.Points = append(v.Points, x.seen(seq))
		}
	}
	slices.SortFunc(out, func(a, b FileVersion) int { return a.Points[0].Time.Compare(b.Points[0].Time) })
	return out
}

// IsVM reports whether a name is that of a VM and not also of a restore point.
func IsVM(ctx context.Context, repo *store.Repository, name string) bool {
	if _, err := ResolvePoint(ctx, repo, name); err == nil {
		return false
	}
	_, err := vmPoints(ctx, repo, name)
	return err == nil
}

// ResolveVMPlace takes VM, VM:PLACE or POINT:PLACE apart; of a point, the VM is its.
func ResolveVMPlace(ctx context.Context, repo *store.Repository, ref string) (vm, place string, err error) {
	for _, at := range colons(ref) {
		if IsVM(ctx, repo, ref[:at]) {
			return ref[:at], strings.TrimPrefix(ref[at:], ":"), nil
		}
	}
	f, err := ResolveFile(ctx, repo, ref)
	if err != nil {
		return "", "", err
	}
	return f.Point.VM, f.Place, nil
}
