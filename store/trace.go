package store

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/zeebo/blake3"

	"lifeboat/store/backend"
)

// A boot trace is what the first minutes of a VM read of its disks, in the order
// of first touch. It is made of block numbers, not of addresses: so it fits every
// later point of the VM, whatever has changed in the blocks meanwhile. Nothing
// depends on it. A trace that is lost, damaged or wrong costs the time that it
// would have saved.
//
// Several recordings are merged, newest first: a trace is a list of recordings of
// which each leaves out what a newer one has. What the last boots no longer
// touched falls off the end.
const (
	tracePrefix = "traces/"
	// maxTraceBytes bounds what a trace makes others read, in bytes of disk.
	maxTraceBytes = 2 << 30
	// maxTraceAge is how many recordings are kept.
	maxTraceAge = 4
)

// Trace is the blocks that the first minutes of a VM read. It is immutable.
type Trace struct {
	blockSize int
	keys      []int        // of disks, in the order of first touch
	takes     [][]traceRun // recordings, newest first
}

// traceRun is a run of blocks that were touched one after the other.
type traceRun struct {
	disk  int // index into Trace.keys
	block int64
	count int64
}

// Bytes is what a replay reads at most, in bytes of disk.
func (t *Trace) Bytes() int64 {
	var n int64
	for _, take := range t.takes {
		n += blocksIn(take)
	}
	return n * int64(t.blockSize)
}

// Empty reports whether nothing was touched.
func (t *Trace) Empty() bool { return t.Bytes() == 0 }

func blocksIn(runs []traceRun) (n int64) {
	for _, r := range runs {
		n += r.count
	}
	return n
}

// glance is the part of the newest recording below which another one is taken
// for a look at the disk (somebody copied a file) and not for a boot: it is
// added, and nothing gets older by it.
const glance = 4

// merged is what is kept when t has been recorded and old was stored before.
// Bounded: what was touched longest ago goes.
func (t *Trace) merged(old *Trace) *Trace {
	if old == nil || old.blockSize != t.blockSize {
		old = &Trace{blockSize: t.blockSize}
	}
	m := &traceMerger{
		out:  &Trace{blockSize: t.blockSize},
		seen: make(map[touchedBlock]struct{}),
		left: maxTraceBytes / int64(t.blockSize),
	}
	takes := old.takes
	if len(takes) > 0 && t.blocks() < blocksIn(takes[0])/glance {
		m.add(old.keys, takes[0])
		m.extend(t.keys, t.takes)
		takes = takes[1:]
	} else {
		m.add(t.keys, slices.Concat(t.takes...))
	}
	for _, take := range takes {
		m.add(old.keys, take)
	}
	return m.out
}

func (t *Trace) blocks() int64 { return t.Bytes() / int64(t.blockSize) }

type touchedBlock struct {
	key   int
	block int64
}

// traceMerger builds a trace without repetition.
type traceMerger struct {
	out  *Trace
	seen map[touchedBlock]struct{}
	left int64 // blocks that there is room for
}

// add appends a recording, less what is there already.
func (m *traceMerger) add(keys []int, runs []traceRun) {
	if len(m.out.takes) == maxTraceAge {
		return
	}
	m.out.takes = append(m.out.takes, nil)
	m.extend(keys, [][]traceRun{runs})
	if last := len(m.out.takes) - 1; len(m.out.takes[last]) == 0 {
		m.out.takes = m.out.takes[:last]
	}
}

// extend adds to the last recording.
func (m *traceMerger) extend(keys []int, takes [][]traceRun) {
	take := &m.out.takes[len(m.out.takes)-1]
	for _, runs := range takes {
		for _, r := range runs {
			for block := r.block; block < r.block+r.count; block++ {
				b := touchedBlock{keys[r.disk], block}
				if _, ok := m.seen[b]; ok || m.left == 0 {
					continue
				}
				m.seen[b] = struct{}{}
				m.left--
				*take = appendTouch(*take, m.disk(b.key), block)
			}
		}
	}
}

func (m *traceMerger) disk(key int) int {
	i := slices.Index(m.out.keys, key)
	if i < 0 {
		i = len(m.out.keys)
		m.out.keys = append(m.out.keys, key)
	}
	return i
}

// appendTouch adds a block that was touched after those in runs.
func appendTouch(runs []traceRun, disk int, block int64) []traceRun {
	if n := len(runs) - 1; n >= 0 && runs[n].disk == disk && runs[n].block+runs[n].count == block {
		runs[n].count++
		return runs
	}
	return append(runs, traceRun{disk: disk, block: block, count: 1})
}

// TraceName is the object that the trace of the point's VM is kept in. It does
// not tell the name of the VM to who sees the names of objects.
func (r *Repository) TraceName(p *Point) string { return r.traceName(p.VM, p.VMID) }

func (r *Repository) traceName(name, id string) string {
	vm := "id " + id
	if id == "" {
		vm = "name " + name
	}
	key := r.keys.SubKey("boot trace name", nil)
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(err) // only for a key of another length
	}
	_, _ = h.WriteString(vm)
	return tracePrefix + hex.EncodeToString(h.Sum(nil)[:8])
}

// Trace returns what the last boots of the point's VM read, as far as it was
// kept in from (nil: in the repository itself). It matches ErrNotFound where
// there is none, and ErrDamaged or ErrVersion where there is none of use.
func (r *Repository) Trace(ctx context.Context, from backend.Backend, p *Point) (*Trace, error) {
	name := r.TraceName(p)
	sealed, err := getObject(ctx, r.placeOf(from), name, maxTraceObject)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("boot trace of %s: %w", p.VM, ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("boot trace of %s: %w", p.VM, err)
	}
	plain, err := r.keys.Open(name, sealed)
	if err != nil {
		return nil, fmt.Errorf("boot trace of %s: %w", p.VM, damaged(err))
	}
	t, err := decodeTrace(plain, r.blockSize)
	if err != nil {
		return nil, fmt.Errorf("boot trace of %s (%s): %w", p.VM, name, err)
	}
	return t, nil
}

// SaveTrace merges what was recorded with what is stored, and keeps it in to
// (nil: in the repository itself), sealed. Of two that save at once, one is
// kept. Nothing recorded is nothing saved.
func (r *Repository) SaveTrace(ctx context.Context, to backend.Backend, p *Point, t *Trace) error {
	if t.Empty() {
		return nil
	}
	old, err := r.Trace(ctx, to, p)
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
		return err
	}
	name := r.TraceName(p)
	sealed, err := r.keys.Seal(name, t.merged(old).encode())
	if err != nil {
		return fmt.Errorf("seal %s: %w", name, err)
	}
	if err := putObject(ctx, r.placeOf(to), name, sealed, backend.Replace); err != nil {
		return fmt.Errorf("boot trace of %s: %w", p.VM, err)
	}
	return nil
}

// sweepTraces removes the traces of VMs of which there is no point any more.
// Where a point cannot be read, it is not known whose it is, and all stay.
func (r *Repository) sweepTraces(ctx context.Context) error {
	var unused []string
	for info, err := range r.backend.List(ctx, tracePrefix) {
		if err != nil {
			return fmt.Errorf("list the boot traces: %w", err)
		}
		unused = append(unused, info.Name)
	}
	if len(unused) == 0 {
		return nil
	}
	unknown := false
	points, err := r.pointRecords(ctx, func(string, error) { unknown = true })
	if err != nil || unknown {
		return err
	}
	used := make(map[string]struct{}, len(points))
	for _, rec := range points {
		used[r.traceName(rec.VM, rec.VMID)] = struct{}{}
	}
	for _, name := range unused {
		if _, ok := used[name]; ok {
			continue
		}
		if err := r.backend.Remove(ctx, name); err != nil {
			return fmt.Errorf("remove a boot trace: %w", err)
		}
	}
	return nil
}

func (r *Repository) placeOf(b backend.Backend) backend.Backend {
	if b == nil {
		return r.backend
	}
	return b
}
