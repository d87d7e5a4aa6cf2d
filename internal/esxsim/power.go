package esxsim

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	poweredOn  = types.VirtualMachinePowerStatePoweredOn
	poweredOff = types.VirtualMachinePowerStatePoweredOff
	suspended  = types.VirtualMachinePowerStateSuspended
)

// PowerOnVMTask [API: PowerOnVM_Task].
func (d *vmCalls) PowerOnVMTask(ctx *simulator.Context, req *types.PowerOnVM_Task) soap.HasFault {
	t, f := d.powerTask(ctx, "PowerOnVM_Task", req.This, d.s.powerOn)
	if f != nil {
		return &methods.PowerOnVM_TaskBody{Fault_: f}
	}
	return &methods.PowerOnVM_TaskBody{Res: &types.PowerOnVM_TaskResponse{Returnval: t}}
}

// PowerOffVMTask [API: PowerOffVM_Task]: as pulling the plug.
func (d *vmCalls) PowerOffVMTask(ctx *simulator.Context, req *types.PowerOffVM_Task) soap.HasFault {
	t, f := d.powerTask(ctx, "PowerOffVM_Task", req.This, func(_ context.Context, v *vm) types.BaseMethodFault {
		if v.power == poweredOff {
			return wrongPower(v, poweredOff)
		}
		d.s.powerOff(v)
		return nil
	})
	if f != nil {
		return &methods.PowerOffVM_TaskBody{Fault_: f}
	}
	return &methods.PowerOffVM_TaskBody{Res: &types.PowerOffVM_TaskResponse{Returnval: t}}
}

// SuspendVMTask [API: SuspendVM_Task].
func (d *vmCalls) SuspendVMTask(ctx *simulator.Context, req *types.SuspendVM_Task) soap.HasFault {
	t, f := d.powerTask(ctx, "SuspendVM_Task", req.This, func(_ context.Context, v *vm) types.BaseMethodFault {
		if v.power != poweredOn {
			return wrongPower(v, suspended)
		}
		d.s.powerOff(v)
		d.s.mu.Lock()
		defer d.s.mu.Unlock()
		v.power = suspended
		d.s.publish(v)
		return nil
	})
	if f != nil {
		return &methods.SuspendVM_TaskBody{Fault_: f}
	}
	return &methods.SuspendVM_TaskBody{Res: &types.SuspendVM_TaskResponse{Returnval: t}}
}

// ResetVMTask [API: ResetVM_Task].
func (d *vmCalls) ResetVMTask(ctx *simulator.Context, req *types.ResetVM_Task) soap.HasFault {
	t, f := d.powerTask(ctx, "ResetVM_Task", req.This, func(ctx context.Context, v *vm) types.BaseMethodFault {
		if v.power != poweredOn {
			return wrongPower(v, poweredOn)
		}
		d.s.powerOff(v)
		return d.s.powerOn(ctx, v)
	})
	if f != nil {
		return &methods.ResetVM_TaskBody{Fault_: f}
	}
	return &methods.ResetVM_TaskBody{Res: &types.ResetVM_TaskResponse{Returnval: t}}
}

// ShutdownGuest asks the guest's Tools to shut down, and returns [API].
func (d *vmCalls) ShutdownGuest(_ *simulator.Context, req *types.ShutdownGuest) soap.HasFault {
	v, f := d.s.find(req.This)
	if f != nil {
		return &methods.ShutdownGuestBody{Fault_: f}
	}
	d.s.mu.Lock()
	on, up, m := v.power == poweredOn, v.toolsUp, v.machine
	d.s.mu.Unlock()
	switch {
	case !on:
		return &methods.ShutdownGuestBody{Fault_: fault(wrongPower(v, poweredOn), "")}
	case !up:
		return &methods.ShutdownGuestBody{Fault_: fault(&types.ToolsUnavailable{}, "VMware Tools are not running.")}
	}
	d.s.inBackground(func() {
		if m != nil {
			_ = m.Monitor().Execute(d.s.ctx, "system_powerdown", nil, nil) // its end is watched
			return
		}
		d.s.powerOff(v)
	})
	return &methods.ShutdownGuestBody{Res: &types.ShutdownGuestResponse{}}
}

func (d *vmCalls) powerTask(ctx *simulator.Context, method string, this ref, f func(context.Context, *vm) types.BaseMethodFault) (ref, *soap.Fault) {
	return d.powerTaskResult(ctx, method, this, func(ctx context.Context, v *vm) (any, types.BaseMethodFault) { return nil, f(ctx, v) })
}

// powerTaskResult runs f, without Sim.mu, as a task that has the VM for itself.
func (d *vmCalls) powerTaskResult(ctx *simulator.Context, method string, this ref, f func(context.Context, *vm) (any, types.BaseMethodFault)) (ref, *soap.Fault) {
	v, bad := d.s.find(this)
	if bad != nil {
		return ref{}, bad
	}
	return d.s.startTask(ctx, method, this, v, true, func(ctx context.Context, _ func(int)) (any, types.BaseMethodFault) {
		return f(ctx, v)
	})
}

// inBackground runs f; Close waits for it.
func (s *Sim) inBackground(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return
	}
	s.running.Add(1)
	go func() {
		defer s.running.Done()
		f()
	}()
}

// powerOn opens the VM's disks and starts its machine. The VM is the caller's
// alone. Files are opened without Sim.mu: a datastore may be slow.
func (s *Sim) powerOn(ctx context.Context, v *vm) types.BaseMethodFault {
	if f := s.claimDisks(v); f != nil {
		return f
	}
	var opened []*vdisk
	f := s.ask(ctx, v)
	for _, d := range v.disks {
		if f != nil {
			break
		}
		if f = s.plugIn(v, d); f == nil {
			opened = append(opened, d)
		}
	}
	if f == nil {
		f = s.startFiles(v)
	}
	if f == nil && s.opts.Boot {
		f = s.boot(v)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v.starting = false
	if f != nil {
		for _, d := range opened {
			s.unplug(v, d)
		}
		return f
	}
	v.power, v.booted, v.dead = poweredOn, time.Now(), nil
	v.toolsUp = v.tools && v.machine == nil
	v.connectCards(true)
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

// claimDisks checks what can be checked without files and keeps others off.
func (s *Sim) claimDisks(v *vm) types.BaseMethodFault {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case v.template:
		return said(&types.InvalidState{}, "msg.template", "A template cannot be powered on.")
	case v.power == poweredOn:
		return wrongPower(v, poweredOn)
	case v.missing != "":
		return said(&types.GenericVmConfigFault{Reason: v.missing}, "msg.device", "%s", v.missing)
	}
	for _, d := range v.disks {
		if f := s.heldByOther(v, d); f != nil {
			return f
		}
	}
	v.starting = true
	return nil
}

// startFiles are the files that a running VM has beside its .vmx: the swap file
// as big as its memory, the log and the NVRAM [KB 1003743].
func (s *Sim) startFiles(v *vm) types.BaseMethodFault {
	vol, stem := v.vmx.ds.vol, strings.TrimSuffix(v.vmx.path, ".vmx")
	swap := stem + ".vswp"
	if err := vol.change(opRemove, swap, ""); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fileFault(v.vmx.dir().join(swap).String(), err)
	}
	f, err := vol.open(swap, openNew)
	if err == nil {
		err = errors.Join(f.Truncate(int64(v.memoryMB)<<20), f.Close())
	}
	if err != nil {
		return fileFault(swap, err)
	}
	log := v.vmx.dir().join("vmware.log").path
	if err := writeFile(vol, log, []byte(time.Now().UTC().Format(time.RFC3339)+"| vmx| Log for VMware ESX (simulated)\n")); err != nil {
		return fileFault(log, err)
	}
	if v.nvram == "" {
		v.nvram = stem[strings.LastIndex(stem, "/")+1:] + ".nvram"
	}
	nvram := v.vmx.dir().join(v.nvram).path
	if _, err := vol.stat(nvram); errors.Is(err, fs.ErrNotExist) {
		if err := writeFile(vol, nvram, make([]byte, 8684)); err != nil {
			return fileFault(nvram, err)
		}
	}
	return nil
}

// powerOff ends the machine and closes what it held. The VM is the caller's.
func (s *Sim) powerOff(v *vm) {
	s.mu.Lock()
	m, exports := v.machine, v.exports
	v.machine, v.exports = nil, nil
	v.toolsUp = false
	s.mu.Unlock()
	if m != nil {
		_ = m.Close()
	}
	for _, e := range exports {
		_ = e.Close()
	}
	_ = v.vmx.ds.vol.change(opRemove, strings.TrimSuffix(v.vmx.path, ".vmx")+".vswp", "")
	s.mu.Lock()
	defer s.mu.Unlock()
	v.power = poweredOff
	for _, d := range v.disks {
		s.unplug(v, d)
	}
	v.connectCards(false)
	if s.vms[v.ref] == v {
		s.publish(v)
	}
}

// connectCards makes network cards say whether they are connected.
func (v *vm) connectCards(on bool) {
	for i, d := range v.devices {
		if _, ok := d.(types.BaseVirtualEthernetCard); !ok {
			continue
		}
		made := cloned(d)
		card := made.(types.BaseVirtualEthernetCard).GetVirtualEthernetCard()
		if card.Connectable == nil {
			continue
		}
		c := *card.Connectable
		c.Connected = on && c.StartConnected
		card.Connectable = &c
		v.devices[i] = made
	}
}

// closeMachines ends everything that runs, without a word to the API.
func (s *Sim) closeMachines() {
	s.mu.Lock()
	var on []*vm
	for _, v := range s.vms {
		if v.machine != nil {
			on = append(on, v)
		}
	}
	s.mu.Unlock()
	for _, v := range on {
		_ = v.machine.Close()
		for _, e := range v.exports {
			_ = e.Close()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.layers {
		_ = l.close()
	}
	for _, d := range s.datastores {
		if d.nas != nil {
			_ = d.nas.nfs.close()
		}
	}
}

// heartbeat of the guest's Tools.
func (v *vm) heartbeat() types.ManagedEntityStatus {
	if v.power == poweredOn && v.toolsUp {
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
