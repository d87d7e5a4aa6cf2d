package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/inspect"
	"lifeboat/guestfs/worker"
	"lifeboat/store"
)

// FilesDiffRequest says what is compared. Places are of a directory, or empty: all
// volumes.
type FilesDiffRequest struct {
	A, B *FileRef
	// Content has the content of every file compared that was touched: what differs
	// says whether it really does.
	Content bool
	// Walk goes through both trees even where the blocks that differ would do.
	Walk bool
	// Progress hears of steps; total 0: nobody knows of how many.
	Progress func(step string, done, total int64)
	Guest    GuestOptions
}

// FilesDiff is what differs between the files of two restore points.
type FilesDiff struct {
	A       string       `json:"a"` // restore points
	B       string       `json:"b"`
	Changes []FileChange `json:"changes"`
	Volumes []VolumeDiff `json:"volumes"`
	// Notes say what could not be compared.
	Notes []string `json:"notes,omitempty"`
}

// How volumes are compared.
const (
	DiffByBlocks = "changed blocks"
	DiffByWalk   = "walk"
)

// VolumeDiff is how a volume was compared.
type VolumeDiff struct {
	Volume  string `json:"volume"`
	Method  string `json:"method"`           // DiffByBlocks or DiffByWalk
	Why     string `json:"why,omitempty"`    // it was a walk
	Changed int64  `json:"changed"`          // bytes that differ, as the repository sees it
	Inodes  int    `json:"inodes,omitempty"` // that were looked at
}

// maxDiffNotes bounds how many failures are told one by one.
const maxDiffNotes = 100

// DiffFiles compares the files of two restore points, at the cost of what differs
// where the file systems allow it.
func DiffFiles(ctx context.Context, repo *store.Repository, req FilesDiffRequest) (*FilesDiff, error) {
	if req.Progress == nil {
		req.Progress = func(string, int64, int64) {}
	}
	p, err := openPair(ctx, repo, req.A.Point, req.B.Point, req.Guest)
	if err != nil {
		return nil, err
	}
	defer p.close()
	return p.diff(ctx, req)
}

// guestPair is the guests of two restore points, and what differs on their disks.
type guestPair struct {
	a, b  *Guest
	disks []DiskDiff

	mu    sync.Mutex
	notes []string
}

func openPair(ctx context.Context, repo *store.Repository, a, b *store.Point, opts GuestOptions) (*guestPair, error) {
	p := &guestPair{}
	errs := make(chan error, 1)
	go func() {
		var err error
		p.a, err = OpenGuest(ctx, repo, a, opts)
		errs <- err
	}()
	var err error
	p.b, err = OpenGuest(ctx, repo, b, opts)
	if err = errors.Join(err, <-errs); err == nil {
		p.disks, err = DiffPoints(ctx, repo, a, b)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *guestPair) close() {
	for _, g := range []*Guest{p.a, p.b} {
		if g != nil {
			g.Close()
		}
	}
}

func (p *guestPair) note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.notes) < maxDiffNotes {
		p.notes = append(p.notes, fmt.Sprintf(format, args...))
	}
}

func (p *guestPair) diff(ctx context.Context, req FilesDiffRequest) (*FilesDiff, error) {
	out := &FilesDiff{A: p.a.Point.ID, B: p.b.Point.ID, Changes: []FileChange{}, Volumes: []VolumeDiff{}}
	whereA, errA := p.a.where(ctx, req.A.Place)
	whereB, errB := p.b.where(ctx, req.B.Place)
	if errA != nil && !errors.Is(errA, ErrNotFound) || errB != nil && (errA != nil || !errors.Is(errB, ErrNotFound)) {
		return nil, errors.Join(errA, errB)
	}
	for _, pair := range p.volumes() {
		if !whereB.contains(p.b, pair.b) && !whereA.contains(p.a, pair.a) {
			continue
		}
		changes, how, err := p.volume(ctx, pair, req)
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", how.Volume, err)
		}
		out.Volumes = append(out.Volumes, how)
		for _, c := range changes {
			if whereB.holds(pair.b, c.Path) || whereA.holds(pair.a, c.Path) || c.From != "" && whereA.holds(pair.a, c.From) {
				out.Changes = append(out.Changes, p.placed(pair, c))
			}
		}
	}
	slices.SortStableFunc(out.Changes, func(a, b FileChange) int { return compareStrings(a.Path, b.Path) })
	out.Notes = p.notes
	return out, nil
}

// volumePair is a volume in both restore points, by index in the reports.
type volumePair struct{ a, b int }

// volumes pairs what has the same file system, or else the same name.
func (p *guestPair) volumes() []volumePair {
	va, vb := p.a.Report().Volumes, p.b.Report().Volumes
	var out []volumePair
	taken := map[int]bool{}
	pair := func(b int, same func(a, b *inspect.Volume) bool) bool {
		for a := range va {
			if va[a].Usable() && !taken[a] && same(&va[a], &vb[b]) {
				taken[a] = true
				out = append(out, volumePair{a, b})
				return true
			}
		}
		return false
	}
	var left []int
	for b := range vb {
		named := func(x, y *inspect.Volume) bool { return x.Name == y.Name && sameVolume(x, y) }
		if vb[b].Usable() && !pair(b, named) && !pair(b, sameVolume) {
			left = append(left, b)
		}
	}
	for _, b := range left {
		if !pair(b, func(x, y *inspect.Volume) bool { return x.Name == y.Name }) {
			p.note("volume %s is only in restore point %s", vb[b].Name, p.b.Point.ID)
		}
	}
	for a := range va {
		if va[a].Usable() && !taken[a] {
			p.note("volume %s is only in restore point %s", va[a].Name, p.a.Point.ID)
		}
	}
	slices.SortFunc(out, func(x, y volumePair) int { return x.b - y.b })
	return out
}

func sameVolume(a, b *inspect.Volume) bool {
	return a.Type == b.Type && a.UUID == b.UUID && a.UUID != ""
}

// volume compares one volume.
func (p *guestPair) volume(ctx context.Context, pair volumePair, req FilesDiffRequest) ([]FileChange, VolumeDiff, error) {
	name := p.b.Report().Volumes[pair.b].Name
	how := VolumeDiff{Volume: name, Method: DiffByBlocks}
	v, err := p.volumeDiff(ctx, pair)
	if err == nil {
		v.progress = req.Progress
		for _, e := range v.changed {
			how.Changed += e.Length
		}
		if req.Walk {
			err = fmt.Errorf("%w: it was asked for", errWalk)
		}
	}
	if err == nil {
		err = v.run(ctx, nil)
	}
	var old, now []diffEnt
	switch {
	case err == nil:
		how.Inodes = v.examined
		old, now = v.ents()
	case v != nil && errors.Is(err, errWalk):
		how.Method, how.Why = DiffByWalk, strings.TrimPrefix(err.Error(), errWalk.Error()+": ")
		old, now, err = walkBoth(ctx, v.old, v.now, v.note, req.Progress)
		how.Inodes = len(now)
	}
	if err != nil {
		return nil, how, err
	}
	m := diffMatcher{byPath: !sameVolume(&p.a.Report().Volumes[pair.a], &p.b.Report().Volumes[pair.b])}
	var failed error
	m.differs = func(old, now *diffEnt, what []string) []string {
		more, err := v.moreDiffers(ctx, old, now, what, req.Content)
		if err != nil && failed == nil {
			failed = err
		}
		return more
	}
	return m.match(old, now), how, failed
}

// volumeDiff prepares the comparison of a volume. Where it fails with errWalk, it
// still says which file systems there are.
func (p *guestPair) volumeDiff(ctx context.Context, pair volumePair) (*volumeDiff, error) {
	a, err := p.a.Volume(ctx, pair.a)
	if err != nil {
		return nil, err
	}
	b, err := p.b.Volume(ctx, pair.b)
	if err != nil {
		return nil, err
	}
	name := p.b.Report().Volumes[pair.b].Name
	v := newVolumeDiff(a, b)
	v.note = func(err error) { p.note("%s: %v", name, err) }
	if !sameVolume(&p.a.Report().Volumes[pair.a], &p.b.Report().Volumes[pair.b]) {
		return v, fmt.Errorf("%w: it is another file system", errWalk)
	}
	places, err := p.places(ctx, a, b)
	if err != nil {
		return v, walkInstead(ctx, err)
	}
	v.changed = p.onVolume(places)
	return v, nil
}

// places are where a volume stands, if that is the same in both restore points.
func (p *guestPair) places(ctx context.Context, a, b guestfs.FS) ([]worker.Run, error) {
	before, err := worker.Places(ctx, a)
	if err != nil {
		return nil, err
	}
	after, err := worker.Places(ctx, b)
	if err != nil {
		return nil, err
	}
	key := func(pt *store.Point, n int) int {
		if n < 0 || n >= len(pt.Disks) {
			return -1
		}
		return pt.Disks[n].Key
	}
	same := slices.EqualFunc(before, after, func(x, y worker.Run) bool {
		return x.Offset == y.Offset && x.Length == y.Length && x.At == y.At && key(p.a.Point, x.Disk) == key(p.b.Point, y.Disk)
	})
	if !same {
		return nil, errors.New("it stands elsewhere on the disks, or has another size")
	}
	return after, nil
}

// onVolume moves what differs on the disks to a volume.
func (p *guestPair) onVolume(places []worker.Run) []disk.Extent {
	byDisk := make([][]disk.Extent, len(p.b.Point.Disks))
	for i, d := range p.b.Point.Disks {
		for _, diff := range p.disks {
			for _, e := range diff.Extents {
				if diff.Key == d.Key {
					byDisk[i] = append(byDisk[i], disk.Extent{Offset: e.Offset, Length: e.Length})
				}
			}
		}
	}
	var out []disk.Extent
	for _, r := range places {
		if r.Disk < 0 || r.Disk >= len(byDisk) {
			continue
		}
		stands := disk.Extent{Offset: r.At, Length: r.Length}
		for _, e := range guestfs.Overlapping(byDisk[r.Disk], stands) {
			from, to := max(e.Offset, stands.Offset), min(e.End(), stands.End())
			out = append(out, disk.Extent{Offset: r.Offset + from - r.At, Length: to - from})
		}
	}
	return union(out, nil)
}

// moreDiffers says of a file in both states what its inode does not.
func (v *volumeDiff) moreDiffers(ctx context.Context, old, now *diffEnt, what []string, content bool) ([]string, error) {
	a, b := old.attr, now.attr
	isFile := b.Type() == guestfs.TypeFile && a.Type() == b.Type()
	if isFile && (v.inPlace[b.Inode] || content && a.Size != b.Size) {
		what = append(what, "content")
	} else if isFile && content {
		same, err := sameContent(ctx, v.old, v.now, a.Inode, b.Inode, 0, a.Size)
		if err != nil {
			if lastingError(err) {
				return what, err
			}
			v.note(fmt.Errorf("%s: %w", now.path, err))
		}
		if err == nil && !same {
			what = append(what, "content")
		}
	}
	if len(what) > 0 || a.Ctime.Equal(b.Ctime) {
		return what, nil
	}
	same, err := v.sameXattrs(ctx, a.Inode, b.Inode)
	switch {
	case err != nil:
		v.note(fmt.Errorf("%s: %w", now.path, err))
	case !same:
		what = append(what, "xattrs")
	case changedTime(a, b, what):
		what = append(what, "ctime")
	}
	return what, nil
}

// sameXattrs compares extended attributes and security descriptors.
func (v *volumeDiff) sameXattrs(ctx context.Context, a, b guestfs.Inode) (bool, error) {
	var lists [2][]guestfs.Xattr
	var descriptors [2][]byte
	for i, side := range []struct {
		fsys  guestfs.FS
		inode guestfs.Inode
	}{{v.old, a}, {v.now, b}} {
		var err error
		if r, ok := side.fsys.(guestfs.XattrReader); ok {
			lists[i], err = r.Xattrs(ctx, side.inode)
		}
		if r, ok := side.fsys.(guestfs.SecurityReader); ok && err == nil {
			descriptors[i], err = r.SecurityDescriptor(ctx, side.inode)
		}
		if err != nil {
			return false, err
		}
		slices.SortFunc(lists[i], func(a, b guestfs.Xattr) int { return strings.Compare(a.Name, b.Name) })
	}
	same := slices.EqualFunc(lists[0], lists[1], func(a, b guestfs.Xattr) bool { return a.Name == b.Name && bytes.Equal(a.Value, b.Value) })
	return same && bytes.Equal(descriptors[0], descriptors[1]), nil
}
