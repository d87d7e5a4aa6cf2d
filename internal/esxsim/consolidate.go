package esxsim

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// snapshotCalls stands before VirtualMachineSnapshot.
type snapshotCalls struct{ base }

func (s *Sim) findSnapshot(this ref) (*snapshot, *soap.Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.snapshots[this]; n != nil {
		return n, nil
	}
	return nil, fault(&types.ManagedObjectNotFound{Obj: this}, "The object has already been deleted or has not been completely created")
}

// RemoveSnapshotTask [API]: the snapshot goes at once; its deltas are merged,
// and where that fails the VM needs consolidation [KB 2003638].
func (d *snapshotCalls) RemoveSnapshotTask(ctx *simulator.Context, req *types.RemoveSnapshot_Task) soap.HasFault {
	n, f := d.s.findSnapshot(req.This)
	if f != nil {
		return &methods.RemoveSnapshot_TaskBody{Fault_: f}
	}
	merge := req.Consolidate == nil || *req.Consolidate
	t, f := d.s.startTask(ctx, "RemoveSnapshot_Task", n.vm.ref, n.vm, false, func(context.Context, func(int)) (any, types.BaseMethodFault) {
		d.s.mu.Lock()
		defer d.s.mu.Unlock()
		if d.s.snapshots[n.ref] == nil {
			return nil, &types.ManagedObjectNotFound{Obj: n.ref}
		}
		d.s.dropSnapshot(n, req.RemoveChildren)
		return nil, d.s.afterRemoval(n.vm, merge)
	})
	if f != nil {
		return &methods.RemoveSnapshot_TaskBody{Fault_: f}
	}
	return &methods.RemoveSnapshot_TaskBody{Res: &types.RemoveSnapshot_TaskResponse{Returnval: t}}
}

// RemoveAllSnapshotsTask [API].
func (d *vmCalls) RemoveAllSnapshotsTask(ctx *simulator.Context, req *types.RemoveAllSnapshots_Task) soap.HasFault {
	t, f := d.task(ctx, "RemoveAllSnapshots_Task", req.This, func(v *vm) types.BaseMethodFault {
		for len(v.roots) > 0 {
			d.s.dropSnapshot(v.roots[0], true)
		}
		return d.s.afterRemoval(v, true)
	})
	if f != nil {
		return &methods.RemoveAllSnapshots_TaskBody{Fault_: f}
	}
	return &methods.RemoveAllSnapshots_TaskBody{Res: &types.RemoveAllSnapshots_TaskResponse{Returnval: t}}
}

// ConsolidateVMDisksTask merges what no snapshot needs [API].
func (d *vmCalls) ConsolidateVMDisksTask(ctx *simulator.Context, req *types.ConsolidateVMDisks_Task) soap.HasFault {
	t, f := d.task(ctx, "ConsolidateVMDisks_Task", req.This, func(v *vm) types.BaseMethodFault { return d.s.afterRemoval(v, true) })
	if f != nil {
		return &methods.ConsolidateVMDisks_TaskBody{Fault_: f}
	}
	return &methods.ConsolidateVMDisks_TaskBody{Res: &types.ConsolidateVMDisks_TaskResponse{Returnval: t}}
}

// RevertToSnapshotTask [API].
func (d *snapshotCalls) RevertToSnapshotTask(ctx *simulator.Context, req *types.RevertToSnapshot_Task) soap.HasFault {
	n, f := d.s.findSnapshot(req.This)
	if f != nil {
		return &methods.RevertToSnapshot_TaskBody{Fault_: f}
	}
	t, f := d.s.startTask(ctx, "RevertToSnapshot_Task", n.vm.ref, n.vm, false, func(ctx context.Context, _ func(int)) (any, types.BaseMethodFault) {
		return nil, d.s.revert(n)
	})
	if f != nil {
		return &methods.RevertToSnapshot_TaskBody{Fault_: f}
	}
	return &methods.RevertToSnapshot_TaskBody{Res: &types.RevertToSnapshot_TaskResponse{Returnval: t}}
}

// dropSnapshot takes a node out of the tree and the registry. What stood on it
// stands on its parent. Sim.mu is held.
func (s *Sim) dropSnapshot(n *snapshot, withChildren bool) {
	if withChildren {
		for len(n.children) > 0 {
			s.dropSnapshot(n.children[0], true)
		}
	}
	siblings := &n.vm.roots
	if n.parent != nil {
		siblings = &n.parent.children
	}
	*siblings = slices.DeleteFunc(*siblings, func(o *snapshot) bool { return o == n })
	for _, c := range n.children {
		c.parent = n.parent
	}
	*siblings = append(*siblings, n.children...)
	n.children = nil
	if n.vm.current == n {
		n.vm.current = n.parent
	}
	delete(s.snapshots, n.ref)
	s.reg.Remove(s.background(), n.ref)
}

// afterRemoval merges, and says what could not be merged. Sim.mu is held.
func (s *Sim) afterRemoval(v *vm, merge bool) types.BaseMethodFault {
	var errs []error
	left := false
	for _, d := range v.disks {
		if !merge || v.mergeFails {
			left = left || s.mergeable(v, d) != nil
			continue
		}
		for l := s.mergeable(v, d); l != nil; l = s.mergeable(v, d) {
			if err := s.merge(v, d, l); err != nil {
				errs = append(errs, err)
				break
			}
		}
		left = left || s.mergeable(v, d) != nil || s.stuck(v, d)
	}
	v.consolidate = left
	s.publish(v)
	switch err := errors.Join(errs...); {
	case err != nil:
		return fileFault(v.vmx.String(), err)
	case merge && v.mergeFails && left:
		return fileFault(v.disks[0].top.at.String(), errLocked)
	}
	return nil
}

// MergeFails makes merging of a VM's deltas fail, as when another program holds
// a file: snapshots go, deltas stay, consolidation is needed.
func (s *Sim) MergeFails(name string, fails bool) error {
	return s.withVM(name, func(v *vm) { v.mergeFails = fails })
}

// mergeable is a layer of a disk that nothing but the layer above it needs:
// that one, the delta to be merged down, is returned. nil: none.
func (s *Sim) mergeable(v *vm, d *vdisk) *layer {
	for l := d.top; l != nil && l.delta(); l = l.parent {
		if l.parent.users.Load() == 1 && !s.frozen(l.parent) {
			return l
		}
	}
	return nil
}

// stuck: a layer that no snapshot of the VM needs is held by another VM. One
// that another branch of the VM's own tree needs just stays.
func (s *Sim) stuck(v *vm, d *vdisk) bool {
	for l := d.top; l != nil && l.delta(); l = l.parent {
		if l.parent.users.Load() > 1 && !s.frozen(l.parent) && l.parent.at.dir() == v.vmx.dir() && s.usedByOther(v, l.parent) {
			return true
		}
	}
	return false
}

func (s *Sim) usedByOther(v *vm, l *layer) bool {
	for _, other := range s.vms {
		for _, d := range other.disks {
			for at := d.top; at != nil && other != v; at = at.parent {
				if at == l {
					return true
				}
			}
		}
	}
	return false
}

// frozen: some snapshot shows this layer.
func (s *Sim) frozen(l *layer) bool {
	for _, n := range s.snapshots {
		for _, o := range n.layers {
			if o == l {
				return true
			}
		}
	}
	return false
}

// merge writes a delta's grains into its parent, which takes its place. The
// guest waits meanwhile. Sim.mu is held.
func (s *Sim) merge(v *vm, d *vdisk, delta *layer) error {
	d.gate.Lock()
	defer d.gate.Unlock()
	into := delta.parent
	if into.f != nil && into.at.ds.nas != nil { // frozen means opened for reading only
		if err := into.close(); err != nil {
			return err
		}
	}
	if err := into.open(openWrite); err != nil {
		return err
	}
	if err := copyGrains(delta, into); err != nil {
		return fmt.Errorf("merging %s into %s: %w", delta.at, into.at, err)
	}
	if d.top == delta {
		d.top = into
	}
	for _, other := range s.vms {
		for _, o := range other.disks {
			for l := o.top; l != nil; l = l.parent {
				if l.parent == delta {
					l.parent = into
				}
			}
		}
	}
	for _, n := range s.snapshots {
		for key, l := range n.layers {
			if l == delta {
				n.layers[key] = into
			}
			for ; l != nil; l = l.parent {
				if l.parent == delta {
					l.parent = into
				}
			}
		}
	}
	into.users.Store(delta.users.Load())
	delta.parent = nil
	return discard(delta)
}

func copyGrains(from, into *layer) error {
	buf := make([]byte, grain)
	from.mu.RLock()
	blocks := make([]int64, 0, len(from.grains))
	for b := range from.grains {
		blocks = append(blocks, b)
	}
	from.mu.RUnlock()
	slices.Sort(blocks)
	for _, b := range blocks {
		for g := b * 16; g < b*16+16; g++ {
			from.mu.RLock()
			here := from.has(g)
			from.mu.RUnlock()
			if !here {
				continue
			}
			p := buf[:min(grain, from.size-g*grain)]
			if err := from.readRun(p, g*grain, true); err != nil {
				return err
			}
			if _, err := into.WriteAt(p, g*grain); err != nil {
				return err
			}
		}
	}
	f, err := into.handle()
	if err != nil {
		return err
	}
	return f.Sync()
}

// revert makes the disks what they were. Change IDs taken since then would tell
// lies, so tracking begins anew under another UUID [VDDK: changed areas after a
// revert].
func (s *Sim) revert(n *snapshot) types.BaseMethodFault {
	v := n.vm
	if v.power == types.VirtualMachinePowerStatePoweredOn {
		s.powerOff(v)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var disks []*vdisk
	for _, was := range n.disks {
		frozen := n.layers[was.key]
		if frozen == nil { // independent: goes on as it is
			if now := v.diskByKey(was.key); now != nil {
				disks = append(disks, now)
			}
			continue
		}
		top, err := v.newDelta(frozen)
		if err != nil {
			return fileFault(frozen.at.String(), err)
		}
		d := was.described()
		d.top, d.track = top, &tracker{}
		if v.cbt {
			d.track.activate()
		}
		disks = append(disks, d)
	}
	for _, old := range v.disks {
		if !slices.Contains(disks, old) && old.top.delta() && old.top.users.Load() == 0 && !s.frozen(old.top) {
			if err := discard(old.top); err != nil {
				return fileFault(old.top.at.String(), err)
			}
		}
	}
	v.disks, v.current, v.power = disks, n, types.VirtualMachinePowerStatePoweredOff
	s.publish(v)
	return nil
}

func (v *vm) diskByKey(key int32) *vdisk {
	for _, d := range v.disks {
		if d.key == key {
			return d
		}
	}
	return nil
}
