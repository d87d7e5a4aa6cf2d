package esxsim

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

// RelocateVMTask [API: RelocateVM_Task] moves a VM's home and disks to other
// datastores, and the VM to another host. While it runs its disks are mirrored
// [ATC'11]; when anything fails it runs on where it was.
func (d *vmCalls) RelocateVMTask(ctx *simulator.Context, req *types.RelocateVM_Task) soap.HasFault {
	v, f := d.s.find(req.This)
	if f != nil {
		return &methods.RelocateVM_TaskBody{Fault_: f}
	}
	spec := req.Spec
	t, f := d.s.startTask(ctx, "RelocateVM_Task", req.This, v, true, func(ctx context.Context, progress func(int)) (any, types.BaseMethodFault) {
		return nil, d.s.relocate(ctx, v, &spec, progress)
	})
	if f != nil {
		return &methods.RelocateVM_TaskBody{Fault_: f}
	}
	return &methods.RelocateVM_TaskBody{Res: &types.RelocateVM_TaskResponse{Returnval: t}}
}

// move is one relocation under way.
type move struct {
	s        *Sim
	v        *vm
	host     *host
	pool     ref
	home     dsPath // the new .vmx; the old one where the home stays
	disks    []*diskMove
	made     map[*layer]*layer // frozen layer → its copy
	total    int64
	done     int64
	progress func(int)
}

type diskMove struct {
	d   *vdisk
	to  *datastore
	top *layer // the copy
}

func (s *Sim) relocate(ctx context.Context, v *vm, spec *types.VirtualMachineRelocateSpec, progress func(int)) types.BaseMethodFault {
	m, f := s.planMove(v, spec)
	if f != nil {
		return f
	}
	m.progress = progress
	if m.home.ds == v.vmx.ds && len(m.disks) == 0 {
		return m.switchHost()
	}
	if err := m.home.ds.vol.change(opMkdir, path.Dir(m.home.path), ""); err != nil {
		return fileFault(m.home.String(), err)
	}
	for _, dm := range m.disks {
		if err := m.copyDisk(ctx, dm); err != nil {
			m.abandon()
			if ctx.Err() != nil {
				return &types.RequestCanceled{}
			}
			return said(&types.SystemError{Reason: err.Error()}, "msg.migrate.disk", "Failed to copy one or more of the virtual machine's disks: %v", err)
		}
	}
	return m.finish()
}

// planMove checks what is asked for and where everything goes.
func (s *Sim) planMove(v *vm, spec *types.VirtualMachineRelocateSpec) (*move, types.BaseMethodFault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := &move{s: s, v: v, host: v.host, pool: v.pool, home: v.vmx, made: map[*layer]*layer{}}
	if spec.Host != nil {
		if m.host = s.hostByRef(*spec.Host); m.host == nil || m.host.gone {
			return nil, &types.InvalidArgument{InvalidProperty: "spec.host"}
		}
	}
	if spec.Pool != nil {
		m.pool = *spec.Pool
	}
	target := func(r *ref, otherwise *datastore) (*datastore, types.BaseMethodFault) {
		if r == nil {
			return otherwise, nil
		}
		d := s.datastores[*r]
		if d == nil {
			return nil, &types.InvalidArgument{InvalidProperty: "spec.datastore"}
		}
		return d, nil
	}
	home, f := target(spec.Datastore, v.vmx.ds)
	if f != nil {
		return nil, f
	}
	if home != v.vmx.ds {
		stem := strings.TrimSuffix(path.Base(v.vmx.path), ".vmx")
		m.home = dsPath{home, path.Join(freeDir(home.vol, stem), stem+".vmx")}
	}
	for _, d := range v.disks {
		to := d.shown().at.ds
		if spec.Datastore != nil {
			to = home
		}
		for _, l := range spec.Disk {
			if l.DiskId == d.key {
				if to, f = target(&l.Datastore, nil); f != nil {
					return nil, f
				}
			}
		}
		if to == d.shown().at.ds {
			continue
		}
		if f := s.movable(v, d); f != nil {
			return nil, f
		}
		m.disks = append(m.disks, &diskMove{d: d, to: to})
		m.total += d.top.size
	}
	for _, d := range v.disks {
		if ds := d.shown().at.ds; ds.nas != nil && m.host.nas[ds] == nil && !slices.ContainsFunc(m.disks, func(dm *diskMove) bool { return dm.d == d }) {
			return nil, said(&types.DisallowedMigrationDeviceAttached{}, "msg.migrate.device", "Hard disk %q is on %s, which host %s does not have.", d.label, ds.name, m.host.name)
		}
	}
	return m, nil
}

func (s *Sim) movable(v *vm, d *vdisk) types.BaseMethodFault {
	switch {
	case d.rdm == "physical" && v.power == poweredOn:
		return &types.NotSupported{}
	case d.top.redo:
		// [KB 1008240]: not while it has a redo log
		return said(&types.InvalidState{}, "msg.migrate.nonpersistent", "A nonpersistent disk cannot be moved while the VM runs.")
	}
	return nil
}

// copyDisk copies a disk's chain: frozen layers as they are, the top with a
// mirror, so that when it ends the copy is complete and stays so.
func (m *move) copyDisk(ctx context.Context, dm *diskMove) error {
	var chain []*layer
	for l := dm.d.top; l != nil; l = l.parent {
		chain = append(chain, l)
	}
	dir := dsPath{dm.to, path.Dir(m.home.path)}
	if m.home.ds != dm.to {
		dir.path = strings.TrimSuffix(path.Base(m.home.path), ".vmx")
		if err := dm.to.vol.change(opMkdir, dir.path, ""); err != nil {
			return err
		}
	}
	var below *layer
	for _, l := range slices.Backward(chain) {
		if c := m.made[l]; c != nil {
			below = c
			continue
		}
		c, err := m.newCopy(l, below, dir)
		if err != nil {
			return err
		}
		m.made[l] = c
		if err := m.fillCopy(ctx, dm.d, l, c); err != nil {
			return err
		}
		below = c
	}
	dm.top = below
	return nil
}

// newCopy makes the files of a layer's copy.
func (m *move) newCopy(l, below *layer, dir dsPath) (*layer, error) {
	stem := strings.TrimSuffix(path.Base(l.at.path), ".vmdk")
	at := freeName(dir, stem)
	if l.delta() {
		return makeDelta(at, below)
	}
	c := &layer{at: at, data: strings.TrimSuffix(at.path, ".vmdk") + "-flat.vmdk", size: l.size, cid: l.cid, track: &tracker{}}
	text, err := readFile(l.at.ds.vol, l.at.path, 1<<20)
	if err != nil {
		return nil, err
	}
	desc, err := disk.ParseDescriptor(text)
	if err != nil {
		return nil, err
	}
	desc.Extents[0].File = path.Base(c.data)
	if text, err = desc.Encode(); err != nil {
		return nil, err
	}
	if err := c.open(openNew); err != nil {
		return nil, err
	}
	if err := c.f.Truncate(c.size); err != nil {
		return nil, err
	}
	return c, writeFile(at.ds.vol, at.path, text)
}

// fillCopy copies a layer's bytes. Of a flat top a mirror is set up first.
func (m *move) fillCopy(ctx context.Context, d *vdisk, l, c *layer) error {
	if l.delta() {
		if l == d.top { // copied at the switch, when the guest waits
			return nil
		}
		return copyLayer(l, c)
	}
	mi := &mirror{to: c.f}
	if l == d.top {
		d.gate.Lock()
		d.mirror = mi
		d.gate.Unlock()
	}
	if _, err := l.handle(); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for mi.done < l.size {
		if err := m.pace(ctx); err != nil {
			return err
		}
		n, err := mi.step(l, buf)
		if err != nil {
			return err
		}
		m.done += n
		if m.progress(int(m.done * 100 / max(m.total, 1))); m.s.failsAt(m.done, m.total) {
			return errors.New("injected: the copy failed in its midst")
		}
	}
	return c.f.Sync()
}

// pace makes a move no faster than the test wants, and ends it when cancelled.
func (m *move) pace(ctx context.Context) error {
	d := time.Duration(m.s.moveDelay.Load())
	if d <= 0 {
		return context.Cause(ctx)
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// SlowMoves makes a relocation pause before every mebibyte; 0 ends it.
func (s *Sim) SlowMoves(pause time.Duration) { s.moveDelay.Store(int64(pause)) }

// FailMoveAt makes relocations fail when they have copied this share (0 to
// 100); < 0 ends it.
func (s *Sim) FailMoveAt(percent int) { s.moveFails.Store(int64(percent)) }

func (s *Sim) failsAt(done, total int64) bool {
	at := s.moveFails.Load()
	return at >= 0 && done*100 >= at*total
}

// step copies the next piece while nobody writes to it. Zeros are not written:
// the copy is a new file, and stays thin.
func (mi *mirror) step(from *layer, buf []byte) (int64, error) {
	mi.mu.Lock()
	defer mi.mu.Unlock()
	if bad := mi.failed(); bad != nil {
		return 0, fmt.Errorf("mirroring a write: %w", bad)
	}
	p := buf[:min(int64(len(buf)), from.size-mi.done)]
	if err := from.read(p, mi.done); err != nil {
		return 0, err
	}
	if !zero(p) {
		if _, err := mi.to.WriteAt(p, mi.done); err != nil {
			return 0, err
		}
	}
	mi.done += int64(len(p))
	return int64(len(p)), nil
}

func zero(p []byte) bool {
	for len(p) >= 8 {
		if p[0]|p[1]|p[2]|p[3]|p[4]|p[5]|p[6]|p[7] != 0 {
			return false
		}
		p = p[8:]
	}
	for _, c := range p {
		if c != 0 {
			return false
		}
	}
	return true
}

// copyLayer copies a delta that nobody writes to.
func copyLayer(from, to *layer) error {
	if err := copyGrains(from, to); err != nil {
		return err
	}
	from.mu.RLock()
	defer from.mu.RUnlock()
	to.mu.Lock()
	defer to.mu.Unlock()
	to.grains = maps.Clone(from.grains)
	return nil
}

// abandon undoes everything: the guest never knew.
func (m *move) abandon() {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	for _, dm := range m.disks {
		dm.d.gate.Lock()
		dm.d.mirror = nil
		dm.d.gate.Unlock()
	}
	for _, c := range m.made {
		_ = c.close()
		_ = c.at.ds.vol.change(opRemove, c.data, "")
		_ = c.at.ds.vol.change(opRemove, c.at.path, "")
	}
	if m.home.ds != m.v.vmx.ds {
		_ = m.home.ds.vol.change(opRemoveAll, path.Dir(m.home.path), "")
	}
}

// MigrateVMTask [API: MigrateVM_Task].
func (d *vmCalls) MigrateVMTask(ctx *simulator.Context, req *types.MigrateVM_Task) soap.HasFault {
	res := d.RelocateVMTask(ctx, &types.RelocateVM_Task{This: req.This, Spec: types.VirtualMachineRelocateSpec{Host: req.Host, Pool: req.Pool}})
	if f := res.Fault(); f != nil {
		return &methods.MigrateVM_TaskBody{Fault_: f}
	}
	return &methods.MigrateVM_TaskBody{Res: &types.MigrateVM_TaskResponse{Returnval: res.(*methods.RelocateVM_TaskBody).Res.Returnval}}
}
