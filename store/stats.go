package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"lifeboat/store/internal/segment"
)

// Stat is what a repository holds. Bytes of disks are before compression, stored
// bytes after. What is called exact needs a look at every block map and at
// the tables of every segment, and are there only where that was asked for
// (StatOptions.Exact).
type Stat struct {
	Points       int   `json:"points"`
	Segments     int   `json:"segments"`
	SegmentBytes int64 `json:"segment_bytes"`
	IndexBytes   int64 `json:"index_bytes"`
	OtherBytes   int64 `json:"other_bytes"` // header, keys, claims, points
	TotalBytes   int64 `json:"total_bytes"`
	Objects      int   `json:"objects"`
	// VirtualBytes and UsedBytes are the sums over all disks of all points: what
	// so many full copies would take.
	VirtualBytes int64 `json:"virtual_bytes"`
	UsedBytes    int64 `json:"used_bytes"`
	// VMs by name.
	VMs []VMStat `json:"vms"`
	// Days on which points were made, ascending, in the local time zone.
	Days []DayStat `json:"days"`

	Exact *ExactStat `json:"exact,omitempty"`
}

// VMStat is one VM's part.
type VMStat struct {
	VM     string    `json:"vm"`
	VMID   string    `json:"vm_id,omitempty"`
	Points int       `json:"points"`
	Oldest time.Time `json:"oldest"`
	Newest time.Time `json:"newest"`
	// VirtualBytes and UsedBytes are of the newest point, AllUsedBytes of all.
	VirtualBytes int64 `json:"virtual_bytes"`
	UsedBytes    int64 `json:"used_bytes"`
	AllUsedBytes int64 `json:"all_used_bytes"`
	// StoredBytes is what its points added when they were made. Growth is that
	// of all but the oldest for each day between the oldest and the newest.
	StoredBytes  int64 `json:"stored_bytes"`
	GrowthPerDay int64 `json:"growth_per_day"`

	Exact *ExactVMStat `json:"exact,omitempty"`
}

// DayStat is what was added on one day.
type DayStat struct {
	Day         string `json:"day"` // 2026-11-21
	Points      int    `json:"points"`
	ReadBytes   int64  `json:"read_bytes"`
	NewBytes    int64  `json:"new_bytes"`
	StoredBytes int64  `json:"stored_bytes"`
}

// ExactStat is what the blocks take, each counted once.
type ExactStat struct {
	// UniqueBytes is what the points need, block maps included, and
	// NeededBytes what that takes stored.
	UniqueBytes int64 `json:"unique_bytes"`
	NeededBytes int64 `json:"needed_bytes"`
	// ReclaimableBytes is stored and needed by no point: what a prune frees,
	// now or when it may.
	ReclaimableBytes int64 `json:"reclaimable_bytes"`
	// Unread is how many parts could not be read; they are missing in all of
	// this. `verify` names them.
	Unread int `json:"unread"`
}

// ExactVMStat is what one VM's points need.
type ExactVMStat struct {
	// Own is needed by no other VM: what forgetting all of its points would make
	// reclaimable. Shared is needed by others as well.
	OwnBytes     int64 `json:"own_bytes"`
	OwnStored    int64 `json:"own_stored"`
	SharedBytes  int64 `json:"shared_bytes"`
	SharedStored int64 `json:"shared_stored"`
}

// Stat lists the repository, reads the points, and adds up.
func (r *Repository) Stat(ctx context.Context) (*Stat, error) {
	s, _, err := r.stat(ctx)
	return s, err
}

// StatExact is Stat, and counts every block that points need once, by what it
// takes: some seconds and 10 MB of memory per terabyte. progress, if not nil,
// hears of the segments looked at, one call at a time.
func (r *Repository) StatExact(ctx context.Context, progress func(done, total int64)) (*Stat, error) {
	s, x, err := r.stat(ctx)
	if err != nil {
		return nil, err
	}
	x.progress = progress
	if err := x.run(ctx); err != nil {
		return nil, fmt.Errorf("look at all blocks: %w", err)
	}
	return s, nil
}

func (r *Repository) stat(ctx context.Context) (*Stat, *exactStat, error) {
	x := &exactStat{r: r, stat: &Stat{VMs: []VMStat{}, Days: []DayStat{}}}
	recs, err := r.pointRecords(ctx, func(id string, err error) {
		x.sum.Unread++
		r.log.Error("a restore point cannot be read and is not counted", "point", id, "error", err)
	})
	if err != nil {
		return nil, nil, err
	}
	slices.SortFunc(recs, func(a, b *pointRecord) int { return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.ID, b.ID)) })
	x.stat.Points = len(recs)
	if x.segments, err = x.stat.list(ctx, r); err != nil {
		return nil, nil, err
	}
	x.vms = x.stat.countPoints(recs)
	return x.stat, x, nil
}

// list adds up the objects, and returns the names of the segments.
func (s *Stat) list(ctx context.Context, r *Repository) (newest map[uint64]string, err error) {
	newest = make(map[uint64]string)
	generation := make(map[uint64]uint32)
	for info, err := range r.backend.List(ctx, "") {
		if err != nil {
			return nil, fmt.Errorf("list the repository: %w", err)
		}
		switch {
		case strings.HasPrefix(info.Name, "segments/"):
			s.Segments++
			s.SegmentBytes += info.Size
			if n, g, err := segment.ParseName(info.Name); err == nil && (newest[n] == "" || g > generation[n]) {
				newest[n], generation[n] = info.Name, g
			}
		case strings.HasPrefix(info.Name, "index/"):
			s.IndexBytes += info.Size
		default:
			s.OtherBytes += info.Size
		}
		s.TotalBytes += info.Size
		s.Objects++
	}
	return newest, nil
}

// vmPoints is the points of one VM, by time, and where its figures go.
type vmPoints struct {
	stat int // index in Stat.VMs
	recs []*pointRecord
}

// countPoints adds up what the points say of themselves.
func (s *Stat) countPoints(recs []*pointRecord) []*vmPoints {
	vms := make(map[string]*vmPoints)
	for _, rec := range recs {
		key := vmKey(rec.public())
		if vms[key] == nil {
			vms[key] = &vmPoints{}
		}
		vms[key].recs = append(vms[key].recs, rec)
		virtual, used := rec.sizes()
		s.VirtualBytes += virtual
		s.UsedBytes += used
		s.addDay(rec)
	}
	var list []*vmPoints
	for _, v := range vms {
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b *vmPoints) int {
		x, y := a.recs[len(a.recs)-1], b.recs[len(b.recs)-1]
		return cmp.Or(strings.Compare(x.VM, y.VM), strings.Compare(x.VMID, y.VMID))
	})
	for i, v := range list {
		v.stat = i
		s.VMs = append(s.VMs, v.count())
	}
	return list
}

func (s *Stat) addDay(rec *pointRecord) {
	day := rec.Time.Local().Format(time.DateOnly)
	if n := len(s.Days); n == 0 || s.Days[n-1].Day != day {
		s.Days = append(s.Days, DayStat{Day: day})
	}
	d := &s.Days[len(s.Days)-1]
	d.Points++
	d.ReadBytes += rec.ReadBytes
	d.NewBytes += rec.NewBytes
	d.StoredBytes += rec.StoredBytes
}

// sizes is the virtual size of a point's disks and what is used of it.
func (rec *pointRecord) sizes() (virtual, used int64) {
	for _, d := range rec.Disks {
		virtual += d.Size
		used += d.Used
	}
	return virtual, used
}

func (v *vmPoints) count() VMStat {
	oldest, newest := v.recs[0], v.recs[len(v.recs)-1]
	s := VMStat{VM: newest.VM, VMID: newest.VMID, Points: len(v.recs), Oldest: oldest.Time, Newest: newest.Time}
	s.VirtualBytes, s.UsedBytes = newest.sizes()
	for _, rec := range v.recs {
		_, used := rec.sizes()
		s.AllUsedBytes += used
		s.StoredBytes += rec.StoredBytes
	}
	if days := newest.Time.Sub(oldest.Time).Hours() / 24; days > 0 {
		s.GrowthPerDay = int64(float64(s.StoredBytes-oldest.StoredBytes) / max(days, 1))
	}
	return s
}

// exactStat counts blocks. First each VM's points are marked, in a set for each
// VM and in two for all: what one needs, and what more than one does. Then each
// segment's tables tell what the blocks in these sets take.
type exactStat struct {
	r        *Repository
	stat     *Stat
	vms      []*vmPoints
	segments map[uint64]string // number to the name of its newest generation
	progress func(done, total int64)

	sets         []*addrBits // of vms
	needed, many *addrBits

	mu   sync.Mutex
	sum  ExactStat
	ofVM []ExactVMStat
	done int64
}

// statReaders is how many segments are looked at at the same time.
const statReaders = 16

func (x *exactStat) run(ctx context.Context) error {
	x.needed, x.many = newAddrBits(), newAddrBits()
	x.ofVM = make([]ExactVMStat, len(x.vms))
	for _, vm := range x.vms {
		set := newAddrBits()
		err := x.r.mark(ctx, vm.recs, set, markOptions{bad: func(rec *pointRecord, n int, err error) error {
			x.r.log.Error("a part of a block map cannot be read and is not counted", "point", rec.ID, "disk", n, "error", err)
			x.mu.Lock()
			defer x.mu.Unlock()
			x.sum.Unread++
			return nil
		}})
		if err != nil {
			return err
		}
		x.sets = append(x.sets, set)
		x.merge(set)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(statReaders)
	for number, name := range x.segments {
		group.Go(func() error { return x.segment(ctx, number, name, int64(len(x.segments))) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	x.stat.Exact = &x.sum
	for i, vm := range x.vms {
		x.stat.VMs[vm.stat].Exact = &x.ofVM[i]
	}
	return nil
}

// merge adds a VM's set to those of all.
func (x *exactStat) merge(set *addrBits) {
	for number, bits := range set.all() {
		needed := x.needed.make(number)
		for w, v := range bits.words() {
			if fresh := needed.set(w, v); fresh != v {
				x.many.make(number).set(w, v&^fresh)
			}
		}
	}
}

// segment adds up what the blocks of one segment take.
func (x *exactStat) segment(ctx context.Context, number uint64, name string, total int64) error {
	var slots []segment.Slot // by slot
	unread := 0
	for slot, err := range segment.Scan(ctx, x.r.backend, x.r.keys, name) {
		switch {
		case errors.Is(err, segment.ErrDamaged):
			x.r.log.Error("a table of a segment cannot be read and is not counted", "object", name, "error", err)
			unread++
		case errors.Is(err, fs.ErrNotExist): // removed, or compacted, meanwhile
		case err != nil:
			return err
		default:
			if n := slot.Addr.Slot(); n >= len(slots) {
				slots = append(slots, make([]segment.Slot, n+1-len(slots))...)
			}
			slots[slot.Addr.Slot()] = slot
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sum.Unread += unread
	var all int64
	for _, s := range slots {
		all += int64(s.Stored)
	}
	raw, stored := sumSlots(slots, x.needed.of(number), nil, false)
	x.sum.UniqueBytes += raw
	x.sum.NeededBytes += stored
	x.sum.ReclaimableBytes += all - stored
	many := x.many.of(number)
	for i, set := range x.sets {
		bits := set.of(number)
		if bits == nil {
			continue
		}
		vm := &x.ofVM[i]
		raw, stored = sumSlots(slots, bits, many, false)
		vm.OwnBytes, vm.OwnStored = vm.OwnBytes+raw, vm.OwnStored+stored
		raw, stored = sumSlots(slots, bits, many, true)
		vm.SharedBytes, vm.SharedStored = vm.SharedBytes+raw, vm.SharedStored+stored
	}
	x.done++
	if x.progress != nil {
		x.progress(x.done, total)
	}
	return nil
}

// sumSlots adds up the slots in bits: those that are in many as well, or those
// that are not.
func sumSlots(slots []segment.Slot, bits, many *segmentBits, inMany bool) (raw, stored int64) {
	for w, v := range bits.words() {
		if inMany {
			v &= many.get(w)
		} else {
			v &^= many.get(w)
		}
		for n := w * 64; v != 0 && n < len(slots); n, v = n+1, v>>1 {
			if v&1 != 0 {
				raw += int64(slots[n].RawLen)
				stored += int64(slots[n].Stored)
			}
		}
	}
	return raw, stored
}
