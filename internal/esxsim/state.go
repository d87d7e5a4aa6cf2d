package esxsim

import (
	"cmp"
	"slices"
)

// State is what there is, for tests that nothing was left behind. It is sorted
// and can be compared with cmp.
type State struct {
	VMs []VMState
	// NAS are the NFS datastores by host, "esx1.lab: lifeboat = 10.0.0.1:/x".
	NAS []string
	// Tasks that run now, by method and VM.
	Tasks []string
}

// VMState is one VM.
type VMState struct {
	Name      string
	Power     string
	Host      string
	Home      string // "[datastore1] db/db.vmx"
	Template  bool
	Snapshots []string
	// Disks are the files that disks stand on, with "(independent_…)" where it
	// is not a normal one.
	Disks []string
	// Deltas is how many deltas the disks have under them.
	Deltas            int
	ConsolidateNeeded bool
	CBT               bool
	Question          bool
	Annotation        string
	Extra             map[string]string
}

// State looks at everything at one instant.
func (s *Sim) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	var st State
	for _, v := range s.vms {
		st.VMs = append(st.VMs, v.state())
		if v.busy != nil {
			st.Tasks = append(st.Tasks, v.busy.obj.Info.Name+" "+v.name)
		}
	}
	slices.SortFunc(st.VMs, func(a, b VMState) int { return cmp.Compare(a.Name+a.Home, b.Name+b.Home) })
	for _, h := range s.hosts {
		for d := range h.nas {
			st.NAS = append(st.NAS, h.name+": "+d.name+" = "+d.nas.nfs.remote+":"+d.nas.nfs.path)
		}
	}
	slices.Sort(st.NAS)
	slices.Sort(st.Tasks)
	return st
}

func (v *vm) state() VMState {
	st := VMState{
		Name: v.name, Power: string(v.power), Host: v.host.name, Home: v.vmx.String(), Template: v.template,
		ConsolidateNeeded: v.consolidate, CBT: v.cbt, Question: v.question != nil, Annotation: v.annotation,
	}
	if len(v.extra) > 0 {
		st.Extra = map[string]string{}
		for k, value := range v.extra {
			st.Extra[k] = value
		}
	}
	v.eachSnapshot(func(n *snapshot) { st.Snapshots = append(st.Snapshots, n.name) })
	for _, d := range v.disks {
		name := d.shown().at.String()
		if d.mode != "persistent" {
			name += " (" + d.mode + ")"
		}
		st.Disks = append(st.Disks, name)
		for l := d.shown(); l.delta(); l = l.parent {
			st.Deltas++
		}
	}
	return st
}
