package esxsim

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"path"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

// shown is the layer that the API shows as the disk's file: a redo log of an
// independent_nonpersistent disk is not shown.
func (d *vdisk) shown() *layer {
	if d.top.redo {
		return d.top.parent
	}
	return d.top
}

// attach gives a disk that exists to a VM. Sim.mu is held.
func (s *Sim) attach(v *vm, d *vdisk, file string) types.BaseMethodFault {
	at, f := s.resolve(file)
	if f != nil {
		return f
	}
	if f := s.useLayer(d, at); f != nil {
		return f
	}
	if v.power != types.VirtualMachinePowerStatePoweredOn {
		return nil
	}
	if f := s.heldByOther(v, d); f != nil {
		return f
	}
	return s.plugIn(v, d)
}

// useLayer makes a disk stand on the files at a path.
func (s *Sim) useLayer(d *vdisk, at dsPath) types.BaseMethodFault {
	l, desc, err := s.readLayer(at)
	if err != nil {
		return fileFault(at.String(), err)
	}
	s.layers[at.String()] = l
	d.top, d.uuid, d.contentID = l, apiUUID(desc.DDB["uuid"]), fmtCID(desc.CID)
	d.thick = desc.DDB["thinProvisioned"] != "1"
	if d.track = l.track; d.track == nil {
		d.track = &tracker{}
	}
	return nil
}

// plugIn opens a disk for a VM that runs or starts. The VM is the caller's
// alone, but for those who read; Sim.mu may be held or not.
func (s *Sim) plugIn(v *vm, d *vdisk) types.BaseMethodFault {
	if d.mode == string(types.VirtualDiskModeIndependent_nonpersistent) && !d.top.redo {
		return s.startRedo(v, d)
	}
	if err := openChain(d.top); err != nil {
		return fileFault(d.top.at.String(), err)
	}
	return nil
}

// heldByOther: another VM that is on has this very file as its top, and so alone
// [KB 10051]. Files that a snapshot froze, and those below a delta, are only read
// and can be shared. Sim.mu is held.
func (s *Sim) heldByOther(v *vm, d *vdisk) types.BaseMethodFault {
	for _, other := range s.vms {
		if other == v || !other.holdsDisks() {
			continue
		}
		for _, o := range other.disks {
			if o.top == d.top && (o.sharing != "sharingMultiWriter" || d.sharing != "sharingMultiWriter") {
				return said(&types.FileLocked{FileFault: types.FileFault{File: d.top.at.String()}}, "msg.disk.locked",
					"Failed to lock the file: Cannot open the disk '%s' or one of the snapshot disks it depends on.", d.top.at)
			}
		}
	}
	return nil
}

// openChain opens the top for writing and what is below it for reading.
func openChain(top *layer) error {
	if err := top.open(openWrite); err != nil {
		return err
	}
	for l := top.parent; l != nil; l = l.parent {
		if err := l.open(openRead); err != nil {
			return errors.Join(err, closeChain(top))
		}
	}
	return nil
}

// startRedo gives an independent_nonpersistent disk its redo log, whose content
// is thrown away when the VM goes off or the disk is removed.
func (s *Sim) startRedo(v *vm, d *vdisk) types.BaseMethodFault {
	var b [3]byte
	_, _ = rand.Read(b[:])
	stem := strings.TrimSuffix(path.Base(d.top.at.path), ".vmdk")
	at := v.vmx.dir().join(stem + ".vmdk-REDO_" + hex.EncodeToString(b[:]) + ".vmdk")
	for l := d.top; l != nil; l = l.parent {
		if err := l.open(openRead); err != nil {
			return fileFault(l.at.String(), err)
		}
	}
	redo, err := makeDelta(at, d.top)
	if err != nil {
		return fileFault(at.String(), err)
	}
	redo.redo = true
	d.gate.Lock()
	d.top = redo
	d.gate.Unlock()
	return nil
}

// unplug undoes plugIn. Sim.mu is held; no guest I/O is under way.
func (s *Sim) unplug(v *vm, d *vdisk) {
	d.gate.Lock()
	defer d.gate.Unlock()
	if d.top.redo {
		redo := d.top
		d.top = redo.parent
		if err := discard(redo); err != nil {
			s.log.Warn("a redo log was left", "file", redo.at.String(), "err", err)
		}
	}
	for l := d.top; l != nil; l = l.parent {
		if !s.openElsewhere(v, l) {
			if err := l.close(); err != nil {
				s.log.Warn("closing a disk", "file", l.at.String(), "err", err)
			}
		}
	}
}

// openElsewhere: another VM that is on stands on this layer.
func (s *Sim) openElsewhere(v *vm, l *layer) bool {
	for _, other := range s.vms {
		if other == v || !other.holdsDisks() {
			continue
		}
		for _, o := range other.disks {
			for at := o.top; at != nil; at = at.parent {
				if at == l {
					return true
				}
			}
		}
	}
	return false
}

func (v *vm) holdsDisks() bool {
	return v.power == types.VirtualMachinePowerStatePoweredOn || v.starting
}
