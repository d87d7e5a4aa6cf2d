package esxsim

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"testing"

	"github.com/vmware/govmomi/vim25/types"
	"pgregory.net/rapid"
)

// TestDiskModel does what it likes with a VM's disk (writes, snapshots, removals,
// going back, moves) and compares with a disk that is plain memory: content of
// the disk and of every snapshot, and that changed areas never leave out what
// differs.
func TestDiskModel(t *testing.T) {
	// A hundred take half a minute on a busy machine: those are for who asks,
	// with -rapid.checks=101 or more.
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("15"); err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, Options{})
	n := 0
	rapid.Check(t, func(r *rapid.T) {
		n++
		m := newDiskModel(r, s, fmt.Sprintf("vm%d", n))
		r.Repeat(map[string]func(*rapid.T){
			"write":    m.write,
			"snapshot": m.snapshot,
			"remove":   m.remove,
			"revert":   m.revert,
			"move":     m.move,
			"power":    m.power,
			"":         m.check,
		})
	})
}

const modelSize = 1<<20 + 512*3

type diskModel struct {
	s     *Sim
	v     *vm
	now   []byte
	snaps map[*snapshot][]byte
	order []*snapshot
}

func newDiskModel(t *rapid.T, s *Sim, name string) *diskModel {
	spec := VMSpec{Name: name, CBT: rapid.Bool().Draw(t, "cbt"), Disks: []DiskSpec{{Size: modelSize}}}
	if err := s.addVM(spec); err != nil {
		t.Fatal(err)
	}
	return &diskModel{s: s, v: s.VM(name).v, now: make([]byte, modelSize), snaps: map[*snapshot][]byte{}}
}

func (m *diskModel) write(t *rapid.T) {
	off := rapid.Int64Range(0, modelSize-1).Draw(t, "offset")
	n := rapid.Int64Range(1, min(modelSize-off, 200<<10)).Draw(t, "length")
	p := bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, int(n))
	if _, err := m.v.disks[0].WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
	copy(m.now[off:], p)
}

func (m *diskModel) snapshot(t *rapid.T) {
	if len(m.order) >= 6 {
		t.Skip("enough")
	}
	r, f := m.s.createSnapshot(t.Context(), m.v, "s", "", false, false)
	if f != nil {
		t.Fatal(describe(f))
	}
	n := m.s.snapshots[r.(types.ManagedObjectReference)]
	m.snaps[n] = bytes.Clone(m.now)
	m.order = append(m.order, n)
}

func (m *diskModel) pick(t *rapid.T) (int, *snapshot) {
	if len(m.order) == 0 {
		t.Skip("no snapshot")
	}
	i := rapid.IntRange(0, len(m.order)-1).Draw(t, "snapshot")
	return i, m.order[i]
}

func (m *diskModel) remove(t *rapid.T) {
	i, n := m.pick(t)
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	m.s.dropSnapshot(n, false)
	if f := m.s.afterRemoval(m.v, true); f != nil {
		t.Fatal(describe(f))
	}
	delete(m.snaps, n)
	m.order = append(m.order[:i:i], m.order[i+1:]...)
}

func (m *diskModel) revert(t *rapid.T) {
	_, n := m.pick(t)
	if f := m.s.revert(n); f != nil {
		t.Fatal(describe(f))
	}
	m.now = bytes.Clone(m.snaps[n])
}

func (m *diskModel) move(t *rapid.T) {
	target := "datastore1"
	if m.v.vmx.ds.name == target {
		target = "datastore2"
	}
	ds, err := m.s.datastoreNamed(target)
	if err != nil {
		t.Fatal(err)
	}
	if f := m.s.relocate(t.Context(), m.v, &types.VirtualMachineRelocateSpec{Datastore: &ds.ref}, func(int) {}); f != nil {
		t.Fatal(describe(f))
	}
}

func (m *diskModel) power(t *rapid.T) {
	if m.v.power == poweredOn {
		m.s.powerOff(m.v)
		return
	}
	if f := m.s.powerOn(context.Background(), m.v); f != nil {
		t.Fatal(describe(f))
	}
}

func (m *diskModel) check(t *rapid.T) {
	got := make([]byte, modelSize)
	if _, err := m.v.disks[0].ReadAt(got, 0); err != nil || !bytes.Equal(got, m.now) {
		t.Fatalf("the disk differs: %v", err)
	}
	key := m.v.disks[0].key
	for _, n := range m.order {
		l := n.layers[key]
		if _, err := l.ReadAt(got, 0); err != nil || !bytes.Equal(got, m.snaps[n]) {
			t.Fatalf("snapshot %d differs: %v", n.id, err)
		}
		for _, older := range m.order {
			id, track := older.tracks[key].id(), n.tracks[key]
			if id == "" || track.uuid != older.tracks[key].uuid || older.tracks[key].epoch > track.epoch {
				continue
			}
			areas, f := changesSince(l, track, id)
			if f != nil {
				t.Fatal(describe(f))
			}
			if at := leftOut(m.snaps[older], m.snaps[n], areas); at >= 0 {
				t.Fatalf("what changed at %d between %d and %d is left out of %v", at, older.id, n.id, areas)
			}
		}
	}
	if m.v.consolidate {
		t.Fatal("consolidation is needed, and nothing failed")
	}
}

// leftOut is where two contents differ outside the areas; -1: nowhere.
func leftOut(a, b []byte, areas []extent) int {
	covered := make([]bool, len(a)/block+1)
	for _, e := range areas {
		blocksOf(e.off, e.length, func(i int64) { covered[i] = true })
	}
	for i := range covered {
		from, to := i*block, min((i+1)*block, len(a))
		if !covered[i] && !bytes.Equal(a[from:to], b[from:to]) {
			return from
		}
	}
	return -1
}
