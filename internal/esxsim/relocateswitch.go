package esxsim

import (
	"errors"
	"path"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

// finish switches the disks over and moves the home, while the guest waits.
func (m *move) finish() types.BaseMethodFault {
	s, v := m.s, m.v
	s.mu.Lock()
	defer s.mu.Unlock()
	old, err := m.switchDisks()
	if err != nil {
		return said(&types.SystemError{Reason: err.Error()}, "msg.migrate.switch", "The switch to the copy failed: %v", err)
	}
	was := v.vmx
	s.relinkMoved(v, func() {
		v.vmx, v.host, v.pool = m.home, m.host, m.pool
		v.askMoved = false
	})
	if f := m.moveHome(was); f != nil {
		return f
	}
	for _, l := range old { // from the top down
		if l.users.Load() == 0 && !s.topOfOther(v, l) {
			_ = l.close()
			m.dropSource(l)
			if l.parent != nil {
				l.parent.users.Add(-1)
			}
		}
	}
	if was.ds != m.home.ds {
		m.dropHome(was)
	}
	v.eachSnapshot(func(n *snapshot) {
		s.update(s.reg.Get(n.ref), []types.PropertyChange{{Name: "config", Val: s.snapshotConfig(n)}})
	})
	s.publish(v)
	return nil
}

// switchDisks makes the copies the disks. It returns the layers left behind.
func (m *move) switchDisks() (old []*layer, err error) {
	for _, dm := range m.disks {
		d := dm.d
		d.gate.Lock()
		if d.top.delta() {
			err = copyLayer(d.top, m.made[d.top])
		}
		if d.mirror != nil {
			err = errors.Join(err, d.mirror.failed())
		}
		d.gate.Unlock()
		if err != nil {
			return nil, err
		}
	}
	for _, dm := range m.disks {
		d := dm.d
		d.gate.Lock()
		for l := d.top; l != nil; l = l.parent {
			old = append(old, l)
		}
		d.top, d.mirror = dm.top, nil
		d.track = &tracker{} // a moved disk is not tracked until the next stun [KB 2048201]
		if dm.top.track != nil {
			d.track = dm.top.track
		}
		if m.v.cbt && len(m.v.roots) == 0 && d.snapshotted() {
			d.track.activate()
		}
		for l := dm.top; l != nil; l = l.parent {
			m.s.layers[l.at.String()] = l
		}
		d.gate.Unlock()
	}
	m.v.eachSnapshot(func(n *snapshot) {
		for key, l := range n.layers {
			if c := m.made[l]; c != nil {
				n.layers[key] = c
				n.tracks[key] = frozenTrack{}
			}
		}
	})
	return old, nil
}

// moveHome writes the .vmx where it is now, and brings what else is the VM's.
func (m *move) moveHome(was dsPath) types.BaseMethodFault {
	v := m.v
	if err := v.writeVMX(); err != nil {
		return fileFault(v.vmx.String(), err)
	}
	if was.ds == v.vmx.ds {
		return nil
	}
	for _, name := range []string{v.nvram, "vmware.log"} {
		if name == "" {
			continue
		}
		content, err := readFile(was.ds.vol, was.dir().join(name).path, 16<<20)
		if err != nil {
			continue // it never had one
		}
		if err := writeFile(v.vmx.ds.vol, v.vmx.dir().join(name).path, content); err != nil {
			return fileFault(name, err)
		}
	}
	if v.power != poweredOn {
		return nil
	}
	swap, err := v.vmx.ds.vol.open(strings.TrimSuffix(v.vmx.path, ".vmx")+".vswp", openNew)
	if err == nil {
		err = errors.Join(swap.Truncate(int64(v.memoryMB)<<20), swap.Close())
	}
	if err != nil {
		return fileFault(v.vmx.String(), err)
	}
	return nil
}

// dropSource deletes a layer's files; a host that cannot says so in its log
// and has moved the VM all the same.
func (m *move) dropSource(l *layer) {
	for _, name := range []string{l.data, l.at.path} {
		if err := l.at.ds.vol.change(opRemove, name, ""); err != nil {
			m.s.log.Warn("a moved VM's file was left", "file", name, "err", err)
		}
	}
	delete(m.s.layers, l.at.String())
}

func (m *move) dropHome(was dsPath) {
	stem := strings.TrimSuffix(path.Base(was.path), ".vmx")
	for _, name := range []string{path.Base(was.path), stem + ".vswp", m.v.nvram, "vmware.log"} {
		if name != "" {
			_ = was.ds.vol.change(opRemove, was.dir().join(name).path, "")
		}
	}
	if left, err := was.ds.vol.list(path.Dir(was.path)); err == nil && len(left) == 0 {
		_ = was.ds.vol.change(opRemoveAll, path.Dir(was.path), "")
	}
}

// relinkMoved changes where a VM is with all lists that have it.
func (s *Sim) relinkMoved(v *vm, change func()) {
	drop := func(list []ref) []ref {
		return slices.DeleteFunc(slices.Clone(list), func(r ref) bool { return r == v.ref })
	}
	for ds := range s.datastores {
		s.relist(ds, "vm", drop)
	}
	s.relist(v.host.ref, "vm", drop)
	s.relist(v.pool, "vm", drop)
	change()
	add := func(list []ref) []ref { return append(slices.Clone(list), v.ref) }
	for _, ds := range s.datastoresOf(v) {
		s.relist(ds, "vm", add)
	}
	s.relist(v.host.ref, "vm", add)
	s.relist(v.pool, "vm", add)
}

// switchHost is vMotion alone.
func (m *move) switchHost() types.BaseMethodFault {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	m.s.relinkMoved(m.v, func() { m.v.host, m.v.pool = m.host, m.pool })
	m.s.publish(m.v)
	return nil
}
