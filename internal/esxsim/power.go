package esxsim

import (
	"context"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// question is what a starting VM asks and waits for.
type question struct {
	info   types.VirtualMachineQuestionInfo
	answer chan string
}

// PowerOnVMTask [API: PowerOnVM_Task].
func (d *vmCalls) PowerOnVMTask(ctx *simulator.Context, req *types.PowerOnVM_Task) soap.HasFault {
	v, f := d.s.find(req.This)
	if f != nil {
		return &methods.PowerOnVM_TaskBody{Fault_: f}
	}
	t, f := d.s.startTask(ctx, "PowerOnVM_Task", req.This, v, true, func(ctx context.Context, progress func(int)) (any, types.BaseMethodFault) {
		return nil, d.s.powerOn(ctx, v)
	})
	if f != nil {
		return &methods.PowerOnVM_TaskBody{Fault_: f}
	}
	return &methods.PowerOnVM_TaskBody{Res: &types.PowerOnVM_TaskResponse{Returnval: t}}
}

// PowerOffVMTask [API: PowerOffVM_Task]: as pulling the plug.
func (d *vmCalls) PowerOffVMTask(ctx *simulator.Context, req *types.PowerOffVM_Task) soap.HasFault {
	v, f := d.s.find(req.This)
	if f != nil {
		return &methods.PowerOffVM_TaskBody{Fault_: f}
	}
	t, f := d.s.startTask(ctx, "PowerOffVM_Task", req.This, v, false, func(context.Context, func(int)) (any, types.BaseMethodFault) {
		d.s.mu.Lock()
		on := v.power != types.VirtualMachinePowerStatePoweredOff
		d.s.mu.Unlock()
		if !on {
			return nil, wrongPower(v, types.VirtualMachinePowerStatePoweredOff)
		}
		d.s.powerOff(v)
		return nil, nil
	})
	if f != nil {
		return &methods.PowerOffVM_TaskBody{Fault_: f}
	}
	return &methods.PowerOffVM_TaskBody{Res: &types.PowerOffVM_TaskResponse{Returnval: t}}
}

// powerOn opens the VM's disks and starts its machine.
func (s *Sim) powerOn(ctx context.Context, v *vm) types.BaseMethodFault {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case v.template:
		return said(&types.InvalidState{}, "msg.template", "A template cannot be powered on.")
	case v.power == types.VirtualMachinePowerStatePoweredOn:
		return wrongPower(v, types.VirtualMachinePowerStatePoweredOn)
	}
	for i, d := range v.disks {
		if f := s.plugIn(v, d); f != nil {
			for _, opened := range v.disks[:i] {
				s.unplug(v, opened)
			}
			return f
		}
	}
	v.power, v.booted, v.dead = types.VirtualMachinePowerStatePoweredOn, time.Now(), nil
	v.toolsUp = v.tools
	if v.cbt && len(v.roots) == 0 {
		for _, d := range v.disks {
			if d.snapshotted() && d.track.id() == "" {
				d.track.activate() // power-on is a stun, too [KB 1020128]
			}
		}
	}
	s.publish(v)
	return nil
}

// powerOff ends the machine and closes what it held.
func (s *Sim) powerOff(v *vm) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.power, v.toolsUp = types.VirtualMachinePowerStatePoweredOff, false
	for _, d := range v.disks {
		s.unplug(v, d)
	}
	s.publish(v)
}

func (s *Sim) closeMachines() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.layers {
		_ = l.close()
	}
}

// heartbeat of the guest's Tools.
func (v *vm) heartbeat() types.ManagedEntityStatus {
	if v.power == types.VirtualMachinePowerStatePoweredOn && v.toolsUp {
		return types.ManagedEntityStatusGreen
	}
	return types.ManagedEntityStatusGray
}

func (v *vm) guestInfo() *types.GuestInfo {
	g := &types.GuestInfo{
		ToolsStatus: types.VirtualMachineToolsStatusToolsNotInstalled, ToolsVersionStatus2: "guestToolsNotInstalled",
		ToolsRunningStatus: string(types.VirtualMachineToolsRunningStatusGuestToolsNotRunning),
		GuestState:         string(types.VirtualMachineGuestStateNotRunning),
		GuestId:            v.guestID,
	}
	if v.tools {
		g.ToolsStatus, g.ToolsVersionStatus2 = types.VirtualMachineToolsStatusToolsNotRunning, "guestToolsUnmanaged"
	}
	if v.toolsUp {
		g.ToolsStatus = types.VirtualMachineToolsStatusToolsOk
		g.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
		g.GuestState = string(types.VirtualMachineGuestStateRunning)
		g.GuestOperationsReady = types.NewBool(true)
		g.IpAddress = "192.0.2.10"
	}
	return g
}
