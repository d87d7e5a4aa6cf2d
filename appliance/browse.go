package appliance

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"lifeboat/disk"
	"lifeboat/guestfs"
	"lifeboat/guestfs/browse"
	"lifeboat/store"
)

// NewBrowser makes the one tree of all restore points, for FUSE and WebDAV.
func NewBrowser(repo *store.Repository, opts GuestOptions) *browse.Namespace {
	return browse.New(&browseSource{repo: repo, opts: opts}, browse.Options{})
}

// browseFresh is how long a list of all points is believed.
const browseFresh = 3 * time.Second

// browseSource gives a browse.Namespace the points of a repository.
type browseSource struct {
	repo *store.Repository
	opts GuestOptions

	mu   sync.Mutex // held while points are listed: one lists for all
	list *browseList
}

// browseList is all points at one time, by VM.
type browseList struct {
	at     time.Time
	vms    []browse.VM
	points map[string][]browse.Point
	byID   map[string]*store.Point
}

func (s *browseSource) all(ctx context.Context) (*browseList, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.list != nil && time.Since(s.list.at) < browseFresh {
		return s.list, nil
	}
	points, err := s.repo.Points(ctx)
	if err != nil {
		return nil, err
	}
	s.list = newBrowseList(points)
	return s.list, nil
}

// newBrowseList groups points, which are in the order of their times, by the
// machine's lasting identity, or by its name where it has none. A machine is
// called what it was called last.
func newBrowseList(points []*store.Point) *browseList {
	l := &browseList{at: time.Now(), points: map[string][]browse.Point{}, byID: map[string]*store.Point{}}
	machines := map[string][]*store.Point{}
	for _, pt := range points {
		id := cmp.Or(pt.VMID, "name/"+pt.VM)
		machines[id] = append(machines[id], pt)
		l.byID[pt.ID] = pt
	}
	ids := make([]string, 0, len(machines))
	for id := range machines {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b string) int {
		return cmp.Or(strings.Compare(last(machines[a]).VM, last(machines[b]).VM), strings.Compare(a, b))
	})
	names := map[string]bool{}
	for _, id := range ids {
		name := distinct(names, pathElement(last(machines[id]).VM))
		l.vms = append(l.vms, browse.VM{Name: name, Latest: last(machines[id]).Time})
		l.points[name] = browsePoints(machines[id])
	}
	return l
}

func last(points []*store.Point) *store.Point { return points[len(points)-1] }

func browsePoints(points []*store.Point) []browse.Point {
	names := map[string]bool{}
	out := make([]browse.Point, 0, len(points))
	for _, pt := range points {
		p := browse.Point{ID: pt.ID, Time: pt.Time, Name: distinct(names, pt.Time.UTC().Format(browseTime))}
		for i, d := range pt.Disks {
			p.Disks = append(p.Disks, browse.Disk{Name: fmt.Sprintf("disk%d.raw", i), Size: d.Size})
		}
		out = append(out, p)
	}
	return out
}

// browseTime is a time that every system takes as a name.
const browseTime = "2006-01-02T15-04-05Z"

// distinct is name, or with a number if there is that name already.
func distinct(names map[string]bool, name string) string {
	unique := name
	for n := 2; names[unique]; n++ {
		unique = fmt.Sprintf("%s (%d)", name, n)
	}
	names[unique] = true
	return unique
}

// pathElement makes a name one that every system takes for a directory.
func pathElement(name string) string {
	name = strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || strings.ContainsRune(`/\:*?"<>|`, r) {
			return '_'
		}
		return r
	}, name)
	name = strings.TrimRight(name, ". ")
	if len(name) > 200 {
		name = strings.ToValidUTF8(name[:200], "")
	}
	if name == "" {
		return "_"
	}
	return name
}

func (s *browseSource) VMs(ctx context.Context) ([]browse.VM, error) {
	l, err := s.all(ctx)
	if err != nil {
		return nil, err
	}
	return l.vms, nil
}

func (s *browseSource) Points(ctx context.Context, vm string) ([]browse.Point, error) {
	l, err := s.all(ctx)
	if err != nil {
		return nil, err
	}
	return l.points[vm], nil
}

// point is a point that was listed; when it is no longer in the list it may
// still be read if something holds it.
func (s *browseSource) point(ctx context.Context, id string) (*store.Point, error) {
	l, err := s.all(ctx)
	if err != nil {
		return nil, err
	}
	if pt := l.byID[id]; pt != nil {
		return pt, nil
	}
	pt, err := s.repo.Point(ctx, id)
	return pt, pointError(err)
}

// OpenDisk implements browse.Source. The point is held while the disk is open.
func (s *browseSource) OpenDisk(ctx context.Context, id string, n int) (disk.Image, error) {
	pt, err := s.point(ctx, id)
	if err != nil {
		return nil, err
	}
	release, err := s.repo.HoldToRead(ctx, []*store.Point{pt}, "a disk that is looked at")
	if err != nil {
		return nil, pointError(err)
	}
	img, err := OpenPointDisk(ctx, s.repo, pt, n)
	if err != nil {
		release()
		return nil, err
	}
	return disk.WithClose(img, release), nil
}

// OpenFiles implements browse.Source.
func (s *browseSource) OpenFiles(ctx context.Context, id string) (browse.Files, error) {
	pt, err := s.point(ctx, id)
	if err != nil {
		return nil, err
	}
	g, err := OpenGuest(ctx, s.repo, pt, s.opts)
	if err != nil {
		return nil, err
	}
	f := &browseFiles{guest: g}
	names := map[string]bool{}
	add := func(name string, open func(context.Context) (guestfs.FS, error)) {
		f.names, f.open = append(f.names, distinct(names, name)), append(f.open, open)
	}
	for i := range g.Report().Volumes {
		if v := &g.Report().Volumes[i]; v.Usable() {
			add(v.Name, func(ctx context.Context) (guestfs.FS, error) { return g.Volume(ctx, i) })
		}
	}
	for i := range g.Report().Volumes {
		for _, m := range g.Report().Volumes[i].Mounts {
			if drive, ok := strings.CutSuffix(m, ":"); ok {
				add(drive, func(ctx context.Context) (guestfs.FS, error) { return g.Volume(ctx, i) })
			}
		}
	}
	if len(g.Report().Systems) > 0 {
		add("guest", func(context.Context) (guestfs.FS, error) { return g.Tree(), nil })
	}
	return f, nil
}

// browseFiles is what is on the disks of an open point.
type browseFiles struct {
	guest *Guest
	names []string
	open  []func(context.Context) (guestfs.FS, error)
}

func (f *browseFiles) Trees() []string { return f.names }

func (f *browseFiles) Open(ctx context.Context, n int) (guestfs.FS, error) {
	if n >= len(f.open) {
		return nil, fmt.Errorf("volume %d of restore point %s: %w", n, f.guest.Point.ID, ErrNotFound)
	}
	return f.open[n](ctx)
}

func (f *browseFiles) Close() error {
	f.guest.Close()
	return nil
}
