package esxsim

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"lifeboat/internal/qemu"
)

// boot starts QEMU on the VM's disks, each of which is an NBD export of ours.
func (s *Sim) boot(v *vm) types.BaseMethodFault {
	o := qemu.Options{
		Name: "esxsim-" + v.ref.Value, MemoryMiB: int(v.memoryMB), CPUs: int(v.cpus), Display: true, Logger: s.log,
	}
	var exports []*nbdServer
	failed := func(err error) { s.machineLost(v, err) }
	for i, d := range v.disks {
		socket := filepath.Join(s.sockets, fmt.Sprintf("%d.sock", s.taskNumber.Add(1)))
		e, err := serveNBD(socket, d, failed)
		if err != nil {
			closeExports(exports)
			return &types.SystemError{Reason: err.Error()}
		}
		exports = append(exports, e)
		o.Disks = append(o.Disks, qemu.Disk{ID: fmt.Sprintf("disk%d", i), Path: "nbd+unix:" + socket, Interface: v.frontend(d)})
	}
	m, err := qemu.Start(s.ctx, o)
	if err != nil {
		closeExports(exports)
		return said(&types.GenericVmConfigFault{Reason: err.Error()}, "msg.vmx", "The virtual machine did not start: %v", err)
	}
	s.mu.Lock()
	v.machine, v.exports = m, exports
	s.mu.Unlock()
	s.inBackground(func() { s.watchMachine(v, m) })
	return nil
}

func closeExports(list []*nbdServer) {
	for _, e := range list {
		_ = e.Close()
	}
}

// frontend is the controller that QEMU has for one of VMware's.
func (v *vm) frontend(d *vdisk) string {
	_, c := v.deviceByKey(d.controller)
	switch b, _ := busOf(c); b.name {
	case "ide":
		return "ide"
	case "sata":
		return "sata"
	}
	return "virtio"
}

// loginPrompt on the serial line says that the guest, and so its Tools, run.
const loginPrompt = "login:"

// watchMachine sees a guest come up and, when it ends by itself, takes the VM
// off. The serial line is looked at and not taken from: it is the test's.
func (s *Sim) watchMachine(v *vm, m *qemu.Machine) {
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	up := false
	for {
		select {
		case <-m.Done():
			s.mu.Lock()
			ended := v.machine == m && v.busy == nil
			s.mu.Unlock()
			if ended {
				s.powerOff(v)
			}
			return
		case <-t.C:
		}
		if up || !strings.Contains(m.Console().Recent(), loginPrompt) {
			continue
		}
		up = true
		s.mu.Lock()
		if v.machine == m && v.tools {
			v.toolsUp = true
			s.publish(v)
		}
		s.mu.Unlock()
	}
}

// machineLost notes that a guest's I/O failed: what it makes of that is its own
// business, but the test wants to know.
func (s *Sim) machineLost(v *vm, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.dead == nil && v.machine != nil {
		v.dead = err
		s.log.Warn("a guest's disk failed", "vm", v.name, "err", err)
	}
}
