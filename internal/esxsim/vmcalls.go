package esxsim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// vmCalls stands before VirtualMachine.
type vmCalls struct{ base }

func (s *Sim) find(this ref) (*vm, *soap.Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.vms[this]; v != nil {
		return v, nil
	}
	return nil, fault(&types.ManagedObjectNotFound{Obj: this}, "The object has already been deleted or has not been completely created")
}

// task runs f with Sim.mu held, as a task that has the VM for itself.
func (d *vmCalls) task(ctx *simulator.Context, method string, this ref, f func(v *vm) types.BaseMethodFault) (ref, *soap.Fault) {
	v, bad := d.s.find(this)
	if bad != nil {
		return ref{}, bad
	}
	return d.s.startTask(ctx, method, this, v, false, func(context.Context, func(int)) (any, types.BaseMethodFault) {
		d.s.mu.Lock()
		defer d.s.mu.Unlock()
		return nil, f(v)
	})
}

// enter puts a VM into the inventory. Sim.mu is held.
func (s *Sim) enter(v *vm) {
	v.ref = ref{Type: "VirtualMachine", Value: fmt.Sprintf("vm-%d", s.taskNumber.Add(1))}
	v.created = time.Now()
	obj := &simulator.VirtualMachine{}
	obj.Self, obj.Parent, obj.Name = v.ref, &v.folder, v.name
	obj.Config = &types.VirtualMachineConfigInfo{Name: v.name}
	obj.Guest = &types.GuestInfo{}
	obj.Runtime.Host = &v.host.ref
	if s.cluster != nil {
		obj.EnvironmentBrowser = *s.cluster.EnvironmentBrowser
	}
	obj.OverallStatus = types.ManagedEntityStatusGreen
	v.obj = obj
	s.vms[v.ref] = v
	s.link(v, func(list []ref) []ref { return append(slices.Clone(list), v.ref) })
	s.reg.Put(obj)
	s.publish(v)
}

// leave takes a VM out of the inventory. Sim.mu is held.
func (s *Sim) leave(v *vm) {
	v.eachSnapshot(func(n *snapshot) {
		delete(s.snapshots, n.ref)
		s.reg.Remove(s.background(), n.ref)
	})
	delete(s.vms, v.ref)
	s.link(v, func(list []ref) []ref {
		return slices.DeleteFunc(slices.Clone(list), func(r ref) bool { return r == v.ref })
	})
	s.reg.Remove(s.background(), v.ref)
}

// link changes the lists of VMs that folder, host, pool and datastores keep.
func (s *Sim) link(v *vm, change func([]ref) []ref) {
	s.relist(v.folder, "childEntity", change)
	s.relist(v.host.ref, "vm", change)
	if !v.template {
		s.relist(v.pool, "vm", change)
	}
	for _, ds := range s.datastoresOf(v) {
		s.relist(ds, "vm", change)
	}
}

// relist replaces a property that is a list of references.
func (s *Sim) relist(at ref, property string, change func([]ref) []ref) {
	ctx := s.background()
	obj := s.reg.Get(at)
	s.reg.WithLock(ctx, obj, func() {
		var old []ref
		switch o := obj.(type) {
		case *simulator.Folder:
			old = o.ChildEntity
		case *simulator.HostSystem:
			if property == "datastore" {
				old = o.Datastore
			} else {
				old = o.Vm
			}
		case *simulator.ResourcePool:
			old = o.Vm
		case *simulator.Datastore:
			old = o.Vm
		case *simulator.Datacenter:
			old = o.Datastore
		case *simulator.ClusterComputeResource:
			old = o.Datastore
		}
		s.reg.Update(ctx, obj, []types.PropertyChange{{Name: property, Val: change(old)}})
	})
}

// UnregisterVM [API]: files stay.
func (d *vmCalls) UnregisterVM(_ *simulator.Context, req *types.UnregisterVM) soap.HasFault {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	v := d.s.vms[req.This]
	switch {
	case v == nil:
		return &methods.UnregisterVMBody{Fault_: fault(&types.ManagedObjectNotFound{Obj: req.This}, "")}
	case v.busy != nil:
		return &methods.UnregisterVMBody{Fault_: fault(&types.TaskInProgress{Task: v.busy.obj.Self}, "")}
	case v.power == types.VirtualMachinePowerStatePoweredOn:
		return &methods.UnregisterVMBody{Fault_: fault(wrongPower(v, types.VirtualMachinePowerStatePoweredOff), "")}
	}
	for _, disk := range v.disks {
		_ = closeChain(disk.top)
	}
	d.s.leave(v)
	return &methods.UnregisterVMBody{Res: &types.UnregisterVMResponse{}}
}

func wrongPower(v *vm, want types.VirtualMachinePowerState) *types.InvalidPowerState {
	return said(&types.InvalidPowerState{RequestedState: want, ExistingState: v.power}, "msg.power",
		"The attempted operation cannot be performed in the current state (%s).", poweredName(v.power))
}

func poweredName(p types.VirtualMachinePowerState) string {
	switch p {
	case types.VirtualMachinePowerStatePoweredOn:
		return "Powered on"
	case types.VirtualMachinePowerStateSuspended:
		return "Suspended"
	}
	return "Powered off"
}

// DestroyTask [API]: files go, with the folder when nothing else is in it.
func (d *vmCalls) DestroyTask(ctx *simulator.Context, req *types.Destroy_Task) soap.HasFault {
	t, f := d.task(ctx, "Destroy_Task", req.This, func(v *vm) types.BaseMethodFault {
		if v.power == types.VirtualMachinePowerStatePoweredOn {
			return wrongPower(v, types.VirtualMachinePowerStatePoweredOff)
		}
		d.s.leave(v)
		return d.s.removeFiles(v)
	})
	if f != nil {
		return &methods.Destroy_TaskBody{Fault_: f}
	}
	return &methods.Destroy_TaskBody{Res: &types.Destroy_TaskResponse{Returnval: t}}
}

func (s *Sim) removeFiles(v *vm) types.BaseMethodFault {
	for _, d := range v.disks {
		s.dropChain(v, d.top)
	}
	dir := v.vmx.dir()
	left, err := dir.ds.vol.list(dir.path)
	if err != nil {
		return fileFault(dir.String(), err)
	}
	used := slices.ContainsFunc(left, func(e entry) bool { return len(e.name) > 5 && e.name[len(e.name)-5:] == ".vmdk" })
	if used { // a linked clone still stands on one of the disks
		return nil
	}
	if err := dir.ds.vol.change(opRemoveAll, dir.path, ""); err != nil {
		return fileFault(dir.String(), err)
	}
	return nil
}

// deleteLayer removes a layer's files and forgets it.
func (s *Sim) deleteLayer(l *layer) {
	_ = l.close()
	_ = l.at.ds.vol.change(opRemove, l.data, "")
	_ = l.at.ds.vol.change(opRemove, l.at.path, "")
	delete(s.layers, l.at.String())
}

// MarkAsTemplate [API].
func (d *vmCalls) MarkAsTemplate(_ *simulator.Context, req *types.MarkAsTemplate) soap.HasFault {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	v := d.s.vms[req.This]
	if v == nil || v.power != types.VirtualMachinePowerStatePoweredOff {
		return &methods.MarkAsTemplateBody{Fault_: fault(&types.InvalidState{}, "")}
	}
	d.s.relist(v.pool, "vm", func(list []ref) []ref {
		return slices.DeleteFunc(slices.Clone(list), func(r ref) bool { return r == v.ref })
	})
	v.template = true
	d.s.publish(v)
	return &methods.MarkAsTemplateBody{Res: &types.MarkAsTemplateResponse{}}
}

// RenameTask [API].
func (d *vmCalls) RenameTask(ctx *simulator.Context, req *types.Rename_Task) soap.HasFault {
	t, f := d.task(ctx, "Rename_Task", req.This, func(v *vm) types.BaseMethodFault {
		if d.s.nameTaken(v.folder, escapeName(req.NewName)) {
			return &types.DuplicateName{Name: req.NewName, Object: v.ref}
		}
		v.name = escapeName(req.NewName)
		d.s.publish(v)
		return nil
	})
	if f != nil {
		return &methods.Rename_TaskBody{Fault_: f}
	}
	return &methods.Rename_TaskBody{Res: &types.Rename_TaskResponse{Returnval: t}}
}

func (s *Sim) nameTaken(folder ref, name string) bool {
	for _, v := range s.vms {
		if v.folder == folder && v.name == name {
			return true
		}
	}
	return false
}

// ReconfigVMTask [API: ReconfigVM_Task].
func (d *vmCalls) ReconfigVMTask(ctx *simulator.Context, req *types.ReconfigVM_Task) soap.HasFault {
	spec := req.Spec
	t, f := d.task(ctx, "ReconfigVM_Task", req.This, func(v *vm) types.BaseMethodFault {
		if f := d.s.configure(v, &spec); f != nil {
			return f
		}
		if err := v.writeVMX(); err != nil {
			return fileFault(v.vmx.String(), err)
		}
		d.s.publish(v)
		return nil
	})
	if f != nil {
		return &methods.ReconfigVM_TaskBody{Fault_: f}
	}
	return &methods.ReconfigVM_TaskBody{Res: &types.ReconfigVM_TaskResponse{Returnval: t}}
}
