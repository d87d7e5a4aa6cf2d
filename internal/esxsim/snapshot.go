package esxsim

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"lifeboat/disk"
)

// snapshot is one node of a VM's tree: by device key the layers that were on
// top when it was taken, frozen, and what their tracking knew.
type snapshot struct {
	ref               ref
	vm                *vm
	name, description string
	id                int32
	created           time.Time
	quiesced          bool
	power             types.VirtualMachinePowerState
	parent            *snapshot
	children          []*snapshot

	layers map[int32]*layer
	tracks map[int32]frozenTrack
	disks  []*vdisk // as they were configured; for going back
}

// maxSnapshots is how deep a tree can be [KB 1025279].
const maxSnapshots = 32

func (v *vm) eachSnapshot(f func(*snapshot)) {
	var walk func(list []*snapshot)
	walk = func(list []*snapshot) {
		for _, n := range list {
			f(n)
			walk(n.children)
		}
	}
	walk(v.roots)
}

// CreateSnapshotTask [API: CreateSnapshot_Task].
func (d *vmCalls) CreateSnapshotTask(ctx *simulator.Context, req *types.CreateSnapshot_Task) soap.HasFault {
	t, f := d.s.snapshotTask(ctx, "CreateSnapshot_Task", req.This, req.Name, req.Description, req.Memory, req.Quiesce)
	if f != nil {
		return &methods.CreateSnapshot_TaskBody{Fault_: f}
	}
	return &methods.CreateSnapshot_TaskBody{Res: &types.CreateSnapshot_TaskResponse{Returnval: t}}
}

// CreateSnapshotExTask is the same with more to say about quiescing.
func (d *vmCalls) CreateSnapshotExTask(ctx *simulator.Context, req *types.CreateSnapshotEx_Task) soap.HasFault {
	t, f := d.s.snapshotTask(ctx, "CreateSnapshotEx_Task", req.This, req.Name, req.Description, req.Memory, req.QuiesceSpec != nil)
	if f != nil {
		return &methods.CreateSnapshotEx_TaskBody{Fault_: f}
	}
	return &methods.CreateSnapshotEx_TaskBody{Res: &types.CreateSnapshotEx_TaskResponse{Returnval: t}}
}

func (s *Sim) snapshotTask(ctx *simulator.Context, method string, this ref, name, description string, memory, quiesce bool) (ref, *soap.Fault) {
	v, f := s.find(this)
	if f != nil {
		return ref{}, f
	}
	return s.startTask(ctx, method, this, v, true, func(ctx context.Context, progress func(int)) (any, types.BaseMethodFault) {
		return s.createSnapshot(ctx, v, name, description, memory, quiesce)
	})
}

func (s *Sim) createSnapshot(ctx context.Context, v *vm, name, description string, memory, quiesce bool) (any, types.BaseMethodFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	depth := 0
	for n := v.current; n != nil; n = n.parent {
		depth++
	}
	switch {
	case v.template:
		return nil, said(&types.InvalidState{}, "msg.template", "A template cannot have snapshots.") // [field]
	case depth >= maxSnapshots:
		return nil, &types.TooManySnapshotLevels{}
	case memory && v.power == types.VirtualMachinePowerStatePoweredOn && v.cannotFreezeMemory():
		return nil, said(&types.SnapshotNoChange{}, "msg.snapshot.independent", "A memory snapshot is not possible with independent disks or raw device mappings.")
	}
	// A VM that is off, or has no Tools running, is not quiesced, and that is no
	// fault: the flag is ignored [API]. Who asked has to look.
	quiesced := quiesce && v.power == types.VirtualMachinePowerStatePoweredOn && v.toolsUp
	if quiesced && v.quiesceFails {
		return nil, said(&types.ApplicationQuiesceFault{}, "msg.snapshot.quiesce.vmerr", // [KB 1009073]
			"An error occurred while saving the snapshot: Failed to quiesce the virtual machine.")
	}
	n := &snapshot{
		vm: v, name: name, description: description, id: v.snapshotID + 1, created: time.Now(), quiesced: quiesced,
		power: v.power, parent: v.current, layers: map[int32]*layer{}, tracks: map[int32]frozenTrack{},
	}
	if !memory && v.power == types.VirtualMachinePowerStatePoweredOn {
		n.power = types.VirtualMachinePowerStatePoweredOff
	}
	if err := v.freeze(n); err != nil {
		return nil, fileFault(v.vmx.String(), err)
	}
	v.snapshotID++
	s.enterSnapshot(n)
	s.publish(v)
	return n.ref, nil
}

func (v *vm) cannotFreezeMemory() bool {
	return slices.ContainsFunc(v.disks, func(d *vdisk) bool { return !d.snapshotted() })
}

// freeze puts a delta on every disk that takes part, all at one instant: no
// guest I/O happens between the first and the last.
func (v *vm) freeze(n *snapshot) (err error) {
	var part []*vdisk
	for _, d := range v.disks {
		n.disks = append(n.disks, d.described())
		if d.snapshotted() {
			part = append(part, d)
		}
	}
	var made []*layer
	for _, d := range part {
		l, err := v.newDelta(d.top)
		if err != nil {
			for _, l := range made {
				_ = discard(l)
			}
			return err
		}
		made = append(made, l)
	}
	v.stun(part)
	defer v.unstun(part)
	for i, d := range part {
		if v.cbt && !d.track.on && len(v.roots) == 0 {
			d.track.activate() // [KB 1020128]: in effect after a stun, with no snapshot
		}
		n.layers[d.key] = d.top
		n.tracks[d.key] = d.track.freeze()
		d.top = made[i] // which counts as the frozen layer's user since newDelta
	}
	return nil
}

func (v *vm) stun(disks []*vdisk) {
	for _, d := range disks {
		d.gate.Lock()
	}
}

func (v *vm) unstun(disks []*vdisk) {
	for _, d := range disks {
		d.gate.Unlock()
	}
}

// newDelta makes the next free delta over a layer, beside it.
func (v *vm) newDelta(parent *layer) (*layer, error) {
	stem := strings.TrimSuffix(path.Base(parent.at.path), ".vmdk")
	if i := strings.LastIndex(stem, "-"); i > 0 && parent.delta() && len(stem)-i == 7 {
		stem = stem[:i]
	}
	return nextDelta(parent.at.dir(), stem, parent)
}

func nextDelta(dir dsPath, stem string, parent *layer) (*layer, error) {
	for i := 1; i < 1_000_000; i++ {
		at := dir.join(fmt.Sprintf("%s-%06d.vmdk", stem, i))
		if _, err := at.ds.vol.stat(at.path); err == nil {
			continue
		}
		return makeDelta(at, parent)
	}
	return nil, errors.New("no name is left for a delta")
}

func makeDelta(at dsPath, parent *layer) (*layer, error) {
	data := strings.TrimSuffix(at.path, ".vmdk") + "-delta.vmdk"
	l := &layer{at: at, data: data, size: parent.size, parent: parent, cid: randomCID(), grains: map[int64]uint16{}}
	desc := disk.NewDescriptor(disk.DescriptorSpec{Size: parent.size, File: path.Base(data), CreateType: "vmfsSparse", CID: l.cid})
	desc.ParentCID, desc.ParentFileName = parent.cid, path.Base(parent.at.path)
	desc.Extents[0].Type = "VMFSSPARSE"
	text, err := desc.Encode()
	if err != nil {
		return nil, err
	}
	if err := writeFile(at.ds.vol, at.path, text); err != nil {
		return nil, err
	}
	if err := l.open(openNew); err != nil {
		return nil, err
	}
	if _, err := l.f.WriteAt([]byte("COWD"), 0); err != nil {
		return nil, errors.Join(err, discard(l))
	}
	parent.users.Add(1)
	return l, nil
}

// discard removes a delta's files.
func discard(l *layer) error {
	err := l.close()
	err = errors.Join(err, l.at.ds.vol.change(opRemove, l.data, ""), l.at.ds.vol.change(opRemove, l.at.path, ""))
	if l.parent != nil {
		l.parent.users.Add(-1)
	}
	return err
}

// enterSnapshot puts a snapshot into the tree and the registry.
func (s *Sim) enterSnapshot(n *snapshot) {
	v := n.vm
	obj := &simulator.VirtualMachineSnapshot{}
	obj.Vm, obj.Config = v.ref, s.snapshotConfig(n)
	n.ref = s.reg.Put(obj).Reference()
	s.snapshots[n.ref] = n
	if n.parent == nil {
		v.roots = append(v.roots, n)
	} else {
		n.parent.children = append(n.parent.children, n)
	}
	v.current = n
}

// snapshotConfig is the configuration with the disks as they were frozen. A
// snapshot knows nothing of disks that are not part of it.
func (s *Sim) snapshotConfig(n *snapshot) types.VirtualMachineConfigInfo {
	config := s.configOf(n.vm, func(d *vdisk) (*layer, string) {
		if l := n.layers[d.key]; l != nil {
			return l, n.tracks[d.key].id()
		}
		return d.top, ""
	})
	config.Hardware.Device = slices.DeleteFunc(config.Hardware.Device, func(b types.BaseVirtualDevice) bool {
		dev, ok := b.(*types.VirtualDisk)
		return ok && n.layers[dev.Key] == nil
	})
	return config
}

// described is a disk's configuration without what it stands on.
func (d *vdisk) described() *vdisk {
	return &vdisk{
		key: d.key, controller: d.controller, unit: d.unit, label: d.label, mode: d.mode, sharing: d.sharing,
		thick: d.thick, rdm: d.rdm, uuid: d.uuid, contentID: d.contentID,
	}
}
