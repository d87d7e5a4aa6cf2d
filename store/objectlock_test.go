package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"sync"
	"testing"
	"time"

	"lifeboat/disk/disktest"
	"lifeboat/store/backend"
	"lifeboat/store/backend/backendtest"
	"lifeboat/store/internal/blockmap"
	"lifeboat/store/internal/keyring"
	"lifeboat/store/internal/segment"
)

// vault is a backend that locks objects, with a clock of its own.
type vault struct {
	*backendtest.Memory
	none error

	mu    sync.Mutex
	now   time.Time
	made  map[string]time.Time
	until map[string]time.Time
	calls int // of Lock
	fail  error
}

func newVault() *vault {
	return &vault{Memory: backendtest.NewMemory(), now: epoch, made: map[string]time.Time{}, until: map[string]time.Time{}}
}

func (v *vault) LockSupport(context.Context) error { return v.none }

func (v *vault) Lock(ctx context.Context, name string, until time.Time) error {
	if _, err := v.Open(ctx, name); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.calls++
	if v.fail != nil {
		return v.fail
	}
	if until.After(v.until[name]) {
		v.until[name] = until
	}
	return nil
}

func (v *vault) LockedUntil(_ context.Context, name string) (time.Time, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.until[name], nil
}

func (v *vault) Create(ctx context.Context, name string, mode backend.Mode) (backend.Writer, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.made[name] = v.now
	return v.Memory.Create(ctx, name, mode)
}

func (v *vault) Remove(ctx context.Context, name string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.until[name].After(v.now) {
		return fmt.Errorf("%s is locked: %w", name, fs.ErrPermission)
	}
	delete(v.until, name)
	return v.Memory.Remove(ctx, name)
}

func (v *vault) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		for info, err := range v.Memory.List(ctx, prefix) {
			v.mu.Lock()
			info.Modified = v.made[info.Name]
			v.mu.Unlock()
			if !yield(info, err) {
				return
			}
		}
	}
}

// taken is the number of calls of Lock since it was last asked.
func (v *vault) taken() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := v.calls
	v.calls = 0
	return n
}

func vaultRepo(t *testing.T, v *vault, window time.Duration) (*Repository, *fakeHost) {
	t.Helper()
	if err := Init(t.Context(), v, testPassword, cheap); err != nil {
		t.Fatal(err)
	}
	host := &fakeHost{boot: randomHex(8), uptime: time.Hour, wall: epoch}
	r := openAs(t, v, host)
	if err := r.SetWindow(t.Context(), window); err != nil {
		t.Fatal(err)
	}
	return r, host
}

// wantLocked fails unless all that a point needs is locked for its window. It
// returns how many objects that are.
func wantLocked(t *testing.T, r *Repository, v *vault, p *Point) int {
	t.Helper()
	rec, err := r.pointRecord(t.Context(), p.ID)
	if err != nil {
		t.Fatal(err)
	}
	segments := make(map[uint64]struct{})
	for _, d := range rec.Disks {
		err := r.maps.Visit(t.Context(), d.tree(r.blockSize), newAddrSet().add, func(n blockmap.Node) error {
			for _, a := range append([]segment.Addr{n.Addr}, n.Entries...) {
				if a.Stored() {
					segments[a.Segment()] = struct{}{}
				}
			}
			return n.Err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	names := append(objects(t, v, keyring.KeyPrefix), pointName(p.ID), keyring.HeaderName)
	for n := range segments {
		names = append(names, segment.Name(n, 0))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	end := v.made[pointName(p.ID)].Add(time.Duration(rec.LockSeconds) * time.Second)
	for _, name := range names {
		if v.until[name].Before(end) {
			t.Fatalf("%s is locked until %v, the point is immutable until %v", name, v.until[name], end)
		}
	}
	return len(names)
}

// leafBytes is what a leaf of a block map covers.
const leafBytes = blockmap.Fanout * testBlock

// wideDisk is a disk whose map has many leaves, of one block each.
func wideDisk(t *testing.T) *disktest.Memory {
	m := disktest.NewMemory(16 * leafBytes)
	for leaf := range int64(16) {
		if _, err := m.WriteAt(contents(t, disktest.Random(uint64(leaf), testBlock, 1)), leaf*leafBytes); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// overwriteLast changes the one block in the last leaf.
func overwriteLast(t *testing.T, m *disktest.Memory, with byte) {
	if _, err := m.WriteAt(contents(t, disktest.Random(1000+uint64(with), testBlock, 1)), 15*leafBytes); err != nil {
		t.Fatal(err)
	}
}

// A VM is backed up every day and little changes: all that any of its points
// needs is locked for as long as the point is immutable, and most days cost few
// requests.
func TestObjectLock(t *testing.T) {
	v := newVault()
	_, host := vaultRepo(t, v, 16*day)
	src := wideDisk(t)
	var points []*Point
	var parent *Point
	counts := map[bool]int{}
	for n := range 12 {
		r := openAs(t, v, host) // another process, which remembers nothing
		parent = backup(t, r, "web1", parent, src, nil)
		points = append(points, parent)
		taken := v.taken()
		counts[taken == wantLocked(t, r, v, parent)]++
		for _, p := range points {
			wantLocked(t, r, v, p)
		}
		overwriteLast(t, src, byte(n))
		host.pass(day)
		v.now = v.now.Add(day)
	}
	if counts[true] != 3 || counts[false] != 9 {
		t.Errorf("on %d of 12 days everything was locked, on %d only what was new", counts[true], counts[false])
	}
}

// Points of different VMs share blocks; what one has locked counts for the other
// only for as long as it lasts.
func TestObjectLockOfShared(t *testing.T) {
	v := newVault()
	r, host := vaultRepo(t, v, 16*day)
	later := func(days time.Duration) {
		host.pass(days * day)
		v.now = v.now.Add(days * day)
	}
	src := wideDisk(t)
	points := []*Point{backup(t, r, "a", nil, src, nil)}
	var last *Point
	for n, days := range []time.Duration{1, 4, 1, 9} {
		later(days)
		last = backup(t, r, "b", last, src, nil)
		points = append(points, last)
		for _, p := range points {
			wantLocked(t, r, v, p)
		}
		overwriteLast(t, src, byte(n))
	}
}

func TestObjectLockFails(t *testing.T) {
	v := newVault()
	r, _ := vaultRepo(t, v, day)
	v.fail = errors.New("slow down")
	src := disktest.Random(1, 1<<20, 0.8)
	p := backup(t, r, "web1", nil, src, nil) // made all the same
	wantProtected(t, r, p.ID, ErrImmutable)
	v.fail = nil
	wantLocked(t, r, v, backup(t, r, "web1", p, src, nil))
}

func TestObjectLockIsOptional(t *testing.T) {
	v := newVault()
	v.none = errors.New("made without object lock")
	r, _ := vaultRepo(t, v, day)
	if err := r.ObjectLock(t.Context()); !errors.Is(err, v.none) {
		t.Errorf("%v", err)
	}
	backup(t, r, "web1", nil, disktest.Random(1, 1<<20, 0.8), nil)
	if v.taken() > 0 {
		t.Error("objects are locked where that cannot be")
	}
	if locked, err := r.objectLocked(t.Context(), keyring.HeaderName, v.now); locked || err != nil {
		t.Errorf("%v, %v", locked, err)
	}
}

// The next generation of a segment is locked like the one before.
func TestInheritLock(t *testing.T) {
	v := newVault()
	r, _ := vaultRepo(t, v, day)
	p := backup(t, r, "web1", nil, disktest.Random(1, 1<<20, 0.8), nil)
	ctx := t.Context()
	from := objects(t, v, "segments/")[0]
	if err := putObject(ctx, v, from+"1", []byte("x"), backend.Exclusive); err != nil {
		t.Fatal(err)
	}
	if err := r.inheritLock(ctx, from, from+"1"); err != nil {
		t.Fatal(err)
	}
	if v.until[from].IsZero() || !v.until[from].Equal(v.until[from+"1"]) {
		t.Errorf("locked until %v, the next generation until %v", v.until[from], v.until[from+"1"])
	}
	if locked, err := r.objectLocked(ctx, from, v.now); !locked || err != nil {
		t.Errorf("%v, %v", locked, err)
	}
	if err := r.backend.Remove(ctx, pointName(p.ID)); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("removed past the store: %v", err)
	}
}

// A prune leaves what the storage still keeps, and takes it later.
func TestPruneOfLockedObjects(t *testing.T) {
	v := newVault()
	r, host := vaultRepo(t, v, 4*day)
	later := func(d time.Duration) {
		host.pass(d)
		v.mu.Lock()
		defer v.mu.Unlock()
		v.now = v.now.Add(d)
	}
	p := backup(t, r, "a", nil, disktest.Random(1, 1<<20, 0.8), nil)
	later(4*day - time.Minute)
	wantProtected(t, r, p.ID, ErrImmutable)
	keep := disktest.Random(2, 1<<20, 0.8)
	kept := backup(t, r, "b", nil, keep, nil)
	later(time.Minute)
	wantForgotten(t, r, p.ID)
	prune := func() *PruneReport {
		t.Helper()
		report, err := r.Prune(t.Context(), PruneOptions{Grace: -1})
		if err != nil {
			t.Fatal(err)
		}
		return report
	}
	if report := prune(); report.PointsRemoved != 1 || report.Removed != 0 || report.Condemned == 0 {
		t.Errorf("while the segments are locked: %+v", report)
	}
	later(day)
	if report := prune(); report.Removed == 0 {
		t.Errorf("when they are not: %+v", report)
	}
	wantDisk(t, r, kept, 0, keep)
	wantSound(t, r)
}
